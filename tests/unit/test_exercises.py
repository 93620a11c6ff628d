import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrlib.course import exercises

numbers = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("answer", "right", "said"),
    [
        (None, 50.0, "No answer yet"),
        (50, 50.0, "Right: 50."),
        (50.4, 50.0, "Right: 50."),
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


@given(answer=numbers, right=numbers, within=st.floats(0, 10))
def test_a_number_is_right_if_and_only_if_it_is_near_enough(answer, right, within):
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as out:
        exercises.check(answer, right, within)
    assert out.getvalue().startswith("Right") == (abs(answer - right) <= within)


def test_the_docstring_shows_what_happens():
    assert doctest.testmod(exercises).failed == 0
