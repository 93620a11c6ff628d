"""Figures: one style, axes with units, a text alternative in the notebook's own file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, uncertainty

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from asrlib.scoring import Score

BLUE, ORANGE, GREY = "#00639b", "#b3541e", "#8a8f98"  # told apart in print and by colour-blind readers


def use_style() -> None:
    """Set one matplotlib style for the course: small, light, without decoration."""
    import matplotlib as mpl

    mpl.rcParams.update(
        {
            "figure.figsize": (7.0, 3.2),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREY]),
            "axes.titlesize": "medium",
            "legend.frameon": False,
            "font.size": 9,
        }
    )


def scores(axes: Axes, x: Sequence[float], y: Sequence[Score], **style: Any) -> None:
    """Draw WERs (%) with their intervals, where they have any.

    Args:
        axes: to draw on.
        x: place of each.
        y: the scores.
        style: of ``errorbar``: ``fmt``, ``color``, ``label`` ...
    """
    spread = [
        [100 * abs(one.wer - end) for one, end in zip(y, ends, strict=True)]
        for ends in zip(*(one.bounds for one in y), strict=True)
    ]
    axes.errorbar(x, [100 * one.wer for one in y], yerr=spread, capsize=3, **style)


def heatmap(names: Sequence[str], counts: Sequence[Sequence[int]], of: str) -> Figure:
    """Return a figure of a square table of counts, each written into its cell; columns have the rows' numbers.

    Args:
        names: of the rows.
        counts: a row for each name.
        of: what is counted, for the scale of colours.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(7.4, 0.28 * len(names) + 1.2))
    shown, middle = axes.imshow(counts, cmap="Blues_r", aspect="auto"), (np.min(counts) + np.max(counts)) / 2
    for (row, column), count in np.ndenumerate(np.asarray(counts)):
        color = "black" if count >= middle else "white"
        axes.text(column, row, count, ha="center", va="center", fontsize=7, color=color)
    numbers = range(1, len(names) + 1)
    axes.set_xticks(range(len(names)), map(str, numbers))
    axes.set_yticks(range(len(names)), [f"{name}  {number}" for name, number in zip(names, numbers, strict=True)])
    axes.set(xlabel="number of the row", ylabel="row and its number")
    figure.colorbar(shown, label=of)
    return figure


def shares(axes: Axes, x: Sequence[float], answers: Sequence[Sequence[bool]], **style: Any) -> None:
    """Draw shares of right answers (%) with Wilson's intervals.

    Args:
        axes: to draw on.
        x: place of each share.
        answers: whether each answer is right, of each share; one at least.
        style: of ``errorbar``.
    """
    y = [100 * sum(right) / len(right) for right in answers]
    ends = [uncertainty.wilson(sum(right), len(right)) for right in answers]
    spread = [[abs(100 * pair[side] - share) for pair, share in zip(ends, y, strict=True)] for side in (0, 1)]
    axes.errorbar(x, y, yerr=spread, capsize=3, **style)


def show(figure: Figure, alt: str) -> None:
    """Display a figure once, as PNG, with a text alternative that says what a reader would see in it.

    Args:
        figure: a matplotlib figure whose axes carry labels with units.
        alt: one or two sentences for readers who cannot see it; stored in the output's metadata.

    Raises:
        AsrlibError: an axis without a label, or no text alternative.
    """
    import io

    import matplotlib.pyplot as plt
    import PIL.Image
    from IPython.display import Image, display

    for axes in figure.axes:
        if axes.axison and axes.get_label() != "<colorbar>" and not _labelled(axes):
            raise AsrlibError(f"The axes {axes.get_title()!r} lack a label: say what they show, with the unit.")
    if not alt.strip():
        raise AsrlibError("A figure needs a text alternative: say in a sentence what it shows.")
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    # A palette of 128 colours looks the same and keeps a committed spectrogram at a third of its size.
    PIL.Image.open(drawn).convert("RGB").quantize(128).save(small, format="PNG", optimize=True)
    display(Image(small.getvalue(), alt=alt), metadata={"image/png": {"alt": alt}})


def _labelled(axes: Axes) -> bool:
    """Say whether both axes have a label, their own or that of a panel which they share the scale with."""
    beside, above = axes.get_shared_y_axes().get_siblings(axes), axes.get_shared_x_axes().get_siblings(axes)
    return any(panel.get_ylabel() for panel in beside) and any(panel.get_xlabel() for panel in above)
