"""Published claims and their verdicts, computed from records by rule and never typed.

``data/claims.yaml`` names for each claim what was published, where, the record metric that can check it (a published value may
name its own, with its own scale), and one of the rules of `asrlib.course.rules`.
"""

from __future__ import annotations

import copy
import functools
import html
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.course import rules
from asrlib.course.rules import Part, Verdict
from asrlib.io import files


# ------------------------------------------------------------------------------------------------------------------- load
def load(path: Path | str | None = None) -> list[dict[str, Any]]:
    """Read the claims, by default those of the course, and check them against ``data/claims.schema.json``.

    Raises:
        AsrlibError: not YAML, a claim that breaks the schema, or an id that occurs twice.
    """
    path = path or files.data_file("claims.yaml")
    try:
        return copy.deepcopy(_checked(Path(path).read_text(encoding="utf-8"), str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise AsrlibError(f"{path} cannot be read as text ({error}): correct it.") from None


@functools.lru_cache(maxsize=4)
def _checked(text: str, path: str) -> list[dict[str, Any]]:
    """Return the claims of a file with this text; parsing the course's takes time, and pages and tests ask for them often."""
    import yaml

    try:
        claims = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C where PyYAML was built with it
    except (RecursionError, yaml.YAMLError) as error:
        raise AsrlibError(f"{path} is not valid YAML ({getattr(error, 'problem_mark', error)}): correct it.") from None
    files.check_schema(claims, files.data_file("claims.schema.json"), path)
    twice = [name for name, n in Counter(claim["id"] for claim in claims).items() if n > 1]
    if twice:
        raise AsrlibError(f"{path} has {', '.join(twice)} twice: give each claim an id of its own.")
    return claims


# ------------------------------------------------------------------------------------------------------------------ judge
def judge(claims: Iterable[Mapping[str, Any]], records: Iterable[Mapping[str, Any]]) -> list[Verdict]:
    """Return the verdict of each claim in the light of the contents of ``record.json`` files, at most one a notebook.

    Raises:
        AsrlibError: evidence that fits several values of a record, or a wrong arithmetic expression.
    """
    by_notebook = {record["run"]["notebook"]: record for record in records}
    return [_judge(claim, by_notebook) for claim in claims]


def _judge(claim: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> Verdict:
    parts = tuple(_part(claim, item, records) for item in claim["published"])
    verdict, why = rules.RULES[claim["rule"]["kind"]](claim, parts)
    topic = rules.topic(claim)
    if (topic, verdict) == (rules.SPEED, rules.HOLDS):
        verdict, why = rules.DIRECTION, f"{why} Of another machine, so only the direction counts."
    texts = {key: claim[key] for key in ("id", "method", "statement", "source")}
    told = {"verdict": verdict, "why": " ".join(filter(None, (why, claim.get("note", ""))))}
    return Verdict(**texts, **told, rule=claim["rule"]["kind"], topic=topic, command=command(claim), parts=parts)


def command(claim: Mapping[str, Any]) -> str:
    """Return the command whose record can decide a claim, empty where no chapter measures it.

    It is ``run`` of the claim, the arguments of ``asrlib run``, or else the reference profile of the chapter that measures it.
    """
    if rules.topic(claim) in (rules.ARITHMETIC, rules.UNMEASURED):
        return ""
    return f"asrlib run {claim.get('run', claim['evidence']['notebook'][:2])}"


def _part(claim: Mapping[str, Any], item: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> Part:
    """Return a published number with the value that our record has for it; its own metric and scale come first."""
    bare = Part(item["name"], item["value"], item.get("unit", ""))
    evidence = claim.get("evidence")
    if evidence is None or evidence["notebook"] not in records:
        return bare
    where = evidence.get("where", {}) | item.get("where", {})
    metric = item.get("metric", evidence["metric"])
    found = find(claim["id"], records[evidence["notebook"]], metric, where, evidence.get("against"))
    if found is None:
        return bare
    scale = item.get("scale", evidence.get("scale", 1))
    interval = tuple(sorted(end * scale for end in found["interval"])) if found["interval"] else None  # scale may be -1
    return Part(bare.name, bare.published, bare.unit, found["value"] * scale, interval, found.get("utterances"))


def find(
    asker: str,
    record: Mapping[str, Any],
    metric: str,
    where: Mapping[str, Any],
    against: Mapping[str, Any] | None = None,
) -> Mapping[str, Any] | None:
    """Return the metric of this name with all the wanted labels; of several, the plainest: the one with fewest others.

    Args:
        asker: the claim or table that asks, for the message.
        record: content of a ``record.json``.
        metric: its name.
        where: labels that it must have.
        against: labels that differ in the system it is compared with: then the ratio to that one's value is returned.

    Raises:
        AsrlibError: several values fit equally well.
    """
    if against:
        above, below = find(asker, record, metric, where), find(asker, record, metric, where | against)
        return _ratio(above, below) if above and below and below["value"] else None
    found = [item for item in record["metrics"] if item["name"] == metric and where.items() <= item["labels"].items()]
    found.sort(key=lambda item: len(item["labels"]))
    if len(found) > 1 and len(found[0]["labels"]) == len(found[1]["labels"]):
        named = ", ".join(f"{key} {value}" for key, value in where.items())
        raise AsrlibError(f"{asker} fits several values of {metric} ({named}): add a label to it.")
    return found[0] if found else None


def _ratio(above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ratio with the widest interval that the intervals of its terms allow."""
    interval = None
    if above["interval"] and below["interval"] and below["interval"][0] > 0:
        (low, high), (least, most) = above["interval"], below["interval"]
        interval = (low / most, high / least)
    return {"value": above["value"] / below["value"], "interval": interval, "utterances": above.get("utterances")}


# ------------------------------------------------------------------------------------------------------------------- show
def count(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return how many claims got each verdict, most first; all that were not run count as one kind."""
    return dict(Counter(kind(item) for item in verdicts).most_common())


def kind(verdict: Verdict) -> str:
    """Return the verdict without what a run would need."""
    return "not run" if verdict.verdict.startswith("not run") else verdict.verdict


def by_topic(verdicts: Iterable[Verdict]) -> dict[str, Counter[str]]:
    """Return the counts of verdicts for each of `asrlib.course.rules.TOPICS`; arithmetic holds or does not hold like the others."""
    plain = {"arithmetic holds": rules.HOLDS, "arithmetic fails": rules.FAILS}
    counts: dict[str, Counter[str]] = {topic: Counter() for topic in rules.TOPICS}
    for item in verdicts:
        counts[item.topic][plain.get(kind(item), kind(item))] += 1
    return counts


class Table:
    """Verdicts for a notebook's last section: a line a claim on words, speed or memory that was judged, and the rest folded.

    What can be counted without a model at work (sizes, arithmetic) and what was not run are folded below, with the reasons.
    """

    def __init__(self, verdicts: Iterable[Verdict]) -> None:
        self.verdicts = list(verdicts)

    def __repr__(self) -> str:
        return "\n".join(f"{item.id}: {item.verdict}" for item in self.verdicts)

    def _repr_html_(self) -> str:
        judged = [item for item in self.verdicts if kind(item) != "not run"]
        waiting = [item for item in self.verdicts if kind(item) == "not run"]
        measured = [item for item in judged if item.topic in (rules.WORDS, rules.SPEED)]
        counted = [item for item in judged if item not in measured]
        lacking = [(f"{i.id}. {i.statement}", i.verdict, f"{i.command}." if i.command else "") for i in waiting]
        return (
            f"<p><b>Published claims</b>: {len(judged)} of {len(self.verdicts)} could be judged here, {len(measured)} of them on "
            f"words, speed or memory.</p>"
            + (_lines(measured) if measured else "")
            + (_details("Sizes and arithmetic", _lines(counted)) if counted else "")
            + _folded("What each claim says, and why the verdict", [(f"{i.id}. {i.statement}", i.why) for i in judged])
            + _folded("Not run here, what each needs, and the command that decides it", lacking)
        )


def _lines(verdicts: Iterable[Verdict]) -> str:
    left = ' style="text-align: left"'
    head = "".join(f"<th{left}>{word}</th>" for word in ("claim", "published", "here", "verdict"))
    rows = ((item.id, item.published, _here(item), item.verdict) for item in verdicts)
    body = "".join(f"<tr>{''.join(f'<td{left}>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _here(verdict: Verdict) -> str:
    """Return our values, with interval and number of clips where there are any."""
    interval = f" [{verdict.interval}]" if verdict.interval else ""
    return verdict.ours + interval + (f", n = {verdict.n}" if verdict.n else "")


def _folded(title: str, items: Iterable[tuple[str, ...]]) -> str:
    shown = "".join(f"<li>{html.escape(' '.join(filter(None, item)))}</li>" for item in items)
    return _details(title, f"<ul>{shown}</ul>") if shown else ""


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def markdown(verdicts: Iterable[Verdict]) -> str:
    """Return a table: claim, published, here with interval and number of clips, verdict, why they may differ."""
    lines = ["| claim | published | here | 95 % interval | clips | verdict | why |", "|---|---|---|---|---|---|---|"]
    for item in verdicts:
        measured = (item.published, *(text or "-" for text in (item.ours, item.interval, item.n)))
        cells = (f"[{item.id}]({item.source}) {item.statement}", *measured, f"**{item.verdict}**", item.why)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
