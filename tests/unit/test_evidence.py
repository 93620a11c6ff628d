"""Lines of evidence and the table of paths: from records, through the data that the course has about its paths."""

import re
import shlex

import pytest

from asrlib import AsrlibError
from asrlib.cli import _parser
from asrlib.course import claims, evidence, records, registry, rules
from asrlib.io import files

ROOT = files.repository()
PATHS = files.read_toml(ROOT / "data" / "paths.toml")["path"]
ONE = "01_zero_shot_whisper"


def metric(name, value, interval=None, clips=None, unit="%", **labels):
    item = {"name": name, "value": value, "unit": unit, "interval": interval, "labels": labels}
    return item | ({"utterances": clips} if clips else {})


def record(*metrics, seconds=600):
    return {
        "run": {"seconds": seconds, "notebook": ONE, "parameters": {"MODEL_ID": "base"}},
        "metrics": list(metrics),
        "findings": [{}],
    }


def wanted(name="wer_percent", **rest):
    return {"notebook": ONE, "metric": name, "where": {"method": "a"}} | rest


@pytest.mark.parametrize(
    ("item", "asked", "text", "sure"),
    [
        (metric("wer_percent", 3.21, [1.8, 5.0], 132), {}, "3.2 % [1.8, 5.0], 132 clips", "shown here on 132 clips: more errors"),
        (
            metric("wer_difference_points", 3.21, [1.4, 5.2], 132, "points"), {}, "+3.2 points [1.4, 5.2], 132 clips",
            "shown here on 132 clips: more errors",
        ),
        (
            metric("wer_difference_points", -0.4, [-1.4, 0.2], 40, "points"), {}, "-0.4 points [-1.4, 0.2], 40 clips",
            "no difference shown on 40 clips",
        ),
        (metric("student_speed", 1.25, [1.21, 1.26], None, "x"), {}, "1.25 times [1.21, 1.26]", "shown here: faster"),
        (metric("size_mb", 145, None, None, "MB"), {}, "145.0 MB", "measured here, without an interval"),
        (
            metric("wer_percent", 30, [20, 38], 99), {"against": {"method": "b"}}, "0.50 times [0.29, 0.95], 99 clips",
            "shown here on 99 clips: fewer errors",
        ),
    ],
)  # fmt: skip
def test_a_line_of_evidence_is_shown_with_what_it_rests_on(item, asked, text, sure):
    other = metric("wer_percent", 60, [40, 70], 99, method="b")
    found = {ONE: record(item | {"labels": {"method": "a"}}, other)}
    line = wanted(item["name"], **asked)
    assert evidence.shown(evidence.metric(line, found), "against" in asked) == text
    assert evidence.sure(line, found) == sure


def test_what_no_record_has_is_said_to_be_so():
    assert evidence.sure(None, {}) == "published only"
    assert evidence.sure(wanted(), {}) == evidence.sure(wanted(), {ONE: record()}) == "not measured yet"
    for found in ({}, {ONE: record()}):
        for path in evidence.paths(found, claims.judge(claims.load(), [])):
            assert path.sure in ("published only", "not measured yet")
            assert all("not measured yet" in line or "10 minutes" in line for line in (*path.costs, *path.here))


def test_the_table_of_paths_shows_commands_lines_and_verdicts_and_escapes_them():
    (path, *_) = evidence.paths({}, claims.judge(claims.load(), []))
    table = evidence.Table([path])
    page = table._repr_html_()
    assert page.count("<tr>") == 2 and re.sub("<[^>]*>", "", page).count(path.command) == 1
    assert "LS-11: not run" in page
    assert repr(table) == f"{path.name}: published only; {path.command}"
    hostile = evidence.Table([evidence.Path("<b>", "<i>", "<u>", ("<s>",), (), (), "<p>")])._repr_html_()
    assert not any(tag in hostile for tag in ("<i>", "<u>", "<s>", "<p>"))


def test_every_path_names_a_command_chapters_and_claims_that_there_are():
    assert len(PATHS) <= 6
    books, known = registry.read(ROOT), {claim["id"] for claim in claims.load()}
    for path in PATHS:
        command = shlex.split(path["command"])
        assert command[0] == "asrlib"
        _parser().parse_args(command[1:])
        lines = [*path["costs"], *path["here"], *([path["decides"]] if "decides" in path else [])]
        assert {line["notebook"] for line in lines} <= set(books)
        assert {line["claim"] for line in path["published"]} <= known


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path["name"])
def test_every_line_finds_one_value_in_the_published_records(path):
    for line in [*path["costs"], *path["here"]]:
        place = ROOT / "results" / line["notebook"] / "record.json"
        if "metric" in line and place.is_file() and (found := records.load(place)).get("findings"):
            assert evidence.metric(line, {line["notebook"]: found}), line


def test_systems_join_words_and_costs_by_name_and_the_plainest_words_count():
    noisy = {"method": "int8", "noise": "5 dB"}
    found = record(
        metric("wer_percent", 4.0, [3, 5], 20, **noisy),
        metric("wer_percent", 2.0, [1, 3], 20, method="int8", noise="clean"),
        metric("wer_percent", 9.0, None, 20, spelling="as written", **noisy),
        metric("wer_percent", 3.0, [2, 4], 20, method="float32", noise="5 dB"),
        metric("wer_percent", 3.0, [2, 4], 20, method="untimed", noise="5 dB"),
        metric("wer_difference_points", 1.0, [0.5, 1.5], 20, "points", **noisy),
        metric("weight_bytes", 100, [90, 110], method="int8"),
        metric("weight_bytes", 300, method="float32", part="encoder"),
        metric("weight_bytes", 500, method="float32", part="decoder"),
        metric("weight_bytes", 400, method="unheard"),
        metric("weight_bytes", 1, part="no system"),
    )
    systems = evidence.systems(found, "weight_bytes", noise="5 dB")
    assert systems == {
        "int8": evidence.System(4.0, [3, 5], 100, [90, 110], True),
        "float32": evidence.System(3.0, [2, 4], 800, None, False),
    }
    assert evidence.systems(found, "seconds") == {}


def test_a_system_with_another_model_says_so_and_parts_give_way_to_the_whole():
    found = record(
        metric("wer_percent", 4.0, None, 20, engine="x", batch=4, model="base"),
        metric("wer_percent", 6.0, None, 20, engine="x", batch=4, model="student"),
        metric("size_mb", 100, engine="x", batch=4, model="base", part="both"),
        metric("size_mb", 60, engine="x", batch=4, model="base", part="encoder"),
        metric("size_mb", 70, engine="x", batch=4, model="student"),
    )
    systems = evidence.systems(found, "size_mb")
    assert {name: (one.wer, one.cost) for name, one in systems.items()} == {
        "x 4": (4.0, 100),
        "x 4, student": (6.0, 70),
    }


def test_records_of_the_first_edition_and_missing_ones_are_left_out(tmp_path):
    run = records.Record("14_choose_your_path", "reference", {}, tmp_path / "runs" / "14", tmp_path)
    with pytest.raises(AsrlibError, match="No chapter has a record to read"):
        evidence.gather(run, [ONE])
    for name, text in (("01_new", "A finding."), ("02_old", "")):
        left = records.Record(name, "reference", {}, tmp_path / "results" / name, tmp_path)
        left.findings = [{"text": text, "kind": "count", "main": True, "numbers": {}}] if text else []
        left.add("wer_percent", 1.0)
        left.save()
    assert list(evidence.gather(run, ["00_none", "01_new", "02_old"])) == ["01_new"]


def test_verdicts_of_the_paths_come_from_the_ledger():
    verdicts = claims.judge(claims.load(), [])
    shown = " ".join(line for path in evidence.paths({}, verdicts) for line in path.published)
    assert "(PF-02: not run)" in shown and rules.HOLDS not in shown


def test_what_only_a_table_compares_is_worse_too_by_its_full_name():
    rows = [
        {"system": "int8", "value": 90, "interval": [80, 95]},
        {"system": "int4", "value": 0.5, "interval": [-1, 2]},
        {"system": "other", "value": 9, "interval": [8, 10]},
    ]
    table = {"kind": "table", "numbers": {"reference": "Engine float, loops capped", "comparisons": rows}}
    names = ("Engine float", "Engine int8", "Engine int4")
    items = [metric("wer_percent", 5, [4, 6], system=name) for name in names]
    items += [metric("times_as_fast", 2, [1, 3], unit="x", system=name) for name in names]
    found = record(*items) | {"findings": [table]}
    assert [(one, other) for one, other, _ in evidence.tabled(found)] == [
        ("Engine int8", "Engine float"), ("Engine int4", "Engine float")
    ]  # fmt: skip
    assert {name: one.worse for name, one in evidence.systems(found, "times_as_fast").items()} == {
        "Engine float": False, "Engine int8": True, "Engine int4": False
    }  # fmt: skip
