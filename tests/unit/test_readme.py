import json

import pytest

from asrlib import AsrlibError
from asrlib.course import readme, registry
from asrlib.io import files

ROOT = files.repository()
README = """\
| notebook | reproduces | what you see | time |
| [01 One](notebooks/01_one.ipynb) | an article | what one sees | typed by hand |

<!-- headlines -->
| typed by hand |
<!-- end of headlines -->
<!-- verdicts -->
<!-- end of verdicts -->
Below.
"""


@pytest.fixture
def made(course_folder):
    """A course of one notebook with a headline, published, and the claims of the real one."""
    course_folder.add("01_one", "1 + 1")
    root = course_folder.root
    table = root / "notebooks" / "notebooks.toml"
    headline = 'headlines = [{says = "WER of one", metric = "wer_percent", where = {corpus = "telephone"}}]'
    table.write_text(table.read_text().replace("headlines = []", headline))
    (root / "README.md").write_text(README)
    (root / "data" / "claims.yaml").write_bytes((ROOT / "data" / "claims.yaml").read_bytes())
    content = json.loads((ROOT / "results" / "00_start_here" / "record.json").read_text())
    content["run"] |= {"notebook": "01_one", "seconds": 150.0}
    files.write_atomic(root / "results" / "01_one" / "record.json", json.dumps(content))
    return root


def test_the_readme_is_the_generated_one():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme.text(ROOT)


def test_every_notebook_has_a_row_in_the_map_and_a_headline():
    text = readme.text(ROOT)
    assert [row[2] for row in readme.ROW.finditer(text)] == list(registry.read(ROOT))
    assert all(book.headlines for book in registry.read(ROOT).values())


def test_times_headlines_and_verdicts_come_from_the_records(made):
    text = readme.text(made)
    metric = json.loads((made / "results" / "01_one" / "record.json").read_text())["metrics"][0]
    assert "| what one sees | 2 minutes |" in text
    assert f"| WER of one | {metric['value']:.1f} % [" in text
    assert f"{metric['utterances']} clips, {metric['words']} words |" in text
    assert "| **all 229** |" in text
    assert "typed by hand" not in text
    assert text.endswith("Below.\n")


def test_writing_twice_changes_nothing_more(made):
    readme.write(made)
    once = (made / "README.md").read_text()
    readme.write(made)
    assert (made / "README.md").read_text() == once


def test_a_headline_without_a_value_is_named(made):
    table = made / "notebooks" / "notebooks.toml"
    table.write_text(table.read_text().replace('"wer_percent"', '"werr_percent"'))
    with pytest.raises(AsrlibError, match="01_one: no value of the record fits the headline 'WER of one'"):
        readme.text(made)
