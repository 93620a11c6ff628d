"""The table of a data set: how recordings are divided, and what people's corrections survive."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrlib.corpora import metadata
from asrlib.tasks import dataset

CHROMIUM = shutil.which("chromium")
lengths = st.lists(st.floats(1, 1000), min_size=1, max_size=40)


@given(lengths)
def test_each_split_has_a_recording_as_soon_as_there_are_three(seconds):
    new = {f"r{number}": length for number, length in enumerate(seconds)}
    chosen = dataset.divide(new, {})
    assert chosen.keys() == new.keys()
    assert set(chosen.values()) == set(list(dataset.SHARES)[: len(new)])
    assert chosen[max(new, key=new.__getitem__)] == "train"


@given(st.lists(st.floats(10, 20), min_size=20, max_size=60))
def test_shares_are_kept_to_a_recording(seconds):
    chosen = dataset.divide({str(number): length for number, length in enumerate(seconds)}, {})
    for split, share in dataset.SHARES.items():
        part = sum(length for number, length in enumerate(seconds) if chosen[str(number)] == split)
        assert abs(part - share * sum(seconds)) <= 2 * max(seconds)


@given(lengths, st.sampled_from(list(dataset.SHARES)))
def test_what_is_added_goes_where_too_little_is(seconds, full):
    chosen = dataset.divide(dict(enumerate(seconds)), {full: 1e6, "none of ours": 5.0})
    assert full not in chosen.values()


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).filter(
    lambda text: not text.startswith(" ")
)


@given(st.lists(texts, min_size=1, max_size=4))
def test_a_table_is_read_as_it_was_written_with_columns_of_ones_own(tmp_path_factory, said):
    folder = tmp_path_factory.mktemp("set")
    rows = [
        dict(zip((*dataset.COLUMNS, "note"), (f"clips/{place}.flac", text, "en", "me", "test", text), strict=True))
        for place, text in enumerate(said)
    ]
    dataset.write(folder, rows, {})
    assert dataset.read(folder) == rows


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_in_a_browser_a_text_is_corrected_a_clip_left_out_and_the_table_saved(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    hostile = '</script><script>alert("x")</script>, "quoted"'
    said = {"a b#1.flac": hostile, "noise.flac": "thanks for watching", "good.flac": "hello"}
    splits = {"a b#1.flac": "train", "noise.flac": "train", "good.flac": "test"}
    rows = [
        dict(zip(dataset.COLUMNS, (name, text, "en", "me", splits[name]), strict=True)) for name, text in said.items()
    ]
    dataset.write(tmp_path, rows, {"a b#1.flac": -0.1, "noise.flac": -0.9, "good.flac": -0.2})
    errors = []
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("dialog", lambda dialog: errors.append(dialog.message))
        tab.goto((tmp_path / "listen.html").as_uri())
        shown = [one.input_value() for one in tab.locator("textarea").all()]
        assert shown == ["hello", "thanks for watching", hostile]  # the test first, then the least probable
        assert tab.locator("audio").nth(2).get_attribute("src") == "a%20b%231.flac"
        tab.locator("textarea").nth(0).fill("hello, there")
        tab.get_by_role("checkbox").nth(1).check()
        assert tab.get_by_role("status").inner_text() == "1 corrected, 1 left out of 3"
        with tab.expect_download() as saved:
            tab.get_by_role("button", name="Save metadata.csv").click()
        saved.value.save_as(tmp_path / "saved.csv")
        tab.reload()  # the next day
        assert [one.input_value() for one in tab.locator("textarea").all()] == [
            "hello, there",
            "thanks for watching",
            hostile,
        ]
        assert tab.get_by_role("checkbox").nth(1).is_checked()
        assert tab.get_by_role("status").inner_text() == "1 corrected, 1 left out of 3"
        dataset.write(tmp_path, [rows[0] | {"transcription": "another"}, *rows[2:]], {})  # as `asrlib prepare` does
        tab.reload()
        assert [one.input_value() for one in tab.locator("textarea").all()] == ["hello, there", "another"]
        browser.close()
    (tmp_path / "saved.csv").rename(tmp_path / "metadata.csv")
    assert errors == []
    found = [(row["file_name"], row["transcription"]) for row in metadata.folder(tmp_path)]
    assert found == [("a b#1.flac", hostile), ("good.flac", "hello, there")]
    assert (tmp_path / "metadata.csv").read_text().splitlines()[0] == ",".join(dataset.COLUMNS)
