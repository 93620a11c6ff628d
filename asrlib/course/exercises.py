"""Questions that a cell can check: the learner writes an answer, the notebook computes the right one."""

from __future__ import annotations

__all__ = ["check"]


def check(answer: float | str | None, right: float | str, within: float = 0.0) -> None:
    """Print whether an answer is right, without telling the right one.

    A wrong answer is no error: a batch that runs a notebook whose question nobody has answered goes on.

    Args:
        answer: what the learner has written; None where nothing is written yet.
        right: what the notebook has computed; a text is compared without regard to case and outer spaces.
        within: how far a number may be off, in its own unit.

    >>> check(None, 50)
    No answer yet: put yours in place of None and run this cell again.
    >>> check(40, 50, within=1)
    Not yet: 40 is too low.
    >>> check("Encoder ", "encoder")
    Right: encoder.
    """
    if answer is None:
        print("No answer yet: put yours in place of None and run this cell again.")
    elif isinstance(answer, str) != isinstance(right, str):
        print(f"Not yet: the answer is a {'word' if isinstance(right, str) else 'number'}, {answer!r} is not.")
    elif isinstance(right, str):
        print(
            f"Right: {right}." if answer.strip().lower() == right.lower() else f"Not yet: it is not {answer.strip()}."
        )
    elif abs(answer - right) <= within:
        print(f"Right: {right:.6g}.")
    else:
        print(f"Not yet: {answer:g} is too {'low' if answer < right else 'high'}.")
