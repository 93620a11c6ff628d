import gzip
import hashlib
import io
import itertools
import json
import re
import struct
import tarfile
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import soundfile
from hub_server import Hub, Repository
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from asrlib import AsrlibError, audio, corpora
from asrlib.corpora import catalogue, hub, packaged, untranscribed
from asrlib.corpora.clips import clean
from asrlib.corpora.rows import COLUMNS
from asrlib.course import registry
from asrlib.decoding import outcomes
from asrlib.io import files
from asrlib.text import normalizer
from asrlib.training import distillation
from tools import curate

PACKAGED = [(name, language) for name, languages in corpora.names().items() for language in languages]


def tone(path: Path, seconds: float = 1.0, rate: int = 16_000) -> Path:
    """Write a recording of the given length; the format follows from the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.linspace(0, 440 * seconds, int(seconds * rate))), rate)
    return path


def encoded(seconds: float) -> dict:
    """Return a recording as the Hub keeps it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.linspace(0, 440, int(seconds * 16_000))), 16_000, format="FLAC")
    return {"bytes": buffer.getvalue(), "path": "a.flac"}


# --- Curation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "spoken"),
    [
        ("... for ...", "for"),
        ("dash [-]", "dash"),
        ("Un ”inukshuk”.", "Un inukshuk."),
        ("c’è  una\xa0chiamata…", "c'è una chiamata"),
        ("- Pentru că", "Pentru că"),
        ("e\u0301te\u0301", "été"),
        ("Mailbox?", "Mailbox?"),
        ("Телефон. Алло? Алло?", "Телефон. Алло? Алло?"),
    ],
)
def test_clean_keeps_what_is_spoken(published, spoken):
    assert clean(published) == clean(spoken) == (spoken, None)


@pytest.mark.parametrize(
    ("published", "reason"),
    [
        (None, "no transcript"),
        (" ... ", "no transcript"),
        ("b.", "a single letter"),
        ("La conferenza ? piena.", "a damaged transcript"),
        ("il tempo sar? esattamente", "a damaged transcript"),
        ("perch\ufffd", "a damaged transcript"),
        ("stato eliminato vm-then-pound: poi premere", "a damaged transcript"),
        ("[quello] non è un interno", "a remark or a figure in brackets"),
        ("O monedă ($.05)", "a remark or a figure in brackets"),
        ("press * to pause", "a symbol that is read aloud"),
    ],
)
def test_clean_refuses_what_is_not_certain(published, reason):
    assert clean(published)[1] == reason


def test_excluded_by_length():
    assert curate.excluded_by_length("yes", 0.2) == "shorter than 0.3 s"
    assert curate.excluded_by_length("yes", 30.1) == "longer than 30 s"
    assert (
        curate.excluded_by_length("Pluto, der indtil for nylig blev anset som en planet", 0.6)
        == "more text than is spoken"
    )
    assert curate.excluded_by_length("Thank you for calling", 1.2) is None


def test_families_join_templates_and_repeats_only():
    texts = {
        "a": "The letter A.",
        "b": "The letter B.",
        "c": "the letter: c",
        "dog": "A dog.",
        "dog2": "The dog!",
        "cat": "A cat.",
        "one": "Please enter your agent number followed by pound",
        "two": "Wrong code; to begin again, enter your agent number followed by star, or hang up and call later",
    }
    groups = defaultdict(set)
    for clip, family in curate.families(texts).items():
        groups[family].add(clip)
    assert sorted(map(sorted, groups.values())) == [["a", "b", "c"], ["cat"], ["dog", "dog2"], ["one", "two"]]


WORDS = st.sampled_from(["red", "green", "dog", "cat", "house", "a", "the", "five", "runs"])
TEXTS = st.dictionaries(st.text("abcdef", min_size=1), st.lists(WORDS, min_size=1).map(" ".join), max_size=80)


@given(TEXTS, st.randoms())
def test_related_texts_are_in_one_family_whatever_the_order_and_no_family_is_cut(texts, random):
    family = curate.families(texts)
    shuffled = list(texts.items())
    random.shuffle(shuffled)
    assert curate.families(dict(shuffled)) == family
    splits = curate.assign_splits(family)
    words = {
        clip: {word for word in text.split() if len(word) > 2} or set(text.split()) for clip, text in texts.items()
    }
    for one, other in itertools.combinations(texts, 2):
        if 2 * len(words[one] & words[other]) >= len(words[one] | words[other]):
            assert family[one] == family[other]
        if family[one] == family[other]:
            assert splits[one] == splits[other]


@given(st.lists(st.integers(1, 14), max_size=120))
def test_split_sizes(sizes):
    family = {f"{name}-{member}": str(name) for name, size in enumerate(sizes) for member in range(size)}
    counts = Counter(curate.assign_splits(family).values())
    assert counts.total() == len(family)
    if len(family) < curate.MIN_SPLIT:
        assert counts["train"] == counts["validation"] == 0
    else:
        assert counts["test"] <= min(200, 0.3 * len(family))
        assert counts["validation"] <= min(80, 0.1 * len(family))


# --- The committed splits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "language"), PACKAGED)
def test_committed_splits(name, language):
    rows = catalogue.manifest(name, language)
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids)) and all(clip.startswith(f"{name}/{language}/") for clip in ids)
    assert all(("split" in row) != ("excluded" in row) for row in rows)
    splits_of = defaultdict(set)
    for row in rows:
        if "family" in row:
            splits_of[row["family"]].add(row["split"])
    assert max(map(len, splits_of.values()), default=1) == 1, "a text family is in two splits"
    counts = Counter(row["split"] for row in rows if "split" in row)
    if name in ("audiobook", "untranscribed"):
        assert (
            counts == {"audiobook": {"test": 5}, "untranscribed": {"train": 6460, "validation": 80, "test": 200}}[name]
        )
    else:  # families are small enough to fill what test and validation may take, but for a few clips
        assert min(200, 0.3 * counts.total()) - 2 < counts["test"] <= min(200, 0.3 * counts.total())
        assert min(80, 0.1 * counts.total()) - 2 < counts["validation"] <= min(80, 0.1 * counts.total())


def test_no_transcript_is_committed():
    allowed = {"id", "split", "family", "seconds", "sha256", "text_sha256", "excluded", "clips"}
    for name, language in PACKAGED:
        for row in files.read_jsonl(files.data_file(f"splits/{name}-{language}.jsonl")):
            assert row.keys() <= allowed


def test_readme_tables_are_those_of_the_splits():
    readme = files.data_file("README.md").read_text("utf-8")
    assert f"<!-- tables -->\n{curate.tables()}\n<!-- end of tables -->" in readme


@pytest.mark.weights
@pytest.mark.parametrize(("name", "language"), PACKAGED)
def test_committed_splits_are_what_the_rules_give(name, language):
    corpora.fetch(name, language)
    assert curate.curate(name, language) == list(files.read_jsonl(files.data_file(f"splits/{name}-{language}.jsonl")))


@pytest.mark.weights
@pytest.mark.parametrize(("name", "language"), PACKAGED)
def test_no_normalised_text_or_sound_is_in_two_splits(name, language):
    table, normalise = corpora.load(name, language), normalizer(language)
    assert all(table["text"]) == (name != "untranscribed")
    splits_of = defaultdict(set)
    for text, audio_, split in zip(table["text"], table["audio"], table["split"], strict=True):
        splits_of[normalise(text) or hashlib.sha256(audio_["bytes"]).digest()].add(split)
    assert max(map(len, splits_of.values())) == 1


@pytest.mark.weights
def test_load_telephone():
    table = corpora.load("telephone", "it", "test")
    assert table.column_names == list(COLUMNS)
    assert (
        set(table["language"]) == {"it"}
        and set(table["split"]) == {"test"}
        and len(table) == corpora.card("telephone", "it").clips["test"]
    )
    row = table[0]
    assert abs(audio.load(row["audio"]).size / audio.SAMPLING_RATE - row["seconds"]) < 0.01
    texts = " ".join(corpora.load("telephone", "it")["text"])
    assert "sarà esattamente" in texts and "più tardi" in texts and "\ufffd" not in texts


# --- Cards and errors -------------------------------------------------------------------------------------------------


def test_card_shows_licence_counts_and_exclusions():
    card = corpora.card("telephone", "it")
    shown = card._repr_markdown_()
    for said in ("| licence | CC-BY-3.0 |", "Carlo Flora", f"test {card.clips['test']} (", "a bare number", "Italian"):
        assert said in shown
    assert list(card.clips) == ["train", "validation", "test"]
    assert corpora.card("fleurs").facts["licence"] == "CC-BY-4.0"


@pytest.mark.parametrize("name", corpora.names())
def test_each_corpus_can_be_had_without_apt(name):
    for language in corpora.names()[name]:
        facts = catalogue.facts(name, language)
        assert facts["upstream"].startswith("https://") and len(facts["upstream_sha256"]) == 64


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("telefone", "en"), "choose one of telephone"),
        (("telephone", "xx"), "choose one of en, es, fr, it, ru"),
        (("telephone",), "choose one of en, es"),
        (("librispeech", "en", "test"), "choose one of test-clean"),
        (("fleurs", "xx"), "choose one of af, am"),
        (("librispeech", "fr"), "English"),
        (("common_voice", "ro"), "root=the downloaded archive"),
        (("folder",), "metadata.csv"),
    ],
)
def test_unknown_names_list_the_known_ones(arguments, hint):
    with pytest.raises(AsrlibError, match=hint):
        corpora.load(*arguments)


# --- A packaged corpus from a folder of ASRLIB_DATA -------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    """Return a package tree with three Italian prompts, listed as the whole corpus."""
    share = tmp_path / "tree" / "usr" / "share"
    for number, name in enumerate(("conf-full", "digits/5", "goodbye", "digits/at")):
        tone(share / "asterisk/sounds/it_IT_m_Carlo" / f"{name}.wav", 1 + number / 10, 8000)
    lines = "; comment\nconf-full: La conferenza ? piena.\ndigits/5: cinque\ngoodbye: Arrivederci!\nDIGITS/AT: alle\n"
    notes = share / "doc/asterisk-core-sounds-it/core-sounds-it.txt.gz"
    notes.parent.mkdir(parents=True)
    notes.write_bytes(gzip.compress(lines.encode("utf-8-sig")))
    monkeypatch.setenv("ASRLIB_DATA", str(tmp_path / "tree"))
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    rows = curate.curate("telephone", "it")
    monkeypatch.setattr(catalogue, "manifest", lambda name, language: rows)
    return share


def test_data_folder_is_read_repaired_and_cleaned(prompts):
    table = corpora.load("telephone", "it")
    texts = dict(zip(table["id"], table["text"], strict=True))
    assert texts == {
        "telephone/it/conf-full": "La conferenza è piena.",
        "telephone/it/digits/at": "alle",
        "telephone/it/goodbye": "Arrivederci!",
    }
    assert corpora.card("telephone", "it").excluded == {"a bare number": 1}
    assert corpora.available("telephone", "it")
    assert corpora.fetch("telephone", "it") == prompts.parent.parent
    with pytest.raises(AsrlibError, match="no split 'train': choose one of test"):
        corpora.load("telephone", "it", "train")


def test_damaged_transcripts_are_not_believed(prompts):
    notes = prompts / "doc/asterisk-core-sounds-it/core-sounds-it.txt.gz"
    notes.write_bytes(notes.read_bytes()[:-20])
    assert packaged.verified("telephone", "it", prompts.parent.parent) is None


def test_a_changed_clip_is_left_out_with_a_warning(prompts, monkeypatch):
    monkeypatch.setattr(packaged, "ENOUGH", 0.5)
    tone(prompts / "asterisk/sounds/it_IT_m_Carlo/goodbye.wav", 2, 8000)
    with pytest.warns(UserWarning, match="1 of 3 clips"):
        assert len(corpora.load("telephone", "it")) == 2


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Return the only place where packaged corpora are looked for."""
    monkeypatch.setenv("ASRLIB_DATA", str(tmp_path))
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "usr" / "share"


LINES = {
    "wreck": [
        ("w-m-ship", "small", "A ship!", "Hele, loď!"),
        ("w-v-name", "big", 'Its name is \\"Eva\\".', 'Jmenuje se\\n\\"Eva\\" \\197\\161.'),
        ("rand-1", "crab", "Yes.", "Ano."),
        ("same", "big", "Good idea.", "Dobrý nápad."),
        ("empty", "", "", ""),
    ],
    "ufo": [("rand-1", "small", "Look at that.", "Podívej se na to."), ("same", "small", "Good idea!", "Dobrý nápad!")],
}


@pytest.fixture
def game(tree, monkeypatch):
    """Return a game of two levels whose clips are listed as the whole corpus."""
    root = tree / "games" / "fillets-ng"
    for level, lines in LINES.items():
        script = root / "script" / level / "dialogs_cs.lua"
        script.parent.mkdir(parents=True)
        calls = [
            f'dialogId("{key}", "font_{who}", "{english}")\n  dialogStr("{text}")\n'
            for key, who, english, text in lines
        ]
        script.write_text("-- dialogs\n" + "\n".join(calls), "utf-8")
        for number, (key, *_) in enumerate(lines):
            tone(root / "sound" / level / "cs" / f"{key}.ogg", 1 + number / 10, 22_050)
    tone(root / "sound" / "ufo" / "cs" / "no-line.ogg")
    tone(root / "sound" / "ufo" / "nl" / "other.ogg")
    rows = curate.curate("dialogue", "cs")
    monkeypatch.setattr(catalogue, "manifest", lambda name, language: rows)
    return root


def test_dialogue_has_its_english_text_and_its_speakers(game):
    table = corpora.load("dialogue", "cs")
    assert table.column_names == [*COLUMNS, "translation"]
    found = {row["id"].removeprefix("dialogue/cs/"): row for row in table}
    assert {clip: (row["text"], row["translation"], row["speaker"]) for clip, row in found.items()} == {
        "ufo/rand-1": ("Podívej se na to.", "Look at that.", "dialogue-cs-small"),
        "wreck/w-m-ship": ("Hele, loď!", "A ship!", "dialogue-cs-small"),
        "wreck/w-v-name": ("Jmenuje se Eva Å¡.", 'Its name is "Eva".', "dialogue-cs-big"),
    }
    assert corpora.card("dialogue", "cs").excluded == {
        "a line of several levels": 2,
        "no transcript": 2,
        "a single word": 1,
    }


def test_a_translation_that_was_changed_is_not_believed(game):
    script = game / "script" / "ufo" / "dialogs_cs.lua"
    script.write_text(script.read_text("utf-8").replace("Look at that.", "Look at this."), "utf-8")
    assert packaged.verified("dialogue", "cs", game.parents[2]) is None


def bundle(entries: list[tuple[bytes, int, int]], body: bytes) -> bytes:
    table = b"".join(struct.pack(">12sBII", name, 1, offset, size) for name, offset, size in entries)
    return b"QTBLCEM10\0\0\0\1" + struct.pack(">H", len(entries)) + table + body


@pytest.fixture
def queen(tree, monkeypatch):
    """Return a bundle of five clips and a picture, whose clips are listed as the whole corpus."""
    path = tree / "scummvm" / "flight-of-the-amazon-queen" / "queen.1c"
    path.parent.mkdir(parents=True)
    sounds = [tone(tree / "clip.mp3", seconds, 11_025).read_bytes() for seconds in (4, 3, 2, 1, 0.05)]
    at, entries = 15 + 21 * 6, [(b"MAP.PCX", 15 + 21 * 6, 9)]
    for number, sound in enumerate(sounds):
        entries.append((b"%d.SB" % number, at, len(sound)))
        at += len(sound)
    path.write_bytes(bundle(entries, b"".join(sounds)) + bytes(9))
    (line, *_) = rows = curate.curate("untranscribed", "en")
    assert [row["id"] for row in rows[1:]] == ["untranscribed/en/4"]  # a click
    monkeypatch.setattr(files, "read_jsonl", lambda path: iter([dict(line)]))
    return path


def test_untranscribed_clips_are_packed_in_order_and_nothing_is_lost(queen):
    rows = corpora.load("untranscribed")
    assert rows["id"] == [f"untranscribed/en/{number}" for number in range(4)]
    assert set(rows["text"]) == {""} and corpora.available("untranscribed")
    packed = corpora.pack(rows, seconds=7.5)
    assert [row["ids"] for row in packed] == [rows["id"][:2], rows["id"][2:]]
    assert [row["before"] for row in packed] == ["", packed[0]["id"]]
    clips = [audio.load(row["audio"]) for row in rows]
    pause = np.zeros(round(0.3 * 16_000), np.float32)
    assert np.array_equal(audio.load(packed[0]["audio"]), np.concatenate([clips[0], pause, clips[1]]))
    assert all(
        abs(row["seconds"] - len(audio.load(row["audio"])) / 16_000) < 0.02 and row["seconds"] <= 7.5 for row in packed
    )
    assert [len(row["ids"]) for row in corpora.pack(rows, seconds=7.15)] == [1, 3]  # the pauses count
    assert [len(row["ids"]) for row in corpora.pack(rows, seconds=1.5)] == [1] * 4
    assert corpora.pack([]) == []


def test_packing_keeps_to_one_speaker_and_joins_the_words():
    rows = [
        {"id": name, "audio": name, "seconds": 4.0, "text": text, "speaker": speaker, "language": language}
        for name, text, speaker, language in [
            ("a", "one", "x", "en"), ("b", "two", "x", "en"), ("c", "three", "y", "en"), ("d", "我", "y", "zh"), ("e", "爱", "y", "zh")
        ]
    ]  # fmt: skip
    packed = corpora.pack(rows, seconds=9)
    assert [row["text"] for row in packed] == ["one two", "three 我", "爱"]
    assert [row["before"] for row in packed] == ["", "", "c+1"]
    assert packed[0]["seconds"] == 8.3


def test_a_truncated_bundle_is_passed_over_in_one_sentence(queen):
    queen.write_bytes(queen.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="looked for elsewhere: .*queen.1c names bytes that it does not hold"):
        assert packaged.verified("untranscribed", "en", queen.parents[4]) is None


@given(
    st.lists(st.tuples(st.binary(max_size=12), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=4),
    st.binary(),
)
@example([(b"A.SB", 15 + 42, 60), (b"B.SB", 15 + 42, 60)], bytes(60))  # the same bytes twice
@example([(b"A.SB", 0, 5)], bytes(60))  # of the table itself
def test_every_table_is_read_within_its_file_or_refused(entries, body):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scummvm" / "flight-of-the-amazon-queen" / "queen.1c"
        path.parent.mkdir(parents=True)
        path.write_bytes(bundle(entries, body))
        try:
            clips = untranscribed.read(Path(folder), "en", "")
        except AsrlibError as error:
            assert "\n" not in str(error)
            return
    first, size = 15 + 21 * len(entries), len(bundle(entries, body))
    spans = [clip.span for clip in clips.values()]
    assert all(first <= start <= start + length <= size for start, length in spans)
    assert sum(length for _, length in spans) <= size


# --- Sets that the reader brings --------------------------------------------------------------------------------------


def test_librispeech_from_disk(tmp_path):
    folder = tmp_path / "LibriSpeech" / "test-clean" / "61" / "70968"
    for number in (1, 0):
        tone(folder / f"61-70968-000{number}.flac", 1 + number)
    (folder / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN\n61-70968-0001 A CONFUSED COMPLAINT\n")
    for root in (tmp_path, tmp_path / "LibriSpeech"):
        table = corpora.load("librispeech", split="test-clean", root=root)
        assert table["id"] == ["61-70968-0000", "61-70968-0001"] and table["text"][1] == "A CONFUSED COMPLAINT"
        assert table["seconds"] == [1.0, 2.0] and set(table["speaker"]) == {"61"}
        assert audio.load(table[1]["audio"]).shape == (32_000,)
    with pytest.raises(AsrlibError, match="none of LibriSpeech's folders dev-clean"):
        corpora.load("librispeech", split="dev-clean", root=tmp_path)


def write_parquet(path: Path, **columns: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)


def write_fleurs(path: Path, *texts: str) -> None:
    columns = {"id": list(range(len(texts))), "num_samples": [16_000] * len(texts)}
    write_parquet(path, audio=[encoded(1)] * len(texts), transcription=list(texts), **columns)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


@pytest.mark.parametrize("name", ["clean/test/0000.parquet", "data/clean/test-00000-of-00001.parquet"])
def test_librispeech_parquet(tmp_path, hub_cache, name):
    columns = {"audio": [encoded(1.5)], "text": ["CONCORD"], "speaker_id": [6930], "chapter_id": [75918]}
    write_parquet(tmp_path / "set" / name, **columns, id=["6930-75918-0000"])
    write_parquet(tmp_path / "set" / name.replace("test", "train.100"), **columns, id=["other"])
    table = corpora.load("librispeech", "en-US", "test-clean", root=tmp_path / "set")
    assert table.column_names == list(COLUMNS)
    expected = {"id": "6930-75918-0000", "text": "CONCORD", "speaker": "6930", "seconds": 1.5, "split": "test-clean"}
    assert table.remove_columns(["audio", "language"])[:] == {name: [value] for name, value in expected.items()}
    assert audio.load(table[0]["audio"]).shape == (24_000,)


def test_fleurs_parquet(tmp_path, hub_cache):
    write_fleurs(tmp_path / "ro_ro" / "test" / "0000.parquet", "unu", "doi")
    write_fleurs(tmp_path / "ro_ro" / "train" / "0000.parquet", "trei")
    write_fleurs(tmp_path / "cmn_hans_cn" / "test" / "0000.parquet", "一")
    write_parquet(tmp_path / "fr_fr" / "test" / "0000.parquet", sentence=["un"])
    assert corpora.load("fleurs", "ro-RO", "test", root=tmp_path)["text"] == ["unu", "doi"]
    table = corpora.load("fleurs", "ro", root=tmp_path)
    assert Counter(table["split"]) == {"test": 2, "train": 1} and set(table["language"]) == {"ro"}
    for code in ("zh-CN", "zh", "cmn"):
        assert corpora.load("fleurs", code, "test", root=tmp_path)["text"] == ["一"]
    with pytest.raises(AsrlibError, match="de_de/test"):
        corpora.load("fleurs", "de", "test", root=tmp_path)
    with pytest.raises(AsrlibError, match="lack the columns audio, id, transcription"):
        corpora.load("fleurs", "fr", "test", root=tmp_path)


def test_parquet_below_a_folder_with_brackets_and_half_a_file(tmp_path, hub_cache):
    path = tmp_path / "set [1]" / "ro_ro" / "test" / "0000.parquet"
    write_fleurs(path, "unu")
    assert corpora.load("fleurs", "ro", "test", root=tmp_path / "set [1]")["text"] == ["unu"]
    half = tmp_path / "half" / "ro_ro" / "test" / "0000.parquet"
    half.parent.mkdir(parents=True)
    half.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AsrlibError, match=r"parquet files in .*test cannot be read .*: fetch them again") as caught:
        corpora.load("fleurs", "ro", "test", root=tmp_path / "half")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", ["", ":packed"])
def test_a_distillation_holds_no_sound_of_a_parquet_file_in_memory(tmp_path, hub_cache, packed):
    write_fleurs(tmp_path / "ro_ro" / "test" / "0000.parquet", "unu", "doi")
    rows = distillation.clips([distillation.Source.parse(f"fleurs/ro/test{packed}")], root=tmp_path)
    assert len(rows) == (1 if packed else 2)
    for row in rows.values():
        parts = getattr(row["audio"], "parts", (row["audio"],))
        assert all(isinstance(part, audio.Stored) for part in parts)
        assert len(audio.load(row["audio"])) >= 16_000 * len(parts)
        assert len(outcomes.content(row["audio"])) == 64


@pytest.fixture
def served_hub(tmp_path, hub_cache, hub_at):
    """Serve the parquet branch of FLEURS, with one Romanian and one French clip, from this machine; yield its files."""
    served = {}
    for part, text in {"ro_ro/test": "unu", "fr_fr/test": "un"}.items():
        write_fleurs(tmp_path / "written", text)
        served[f"{part}/0000.parquet"] = (tmp_path / "written").read_bytes()
    fleurs = Repository("google/fleurs", "c" * 40, served, "dataset", hub.PARQUET_BRANCH)
    with Hub([fleurs]).playing() as server:
        hub_at(server)
        yield served


def test_the_hub_gives_one_configuration_and_then_is_not_asked(served_hub, tmp_path):
    assert corpora.load("fleurs", "ro", "test")["text"] == ["unu"]
    with pytest.raises(AsrlibError, match="has no parquet files ro_ro/train of google/fleurs"):
        corpora.load("fleurs", "ro", "train")
    snapshot = tmp_path / "hub"  # names there are links
    assert corpora.load("fleurs", "ro", "test", root=snapshot)["text"] == ["unu"]
    served_hub.clear()
    assert corpora.load("fleurs", "ro", "test")["text"] == ["unu"]


SHARD = "-00000-of-00001-7a1bb92f62e929b8.parquet"
# A set's split: its repository, the file, and a row in the set's own columns; then the row's id and speaker here.
SETS = {
    ("ami", "test"): ("edinburghcstr/ami", "ihm/test", {"meeting_id": "EN2002a", "audio_id": "AMI_EN2002a_H00_MEE073_0",
        "text": "HELLO", "begin_time": 0.5, "end_time": 1.5, "microphone_id": "H00", "speaker_id": "MEE073"},
        "AMI_EN2002a_H00_MEE073_0", "MEE073"),
    ("ami", "sdm-test"): ("edinburghcstr/ami", "sdm/test", {"meeting_id": "EN2002a", "audio_id": "AMI_EN2002a_SDM_MEE073_0",
        "text": "HELLO", "begin_time": 0.5, "end_time": 1.5, "microphone_id": "sdm", "speaker_id": "MEE073"},
        "AMI_EN2002a_SDM_MEE073_0", "MEE073"),
    ("earnings21", "test"): ("distil-whisper/earnings21", "full/test", {"file_id": "4320211", "transcription": "Hello."},
        "4320211", "4320211"),
    ("earnings22", "test"): ("distil-whisper/earnings22", "chunked/test", {"file_id": "4482983", "segment_id": "7",
        "transcription": "Hello.", "start_ts": 0.5, "end_ts": 1.5}, "7", "4482983"),
    ("earnings22", "full"): ("distil-whisper/earnings22", "full/test", {"file_id": "4482983", "transcription": "Hello."},
        "4482983", "4482983"),
    ("gigaspeech", "test"): ("hf-audio/open-asr-leaderboard", "gigaspeech/test", {"dataset": "gigaspeech", "text": "HELLO",
        "id": "POD1_S1", "audio_length_s": 1.0}, "POD1_S1", ""),
    ("meanwhile", "test"): ("distil-whisper/meanwhile", "data/test", {"text": "Hello."}, "0", ""),
    ("rev16", "test"): ("distil-whisper/rev16", "whisper_subset/test", {"file_number": "3", "transcription": "Hello."}, "3", ""),
    ("spgispeech", "test"): ("hf-audio/open-asr-leaderboard", "spgispeech/test", {"dataset": "spgispeech", "text": "Hello.",
        "id": "a/1.wav", "audio_length_s": 1.0}, "a/1.wav", ""),
    ("tedlium", "test"): ("distil-whisper/tedlium-prompted", "release3/test", {"text": "hello", "speaker_id": "AimeeMullins",
        "gender": 1, "file": "a.sph", "id": "AimeeMullins-1"}, "AimeeMullins-1", "AimeeMullins"),
    ("tedlium_long", "test"): ("distil-whisper/tedlium-long-form", "data/test", {"text": "hello", "speaker_id": "DanBarber"},
        "DanBarber", "DanBarber"),
    ("voxpopuli", "test"): ("facebook/voxpopuli", "en/test", {"audio_id": "2009-1", "language": 0, "raw_text": "Hello!",
        "normalized_text": "hello", "gender": "female", "speaker_id": "28", "is_gold_transcript": True, "accent": "None"},
        "2009-1", "28"),
}  # fmt: skip


def parquet_of(path: Path, row: dict, **others: list) -> bytes:
    """Return the parquet file of clips with a set's columns: a row, and one more for each of the other values."""
    count = 1 + max(map(len, others.values()), default=0)
    columns = {name: [value, *others.get(name, [value] * (count - 1))] for name, value in row.items()}
    kinds = {str: "string", int: "int64", float: "float64", bool: "bool"}
    features = {name: {"dtype": kinds[type(value)], "_type": "Value"} for name, value in row.items()}
    features["audio"] = {"sampling_rate": 16_000, "_type": "Audio"}
    table = pyarrow.table({"audio": [encoded(1)] * count, **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path
    )
    return path.read_bytes()


def test_published_sets_come_from_the_hub_as_they_were_uploaded(tmp_path, hub_cache, hub_at):
    served: dict[str, dict[str, bytes]] = {}
    for repository, part, row, *_ in SETS.values():
        content = served.setdefault(repository, {"README.md": b"a card", f"other/test{SHARD}": b"not wanted"})
        content[part + SHARD] = parquet_of(tmp_path / "written", row)
    with Hub([Repository(name, "c" * 40, content, "dataset") for name, content in served.items()]).playing() as server:
        hub_at(server)
        for (name, split), (*_, row, clip, speaker) in SETS.items():
            table = corpora.load(name, "en", split)
            assert table.column_names == list(COLUMNS)
            expected = {"id": clip, "speaker": speaker, "seconds": 1.0, "language": "en", "split": split}
            expected["text"] = row.get("text") or row.get("normalized_text") or row["transcription"]
            assert table.remove_columns(["audio"])[:] == {
                column: [expected[column]] for column in COLUMNS if column != "audio"
            }
            assert audio.load(table[0]["audio"]).shape == (16_000,)
            assert corpora.card(name).facts["licence"]
    assert {name for name, _ in SETS} == set(catalogue.PUBLISHED)
    assert not [path for path in server.asked if "other/" in path]
    assert len(corpora.load("ami", split="test")) == 1  # from the cache


def test_a_published_set_may_lie_in_a_folder_and_says_what_it_has_not(tmp_path, hub_cache):
    for language in ("en", "nl"):
        row = SETS["voxpopuli", "test"][2] | {"normalized_text": language}
        parquet_of(tmp_path / "voxpopuli" / language / "test-00000-of-00001.parquet", row)
    assert corpora.load("voxpopuli", "nl", "test", root=tmp_path)["text"] == ["nl"]
    with pytest.raises(AsrlibError, match="VoxPopuli has no language 'ja': choose one of cs, de, en"):
        corpora.load("voxpopuli", "ja", "test", root=tmp_path)
    with pytest.raises(AsrlibError, match=r"holds no parquet files like de/test\*\.parquet"):
        corpora.load("voxpopuli", "de", "test", root=tmp_path)
    with pytest.raises(AsrlibError, match="'earnings22' has no split 'train': choose one of test, full"):
        corpora.load("earnings22", "en", "train", root=tmp_path)
    write_parquet(tmp_path / "full" / "test-0.parquet", audio=[encoded(1)], words=["hello"])
    with pytest.raises(AsrlibError, match="lack the columns text: is this the right set"):
        corpora.load("earnings21", "en", "test", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "published", "spoken"),
    [
        ("tedlium", "<unk> i 'm sure it 's <unk> at five o 'clock", "i'm sure it's at five o'clock"),
        ("tedlium", "the 'nineties", "the 'nineties"),
        ("gigaspeech", "AS SOON AS <COMMA> WE KNOW <PERIOD>", "AS SOON AS, WE KNOW."),
        ("gigaspeech", "WHO <QUESTIONMARK> <NOISE> ME <EXCLAMATIONPOINT>", "WHO? ME!"),
        ("earnings21", "Good <inaudible>\nmorning. <crosstalk>", "Good morning."),
        ("tedlium", "ignore_time_segment_in_scoring", None),
        ("gigaspeech", "<SIL>", None),
        ("ami", "UM UH", None),
        ("rev16", None, None),
    ],
)
def test_tags_of_a_published_set_are_no_words_and_clips_without_words_are_left_out(
    tmp_path, hub_cache, name, published, spoken
):
    _, part, row, *_ = SETS[name, "test"]
    column = "text" if "text" in row else "transcription"
    parquet_of(tmp_path / f"{part}-0.parquet", row, **{column: [published]})
    texts = corpora.load(name, split="test", root=tmp_path)["text"]
    assert texts == [row[column], *([] if spoken is None else [spoken])]


def test_unreachable_hub_is_asked_once_and_is_one_sentence(tmp_path, monkeypatch):
    from huggingface_hub import constants

    asked = []
    ask = hub.hub.listing
    monkeypatch.setattr(hub.hub, "listing", lambda *of: asked.append(of) or ask(*of))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(AsrlibError, match=r"fleurs \(ro_ro/test\) is not on this machine and the Hub cannot") as caught:
        corpora.load("fleurs", "ro", "test")
    assert "\n" not in str(caught.value)
    assert len(asked) == 1
    assert not list((tmp_path / "cache").rglob("test"))


COMMON_VOICE = "cv-corpus-21.0-2025-03-14"


def common_voice(folder: Path, language: str = "ro") -> Path:
    base = folder / COMMON_VOICE / language
    tone(base / "clips" / "never_validated.mp3")
    for split, sentences in {"train": ['Zise "da', "Nu."], "dev": ["Poate."], "test": ["Bună ziua!"]}.items():
        lines = ["client_id\tpath\tsentence\tlocale"]
        for number, sentence in enumerate(sentences):
            clip = tone(base / "clips" / f"{split}_{number}.mp3")
            lines.append(f"ab12\t{clip.name}\t{sentence}\t{language}")
        (base / f"{split}.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return base


def test_common_voice_folder_and_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    base = common_voice(tmp_path / "raw")
    archive = tmp_path / f"{COMMON_VOICE}-ro.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "raw" / COMMON_VOICE, COMMON_VOICE)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AsrlibError, match="damaged or truncated"):
        corpora.load("common_voice", "ro", root=archive)
    archive.write_bytes(whole)
    for root in (archive, archive, base, base.parent, base.parent.parent):
        table = corpora.load("common_voice", "ro", root=root)
        assert table["text"] == ['Zise "da', "Nu.", "Poate.", "Bună ziua!"]
        assert table["split"] == ["train", "train", "validation", "test"] and set(table["speaker"]) == {"ab12"}
        assert audio.load(table[3]["audio"]).size > 10_000
    unpacked = {path.name for path in (tmp_path / "cache").rglob("*.mp3")}
    assert unpacked == {"train_0.mp3", "train_1.mp3", "dev_0.mp3", "test_0.mp3"}


def test_another_archive_of_the_same_name_is_unpacked_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    for number in "12":
        base = common_voice(tmp_path / number)
        (base / "test.tsv").write_text((base / "test.tsv").read_text("utf-8").replace("ziua", number), "utf-8")
        with tarfile.open(tmp_path / number / "cv.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / number / COMMON_VOICE, COMMON_VOICE)
        table = corpora.load("common_voice", "ro", "test", root=tmp_path / number / "cv.tar.gz")
        assert table["text"] == [f"Bună {number}!"]


@pytest.mark.parametrize(
    ("there", "asked", "found"),
    [
        (["zh-CN"], "zh", "zh-CN"),
        (["zh-CN", "zh-TW"], "zh-TW", "zh-TW"),
        (["en"], "en-US", "en"),
        (["ro"], None, "ro"),
        (["ro", "en"], None, "several languages (en, ro)"),
        (["ro"], "en", "no test.tsv for 'en'"),
    ],
)
def test_a_language_of_common_voice_may_have_a_region(tmp_path, there, asked, found):
    for language in there:
        common_voice(tmp_path, language)
    if " " in found:
        with pytest.raises(AsrlibError, match=re.escape(found)):
            corpora.load("common_voice", asked, "test", root=tmp_path)
        return
    table = corpora.load("common_voice", asked, "test", root=tmp_path)
    assert table["language"] == [found.partition("-")[0]]
    assert Path(table[0]["audio"]["path"]).parts[-3] == found


def test_corpora_are_fetched_by_name():
    root = files.repository()
    wanted = [("dialogue", "cs"), ("dialogue", "nl"), ("telephone", "it")]
    assert registry.inputs(root, ["dialogue", "telephone/it"]) == ([], wanted)
    notebook = set(registry.inputs(root, ["00_start_here"])[1])
    assert set(registry.inputs(root, ["dialogue", "00_start_here"])[1]) >= set(wanted[:2]) | notebook
    assert not set(wanted[:2]) & notebook


def test_a_table_of_another_set_is_named(tmp_path):
    base = common_voice(tmp_path)
    (base / "test.tsv").write_text("path\ttext\n")
    with pytest.raises(AsrlibError, match=r"test\.tsv must have the columns path and sentence and client_id"):
        corpora.load("common_voice", "ro", "test", root=base)


def test_folder(tmp_path):
    tone(tmp_path / "b.wav", 2, 44_100)
    tone(tmp_path / "sub" / "a.flac")
    (tmp_path / "metadata.csv").write_text(
        '\ufefffile_name,transcription,speaker\nb.wav,"Yes, please.",me\nsub/a.flac,No.,\n', "utf-8"
    )
    table = corpora.load("folder", "en", root=tmp_path)
    assert table["id"] == ["b.wav", "sub/a.flac"] and table["text"] == ["Yes, please.", "No."]
    assert table["seconds"] == [2.0, 1.0] and table["speaker"] == ["me", ""] and set(table["split"]) == {"test"}
    with pytest.raises(AsrlibError, match="no split 'train': choose one of test"):
        corpora.load("folder", root=tmp_path, split="train")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (None, "does not exist: write one with the columns"),
        ("file,transcription\na.wav,Yes\n", "must have the columns file_name"),
        ("file_name,words\na.wav,Yes\n", "must have the columns file_name"),
        ("file_name,text\nmissing.wav,Yes\n", "missing.wav does not exist"),
        ("file_name,text\na.wav\n", r"line 2, has no transcription \(or text, sentence\)"),
        ("file_name,text\na.wav,Yes\na.wav,he was, not ill\n", "line 3, has 3 fields and the first line 2"),
        ('file_name,text\na.wav,"he was\nb.wav,he might\n', "line 2: a quotation mark is not closed"),
        ('file_name,text\na.wav,"he was\nb.wav,"he might"\n', "line 2: a quotation mark is not closed"),
        ('file_name,text\na.wav,"he was\nb.wav,he might"\n', "line 2, goes on in the next"),
        ("sep=;\nfile_name;text\n\na.wav;Yes; sir\n", "line 4, has 3 fields"),
        ("file_name,text;language\na.wav,Yes;en\n", "must have the columns file_name"),
        ("file_name,text,text\na.wav,Yes,No\n", "two columns of one name"),
        ("file_name,text\n", "names no recording"),
        ("file_name,text\na.wav,é\n".encode("latin-1"), "as a table of UTF-8 text"),
    ],
)
def test_folder_problems_are_named(tmp_path, table, problem):
    tone(tmp_path / "a.wav")
    if table:
        (tmp_path / "metadata.csv").write_bytes(table.encode() if isinstance(table, str) else table)
    with pytest.raises(AsrlibError, match=problem):
        corpora.load("folder", root=tmp_path)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('{"file_name": "a.wav", "text": "Yes"}\n\n{"file_name": "a.wav", "text": 5}', "line 3, has no transcription"),
        ('{"file": "a.wav", "text": "Yes"}', "line 1, has no file_name"),
        ('{"file_name": "", "text": "Yes"}', "line 1, has no file_name"),
        ("[1]", "line 1, is no JSON object"),
        ("\n", "names no recording"),
    ],
)
def test_problems_of_json_lines_are_named(tmp_path, lines, problem):
    (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(AsrlibError, match=problem):
        corpora.load("folder", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.tsv", "file_name\ttext\na.wav\tYes, please.\n"),
        ("metadata.jsonl", '\n{"file_name": "a.wav", "text": "Yes, please.", "speaker": 7, "split": null}\n\n'),
        ("metadata.jsonl", '\ufeff{"file_name": "a.wav", "text": "Yes, please."}\r\n'),
        ("metadata.csv", 'file_name,text\na.wav,"Yes, please."\n\n'),
        ("metadata.csv", "file_name;text\na.wav;Yes, please.\n"),
        ("metadata.csv", '"file_name"\t "text"\r\na.wav\tYes, please.\r\n'),
        ("metadata.csv", "\ufeffsep=|\nspeaker|file_name | text\n|a.wav|Yes, please.\n"),
        ("metadata.tsv", 'file_name,sentence\na.wav,"Yes, please."\n'),
    ],
)
def test_tables_of_every_kind(tmp_path, name, content):
    tone(tmp_path / "a.wav")
    (tmp_path / name).write_bytes(content.encode())
    assert corpora.load("folder", root=tmp_path)["text"] == ["Yes, please."]


def test_a_recording_that_cannot_be_read_is_counted_each_time_and_the_others_are_there(tmp_path, cache):
    tone(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.wav,Yes\nb.wav,No\nc\0.wav,Oh\n")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"2 of 3 recordings cannot be read.*b\.wav is empty"):
            assert corpora.load("folder", root=tmp_path)["seconds"] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_lengths_are_read_once_and_again_when_a_file_changes(tmp_path, hub_cache, monkeypatch, kind):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))

    def write(*seconds: float) -> None:
        names = [f"{number}.flac" for number in range(len(seconds))]
        if kind == "folder":
            for name, length in zip(names, seconds, strict=True):
                tone(tmp_path / name, length)
            (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{name},x\n" for name in names))
        else:
            columns = dict.fromkeys(("id", "text", "speaker_id"), names)
            write_parquet(tmp_path / "clean" / "test" / "0.parquet", audio=[*map(encoded, seconds)], **columns)

    def load() -> list[float]:
        split = "test-clean" if kind == "parquet" else None
        return list(corpora.load("librispeech" if split else "folder", split=split, root=tmp_path)["seconds"])

    read = []
    measure = audio.duration
    monkeypatch.setattr(audio, "duration", lambda source: read.append(1) or measure(source))
    write(1, 2)
    assert load() == load() == [1, 2] and len(read) == 2
    write(1, 3)
    assert load() == [1, 3] and len(read) > 2
    next((tmp_path / "cache").rglob("*.json")).write_text("damaged")
    assert load() == [1, 3]


def test_sets_in_the_data_folder_are_found_without_root(tmp_path, monkeypatch, hub_cache):
    write_fleurs(tmp_path / "fleurs" / "ro_ro" / "test" / "0000.parquet", "unu")
    monkeypatch.setenv("ASRLIB_DATA", str(tmp_path))
    assert corpora.load("fleurs", "ro", "test")["text"] == ["unu"]


def test_missing_root_is_named(tmp_path):
    with pytest.raises(AsrlibError, match="nowhere does not exist: give root="):
        corpora.load("librispeech", split="test-clean", root=tmp_path / "nowhere")
