"""Diagrams of what happens to sound and to text: prompts, windows, word times, a data set, a cache, the choice of a path."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from asrlib import figures
from asrlib.course.drawing import arrow, box, canvas


def prompt(language: str) -> None:
    """Show the tokens before a text: where the language is told or predicted, and what the task decides (Radford et al. 2022).

    Args:
        language: code of the spoken language.
    """
    axes = canvas(7.4, 2.3)
    tokens = ["<|startoftranscript|>", f"<|{language}|>", "<|translate|>", "<|notimestamps|>", "text ..."]
    colors = [figures.GREY, figures.BLUE, figures.ORANGE, figures.GREY, figures.GREY]
    places, widths = (0.85, 2.5, 3.95, 5.55, 6.95), (1.7, 1.1, 1.3, 1.5, 0.8)
    for x, width, token, color in zip(places, widths, tokens, colors, strict=True):
        box(axes, (x, 1.35), token, size=(width, 0.45), color=color)
    for (left, width), (right, next_width) in itertools.pairwise(zip(places, widths, strict=True)):
        arrow(axes, (left + width / 2, 1.35), (right - next_width / 2, 1.35))
    arrow(axes, (0.85, 1.6), (2.5, 1.6), curve=-0.45, color=figures.BLUE)
    axes.text(
        1.65,
        2.05,
        "left out: the decoder predicts it,\none probability for each of 99 languages",
        fontsize=7,
        ha="center",
    )
    axes.text(
        3.95, 0.95, "or <|transcribe|>:\nthe spoken language,\nin place of English", fontsize=7, ha="center", va="top"
    )
    axes.text(5.55, 0.95, "left out: times\nare written too", fontsize=7, ha="center", va="top")
    axes.text(0.85, 0.95, "always first", fontsize=7, ha="center", va="top")
    axes.text(2.5, 0.95, "given, if it is known", fontsize=7, ha="center", va="top")
    figures.show(
        axes.figure,
        f"Diagram of the prompt: the start token, the language token {language}, the task token translate or transcribe, the token "
        "for no timestamps, and then the text. Behind the start token the decoder can predict the language itself.",
    )


def word_times() -> None:
    """Show two ways to time a known text: attention with dynamic time warping, and forced alignment."""
    axes = canvas(7.4, 2.9)
    box(axes, (0.7, 2.35), "sound", size=(1.0, 0.5))
    box(axes, (0.7, 0.6), "known text", size=(1.0, 0.5))
    box(axes, (2.35, 2.35), "Whisper's decoder\nreads the text", size=(1.4, 0.6), color=figures.BLUE)
    box(axes, (2.35, 0.6), "acoustic model of\nthe text's sounds", size=(1.4, 0.6), color=figures.ORANGE)
    box(axes, (4.3, 2.35), "cross-attention:\ntokens x 20 ms", size=(1.4, 0.6), color=figures.BLUE)
    box(axes, (4.3, 0.6), "probabilities:\nsounds x 10 ms", size=(1.4, 0.6), color=figures.ORANGE)
    box(axes, (6.45, 2.35), "time warping:\na row for each token", size=(1.6, 0.6), color=figures.BLUE)
    box(axes, (6.45, 0.6), "Viterbi: a row for each\nsound, and for silence", size=(1.6, 0.6), color=figures.ORANGE)
    box(axes, (6.45, 1.47), "start and end\nof each word", size=(1.4, 0.5))
    for start, end in (
        ((1.2, 2.35), (1.65, 2.35)),
        ((1.2, 0.6), (1.65, 0.6)),
        ((1.1, 2.1), (1.75, 0.9)),
        ((1.1, 0.85), (1.75, 2.05)),
    ):
        arrow(axes, start, end)
    for height in (2.35, 0.6):
        arrow(axes, (3.05, height), (3.6, height))
        arrow(axes, (5.0, height), (5.65, height))
    arrow(axes, (6.45, 2.05), (6.45, 1.72))
    arrow(axes, (6.45, 0.9), (6.45, 1.22))
    axes.text(0.2, 2.78, "attention", fontsize=8, color=figures.BLUE)
    axes.text(0.2, 0.08, "forced alignment", fontsize=8, color=figures.ORANGE)
    figures.show(
        axes.figure,
        "Diagram of two ways from sound and a known text to the start and end of each word. Attention: Whisper's decoder reads the "
        "text, its cross-attention is a grid of tokens and steps of 20 ms, and time warping finds a path with a row for each token. "
        "Forced alignment: an acoustic model gives probabilities of sounds or letters, and the Viterbi algorithm finds a path with "
        "a row for each sound and for silence.",
    )


def filled_windows(seconds: Sequence[float], window: float, merged: Sequence[float]) -> None:
    """Show what an encoder reads of some clips: one by one, in a batch, and with the silence behind them merged.

    Args:
        seconds: of each clip, four at most.
        window: seconds that the encoder reads of each.
        merged: seconds of the window whose positions are left when silence is merged, for each clip.
    """
    from matplotlib.patches import Rectangle

    axes, long = canvas(7.4, 2.3), 1.9

    def row(left: float, height: float, spoken: float, read: float) -> None:
        for length, color in ((read, figures.GREY), (spoken, figures.BLUE)):
            corner, style = (left, height - 0.11), {"facecolor": f"{color}22", "edgecolor": color}
            axes.add_patch(Rectangle(corner, long * length / window, 0.22, **style))

    times = len(seconds)
    titles = (f"one by one: {times} passes", "a batch: one pass", "merged silence: one pass, less to do")
    for left, title in zip((0.1, 2.7, 5.2), titles, strict=True):
        axes.text(left, 2.05, title, fontsize=8)
        alone, short = title == titles[0], title == titles[2]
        for place, (spoken, kept) in enumerate(zip(seconds, merged, strict=True)):
            height = 1.7 - (0.36 if alone else 0.24) * place
            row(left, height, spoken, kept if short else window)
            if alone:
                arrow(axes, (left + long, height), (left + long + 0.3, height))
        if not alone:
            right, middle = left + long * (max(merged) if short else window) / window, 1.7 - 0.12 * (times - 1)
            arrow(axes, (right, middle), (right + 0.3, middle))
    says = f"blue: speech; grey: the silence that fills a window of {window:g} s; arrow: a pass through the encoder"
    axes.text(0.1, 0.15, says, fontsize=8)
    figures.show(
        axes.figure,
        f"Diagram of {len(seconds)} clips of {min(seconds):.1f} to {max(seconds):.1f} s. One by one, each is filled up with silence to a "
        f"window of {window:g} s and encoded alone. In a batch the same windows are encoded together. With merged silence each row is "
        f"cut to what {min(merged):.1f} to {max(merged):.1f} s of a window take.",
    )


def data_set() -> None:
    """Show the way from a recording to the splits of a data set, and back by a person who corrects."""
    axes = canvas(7.4, 2.3)
    steps = (
        ("recording\nm4a, webm, mp4", figures.GREY),
        ("voice\nno pauses", figures.GREY),
        ("pieces\n2 to 30 s", figures.GREY),
        ("labels\nby a model", figures.BLUE),
        ("filter\ndoubtful: out", figures.ORANGE),
    )
    for place, (text, color) in enumerate(steps):
        box(axes, (0.62 + 1.3 * place, 1.7), text, size=(1.1, 0.55), color=color)
        arrow(axes, (1.17 + 1.3 * place, 1.7), (1.37 + 1.3 * place, 1.7))
    for place, split in enumerate(("train", "validation", "test")):
        box(axes, (6.99, 2.05 - 0.35 * place), split, size=(0.78, 0.3))
    box(axes, (4.52, 0.45), "listen and correct\nthe test first", size=(1.5, 0.55), color=figures.ORANGE)
    box(axes, (2.0, 0.45), "metadata.csv\nwhat was corrected stays", size=(1.9, 0.55))
    arrow(axes, (6.99, 1.15), (5.3, 0.45), curve=-0.25)
    arrow(axes, (3.75, 0.45), (2.97, 0.45))
    axes.text(6.4, 0.55, "whole recordings", fontsize=7)
    figures.show(
        axes.figure,
        "Diagram of a data set: of a recording the voice is found, cut into pieces of 2 to 30 seconds, labelled by a model, and "
        "doubtful labels are dropped. Whole recordings go to train, validation or test. A person listens and corrects, the test "
        "first, and metadata.csv keeps what was corrected when recordings are added.",
    )


def paths() -> None:
    """Show the questions that lead to a path, from a checkpoint as it is to collecting speech."""
    axes = canvas(7.4, 3.3)
    questions = [
        (3.0, "score whisper-base\non your own clips", "", ""),
        (2.1, "are its words\ngood enough?", "no, but it knows\nthe language", "a larger checkpoint"),
        (1.2, "does it fit, and is\nit fast enough?", "no", "8 bits, another runtime,\na student"),
        (0.3, "keep it", "", ""),
    ]
    for height, text, _, _ in questions:
        box(axes, (3.7, height), text, size=(1.7, 0.5), color=figures.BLUE)
    for above, below in itertools.pairwise(height for height, *_ in questions):
        arrow(axes, (3.7, above - 0.25), (3.7, below + 0.25))
    axes.text(3.8, 1.62, "yes", fontsize=7)
    axes.text(3.8, 0.72, "yes", fontsize=7)
    for height, _, label, path in questions[1:3]:
        box(axes, (6.5, height), path, size=(1.7, 0.5), color=figures.ORANGE)
        arrow(axes, (4.55, height), (5.65, height), label)
    box(axes, (0.95, 2.1), "is any of it\ntranscribed?", size=(1.6, 0.5), color=figures.BLUE)
    arrow(axes, (2.85, 2.1), (1.75, 2.1), "no, and weak\nin the language")
    for x, label, path in ((0.6, "yes", "LoRA, or full\nfine-tuning"), (1.8, "no", "collect speech")):
        box(axes, (x, 1.1), path, size=(1.1, 0.5), color=figures.ORANGE)
        arrow(axes, (0.95, 1.85), (x, 1.36))
        axes.text((0.95 + x) / 2 + (0.1 if x > 1 else -0.3), 1.6, label, fontsize=7)
    figures.show(
        axes.figure,
        "Decision diagram. First score whisper-base on your own clips. If its words are not good enough: where the language is known, "
        "take a larger checkpoint; where Whisper is weak in it, fine-tune if speech is transcribed, else collect speech. If the words will do but "
        "the model does not fit or is too slow: 8 bits, another runtime, or a student. Else keep it.",
    )


def fixed_cache(tokens: Sequence[str], room: int) -> None:
    """Show the keys of one decoder layer in a cache that grows and in one of fixed size, step by step.

    Args:
        tokens: that have been read, one a step.
        room: positions of the cache of fixed size; more than there are tokens.
    """
    axes, side, steps = canvas(7.4, 2.5), 0.24, len(tokens)
    names = (0.1, "grows: a new shape at each step"), (3.6, "fixed: one shape, the empty rest masked")
    for left, name in names:
        axes.text(left, 2.3, name, fontsize=8)
        for step in range(steps):
            height = 1.85 - 0.4 * step
            axes.text(left, height, f"step {step + 1}", fontsize=7, va="center")
            for place in range(step + 1 if left < 1 else room):
                full = place <= step
                text, color = (tokens[place] if full else "", figures.BLUE if full else figures.GREY)
                box(axes, (left + 0.75 + 1.6 * side * place, height), text, size=(1.5 * side, side), color=color)
    axes.text(0.1, 0.08, "each step: other shapes, other memory", fontsize=7)
    axes.text(3.6, 0.08, "each step: the same graph, so it can be compiled once", fontsize=7)
    figures.show(
        axes.figure,
        f"Diagram of two caches over {steps} steps. The first has as many places as tokens were read, so its shape changes at each "
        f"step. The second has {room} places from the start; those not yet filled are masked, and the shape stays.",
    )


def half_quadratic() -> None:
    """Show the loop of HQQ for one group of weights (Badri and Shaji 2023)."""
    axes = canvas(7.4, 1.7)
    texts = (
        "weights W of\na group, scale s",
        "integers Q =\nround(W / s + z)",
        "error\nW - s (Q - z)",
        "large errors E:\nsoft threshold",
    )
    for place, text in enumerate(texts):
        color = figures.ORANGE if place == 3 else figures.GREY if place == 0 else figures.BLUE
        box(axes, (0.75 + 1.95 * place, 1.2), text, size=(1.4, 0.55), color=color)
        if place:
            arrow(axes, (1.95 * place - 0.5, 1.2), (0.05 + 1.95 * place, 1.2))
    box(axes, (4.65, 0.3), "zero point z = mean of Q - (W - E) / s", size=(2.9, 0.4), color=figures.ORANGE)
    arrow(axes, (6.6, 0.9), (6.1, 0.35), curve=-0.2)
    arrow(axes, (3.2, 0.35), (2.7, 0.9), curve=-0.2)
    axes.text(2.2, 0.45, "20 times", fontsize=7)
    figures.show(
        axes.figure,
        "Diagram of HQQ's loop for a group of weights: round with the zero point z, take the error, keep only its large part by a soft "
        "threshold, and choose the zero point anew as the mean that fits what is left; up to 20 times.",
    )
