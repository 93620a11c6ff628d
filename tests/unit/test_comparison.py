import pytest

from asrlib import cli
from asrlib.course import comparison, records


def metric(value, interval=None, name="wer_percent", **labels):
    return {"name": name, "value": value, "unit": "%", "interval": interval, "labels": labels}


def changes(before, after):
    return comparison.compare({"metrics": before}, {"metrics": after})


@pytest.mark.parametrize(("value", "kinds"), [(8.0, []), (7.1, []), (9.9, []), (7.0, ["moved"]), (12.0, ["moved"])])
def test_a_value_moves_when_it_leaves_its_earlier_interval(value, kinds):
    found = changes([metric(8.4, [7.1, 9.9])], [metric(value, [0.0, 100.0])])
    assert [change.kind for change in found] == kinds


def test_a_value_without_an_interval_can_only_differ():
    assert [change.kind for change in changes([metric(1.0)], [metric(1.5)])] == ["differs"]
    assert changes([metric(1.0)], [metric(1.0)]) == []
    before = [metric(1.0, name="a"), metric(10.0, [9, 11], name="b"), metric(10.0, [9, 11], name="c")]
    after = [metric(2.0, name="a"), metric(12.0, name="b"), metric(20.0, name="c")]
    assert [change.name for change in changes(before, after)] == ["c", "b", "a"]  # what moved, then the larger change


def test_values_are_matched_by_name_and_labels_whatever_their_order():
    before = [metric(1.0, model="a", corpus="b"), metric(2.0, model="c")]
    after = [metric(3.0, model="d"), metric(1.0, corpus="b", model="a")]
    assert {(change.kind, *change.labels.items()) for change in changes(before, after)} == {
        ("gone", ("model", "c")),
        ("new", ("model", "d")),
    }


def test_the_text_names_value_interval_and_labels():
    text = comparison.describe(
        changes([metric(8.4, [7.1, 9.9], corpus="telephone")], [metric(12.0, corpus="telephone")])
    )
    assert text == ("1 moved out of their interval:\n  wer_percent (corpus telephone): 8.4 % [7.1, 9.9] -> 12 %")
    assert comparison.describe([]) == "No metric changed."


def test_the_command_compares_two_runs(course_folder, capsys):
    for name, value in (("old", 8.4), ("new", 12.0)):
        record = records.Record("01_one", "reference", {}, course_folder.root / name, course_folder.root)
        record.add("wer_percent", value, unit="%", interval=(7.1, 9.9), corpus="telephone")
        record.save()
    assert cli.main(["compare", "old", "new/record.json"]) == 0
    assert "8.4 % [7.1, 9.9] -> 12 %" in capsys.readouterr().out
    assert cli.main(["compare", "old", "nowhere"]) == 1
    assert "There is no record nowhere" in capsys.readouterr().err
