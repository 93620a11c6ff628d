"""Figures: one style, axes with units, a text alternative in the notebook's own file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, uncertainty

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from asrlib.scoring import Score

Value = tuple[float, tuple[float, float] | None]  # with its interval
LEAST = 0.1  # where a logarithmic scale shows 0
SHORT = 6  # times; on a shorter range 1, 2, 5 would leave one tick or two

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


def lines(panels: Mapping[str, Sequence[Value]], names: Sequence[str], colors: Sequence[str]) -> Figure:
    """Draw values with their intervals, a line for each name from below, in panels side by side with logarithmic scales.

    Args:
        panels: by the label of an axis, the value of each name with its interval; one without an interval is drawn hollow.
        names: of the lines.
        colors: of the lines.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(7, 0.8 + 0.25 * len(names)), sharey=True)
    for panel, (shown, values) in zip(axes, panels.items(), strict=True):
        for place, ((value, ends), color) in enumerate(zip(values, colors, strict=True)):
            panel.plot(max(value, LEAST), place, "o", color=color, markerfacecolor=color if ends else "white")
            panel.hlines(place, *(max(end, LEAST) for end in ends or (value, value)), color=color)
        logarithmic(panel.xaxis)
        panel.set_xlabel(shown)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylabel("system")
    return figure


def logarithmic(axis: Axis) -> None:
    """Give an axis a logarithmic scale with ticks at 1, 2, 5, 10 ..., or even ones on a `SHORT` range, written as plain numbers."""
    from matplotlib import ticker

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(ticker.MaxNLocator(5) if high < SHORT * low else ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def label(axes: Axes, x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> None:
    """Name points in a column on the right of the axes, in the order of their heights, each joined to its point by a thin line.

    So no name covers another, however close the points are.

    Args:
        axes: to draw on.
        x, y: places of the points, in the axes' own units.
        names: of the points.
    """
    points = sorted(zip(x, y, names, strict=True), key=lambda point: -point[1])
    for row, (*place, name) in enumerate(points):
        height = 1 - (row + 0.5) / len(points)
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "relpos": (0, 0.5)}
        beside = {"xytext": (1.04, height), "textcoords": "axes fraction", "va": "center", "fontsize": 7}
        axes.annotate(name, place, **beside, arrowprops=line)


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
