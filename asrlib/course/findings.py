"""Findings: one or two plain sentences made from measured values, with direction, interval and number.

A sentence concludes ("better", "faster", "rises") only where the interval allows it. Everywhere else it says what was seen in
these clips and that this leaves both possible. No sign has to be read: each end of an interval is called lower or higher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from asrlib import AsrlibError, uncertainty
from asrlib.course import sentences
from asrlib.course.sentences import Finding
from asrlib.scoring import Difference, Score
from asrlib.uncertainty import Estimate, Ratio

if TYPE_CHECKING:
    from asrlib.translation import Quality

LISTED = 6  # of many differences, the surest are named
SCATTER = 20  # from so many points on, single ones do not stand for a trend's ends
MORE = {
    "time": ("faster", "slower", "takes", "as long as"),
    "memory": ("smaller", "larger", "needs", "as much memory as"),
}


# ----------------------------------------------------------------------------------------------------------- word error rates
def level(score: Score, system: str, on: str) -> Finding:
    """State the WER of one system: "whisper-base has a WER of 3.5 % [1.8, 5.7] on English prompts (96 clips, 656 words)."

    Args:
        score: a mean `asrlib.scoring.over_seeds` is said to be one.
        system: its name.
        on: the speech, in words that follow "on".
    """
    ends = [100 * end for end in score.interval] if score.interval else None
    shown = f" [{sentences.number(ends[0])}, {sentences.number(ends[1])}]" if ends else ""
    counts = [sentences.many(score.utterances, "clip"), sentences.many(score.words, "word")]
    counts += [f"mean of {sentences.many(len(score.runs), 'training')}"] if score.runs else []
    counts += [] if ends else [f"no interval: {score.shortage}"]
    text = f"{sentences.start(system)} has a WER of {sentences.number(100 * score.wer)} %{shown} on {on} ({', '.join(counts)})."
    if score.capped.wer < score.wer:
        capped = sentences.number(100 * score.capped.wer)
        text += f" If no clip may count more errors than it has words, it is {capped} %."
    return Finding(text, "level", sentences.plain(100 * score.wer, ends, "%", score.utterances, "clips"))


def paired(difference: Difference, first: str, second: str, *, margin: float | None = None, of: str = "WER") -> Finding:
    """Say which of two systems is better on the same clips, or that this is not shown.

    Args:
        difference: WER of the first minus that of the second, from `asrlib.scoring.compare`.
        first, second: names of the systems.
        margin: the largest difference that does not matter, as a fraction (0.01 is one point): then "equal within 1 point" can
            be shown too.
        of: what differs; of those in `sentences.HIGHER` more is better.

    Raises:
        AsrlibError: a margin that is not above 0.
    """
    equal = margin is not None and difference.equivalent(margin)
    limit = "" if margin is None else f"{100 * margin:g} point{'' if f'{100 * margin:g}' == '1' else 's'}"
    seen = f"the {of} of {first} is {sentences.points(difference.delta)}"
    if difference.interval is None:
        text = f"No conclusion about {first} and {second}: {seen} in these clips, without an interval ({difference.shortage};"
        return Finding(f"{text} {sentences.behind(difference, of)}).", "paired", sentences.of_difference(difference))
    if difference.significant:
        text = f"{sentences.start(first)} is {sentences.better(difference, of)} than {second}" + (
            f", by less than {limit}" if equal else ""
        )
        text += f": its {of} is {sentences.points(difference.delta)} [{sentences.range_of_points(difference)}]"
    else:
        text = f"No difference is shown between {first} and {second}"
        if equal:
            text = f"{sentences.start(first)} and {second} are equal within {limit}"
        elif limit:
            text += f", nor that they are equal within {limit}"
        seen += f", {'and' if equal else 'but'} the interval reaches from {sentences.range_of_points(difference)}"
        alike = "their errors are the same" if of == "WER" else f"the {of} is the same"
        text += f": {alike}" if difference.interval == (0, 0) else f": {seen}"
    return Finding(f"{text} ({sentences.behind(difference, of)}).", "paired", sentences.of_difference(difference))


def contrast(difference: Difference, first: str, second: str, *, of: str = "WER") -> Finding:
    """Say how two WERs that count different words lie to each other: two normalisers, two corpora.

    Args:
        difference: from `asrlib.scoring.contrast`, first minus second.
        first: under what the first was measured, in words that follow "the WER": "with a normaliser", "on telephone prompts".
        second: the same for the second.
        of: what differs.
    """
    gap = sentences.points(difference.delta)
    text = f"The {of} {first} is {gap} {'as' if gap == 'the same' else 'than'} {second}"
    if difference.interval is None:
        text += f", without an interval: {difference.shortage}"
    elif difference.significant:
        text += f" [{sentences.range_of_points(difference)}]"
    elif difference.interval != (0, 0):
        text += f", but the interval reaches from {sentences.range_of_points(difference)}, so no difference is shown"
    return Finding(f"{text} ({sentences.behind(difference, of)}).", "contrast", sentences.of_difference(difference))


def quality(found: Quality, system: str, on: str) -> Finding:
    """State the BLEU or chrF of a translating system: "greedy search has a chrF of 41.5 [36.0, 47.2] on Dutch (40 clips, 390 words)."

    Args:
        found: from `asrlib.translation.score`.
        system: its name.
        on: the speech, in words that follow "on".
    """
    shown = " [{}, {}]".format(*map(sentences.number, found.interval)) if found.interval else ""
    counts = [sentences.many(found.utterances, "clip"), sentences.many(found.words, "word")]
    counts += [] if found.interval else [f"no interval: {found.shortage}"]
    text = f"{sentences.start(system)} has a {found.metric} of {sentences.number(found.value)}{shown} on {on} ({', '.join(counts)})."
    return Finding(text, "quality", sentences.plain(found.value, found.interval, "points", found.utterances, "clips"))


def calibration(stated: Sequence[float], right: Sequence[bool], system: str) -> Finding:
    """Say whether a system is over- or underconfident: the mean of its stated probabilities less the share of right answers.

    Args:
        stated: the probability of each answer, one a clip.
        right: whether the answer is right.
        system: its name.

    Raises:
        AsrlibError: no clip, or as many probabilities as answers are not given.
    """
    if not len(stated) or len(stated) != len(right):
        raise AsrlibError(f"{len(stated)} probabilities and {len(right)} answers tell nothing: give both of each clip.")
    gaps, n = np.asarray(stated, dtype=float) - np.asarray(right, dtype=float), len(stated)
    few, gap, ends = uncertainty.shortage(n, "clip"), float(gaps.mean()), None
    if not few:
        drawn = uncertainty.bootstrap(gaps, np.ones(n), blocks=range(n))
        ends = uncertainty.interval(drawn, n)
    found = Difference(gap, ends, None, few, n, 0)
    seen = f"it states {sentences.number(100 * np.mean(stated))} % on average, and {sentences.number(100 * np.mean(right))} % of its answers are right"
    if few:
        text = f"No conclusion about the confidence of {system}: {seen} ({few})."
    elif found.significant:
        word = "overconfident" if gap > 0 else "underconfident"
        text = f"{sentences.start(system)} is {word}: {seen}, a mean probability {sentences.points(gap)} [{sentences.range_of_points(found)}] ({sentences.behind(found)})."
    else:
        text = f"No over- or underconfidence of {system} is shown: {seen}, but the interval of the difference reaches from "
        text += f"{sentences.range_of_points(found)} ({sentences.behind(found)})."
    return Finding(text, "calibration", sentences.of_difference(found))


def table(differences: Mapping[str, Difference], reference: str) -> Finding:
    """Say which of many comparisons with one reference hold together (Holm 1979), and how many would differ by chance.

    Args:
        differences: by the system's name, its WER minus that of the ``reference``.

    Raises:
        AsrlibError: no comparison.
    """
    if not differences:
        raise AsrlibError(f"There is no comparison with {reference}: give one difference at least.")
    tested = {name: found.p_value for name, found in differences.items() if found.p_value is not None}
    adjusted = uncertainty.holm(tested)
    kept = [name for name, p in adjusted.items() if p <= 1 - uncertainty.CONFIDENCE]
    alone = [name for name, found in differences.items() if found.significant and name not in kept]
    numbers = [
        {"system": name, "p_value": found.p_value, "p_holm": adjusted.get(name), **sentences.of_difference(found)}
        for name, found in differences.items()
    ]
    chance = len(tested) * (1 - uncertainty.CONFIDENCE)
    summary = {"reference": reference, "remain": kept, "by_chance": chance, "comparisons": numbers}
    without = len(differences) - len(tested)
    lacking = (
        f" {sentences.many(without, 'comparison')} {'has' if without == 1 else 'have'} no interval." if without else ""
    )
    if not tested:
        return Finding(f"No conclusion about systems compared with {reference}:{lacking}", "table", summary)
    if len(tested) == 1:
        text = f"The one comparison with {reference} shows {'a difference' if kept else 'no difference'}"
    else:
        text = f"Of {len(tested)} comparisons with {reference}, {len(kept) or 'none'} {'shows' if len(kept) == 1 else 'show'}"
        text += " a difference that holds beside the others (Holm's correction)"
    described = {
        name: f"{name} is {sentences.better(differences[name])} (WER {sentences.points(differences[name].delta)})"
        for name in kept + alone
    }
    held = [described[name] for name in kept[:LISTED]] + ([f"{len(kept) - LISTED} more"] if len(kept) > LISTED else [])
    text += f": {'; '.join(held)}." if held else "."
    if alone:
        text += f" Judged alone, {'this differs' if len(alone) == 1 else 'these differ'} too: {'; '.join(described[name] for name in alone)}."
    if len(tested) > 1:
        text += f" Of {len(tested)} equal systems, {sentences.number(chance, 2)} on average would seem to differ, by chance alone."
    return Finding(text + lacking, "table", summary)


# -------------------------------------------------------------------------------------------------- ratios, trends, and counts
def ratio(found: Ratio, first: str, second: str, *, of: str = "time", unit: str = "s") -> Finding:
    """Say which of two systems, measured in turn, is faster or needs less memory.

    Args:
        found: from `asrlib.uncertainty.paired_ratio`, first over second.
        first, second: names of the systems.
        of: what was measured: ``time`` or ``memory``.
        unit: of the measured values.
    """
    less, more, takes, than = MORE[of]
    medians = "median {} against {}".format(*(f"{sentences.figure(value)} {unit}" for value in found.medians))
    behind = f"{sentences.many(found.rounds, 'round')} in turn, {medians}"
    seen = f"{first} {takes} {sentences.times(found.value)} {than} {second}"
    if found.interval is None:
        text = f"No conclusion about {first} and {second}: {seen}, without an interval ({found.shortage}; {medians})."
    elif not found.significant:
        text = f"No difference is shown between {first} and {second}: {seen}, but the interval reaches from"
        text += f" {sentences.range_of_times(found.interval)} ({behind})."
    else:
        ends, said = found.interval, f"it {takes} {sentences.times(found.value)} {than.removesuffix(' as')}"
        if of == "time" and found.value < 1:
            ends, said = (1 / ends[1], 1 / ends[0]), f"it is {sentences.times(1 / found.value)} as fast"
        text = f"{sentences.start(first)} is {less if found.value < 1 else more} than {second}: {said} [{sentences.range_of_times(ends)}] ({behind})."
    return Finding(text, "ratio", sentences.plain(found.value, found.interval, "times", found.rounds, "rounds"))


def amount(found: Estimate, of: str, *, unit: str, each: str) -> Finding:
    """State a quantity: "The median error of attention is 31.0 ms [22.5, 40.0] (10 recordings)."

    Args:
        found: from `asrlib.uncertainty.estimate`.
        of: the quantity, such as ``"the median error of attention"``.
        unit: of it, such as ``"ms"``.
        each: a block, in the singular, such as ``"recording"``.
    """
    numbers = sentences.plain(found.value, found.interval, unit, found.units, f"{each}s")
    if not found.units:
        return Finding(f"No conclusion about {of}: there is no {each}.", "amount", numbers | {"value": None})
    ends = "[{}, {}] ".format(*map(sentences.number, found.interval)) if found.interval else ""
    behind = sentences.many(found.units, each) + (
        "" if found.interval else f", no interval: {uncertainty.shortage(found.units, each)}"
    )
    return Finding(
        f"{sentences.capital(of)} is {sentences.number(found.value)} {unit} {ends}({behind}).", "amount", numbers
    )


def gap(found: Estimate, first: str, second: str, *, of: str, unit: str, each: str) -> Finding:
    """Say how a quantity of one system lies to that of another, or that no difference is shown.

    Args:
        found: the first's minus the second's, from `asrlib.uncertainty.estimate`.
        first, second: names of the systems.
        of: the quantity, such as ``"the median error"``.
        unit, each: as for `amount`.
    """
    numbers = sentences.plain(found.value, found.interval, unit, found.units, f"{each}s")

    def apart(by: float) -> str:
        return f"{sentences.number(abs(by))} {unit} {'lower' if by < 0 else 'higher'}" if by else "the same"

    behind, pair = f"({sentences.many(found.units, each)})", f"{first} and {second}"
    if not found.units:
        return Finding(f"No conclusion about {pair}: there is no {each}.", "gap", numbers | {"value": None})
    seen = f"{of} of {first} is {apart(found.value)}"
    if found.interval is None:
        text = f"No conclusion about {pair}: {seen}, without an interval ({uncertainty.shortage(found.units, each)})."
    elif found.interval[0] <= 0 <= found.interval[1]:
        ends = " to ".join(map(apart, found.interval)).replace("the same", "no difference")
        text = f"No difference is shown between {pair}: {seen}, but the interval reaches from {ends} {behind}."
    else:
        near, far = sorted(found.interval, key=abs)
        text = (
            f"{sentences.capital(seen)} than that of {second} [{sentences.number(abs(near))} to {apart(far)}] {behind}."
        )
    return Finding(text, "gap", numbers)


def choice(speeds: Mapping[str, tuple[float, float]], of: str, than: str) -> Finding:
    """Name the fastest of several systems, those that are not told apart from it, and the simplest among these.

    What lies below the reference is no tie, however wide its interval: it costs more, and gains nothing.

    Args:
        speeds: by system, simplest first, the interval of its speed, in times of one reference.
        of: the systems, in words that follow "Of": "the runtimes whose words are not shown to be worse".
        than: the reference, in words that follow "as fast as".
    """
    if not speeds:
        return Finding(f"No conclusion about {of}: no speed has an interval.", "choice", {"ties": [], "n": 0})
    best = max(speeds, key=lambda name: sum(speeds[name]))
    gains = [name for name in speeds if name in (best, than) or sum(speeds[name]) > 2]
    ties = [name for name in gains if speeds[name][1] >= speeds[best][0]]
    text = f"Of {of}, {best} is the fastest"
    text += f", {sentences.range_of_times(speeds[best])} as fast as {than}" if best != than else ""
    if others := [name for name in ties if name != best]:
        text += f"; {', '.join(others)} {'is' if len(others) == 1 else 'are'} not told apart from it"
        text += f"; the simplest of these {len(ties)} is {ties[0]}"
    return Finding(f"{text}.", "choice", {"fastest": best, "ties": ties, "simplest": ties[0], "n": len(speeds)})


def size(first_value: float, second_value: float, first: str, second: str, *, unit: str = "MB") -> Finding:
    """Compare two exact sizes, such as bytes of weights or numbers of parameters; what is counted has no interval.

    Raises:
        AsrlibError: a size that is not above 0.
    """
    if not (0 < first_value < math.inf and 0 < second_value < math.inf):
        raise AsrlibError(f"{first_value} and {second_value} {unit} cannot be compared: give two sizes above 0.")
    value = first_value / second_value
    shown = f"{sentences.figure(first_value)} {unit} against {sentences.figure(second_value)} {unit}"
    text = f"{sentences.start(first)} and {second} are of the same size: {shown}."
    if first_value != second_value:
        word = "smaller" if value < 1 else "larger"
        text = f"{sentences.start(first)} is {word} than {second}: {shown}, {sentences.times(value)} the size."
    return Finding(text, "size", sentences.plain(value, None, "times", None, None))


def pays_back(cost: float, found: Ratio, way: str, *, of: str = "clip") -> Finding:
    """Say after how many clips a cost in seconds that is paid once is earned back, or that nothing is shown to earn it back.

    Args:
        cost: seconds, above 0.
        found: from `asrlib.uncertainty.paired_ratio`: seconds for one clip with the cost paid, over those without it.
        way: what is paid for: ``"compiling"``.
        of: what the seconds are for, in the singular.
    """
    text, value, interval = f"{sentences.capital(way)} takes {sentences.figure(cost)} s", None, None
    if not (found.significant and found.value < 1):
        text += ", and no gain is shown that would pay it back."
    else:
        saved = [found.medians[1] * (1 - ratio) for ratio in (found.value, *found.interval)]
        value, *interval = (cost / seconds for seconds in saved)
        counts = " to ".join(f"{end:,.0f}" for end in interval)
        text += f" and saves {sentences.figure(saved[0])} s a {of}: it pays back after {sentences.many(round(value), of)} [{counts}]."
    return Finding(text, "pays_back", sentences.plain(value, interval, f"{of}s", found.rounds, "rounds"))


def trend(
    x: Sequence[float], y: Sequence[float], of: str, over: str, *, x_unit: str = "", y_unit: str = "%"
) -> Finding:
    """Say whether a curve rises, falls, or shows no trend; by Spearman's correlation, and under ten points by no conclusion.

    Args:
        x, y: places of the points, and values there.
        of: name of the value, such as ``"the WER"``.
        over: name of what x is, such as ``"the number of training clips"``.
        x_unit, y_unit: such as ``"clips"``, if any.

    Raises:
        AsrlibError: fewer than two points, x and y of different length, or a value that is not finite.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or len(x) < 2 or not np.isfinite([x, y]).all():
        raise AsrlibError(
            f"{len(x)} places and {len(y)} values are no curve: give two points or more, with finite values."
        )
    order, some = np.argsort(x, kind="stable"), len(x) // 4 if len(x) >= SCATTER else 1
    sides = order[:some], order[-some:]
    tied = np.median(y[sides[0]]) == np.median(y[sides[1]])  # of values that are mostly 0, say
    middle, said = (np.mean, "means") if tied else (np.median, "medians")
    ends = [f"{sentences.figure(middle(y[side]))} {y_unit}".strip() for side in sides]
    places = [f"{middle(x[side]):,.6g} {x_unit}".strip() for side in sides]
    seen = f"from {ends[0]} (at {places[0]}) to {ends[1]} (at {places[1]})"
    seen += f", {said} of the lowest and the highest quarter" if some > 1 else ""
    few, value, interval = uncertainty.shortage(len(x), "point"), None, None
    if few:
        text = f"No conclusion about a trend of {of}: {seen} ({few})."
    elif np.ptp(x) == 0 or np.ptp(y) == 0:
        text = f"No trend of {of} is shown: all values are the same ({len(x)} points)."
    else:
        value, interval = uncertainty.spearman(x, y)
        low, high = interval
        measured = f"Spearman's rank correlation {value:.2f} [{low:.2f}, {high:.2f}], {len(x)} points"
        text = f"No trend of {of} with {over} is shown: {seen} ({measured}, which leaves both directions possible)."
        if low > 0 or high < 0:
            text = f"{sentences.capital(of)} {'rises' if low > 0 else 'falls'} with {over}: {seen} ({measured})."
    return Finding(text, "trend", sentences.plain(value, interval, "rank correlation", len(x), "points"))


def count(hits: int, n: int, what: str, *, of: str = "clip", sampled: bool = True) -> Finding:
    """Say how many: "Language named correctly: 91 of 96 clips, 94.8 % [88.4, 97.8]." The interval is Wilson's.

    Args:
        hits, n: of so many independent trials; without any, nothing is concluded.
        what: what was counted.
        of: one trial, in the singular; its plural is made with s.
        sampled: False where these are all that there are, as the layers of a model: then there is no interval.

    Raises:
        AsrlibError: more hits than trials.
    """
    if not n:
        nothing = sentences.plain(None, None, "%", 0, f"{of}s")
        return Finding(f"No conclusion about {what}: there is no {of}.", "count", nothing)
    ends = [100 * end for end in uncertainty.wilson(hits, n)] if sampled else None
    share = 100 * hits / n
    shown = " [{}, {}]".format(*map(sentences.number, ends)) if ends else ""
    text = f"{sentences.capital(what)}: {hits:,} of {sentences.many(n, of)}, {sentences.number(share)} %{shown}."
    return Finding(text, "count", sentences.plain(share, ends, "%", n, f"{of}s"))
