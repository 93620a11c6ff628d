"""Lines of subtitles, their times, and the files that they are written to."""

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrlib.decoding import subtitles
from asrlib.decoding.batching import Hypothesis

SEGMENTS = ((0.0, 1.5, " Hello"), (1.5, 3723.0, " <there> & ."))
times = st.floats(-5, 40)


@given(st.lists(st.tuples(times, times, st.sampled_from(["a", " b c ", "", " "])), max_size=30), st.floats(0.001, 35))
def test_times_are_within_the_clip_in_order_and_never_empty(segments, seconds):
    found = subtitles.in_order(segments, seconds)
    assert [text for *_, text in found] == [text.strip() for *_, text in segments if text.strip()]
    edges = [0.0, *itertools.chain.from_iterable((start, end) for start, end, _ in found), seconds]
    assert edges == sorted(edges)
    least = min(subtitles.SHORTEST, seconds / max(len(found), 1))
    assert all(end - start > 0.99 * least for start, end, _ in found)


def test_times_that_are_right_stay():
    segments = [(0.1, 0.4, "a"), (0.4, 0.9, "b"), (2.0, 2.5, "c")]
    assert subtitles.in_order(segments, 2.5) == segments
    assert subtitles.in_order([(1.0, 30.02, "a"), (30.02, 30.02, "b")], 3.0) == [(1.0, 2.98, "a"), (2.98, 3.0, "b")]


timed_words = st.lists(
    st.tuples(st.floats(0, 2), st.floats(0.05, 9), st.text("abc我", min_size=1, max_size=20)), min_size=1, max_size=40
)


@given(timed_words, st.integers(5, 42), st.floats(1, 6), st.floats(0.1, 1), st.sampled_from(["en", "ja"]))
def test_subtitles_keep_all_words_and_their_limits(gaps, columns, seconds, pause, language):
    at, words = 0.0, []
    for gap, length, word in gaps:
        start, at = at + gap, at + gap + length
        words.append((start, at, word))
    found = subtitles.cues(words, language, max_columns=columns, max_seconds=seconds, pause=pause)
    space = " " if language == "en" else ""
    assert space.join(text.replace("\n", space) for *_, text in found) == space.join(word for *_, word in words)
    alone = {word for *_, word in words}
    for start, end, text in found:
        assert 0 <= end - start <= seconds + 1e-9
        lines = text.split("\n")
        assert len(lines) <= 2
        assert text in alone or max(len(line) + line.count("我") for line in lines) <= columns
        inside = [word for word in words if start <= word[0] and word[1] <= end]
        assert all(after[0] - before[1] < max(pause, subtitles.LINGER) for before, after in itertools.pairwise(inside))
    for (first, end, _), (start, *_) in itertools.pairwise(found):
        assert end <= max(first, start - subtitles.GAP)
    assert subtitles.cues([]) == []


@given(timed_words)
def test_a_subtitle_leaves_early_only_for_the_next_one_and_stays_only_to_be_read(gaps):
    at, words = 0.0, []
    for gap, length, word in gaps:
        start, at = at + gap, at + gap + length
        words.append((start, at, word))
    found = subtitles.cues(words)
    ends = {end for _, end, _ in words}
    for (start, end, text), following in zip(found, [*(start for start, *_ in found[1:]), math.inf], strict=True):
        shown, last = end - start, max((last for last in ends if last <= end), default=end)
        reading = (len(text) + text.count("我")) / subtitles.READING
        pressed = end >= following - subtitles.GAP - 1e-9 or shown >= subtitles.MAX_SECONDS - 1e-9
        lingered = end - last >= subtitles.LINGER - 1e-9
        assert pressed or (shown >= subtitles.MIN_SECONDS - 1e-9 and (lingered or shown >= reading - 1e-9))
        assert end in ends or pressed or shown <= max(subtitles.MIN_SECONDS, reading) + 1e-9


def line_texts(text, language="en", **limits):
    words = text.split() if language == "en" else list(text)
    timed = [(0.3 * number, 0.3 * number + 0.3, word) for number, word in enumerate(words)]
    return [line for *_, line in subtitles.cues(timed, language, **limits)]


def test_a_full_subtitle_is_cut_after_its_last_clause_that_leaves_room():
    text = "To leave a message, please enter a mailbox number. Press two."
    assert line_texts(text) == ["To leave a message,\nplease enter a mailbox number. Press two."]
    assert line_texts(text, max_columns=12) == [
        "To leave\na message,", "please enter\na mailbox", "number.\nPress two.",
    ]  # fmt: skip
    assert line_texts("我愛你，你愛我嗎？", "zh", max_columns=12) == ["我愛你，\n你愛我嗎？"]


def test_a_short_word_stays_as_long_as_it_takes_to_read():
    assert subtitles.cues([(1.0, 1.2, "No.")]) == [(1.0, 1.0 + subtitles.MIN_SECONDS, "No.")]
    followed = subtitles.cues([(1.0, 1.2, "No."), (1.9, 3.0, "Never.")])
    assert followed[0] == (1.0, pytest.approx(1.9 - subtitles.GAP), "No.")
    fast = "a sentence which is far too fast for them"
    assert subtitles.cues([(0.0, 1.0, fast)]) == [(0.0, 1.0 + subtitles.LINGER, fast)]


@pytest.mark.parametrize(("language", "line"), [("zh", "我爱"), ("Japanese", "我爱"), ("ko", "我 爱"), (None, "我 爱")])
def test_only_languages_with_spaces_get_spaces(language, line):
    assert subtitles.cues([(0, 1, "我"), (1, 2, "爱")], language) == [(0, 2, line)]


def test_formats():
    transcript = Hypothesis("a.wav", " Hello there. ", "en", 3723.0, 1.0, SEGMENTS)
    written = {name: subtitles.write(transcript, name) for name in subtitles.FORMATS}
    assert written["txt"] == "Hello there.\n"
    assert written["srt"].splitlines()[4:7] == ["2", "00:00:01,500 --> 01:02:03,000", "<there> & ."]
    assert written["vtt"].startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello\n\n")
    assert "&lt;there&gt; &amp; ." in written["vtt"]  # a player would take it for markup
    assert json.loads(written["json"])["segments"][1] == {"start": 1.5, "end": 3723.0, "text": "<there> & ."}
    assert subtitles._clock(1.2349, ",") == "00:00:01,234"
    assert subtitles._clock(1.001, ",") == "00:00:01,001"
