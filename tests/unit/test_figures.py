import matplotlib.pyplot as plt
import numpy as np
import pytest

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
