"""Published claims and their verdicts, computed from records by rule and never typed.

``data/claims.yaml`` names for each claim what was published, where, the record metric that can check it (a published
value may name its own, with its own scale), and the rule:

=================  ====================================================================================================
equal              our value, rounded to ``digits`` (which a value may name itself), is the published one
within_interval    the published value lies in our 95 % interval
at_least_ratio     our value is at least so many times the value of the system it is compared ``against``; from 1 on,
                   its interval lies above 1
direction          our values come in the published order, and neighbours' intervals do not overlap
arithmetic         an expression over the published values themselves is true
none               nothing here can check it yet
=================  ====================================================================================================
"""

from __future__ import annotations

import ast
import copy
import functools
import html
import itertools
import json
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.io import files

__all__ = ["Part", "Table", "Verdict", "arithmetic", "count", "find", "judge", "kind", "load", "markdown"]

HOLDS, DIRECTION, FAILS = "holds", "holds in direction", "does not hold"
KINDS = (HOLDS, DIRECTION, FAILS, "arithmetic holds", "arithmetic fails", "not run")


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
    """A claim, what became of it, and why; ``published``, ``ours``, ``interval`` and ``n`` are texts for people."""

    id: str
    method: str
    statement: str
    source: str
    verdict: str
    why: str
    parts: tuple[Part, ...]

    def _join(self, show: Callable[[Part], str]) -> str:
        label = len(self.parts) > 1
        texts = [(part.name, show(part)) for part in self.parts]
        return "; ".join(f"{name} {text}" if label else text for name, text in texts if text)

    @property
    def published(self) -> str:
        """Return the published values with their units."""
        return self._join(lambda part: f"{part.published:,.12g} {part.unit}".strip())

    @property
    def ours(self) -> str:
        """Return our values with their units, empty where nothing was measured."""
        return self._join(lambda part: "" if part.ours is None else f"{_digits(part.ours)} {part.unit}".strip())

    @property
    def interval(self) -> str:
        """Return our 95 % intervals."""
        return self._join(lambda part: f"{part.interval[0]:.2f} to {part.interval[1]:.2f}" if part.interval else "")

    @property
    def n(self) -> str:
        """Return the numbers of clips behind our values."""
        return self._join(lambda part: str(part.n) if part.n else "")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


# ------------------------------------------------------------------------------------------------------------------- load
def load(path: Path | str | None = None) -> list[dict[str, Any]]:
    """Read the claims, by default those of the course, and check them against ``data/claims.schema.json``.

    Raises:
        AsrlibError: not YAML, a claim that breaks the schema, or an id that occurs twice.
    """
    path = path or files.data_file("claims.yaml")
    try:
        return copy.deepcopy(_checked(Path(path).read_text(encoding="utf-8"), str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise AsrlibError(f"{path} cannot be read as text ({error}): correct it.") from None


@functools.lru_cache(maxsize=4)
def _checked(text: str, path: str) -> list[dict[str, Any]]:
    """Return the claims of a file with this text; the course's have 3,000 lines, and a page or a test asks for them often."""
    import yaml
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = json.loads(files.data_file("claims.schema.json").read_text(encoding="utf-8"))
    try:
        claims = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C where PyYAML was built with it
    except (RecursionError, yaml.YAMLError) as error:
        raise AsrlibError(f"{path} is not valid YAML ({getattr(error, 'problem_mark', error)}): correct it.") from None
    if error := best_match(Draft202012Validator(schema).iter_errors(claims)):
        place = "/".join(map(str, error.absolute_path)) or "top level"
        raise AsrlibError(f"{path} breaks data/claims.schema.json at {place}: {error.message[:200]}.")
    twice = [name for name, n in Counter(claim["id"] for claim in claims).items() if n > 1]
    if twice:
        raise AsrlibError(f"{path} has {', '.join(twice)} twice: give each claim an id of its own.")
    return claims


# ------------------------------------------------------------------------------------------------------------------ judge
def judge(claims: Iterable[Mapping[str, Any]], records: Iterable[Mapping[str, Any]]) -> list[Verdict]:
    """Return the verdict of each claim in the light of the given records.

    Args:
        claims: as `load` returns them.
        records: contents of ``record.json`` files, at most one for each notebook.

    Raises:
        AsrlibError: evidence that fits several values of a record, or a wrong arithmetic expression.
    """
    by_notebook = {record["run"]["notebook"]: record for record in records}
    return [_judge(claim, by_notebook) for claim in claims]


def _judge(claim: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> Verdict:
    parts = tuple(_part(claim, item, records) for item in claim["published"])
    verdict, why = RULES[claim["rule"]["kind"]](claim, parts)
    texts = {key: claim[key] for key in ("id", "method", "statement", "source")}
    return Verdict(**texts, verdict=verdict, why=" ".join(filter(None, (why, claim.get("note", "")))), parts=parts)


def _part(claim: Mapping[str, Any], item: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> Part:
    """Return a published number with the value that our record has for it; its own metric and scale come first."""
    bare = Part(item["name"], item["value"], item.get("unit", ""))
    evidence = claim.get("evidence")
    if evidence is None or evidence["notebook"] not in records:
        return bare
    where = evidence.get("where", {}) | item.get("where", {})
    metric = item.get("metric", evidence["metric"])
    found = find(claim["id"], records[evidence["notebook"]], metric, where, evidence.get("against"))
    if found is None:
        return bare
    scale = item.get("scale", evidence.get("scale", 1))
    interval = tuple(end * scale for end in found["interval"]) if found["interval"] else None
    return Part(bare.name, bare.published, bare.unit, found["value"] * scale, interval, found.get("utterances"))


def find(
    asker: str,
    record: Mapping[str, Any],
    metric: str,
    where: Mapping[str, Any],
    against: Mapping[str, Any] | None = None,
) -> Mapping[str, Any] | None:
    """Return the metric of this name with all the wanted labels; of several, the plainest: the one with fewest others.

    Args:
        asker: the claim or table that asks, for the message.
        record: content of a ``record.json``.
        metric: its name.
        where: labels that it must have.
        against: labels that differ in the system it is compared with: then the ratio to that one's value is returned.

    Raises:
        AsrlibError: several values fit equally well.
    """
    if against:
        above, below = find(asker, record, metric, where), find(asker, record, metric, where | against)
        return _ratio(above, below) if above and below and below["value"] else None
    found = [item for item in record["metrics"] if item["name"] == metric and where.items() <= item["labels"].items()]
    found.sort(key=lambda item: len(item["labels"]))
    if len(found) > 1 and len(found[0]["labels"]) == len(found[1]["labels"]):
        named = ", ".join(f"{key} {value}" for key, value in where.items())
        raise AsrlibError(f"{asker} fits several values of {metric} ({named}): add a label to it.")
    return found[0] if found else None


def _ratio(above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ratio with the widest interval that the intervals of its terms allow."""
    interval = None
    if above["interval"] and below["interval"] and below["interval"][0] > 0:
        (low, high), (least, most) = above["interval"], below["interval"]
        interval = (low / most, high / least)
    return {"value": above["value"] / below["value"], "interval": interval, "utterances": above.get("utterances")}


def _not_run(needs: str) -> tuple[str, str]:
    return f"not run (needs {needs})", ""


def _each(
    claim: Mapping[str, Any], parts: tuple[Part, ...], fits: Callable[[Part], bool], test: str
) -> tuple[str, str]:
    """Judge part by part: one that misses is enough to refute, all are needed to confirm."""
    measured = [part for part in parts if part.ours is not None]
    missed = [part.name for part in measured if not fits(part)]
    if missed:
        return (
            FAILS,
            f"{test} for {len(measured) - len(missed)} of {len(measured)} measured values, not for {', '.join(missed)}.",
        )
    if len(measured) < len(parts):
        return _not_run(claim["needs"])
    return HOLDS, f"{test}."


def _equal(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    digits = {item["name"]: item.get("digits", claim["rule"]["digits"]) for item in claim["published"]}

    def fits(part: Part) -> bool:
        return round(part.ours, digits[part.name]) == round(part.published, digits[part.name])

    shown = " or ".join(map(str, sorted(set(digits.values()))))
    return _each(claim, parts, fits, f"Our value, rounded to {shown} decimals, is the published one")


def _within_interval(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    if any(part.ours is not None and part.interval is None for part in parts):
        return _not_run("an interval of our value")
    test = "The published value lies in our 95 % interval"
    return _each(claim, parts, lambda part: part.interval[0] <= part.published <= part.interval[1], test)


def _at_least_ratio(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    if any(part.ours is None for part in parts):
        return _not_run(claim["needs"])
    against = " ".join(map(str, claim["evidence"]["against"].values()))
    reached = all(part.ours >= part.published for part in parts)
    if all(_ahead(part) for part in parts):
        if reached:
            return HOLDS, f"Every ratio to {against} reaches the published one."
        return DIRECTION, f"Ahead of {against}, by less than published."
    if reached:
        return _not_run("more speech: our intervals allow a ratio of 1")
    return FAILS, f"Not ahead of {against}."


def _ahead(part: Part) -> bool:
    """Say whether a ratio is surely above 1, or, where less than 1 was published, whether it reaches that."""
    if part.published < 1:
        return part.ours >= part.published
    return (part.interval[0] if part.interval else part.ours) > 1


def _direction(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    if any(part.ours is None for part in parts):
        return _not_run(claim["needs"])
    pairs = list(itertools.pairwise(sorted(parts, key=lambda part: part.published)))
    if any(low.ours > high.ours and not _overlap(low, high) for low, high in pairs):
        return FAILS, "Our values come in another order than the published ones."
    if any(_overlap(low, high) for low, high in pairs):
        return _not_run("more speech: our intervals overlap")
    return DIRECTION, "Our values come in the published order, with intervals apart."


def _overlap(one: Part, other: Part) -> bool:
    """Say whether two values cannot be told apart; a value without an interval is exact."""
    (a, b), (c, d) = (part.interval or (part.ours, part.ours) for part in (one, other))
    return a <= d and c <= b


def _arithmetic(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    expression = claim["rule"]["expression"]
    true = arithmetic(expression, {part.name: part.published for part in parts})
    values = ", ".join(f"{part.name} = {part.published:,.12g} {part.unit}".strip() for part in parts)
    return f"arithmetic {'holds' if true else 'fails'}", f"`{expression}` is {str(true).lower()} with {values}."


def _none(claim: Mapping[str, Any], parts: tuple[Part, ...]) -> tuple[str, str]:
    return _not_run(claim["needs"])


RULES = {
    "equal": _equal,
    "within_interval": _within_interval,
    "at_least_ratio": _at_least_ratio,
    "direction": _direction,
    "arithmetic": _arithmetic,
    "none": _none,
}

# ------------------------------------------------------------------------------------------------------------- arithmetic
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
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


# ------------------------------------------------------------------------------------------------------------------- show
def count(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return how many claims got each verdict, most first; all that were not run count as one kind."""
    return dict(Counter(kind(item) for item in verdicts).most_common())


def kind(verdict: Verdict) -> str:
    """Return the verdict without what a run would need."""
    return "not run" if verdict.verdict.startswith("not run") else verdict.verdict


class Table:
    """Verdicts for a notebook's last section: one line a claim that was judged; reasons and the others are folded below."""

    def __init__(self, verdicts: Iterable[Verdict]) -> None:
        self.verdicts = list(verdicts)

    def __repr__(self) -> str:
        return "\n".join(f"{item.id}: {item.verdict}" for item in self.verdicts)

    def _repr_html_(self) -> str:
        judged = [item for item in self.verdicts if kind(item) != "not run"]
        waiting = [item for item in self.verdicts if kind(item) == "not run"]
        return (
            f"<p><b>Published claims</b>: {len(judged)} of {len(self.verdicts)} could be judged here.</p>"
            + _rows(
                ("claim", "published", "here", "verdict"), [(i.id, i.published, _here(i), i.verdict) for i in judged]
            )
            + _folded("What each claim says, and why the verdict", [(f"{i.id}. {i.statement}", i.why) for i in judged])
            + _folded("Not run here, and what each needs", [(f"{i.id}. {i.statement}", i.verdict) for i in waiting])
        )


def _here(verdict: Verdict) -> str:
    """Return our values, with interval and number of clips where there are any."""
    return (
        verdict.ours
        + (f" [{verdict.interval}]" if verdict.interval else "")
        + (f", n = {verdict.n}" if verdict.n else "")
    )


def _rows(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return an HTML table with text that begins at the left."""
    left = ' style="text-align: left"'
    body = "".join(f"<tr>{''.join(f'<td{left}>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{''.join(f'<th{left}>{cell}</th>' for cell in head)}</tr></thead><tbody>{body}</tbody></table>"


def _folded(title: str, items: Iterable[tuple[str, str]]) -> str:
    shown = "".join(f"<li>{html.escape(' '.join(item))}</li>" for item in items)
    return f"<details><summary>{title}</summary><ul>{shown}</ul></details>" if shown else ""


def markdown(verdicts: Iterable[Verdict]) -> str:
    """Return a table: claim, published, here with interval and number of clips, verdict, why they may differ."""
    lines = ["| claim | published | here | 95 % interval | clips | verdict | why |", "|---|---|---|---|---|---|---|"]
    for item in verdicts:
        claim = f"[{item.id}]({item.source}) {item.statement}"
        cells = (
            claim,
            item.published,
            item.ours or "-",
            item.interval or "-",
            item.n or "-",
            f"**{item.verdict}**",
            item.why,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
