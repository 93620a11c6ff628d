import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from asrlib import AsrlibError, figures, uncertainty


@pytest.fixture
def shown(monkeypatch):
    """Collect what would be displayed: (object, metadata)."""
    import IPython.display

    collected = []
    monkeypatch.setattr(IPython.display, "display", lambda item, metadata: collected.append((item, metadata)))
    return collected


def drawn(**labels):
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    axes.set(**labels)
    return figure


def test_figure_is_shown_once_with_its_alternative_text(shown):
    figures.use_style()
    figures.show(drawn(xlabel="time (s)", ylabel="WER (%)"), "A line that rises.")
    ((image, metadata),) = shown
    assert image.data.startswith(b"\x89PNG")
    assert metadata == {"image/png": {"alt": "A line that rises."}}
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("labels", "alt", "said"),
    [
        ({"xlabel": "time (s)"}, "A line.", "lack a label"),
        ({"xlabel": "time (s)", "ylabel": "WER (%)"}, " ", "text alternative"),
    ],
)
def test_figures_that_somebody_cannot_read_are_refused(shown, labels, alt, said):
    with pytest.raises(AsrlibError, match=said):
        figures.show(drawn(**labels), alt)
    plt.close("all")
    assert shown == []


def test_panels_that_share_a_scale_share_its_label(shown):
    figure, (left, right) = plt.subplots(1, 2, sharey=True)
    left.set(xlabel="weights (MB)", ylabel="method")
    with pytest.raises(AsrlibError, match="lack a label"):
        figures.show(figure, "Two panels.")
    right.set(xlabel="WER (%)")
    figures.show(figure, "Two panels.")
    assert len(shown) == 1


def test_a_heatmap_names_its_rows_and_writes_each_count_so_that_it_can_be_read(shown):
    figure = figures.heatmap(["first", "second"], [[9, 2], [2, 9]], "equal clips of 9")
    axes = figure.axes[0]
    figure.canvas.draw()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first  1", "second  2"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    written = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert written == {(0, 0): ("9", "black"), (1, 0): ("2", "white"), (0, 1): ("2", "white"), (1, 1): ("9", "black")}
    figures.show(figure, "Two rows that agree in two clips.")
    assert len(shown) == 1


def test_shares_are_drawn_with_wilsons_intervals():
    _, axes = plt.subplots()
    figures.shares(axes, [1, 2], [[True] * 4, [True, False, False, False]])
    ((line, _, (bars,)),) = axes.containers
    assert line.get_ydata().tolist() == [100, 25]
    ends = [100 * end for hits in (4, 1) for end in uncertainty.wilson(hits, 4)]
    assert np.array(bars.get_segments())[:, :, 1].ravel() == pytest.approx(ends)
    plt.close("all")


def test_names_stand_in_one_column_in_the_order_of_heights_and_never_cover_each_other():
    figures.use_style()
    figure, axes = plt.subplots()
    axes.plot([1, 1, 1.01, 3], [5, 5, 5.01, 2], "o")
    figures.label(axes, [1, 1, 1.01, 3], [5, 5, 5.01, 2], ["a", "b", "c", "d"])
    figure.draw_without_rendering()
    texts = axes.texts
    assert [text.get_text() for text in texts] == ["c", "a", "b", "d"]
    boxes = [Text.get_window_extent(text) for text in texts]  # without its line
    assert all(low.y1 < high.y0 for high, low in itertools.pairwise(boxes))
    plt.close(figure)


def test_lines_have_a_place_for_each_name_and_hollow_points_where_there_is_no_interval():
    values = [(3.0, (2.0, 4.0)), (0.0, (0.0, 1.0)), (5.0, None)]
    figure = figures.lines({"WER (%)": values, "speed": values}, ["a", "b", "c"], ["red", "red", "red"])
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["a", "b", "c"]
    assert (left.get_xscale(), right.get_xlabel()) == ("log", "speed")
    hollow = [line.get_markerfacecolor() == "white" for line in left.lines]
    assert hollow == [False, False, True]
    assert min(line.get_xdata()[0] for line in left.lines) == figures.LEAST
    plt.close(figure)


def test_a_logarithmic_scale_has_plain_numbers():
    figure, axes = plt.subplots()
    axes.plot([0.3, 30], [1, 2])
    figures.logarithmic(axes.xaxis)
    figure.draw_without_rendering()
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert {"0.5", "1", "2", "5", "10", "20"} <= set(shown)
    plt.close(figure)


@pytest.mark.parametrize(("low", "high"), [(0.72, 1.05), (61, 305), (1.1, 1.9)])
def test_a_short_logarithmic_scale_has_several_ticks_that_do_not_meet(low, high):
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.plot([low, high], [1, 2])
    figures.logarithmic(axes.xaxis)
    figure.draw_without_rendering()
    ends = axes.get_xlim()
    boxes = [
        text.get_window_extent() for text in axes.get_xticklabels() if ends[0] <= text.get_position()[0] <= ends[1]
    ]
    assert len(boxes) >= 3
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    plt.close(figure)
