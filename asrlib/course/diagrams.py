"""Diagrams of models and of their training, drawn by code, with a text alternative."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from asrlib import figures
from asrlib.course.drawing import arrow, box, canvas


def whisper(bands: int, frames: int, positions: int, width: int, encoder_layers: int, decoder_layers: int) -> None:
    """Show what Whisper does with a window of sound (Radford et al. 2022, figure 1).

    Args:
        bands, frames: of the log-mel spectrogram; a frame is 10 ms.
        positions, width: encoder states for a window, and numbers in a state.
        encoder_layers, decoder_layers: those run once a window, these once a token.
    """
    axes = canvas(7.4, 2.7)
    encoder = f"encoder, {encoder_layers} layers\nreads the window once"
    decoder = f"decoder, {decoder_layers} layers\nruns once per token"
    box(axes, (0.65, 1.9), "sound\n16,000 samples/s", size=(1.15, 0.6))
    box(axes, (2.3, 1.9), f"log-mel\n{bands} bands x {frames:,} frames", size=(1.7, 0.6))
    box(axes, (4.25, 1.9), encoder, size=(1.6, 0.6), color=figures.BLUE)
    box(axes, (6.35, 1.9), f"states\n{positions:,} positions x {width}", size=(1.5, 0.6))
    box(axes, (1.0, 0.6), "tokens so far\n(start) to decrease", size=(1.6, 0.6))
    box(axes, (4.25, 0.6), decoder, size=(1.6, 0.6), color=figures.ORANGE)
    box(axes, (6.35, 0.6), "next token\n' your'", size=(1.3, 0.6))
    for start, end in (((1.23, 1.9), (1.45, 1.9)), ((3.15, 1.9), (3.45, 1.9)), ((5.05, 1.9), (5.6, 1.9))):
        arrow(axes, start, end)
    arrow(axes, (1.8, 0.6), (3.45, 0.6), "self-attention: looks at them")
    arrow(axes, (6.35, 1.6), (4.7, 0.9), color=figures.BLUE)
    axes.text(5.75, 1.13, "cross-attention:\nlooks at the sound", fontsize=7, va="center")
    arrow(axes, (5.05, 0.6), (5.7, 0.6))
    arrow(axes, (6.35, 0.3), (1.0, 0.3), curve=-0.12)
    axes.text(3.7, 0.06, "append it, and run again until the end token", fontsize=7, ha="center", va="bottom")
    figures.show(
        axes.figure,
        f"Diagram of Whisper. Above: sound becomes a log-mel spectrogram of {bands} bands and {frames} frames, which an encoder "
        f"of {encoder_layers} layers reads once and turns into {positions} states. Below: a decoder of {decoder_layers} layers "
        "looks at the tokens so far and at the states, and gives the next token, which is appended for the next step.",
    )


def evaluation() -> None:
    """Show how a speech recogniser is evaluated: from sound and reference text to a WER with its interval."""
    axes = canvas(7.4, 2.0)
    box(axes, (0.65, 1.5), "sound", size=(1.0, 0.5))
    box(axes, (2.1, 1.5), "Whisper", size=(1.1, 0.5), color=figures.BLUE)
    box(axes, (0.65, 0.45), "reference:\nwhat was said", size=(1.2, 0.5))
    box(axes, (3.9, 1.0), "normaliser\n(both sides)", size=(1.2, 1.5), color=figures.ORANGE)
    box(axes, (5.4, 1.0), "align words:\nS, D, I", size=(1.1, 0.6))
    box(axes, (6.75, 1.0), "WER\n+ interval", size=(1.0, 0.6))
    arrow(axes, (1.15, 1.5), (1.55, 1.5))
    arrow(axes, (2.65, 1.5), (3.3, 1.5), "hypothesis")
    arrow(axes, (1.25, 0.45), (3.3, 0.45))
    arrow(axes, (4.5, 1.0), (4.85, 1.0))
    arrow(axes, (5.95, 1.0), (6.25, 1.0))
    figures.show(
        axes.figure,
        "Diagram of an evaluation: Whisper turns sound into a hypothesis; hypothesis and reference text pass through the same "
        "normaliser, are aligned word by word into substitutions, deletions and insertions, and give a WER with an interval.",
    )


def low_rank(width: int, rank: int) -> None:
    """Show a linear layer with LoRA beside it (Hu et al. 2021, figure 1).

    Args:
        width: numbers that go in and come out.
        rank: r, numbers between the two trained matrices.
    """
    axes = canvas(7.4, 2.2)
    box(axes, (0.65, 1.15), f"x\n{width} numbers", size=(1.1, 0.6))
    box(axes, (3.45, 1.75), f"W, frozen, in 32, 8 or 4 bits\n{width} x {width}", size=(2.6, 0.6))
    box(axes, (2.5, 0.55), f"A, trained\n{rank} x {width}", size=(1.3, 0.6), color=figures.ORANGE)
    box(axes, (4.4, 0.55), f"B, trained, starts at 0\n{width} x {rank}", size=(1.7, 0.6), color=figures.ORANGE)
    box(axes, (6.0, 1.15), "+", size=(0.4, 0.4))
    box(axes, (6.95, 1.15), "y", size=(0.7, 0.6))
    arrow(axes, (1.2, 1.25), (2.15, 1.7))
    arrow(axes, (1.2, 1.05), (1.85, 0.65))
    arrow(axes, (3.15, 0.55), (3.55, 0.55), f"{rank}")
    arrow(axes, (4.75, 1.7), (5.8, 1.25))
    arrow(axes, (5.25, 0.6), (5.8, 1.05))
    axes.text(5.6, 0.62, "times alpha / r", fontsize=7)
    arrow(axes, (6.2, 1.15), (6.6, 1.15))
    figures.show(
        axes.figure,
        f"Diagram of LoRA: x, {width} numbers, goes through the frozen matrix W and, beside it, through two trained thin matrices, "
        f"A of {rank} x {width} and B of {width} x {rank}, which starts at zero. The second path, times alpha / r, is added to the "
        "first.",
    )


def fine_tuning(seconds: float, window: float, reads: Sequence[str], writes: Sequence[str]) -> None:
    """Show a step of fine-tuning: what the encoder reads of its window, and what the decoder reads and learns to write.

    Args:
        seconds: of the longest clip of the batch.
        window: seconds that the published model reads.
        reads, writes: the tokens of a clip, the second those that follow the first.
    """
    axes = canvas(7.4, 2.9)
    long, share = 3.0, seconds / window
    box(axes, (0.2 + long / 2, 2.4), "", size=(long, 0.4))
    box(axes, (0.2 + long * share / 2, 2.4), "clip", size=(long * share, 0.4), color=figures.BLUE)
    axes.text(0.2, 2.7, f"window of {window:g} s: beyond {seconds:.1f} s silence, which is left out", fontsize=8)
    box(axes, (4.4, 2.4), "encoder\ntrained, or frozen", size=(1.3, 0.5), color=figures.BLUE)
    box(axes, (6.5, 2.4), "states", size=(1.4, 0.5))
    box(axes, (6.5, 1.45), "decoder\ntrained", size=(1.4, 0.5), color=figures.ORANGE)
    arrow(axes, (0.2 + long * share, 2.15), (3.7, 2.2), curve=0.12)
    arrow(axes, (5.1, 2.4), (5.75, 2.4))
    arrow(axes, (6.5, 2.1), (6.5, 1.75))
    arrow(axes, (5.55, 1.45), (5.8, 1.45))
    short = {"<|startoftranscript|>": "start", "<|notimestamps|>": "no times", "<|endoftext|>": "end"}
    step = 5.3 / len(reads)
    for height, name, tokens in ((1.45, "reads", reads), (0.45, "is to write", writes)):
        axes.text(0.2, height + 0.3, name, fontsize=8)
        for place, token in enumerate(tokens):
            color = figures.ORANGE if name == "reads" else figures.GREY
            written = short.get(token, token).strip("<|>")
            box(axes, (0.2 + step * (place + 0.5), height), written, size=(0.9 * step, 0.35), color=color)
    arrow(axes, (6.5, 1.15), (5.7, 0.45), curve=-0.3)
    axes.text(6.0, 0.3, "loss: cross-entropy\nwith these tokens", fontsize=8, va="top")
    figures.show(
        axes.figure,
        f"Diagram of a step of fine-tuning: of a window of {window:g} s the encoder reads the {seconds:.1f} s of the longest clip; the decoder "
        f"reads {len(reads)} tokens beginning with the start token, and is to write at each place the token that follows.",
    )


def drafts() -> None:
    """Show one round of speculative decoding with four drafts, the third of them wrong (Leviathan et al. 2022, figure 1)."""
    axes = canvas(7.4, 2.6)
    words, chosen = [" to", " mute", " you", " self"], [" to", " mute", " your", ""]
    box(axes, (0.85, 1.3), "encoder states\nshared, once", size=(1.3, 0.6))
    box(axes, (2.6, 2.1), "assistant drafts\nfour tokens, one by one", size=(1.7, 0.6), color=figures.ORANGE)
    box(axes, (2.6, 0.5), "teacher checks\nall in one pass", size=(1.7, 0.6), color=figures.BLUE)
    for start, end in (((1.5, 1.5), (1.85, 1.9)), ((1.5, 1.1), (1.85, 0.7))):
        arrow(axes, start, end)
    for place, (draft, own) in enumerate(zip(words, chosen, strict=True)):
        x, right = 4.1 + 0.75 * place, draft == own
        box(axes, (x, 2.1), draft, size=(0.65, 0.4), color=figures.ORANGE if right else figures.GREY)
        if own:
            box(axes, (x, 0.5), own, size=(0.65, 0.4), color=figures.BLUE)
            arrow(axes, (x, 1.88), (x, 0.72))
        axes.text(x + 0.08, 1.3, "kept" if right else "wrong" if own else "dropped", fontsize=7)
    axes.text(4.1, 0.1, "written in this round: two drafts and one token of the teacher", fontsize=7, ha="left")
    figures.show(
        axes.figure,
        "Diagram of a round: the assistant drafts four tokens from the shared encoder states; the teacher checks them in one "
        "pass. Two drafts are what the teacher would have written and are kept; the third is not, so the teacher's own token takes "
        "its place and the draft after it is dropped.",
    )


def outliers_apart() -> None:
    """Show the product of LLM.int8(): columns with outliers in 16 bits, the others in 8 (Dettmers et al. 2022, figure 2)."""
    from matplotlib.patches import Rectangle

    axes, side, outliers = canvas(7.4, 2.4), 0.16, (2, 6)
    for left, rows, columns, name in ((0.25, 5, 8, "activations x"), (1.95, 8, 4, "weights, transposed")):
        for row in range(rows):
            for column in range(columns):
                color = figures.ORANGE if (column if columns == 8 else row) in outliers else figures.BLUE
                corner = (left + side * column, 1.7 - side * row)
                axes.add_patch(Rectangle(corner, side, side, facecolor=f"{color}55", edgecolor=color, linewidth=0.5))
        axes.text(left + side * columns / 2, 1.98, name, fontsize=8, ha="center")
    axes.text(1.74, 1.3, "x", fontsize=9, ha="center", va="center")
    most = "8 bits: integers, and a scale\nfor each row of x and of W"
    few = "16 bits: the columns\nthat reach 6, as they are"
    box(axes, (4.4, 1.6), most, size=(1.9, 0.6), color=figures.BLUE)
    box(axes, (4.4, 0.6), few, size=(1.9, 0.6), color=figures.ORANGE)
    box(axes, (6.6, 1.1), "y, the sum\nof both", size=(1.0, 0.6))
    for start, end in (((2.7, 1.4), (3.4, 1.6)), ((2.7, 0.9), (3.4, 0.6))):
        arrow(axes, start, end)
    for start, end in (((5.35, 1.6), (6.1, 1.2)), ((5.35, 0.6), (6.1, 1.0))):
        arrow(axes, start, end)
    figures.show(
        axes.figure,
        "Diagram of a product in LLM.int8(): two of eight columns of the activations hold outliers. They and the rows of the "
        "transposed weights that meet them are multiplied in 16 bits, all others as 8-bit integers with a scale for each row of x "
        "and each row of W; the sum of both products is y.",
    )


def copied_layers(depth: int, chosen: list[int]) -> None:
    """Show which layers of a teacher's decoder make a student (Gandhi et al. 2023, figure 1).

    Args:
        depth: layers of the teacher's decoder.
        chosen: which of them are copied.
    """
    axes = canvas(7.4, 2.3)
    step, left = 5.0 / depth, 2.2
    size = (0.85 * step, 0.5)
    for height, who, encoder in ((1.7, "teacher", "encoder"), (0.6, "student", "the same encoder,\nfrozen")):
        axes.text(0.0, height, who, fontsize=8, va="center")
        box(axes, (1.4, height), encoder, size=(1.3, 0.5), color=figures.BLUE)
    for layer in range(depth):
        color = figures.ORANGE if layer in chosen else figures.GREY
        box(axes, (left + step * (layer + 0.5), 1.7), str(layer), size=size, color=color)
    for place, layer in enumerate(chosen):
        center = left + step * (place + 0.5)
        box(axes, (center, 0.6), str(place), size=size, color=figures.ORANGE)
        arrow(axes, (left + step * (layer + 0.5), 1.44), (center, 0.87))
    arrow(axes, (1.4, 1.44), (1.4, 0.87))
    axes.text(left, 2.05, "decoder layers", fontsize=8)
    told = "copied layers are trained, but for keys and values for the encoder; token table and positions are frozen"
    axes.text(0.9, 0.15, told, fontsize=8)
    figures.show(
        axes.figure,
        f"Diagram of a student: the teacher's encoder is copied and stays fixed; of its {depth} decoder layers, numbers "
        f"{', '.join(map(str, chosen))} become the {len(chosen)} layers of the student.",
    )


def products() -> None:
    """Show a matrix product in a graph: in float, with ranges that are measured at each call, and with fixed ranges."""
    axes = canvas(7.4, 2.9)
    rows = {
        2.45: ("float32", ["MatMul"], "weights,\n4 bytes each"),
        1.5: ("dynamic", ["find range,\nround", "MatMulInteger", "times both\nscales"], "weights,\n1 byte each"),
        0.55: ("static", ["round by\nfixed range", "MatMulInteger", "times both\nscales"], "weights,\n1 byte each"),
    }
    for height, (name, nodes, weights) in rows.items():
        axes.text(0.0, height, name, fontsize=8, va="center")
        places = [1.25, *(2.5 + 1.3 * place for place in range(len(nodes))), 6.4]
        names = ["activations,\nfloat32", *nodes, "activations,\nfloat32"]
        for x, text in zip(places, names, strict=True):
            own = {"MatMul": figures.BLUE, "MatMulInteger": figures.BLUE}.get(text, figures.GREY)
            box(axes, (x, height), text, size=(1.05, 0.42), color=figures.ORANGE if "range" in text else own)
        for left, right in itertools.pairwise(places):
            arrow(axes, (left + 0.53, height), (right - 0.53, height))
        product = 2.5 if len(nodes) == 1 else 3.8
        axes.text(product, height - 0.26, weights.replace("\n", " "), fontsize=7, ha="center", va="top")
    axes.text(2.5, 0.12, "range from calibration clips", fontsize=7, ha="center", va="top", color=figures.ORANGE)
    figures.show(
        axes.figure,
        "Diagram of one matrix product in three graphs. Float32: activations, product with weights of four bytes, activations. "
        "Dynamic: the range of the activations is found and they are rounded, an integer product with weights of one byte, the "
        "sums are multiplied by both scales. Static: the same, but the range is fixed beforehand from calibration clips.",
    )
