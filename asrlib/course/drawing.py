"""What diagrams are drawn with: boxes, and arrows between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asrlib import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]


def canvas(width: float, height: float) -> Axes:
    """Return an empty drawing of a size in inches; its coordinates are inches too, from the lower left corner."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return axes


def box(axes: Axes, center: Point, text: str, *, size: Point = (1.3, 0.5), color: str = figures.GREY) -> None:
    """Draw a box with a text in it, of a size in inches (width, height)."""
    from matplotlib.patches import FancyBboxPatch

    corner = (center[0] - size[0] / 2, center[1] - size[1] / 2)
    rounded = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=rounded, facecolor=f"{color}22", edgecolor=color))
    axes.text(*center, text, ha="center", va="center", fontsize=8)


def arrow(axes: Axes, start: Point, end: Point, text: str = "", *, color: str = "black", curve: float = 0.0) -> None:
    """Draw an arrow, with a text beside its middle."""
    style = {"arrowstyle": "-|>", "color": color, "connectionstyle": f"arc3,rad={curve}", "shrinkA": 1, "shrinkB": 1}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
    if text:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.07, text, ha="center", va="bottom", fontsize=7)
