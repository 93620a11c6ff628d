import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrlib import AsrlibError
from asrlib.course import claims, rules

NOTEBOOK = "01_zero_shot_whisper"


def metric(value, interval=None, name="wer_percent", **labels):
    return {"name": name, "value": value, "unit": "%", "interval": interval, "utterances": 64, "labels": labels}


def record(*metrics):
    return {"run": {"notebook": NOTEBOOK}, "metrics": list(metrics)}


def claim(rule, *published, against=None, counted=False, **rest):
    """Return a claim on models a, b ... with these published values."""
    items = [{"name": m, "value": v, "where": {"model": m}} for m, v in zip("abcdef", published, strict=False)]
    evidence = {"notebook": NOTEBOOK, "metric": "wer_percent"} | ({"against": against} if against else {})
    evidence |= {"counted": True} if counted else {}
    kind = {"kind": rule} if isinstance(rule, str) else rule
    texts = {
        "id": "XX-01",
        "method": "m",
        "statement": "A statement.",
        "source": "https://example.org",
        "check": "D",
        "needs": "a GPU",
    }
    return texts | {"published": items, "evidence": evidence, "rule": kind} | rest


def verdict(asked, *metrics):
    return claims.judge([asked], [record(*metrics)])[0].verdict


def with_digits(digits, asked):
    """Return a claim whose first value is compared to so many digits, whatever the rule says."""
    first, *rest = asked["published"]
    return asked | {"published": [first | {"digits": digits}, *rest]}


EQUAL = {"kind": "equal", "digits": 1}
A, B = {"model": "a"}, {"model": "b"}
BARE = "not run (needs intervals of our values)"


@pytest.mark.parametrize(
    ("asked", "metrics", "expected"),
    [
        (claim(EQUAL, 4.2), [metric(4.24, **A)], "holds"),
        (claim(EQUAL, 4.2), [metric(4.26, **A)], "does not hold"),
        (claim(EQUAL, 4.2, 5.0), [metric(4.2, **A)], "not run (needs a GPU)"),
        (claim(EQUAL, 4.2, 5.0), [metric(4.9, **A)], "does not hold"),
        (with_digits(0, claim(EQUAL, 4.2)), [metric(4.4, **A)], "holds"),
        (with_digits(0, claim(EQUAL, 4.2)), [metric(4.6, **A)], "does not hold"),
        (claim("within_interval", 4.2), [metric(5, [4.1, 6], **A)], "holds"),
        (claim("within_interval", 4.2), [metric(5, [4.3, 6], **A)], "does not hold"),
        (claim("within_interval", 4.2), [metric(4.2, None, **A)], "not run (needs an interval of our value)"),
        (claim("within_interval", 4.2), [], "not run (needs a GPU)"),
        (
            claim("within_interval", 4.2, 5.0),
            [metric(5, [4.1, 6], **A), metric(5, None, **B)],
            "not run (needs an interval of our value)",
        ),
        (claim("at_least_ratio", 3, against=B), [metric(9, [8, 10], **A), metric(3, [2, 4], **B)], "holds"),
        (claim("at_least_ratio", 3, against=B), [metric(8, [7, 9], **A), metric(3, [2, 4], **B)], "holds in direction"),
        (claim("at_least_ratio", 3, against=B), [metric(8, [2, 9], **A), metric(3, [2, 4], **B)], "does not hold"),
        (claim("at_least_ratio", 3, against=B), [metric(2, [1, 3], **A), metric(3, [2, 4], **B)], "does not hold"),
        (claim("at_least_ratio", 3, against=B), [metric(2, **A), metric(0, **B)], "not run (needs a GPU)"),
        (claim("at_least_ratio", 3, against=B), [metric(9, **A), metric(3, [2, 4], **B)], BARE),
        (claim("at_least_ratio", 3, against=B), [metric(2, [1, 3], **A), metric(3, **B)], BARE),
        (claim("at_least_ratio", 3, against=B, counted=True), [metric(9, **A), metric(3, **B)], "holds"),
        (claim("at_least_ratio", 3, against=B, counted=True), [metric(2, **A), metric(3, **B)], "does not hold"),
        (claim("at_least_ratio", 1, against=B), [metric(9, [8, 10], **A), metric(6, [5, 7], **B)], "holds"),
        (
            claim("at_least_ratio", 1, against=B),
            [metric(9, [7, 11], **A), metric(8, [6, 10], **B)],
            "not run (needs more speech: our intervals allow a ratio of 1)",
        ),
        (claim("at_least_ratio", 1, against=B), [metric(5, [4, 6], **A), metric(9, [8, 10], **B)], "does not hold"),
        (claim("at_least_ratio", 0.75, against=B), [metric(3, [2, 4], **A), metric(4, [3, 5], **B)], "holds"),
        (claim("at_least_ratio", 0.7, against=B), [metric(6, [5, 7], **A), metric(10, [9, 11], **B)], "does not hold"),
        (claim("direction", 5, 9), [metric(20, [19, 21], **A), metric(30, [28, 33], **B)], "holds in direction"),
        (claim("at_most", 5), [metric(5, **A)], "holds"),
        (claim("at_most", 5), [metric(5.1, **A)], "does not hold"),
        (claim("at_most", 5), [], "not run (needs a GPU)"),
        (claim("direction", 5, 9), [metric(30, [28, 33], **A), metric(20, [19, 21], **B)], "does not hold"),
        (
            claim("direction", 5, 9, check="E"),
            [metric(30, [28, 33], **A), metric(20, [19, 21], **B)],
            "not run (needs the published scale: at ours the values come in another order)",
        ),
        (
            claim("direction", 5, 9),
            [metric(20, [15, 29], **A), metric(30, [28, 33], **B)],
            "not run (needs more speech: our intervals overlap)",
        ),
        (claim("direction", 5, 9), [metric(20, **A)], "not run (needs a GPU)"),
        (claim("direction", 5, 9), [metric(20, **A), metric(30, **B)], BARE),
        (claim("direction", 5, 9), [metric(30, **A), metric(20, [19, 21], **B)], BARE),
        (claim({"kind": "arithmetic", "expression": "round(b / a, 1) == 1.8"}, 5, 9), [], "arithmetic holds"),
        (claim({"kind": "arithmetic", "expression": "a == b"}, 5, 9), [], "arithmetic fails"),
        (claim("none", 5), [metric(5, [5, 5], **A)], "not run (needs a GPU)"),
    ],
)
def test_each_rule(asked, metrics, expected):
    assert verdict(asked, *metrics) == expected


def test_of_several_values_the_plainest_counts_and_a_tie_is_an_error():
    asked = claim("within_interval", 4.2)
    plain, raw = metric(4.2, [4, 5], **A), metric(9, [8, 10], normalizer="none", **A)
    assert verdict(asked, raw, plain) == "holds"
    with pytest.raises(AsrlibError, match="XX-01 fits several values"):
        verdict(asked, raw, metric(8, [7, 9], normalizer="other", **A))


def test_a_verdict_carries_what_a_reader_needs():
    asked = claim("within_interval", 4.2, 5.1, note="Other clips.")
    found = claims.judge([asked], [record(metric(5.0, [4.3, 6], **A))])[0]
    assert (found.published, found.ours, found.interval, found.n) == ("a 4.2; b 5.1", "a 5", "a 4.3 to 6", "a 64")
    assert found.why.endswith("not for a. Other clips.")
    assert "**does not hold**" in claims.markdown([found])
    assert claims.count([found, found]) == {"does not hold": 2}


def test_the_table_has_a_line_for_each_judged_claim_and_folds_reasons_and_the_rest():
    asked = claim("within_interval", 4.2, note="Other <clips>.")
    judged, waiting = claims.judge([asked], [record(metric(5.0, [4.1, 6], **A))]) + claims.judge([asked], [])
    shown = claims.Table([judged, waiting])
    page = shown._repr_html_()
    assert "1 of 2 could be judged" in page
    body = page.partition("<tbody>")[2].partition("</tbody>")[0]
    assert body.count("<tr>") == 1
    assert ">4.2<" in body
    assert "5 [4.1 to 6], n = 64<" in body
    assert "Other &lt;clips&gt;." in page.partition("</table>")[2]
    assert waiting.verdict.split("(")[0] in page.rpartition("<summary>")[2]
    assert repr(shown) == f"{judged.id}: holds\n{waiting.id}: {waiting.verdict}"


def mixed_claim():
    """Return a claim on a share in percent and on a size in MB, each with a metric of its own."""
    asked = claim({"kind": "equal", "digits": 2}, 1.01, 63.1)
    asked["published"][1] |= {"metric": "adapter_bytes", "scale": 1e-6}
    asked["evidence"] |= {"metric": "trainable_percent"}
    return asked


@pytest.mark.parametrize(
    ("share", "size", "expected"),
    [(1.0089, 63_100_000, "holds"), (1.0089, 63_200_000, "does not hold"), (1.02, 63_100_000, "does not hold")],
)
def test_a_published_value_may_name_its_own_metric_and_scale(share, size, expected):
    metrics = metric(share, name="trainable_percent", **A), metric(size, name="adapter_bytes", **B)
    assert verdict(mixed_claim(), *metrics) == expected


def test_a_ratio_of_an_own_metric_has_both_its_terms_from_it():
    asked = claim("at_least_ratio", 2, against=B)
    asked["published"][0]["metric"] = "rtfx"
    decoy, below = (metric(1, **A), metric(9, **B)), metric(4, [3, 5], "rtfx", **B)
    assert verdict(asked, *decoy, metric(8, [7, 9], "rtfx", **A), below) == "holds"
    assert verdict(asked, *decoy, metric(7, [6, 8], "rtfx", **A), below) == "holds in direction"


HINDI = {"model": "openai/whisper-small", "corpus": "common_voice", "language": "hi", "split": "test"}
LORA = {"model": "openai/whisper-large-v2", "method": "LoRA", "r": 32, "targets": "q_proj v_proj"}
FULL = {"model": "openai/whisper-large-v2", "method": "full fine-tuning"}
BASE = {"model": "openai/whisper-base.en", "counting": "openai"}


@pytest.mark.parametrize(
    ("name", "metrics", "expected"),
    [
        ("LS-02", [metric(71_825_408, name="parameters", **BASE)], "holds"),
        ("LS-02", [metric(71_825_409, name="parameters", **BASE)], "does not hold"),
        ("FT-02", [metric(33, [32, 34], "orthographic_wer_percent", step=2000, **HINDI)], "holds"),
        ("FT-02", [metric(33, [32, 34], "orthographic_wer_percent", step=1000, **HINDI)], "not run"),
        (
            "PF-08",
            [metric(7e9, name="checkpoint_bytes", **FULL), metric(62_980_000, name="adapter_bytes", **LORA)],
            "holds",
        ),
        ("PF-08", [metric(6_173_219_840, name="checkpoint_bytes", **FULL)], "does not hold"),
    ],
)
def test_records_of_the_notebooks_judge_the_claims_of_the_course(name, metrics, expected):
    asked = next(item for item in claims.load() if item["id"] == name)
    found = record(*metrics) | {"run": {"notebook": asked["evidence"]["notebook"]}}
    assert claims.judge([asked], [found])[0].verdict.partition(" (")[0] == expected


def test_without_a_run_arithmetic_over_published_values_is_judged_and_nothing_else():
    found = {item.id: item for item in claims.judge(claims.load(), [])}
    kinds = {name: claims.kind(item) for name, item in found.items()}
    assert set(kinds.values()) == {"arithmetic holds", "arithmetic fails", "not run"}
    assert {kinds[name] for name in ("FT-06", "FT-10", "FT-12", "PF-04")} == {"arithmetic holds"}
    assert {kinds[name] for name in ("FT-13", "BB-09", "NC-07")} == {"arithmetic fails"}
    assert "88.8 %" in found["FT-13"].why


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": {"kind": "guess"}}, "0/rule"),
        ({"rule": {"kind": "equal"}}, "0/rule"),
        ({"check": "Z"}, "0/check"),
        ({"source": "http://example.org"}, "0/source"),
        ({"evidence": None}, "0"),
        ({"colour": "red"}, "0"),
        ({"published": [{"name": "a", "value": 1, "metric": "WER %"}]}, "0/published/0/metric"),
        ({"published": [{"name": "a", "value": 1, "scale": 0}]}, "0/published/0/scale"),
    ],
)
def test_a_claim_that_breaks_the_schema_is_named_by_place(tmp_path, change, message):
    import yaml

    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([claims.load()[0] | change]))
    with pytest.raises(AsrlibError, match=f"at {message}"):
        claims.load(path)


def test_what_a_reader_does_to_the_claims_reaches_no_other_reader(tmp_path):
    claims.load()[0]["published"][0]["value"] = "spoilt"
    claims.load().clear()
    assert claims.load()[0]["published"][0]["value"] != "spoilt"
    path = tmp_path / "claims.yaml"
    path.write_text("[]")
    assert claims.load(path) == []
    path.write_text("- {")  # a file that has changed is read anew
    with pytest.raises(AsrlibError, match="not valid YAML"):
        claims.load(path)
    path.write_text(json.dumps(claims.load()[:1] * 2))  # JSON is YAML
    with pytest.raises(AsrlibError, match="LS-01 twice"):
        claims.load(path)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "a.b == 1",
        "a ** 9 > 1",
        "a",
        "c == 1",
        "a == 'x'",
        "(lambda: 1)() == 1",
        "a / 0 > 1",
        "a ==",
        "abs() > 1",
    ],
)
def test_arithmetic_refuses_everything_but_arithmetic(expression):
    with pytest.raises(AsrlibError, match="cannot be judged"):
        rules.arithmetic(expression, {"a": 1.0})


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_arithmetic_agrees_with_python(a, b):
    values = {"a": a, "b": b}
    assert rules.arithmetic("abs(a - b) <= 2 * max(a, b) or a + b < -1", values) == (
        abs(a - b) <= 2 * max(a, b) or a + b < -1
    )
    assert rules.arithmetic("-a < b < 9 and a >= 0", values) == (-a < b < 9 and a >= 0)
