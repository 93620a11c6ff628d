"""The rules by which published numbers are judged, and the verdicts that they give.

=================  ====================================================================================================
equal              our value, rounded to ``digits`` (which a value may name itself), is the published one
within_interval    our 95 % interval lies within a margin of the published value, a point or a twentieth of it; refuted where the
                   interval leaves the published value out, undecided where it is too wide
at_least_ratio     our value is at least so many times the value of the system it is compared ``against``; from 1 on,
                   its interval lies above 1, and refuted only where it lies below the published ratio, of a speed below 1;
                   sizes that are ``counted`` need no interval
at_most            our value is at most the published one
direction          our values come in the published order, and neighbours' intervals do not overlap; the other order refutes
                   no claim that cannot be repeated here (check E)
paired             our paired comparison, a difference or a ratio, lies on the published side of ``even`` (0 or 1; above
                   it where no number was published) with its interval; the other side refutes as for direction
arithmetic         an expression over the published values themselves is true
none               no chapter measures it
=================  ====================================================================================================

A measured value without an interval decides none of the rules that compare with an interval. A speed or a memory that was
measured on another machine confirms at most the direction of a published one.
"""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from asrlib import AsrlibError
from asrlib.course.records import number

HOLDS, DIRECTION, FAILS = "holds", "holds in direction", "does not hold"
KINDS = (HOLDS, DIRECTION, FAILS, "arithmetic holds", "arithmetic fails", "not run")
MARGIN, SHARE = 1.0, 0.05  # within which two WERs agree: a point, or this share of the published one where that is more

WORDS, SPEED, SHAPES, ARITHMETIC = "words", "speed and memory", "shapes", "arithmetic"
UNMEASURED = "measured by no chapter"
TOPICS = (WORDS, SPEED, SHAPES, ARITHMETIC, UNMEASURED)
# Metrics of records that claims name: what a model writes, and what can be counted without running it. The others are measured.
OF_WORDS = {"wer_percent", "orthographic_wer_percent", "cer_percent", "wer_difference_points", "equal_percent", "chrf",
            "language_accuracy_percent", "word_edge_error_ms", "within_percent"}  # fmt: skip
OF_SHAPES = {"parameters", "trainable_parameters", "trainable_percent", "kept_percent", "assistant_percent", "computed_bytes",
             "adapter_bytes", "checkpoint_bytes", "training_bytes_per_parameter", "bits_saved_per_parameter", "file_mib",
             "size_change_percent", "size_mib", "size_mb", "static_decoder_supported"}  # fmt: skip


def topic(claim: Mapping[str, Any]) -> str:
    """Return what a claim is about, one of `TOPICS`: from its rule, and from the metric that decides it."""
    if claim["rule"]["kind"] in ("arithmetic", "none"):
        return ARITHMETIC if claim["rule"]["kind"] == "arithmetic" else UNMEASURED
    metric = claim["evidence"]["metric"]
    return WORDS if metric in OF_WORDS else SHAPES if metric in OF_SHAPES else SPEED


@dataclass(frozen=True)
class Part:
    """One published number beside ours: ``ours``, ``interval`` and ``n`` are None where nothing was measured."""

    name: str
    published: float
    unit: str
    ours: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A claim, what became of it, and why; ``published``, ``ours``, ``interval`` and ``n`` are texts for people.

    ``rule`` is a key of `RULES`, ``topic`` one of `TOPICS`; ``command`` decides the claim where it was not run, and is empty where no chapter does.
    """

    id: str
    method: str
    statement: str
    source: str
    rule: str
    topic: str
    command: str
    verdict: str
    why: str
    parts: tuple[Part, ...]

    def _join(self, show: Callable[[Part], str], named: bool = False) -> str:
        texts = [(part.name, text) for part in self.parts if (text := show(part))]
        named = named or len(self.parts) > 1
        return "; ".join(f"{name} {text}" if named else text for name, text in texts)

    @property
    def published(self) -> str:
        """Return the published values with their units; of a pair also what was published of its sides."""
        return self._join(_published, named=self.rule == "paired")

    @property
    def ours(self) -> str:
        """Return our values with their units, empty where nothing was measured."""
        return self._join(lambda part: "" if part.ours is None else f"{number(part.ours)} {part.unit}".strip())

    @property
    def interval(self) -> str:
        """Return our 95 % intervals."""
        return self._join(lambda part: " to ".join(map(number, part.interval)) if part.interval else "")

    @property
    def n(self) -> str:
        """Return the numbers of clips behind our values."""
        return self._join(lambda part: str(part.n) if part.n else "")


def _published(part: Part) -> str:
    return f"{part.published:,.12g} {part.unit}".strip()


def _not_run(needs: str) -> tuple[str, str]:
    return f"not run (needs {needs})", ""


def _each(
    claim: Mapping[str, Any], parts: tuple[Part, ...], fits: Callable[[Part], bool], test: str
) -> tuple[str, str]:
    """Judge part by part: one that misses is enough to refute, all are needed to confirm."""
    measured = [part for part in parts if part.ours is not None]
    if missed := [part.name for part in measured if not fits(part)]:
        hits = len(measured) - len(missed)
        return FAILS, f"{test} for {hits} of {len(measured)} measured values, not for {', '.join(missed)}."
    return (HOLDS, f"{test}.") if len(measured) == len(parts) else _not_run(claim["needs"])


def _equal(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    digits = {item["name"]: item.get("digits", claim["rule"]["digits"]) for item in claim["published"]}

    def fits(part: Part) -> bool:
        return round(part.ours, digits[part.name]) == round(part.published, digits[part.name])

    from asrlib import uncertainty  # NumPy, which a command that judges nothing does not need

    if few := [uncertainty.shortage(part.n, "clip") for part in parts if part.n and part.n < uncertainty.MIN_UNITS]:
        return _not_run(f"more clips: {few[0]}")
    shown = " or ".join(map(str, sorted(set(digits.values()))))
    return _each(claim, parts, fits, f"Our value, rounded to {shown} decimals, is the published one")


def _bare(parts: tuple[Part, ...]) -> bool:
    """Say whether a value of ours has no interval."""
    return any(part.ours is not None and part.interval is None for part in parts)


def _lacking(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str] | None:
    """Return the verdict where values are compared and one of ours, or the interval that it needs, was not measured; else None."""
    if any(part.ours is None for part in parts):
        return _not_run(claim["needs"])
    if _bare(parts) and not claim["evidence"].get("counted"):
        return _not_run("intervals of our values")
    return None


def _within_interval(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    if _bare(parts):
        return _not_run("an interval of our value")
    measured = [part for part in parts if part.ours is not None]
    if out := [
        part.name
        for part in measured
        if not _agrees(part) and not part.interval[0] <= part.published <= part.interval[1]
    ]:
        return FAILS, f"Our 95 % interval leaves out the published value of {', '.join(out)}."
    if wide := [part.name for part in measured if not _agrees(part)]:
        return _not_run(f"more speech: our interval is wider than the margin for {', '.join(wide)}")
    test = f"Our 95 % interval lies within {MARGIN:g} point, or {SHARE:.0%}, of the published value"
    return _each(claim, parts, _agrees, test)


def _agrees(part: Part) -> bool:
    """Say whether our whole interval lies within the margin of the published value."""
    margin = max(MARGIN, SHARE * part.published)
    return part.published - margin <= part.interval[0] and part.interval[1] <= part.published + margin


def _at_most(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    return _each(claim, parts, lambda part: part.ours <= part.published, "Our value is at most the published one")


def _at_least_ratio(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    if lacking := _lacking(claim, parts):
        return lacking
    against = " ".join(map(str, claim["evidence"]["against"].values()))
    reached = all(part.ours >= part.published for part in parts)
    if all(_ahead(part) for part in parts):
        if reached:
            return HOLDS, f"Every ratio to {against} reaches the published one."
        return DIRECTION, f"Ahead of {against}, by less than published."
    if any(_short(part, topic(claim) == SPEED) for part in parts):
        return FAILS, f"Not ahead of {against}, or by less than published."
    return _not_run("more speech: our intervals allow a ratio of 1")


def _ahead(part: Part) -> bool:
    """Say whether a ratio is surely above 1, or, where less than 1 was published, whether it reaches that."""
    if part.published < 1:
        return part.ours >= part.published
    return (part.interval[0] if part.interval else part.ours) > 1


def _short(part: Part, direction: bool) -> bool:
    """Say whether a ratio is surely less than published, or, where only its direction can be compared, surely below 1."""
    if part.published < 1:
        return part.ours < part.published
    return (part.interval[1] if part.interval else part.ours) < (1 if direction else part.published)


def _direction(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    if lacking := _lacking(claim, parts):
        return lacking
    pairs = list(itertools.pairwise(sorted(parts, key=lambda part: part.published)))
    if any(low.ours > high.ours and not _overlap(low, high) for low, high in pairs):
        if claim["check"] == "E":
            return _not_run("the published scale: at ours the values come in another order")
        return FAILS, "Our values come in another order than the published ones."
    if any(_overlap(low, high) for low, high in pairs):
        return _not_run("more speech: our intervals overlap")
    return DIRECTION, "Our values come in the published order, with intervals apart."


def _overlap(one: Part, other: Part) -> bool:
    """Say whether two values cannot be told apart."""
    (a, b), (c, d) = one.interval, other.interval
    return a <= d and c <= b


def _paired(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    if lacking := _lacking(claim, parts):
        return lacking
    even = claim["rule"]["even"]
    against = [part for part in parts if _side(part, even) < 0]
    if against and claim["check"] == "E":
        return _not_run("the published scale: at ours the difference is the other way round")
    if against:
        return FAILS, "Compared in pairs, ours differ the other way round."
    if any(not _side(part, even) for part in parts):
        return _not_run(f"more speech or rounds: compared in pairs, our interval allows {even}")
    return DIRECTION, "Compared in pairs, ours differ the published way."


def _side(part: Part, even: float) -> int:
    """Return 1 where our interval lies on the published side of what no difference would be, -1 on the other side, else 0."""
    low, high = part.interval
    if low <= even <= high:
        return 0
    return 1 if (low > even) == (part.published >= even) else -1


def _arithmetic(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    expression = claim["rule"]["expression"]
    true = arithmetic(expression, {part.name: part.published for part in parts})
    values = ", ".join(f"{part.name} = {_published(part)}" for part in parts)
    return f"arithmetic {'holds' if true else 'fails'}", f"`{expression}` is {str(true).lower()} with {values}."


RULES = {
    "equal": _equal,
    "within_interval": _within_interval,
    "at_least_ratio": _at_least_ratio,
    "at_most": _at_most,
    "direction": _direction,
    "paired": _paired,
    "arithmetic": _arithmetic,
    "none": lambda claim, parts: _not_run(claim["needs"]),
}

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
OPERATORS |= {ast.Eq: operator.eq, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
FUNCTIONS = {"abs": abs, "round": round, "min": min, "max": max}


def arithmetic(expression: str, values: Mapping[str, float]) -> bool:
    """Evaluate a comparison such as ``round(fp32 / int8, 1) == 3.5`` over named numbers.

    Only numbers, names, ``+ - * /``, comparisons, ``and``, ``or``, abs, round, min and max are understood: nothing is executed.

    Raises:
        AsrlibError: anything else, an unknown name, or a result that is not true or false.
    """

    def visit(node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.Name(id=name) if name in values:
                return values[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](visit(left), visit(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -visit(operand)
            case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in OPERATORS for op in ops):
                terms = [visit(term) for term in (left, *rest)]
                return all(OPERATORS[type(op)](*pair) for op, pair in zip(ops, itertools.pairwise(terms), strict=True))
            case ast.BoolOp(op=op, values=terms):
                return (all if isinstance(op, ast.And) else any)(visit(term) for term in terms)
            case ast.Call(func=ast.Name(id=name), args=terms, keywords=[]) if name in FUNCTIONS:
                return FUNCTIONS[name](*map(visit, terms))
        raise ValueError(f"{ast.unparse(node)!r} is not allowed or not known")

    try:
        result = visit(ast.parse(expression, mode="eval").body)
        if not isinstance(result, bool):
            raise ValueError("the result is a number, not true or false")
    except (ValueError, TypeError, SyntaxError, ZeroDivisionError, RecursionError) as error:
        raise AsrlibError(f"The expression {expression!r} cannot be judged: {error}.") from None
    return result
