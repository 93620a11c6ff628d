import doctest

import pytest

from asrlib.course import exercises


@pytest.mark.parametrize(
    ("answer", "right", "said"),
    [
        (None, 50.0, "No answer yet"),
        (50, 50.0, "Right: 50."),
        (50.5, 50.0, "Right: 50."),
        (50.6, 50.0, "Not yet: 50.6 is too high."),
        (49, 50.0, "Not yet: 49 is too low."),
        (51, 50.0, "Not yet: 51 is too high."),
        ("50", 50.0, "Not yet: the answer is a number"),
        (float("nan"), 50.0, "Not yet"),
        (" Decoder", "decoder", "Right: decoder."),
        ("encoder", "decoder", "Not yet: it is not encoder."),
        (1, "decoder", "Not yet: the answer is a word"),
    ],
)
def test_an_answer_is_judged(capsys, answer, right, said):
    exercises.check(answer, right, within=0.5)
    assert capsys.readouterr().out.startswith(said)


def test_the_docstring_shows_what_happens():
    assert doctest.testmod(exercises).failed == 0
