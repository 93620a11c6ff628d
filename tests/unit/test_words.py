"""Word times: the search for boundaries, what pauses do to them; and real weights against the library."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asrlib import AsrlibError, audio, scoring, whisper
from asrlib import text as texts
from asrlib.decoding import network, search, transcription, words
from asrlib.decoding.batching import Hypothesis

RATE = audio.SAMPLING_RATE


def cheapest(cost):
    """The cost of the best path, cell by cell."""
    total = np.full((cost.shape[0] + 1, cost.shape[1] + 1), np.inf)
    total[0, 0] = 0
    for row, position in itertools.product(*map(range, cost.shape)):
        before = min(total[row, position], total[row, position + 1], total[row + 1, position])
        total[row + 1, position + 1] = cost[row, position] + before
    return total[-1, -1]


def price(cost, first):
    """The cost of the cheapest path that enters the rows at these positions; it may leave a row below or beside the next."""
    spent = 0.0
    for row, start in enumerate(first):
        if row + 1 == len(first):
            spent += cost[row, start:].sum()
        else:
            ends = {first[row + 1], max(first[row + 1] - 1, start)}
            spent += min(cost[row, start : end + 1].sum() for end in ends)
    return spent


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_path_is_the_cheapest(rows, positions, seed):
    cost = np.random.default_rng(seed).normal(size=(rows, positions))
    first = words._first_positions(cost)
    assert first[0] == 0
    assert all(np.diff(first) >= 0)
    assert price(cost, first) == pytest.approx(cheapest(cost))


def test_boundaries_of_a_clear_map_are_found_and_those_of_a_flat_one_are_numbers():
    begins = [0, 20, 45, 80]
    weights = torch.full((2, 4, 120), 0.01)
    for row, (start, end) in enumerate(itertools.pairwise([*begins, 120])):
        weights[:, row, start:end] = 1.0
    assert words.boundaries(weights).tolist() == pytest.approx([0.02 * start for start in begins], abs=0.021)
    assert np.isfinite(words.boundaries(torch.ones(3, 4, 50))).all()
    assert words.boundaries(torch.ones(3, 4, 1)).tolist() == [0, 0, 0, 0]


def bursts(*spans, seconds, noise=0.0):
    """A sound with a tone in some spans of seconds and silence, or faint noise, elsewhere."""
    samples = noise * np.random.default_rng(0).normal(size=int(seconds * RATE))
    for start, end in spans:
        place = slice(int(start * RATE), int(end * RATE))
        samples[place] += 0.3 * np.sin(np.arange(len(samples[place])) / 5)
    return samples.astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_pauses_are_found_in_silence_and_in_noise(noise):
    silence = words.pauses(bursts((0.5, 1.5), (2.0, 2.5), (2.55, 3.0), seconds=3.5, noise=noise))
    assert silence == pytest.approx(np.array([[0, 0.5], [1.5, 2.0], [3.0, 3.5]]), abs=0.011)


def test_a_boundary_beside_a_pause_moves_into_it():
    silence = np.array([[0.0, 0.5], [1.5, 2.0], [3.0, 3.5]])
    found = words.leave_out(silence, [(0.0, 2.1, "one"), (2.1, 2.6, "two"), (2.6, 3.4, "three")])
    assert found == [(0.5, 1.5, "one"), (2.0, 2.6, "two"), (2.6, 3.0, "three")]


def test_a_pause_far_from_every_boundary_stays_in_its_word():
    word = [(0.0, 4.0, "supercalifragilistic")]
    assert words.leave_out(np.array([[1.5, 2.0]]), word) == word
    assert words.leave_out(np.empty((0, 2)), word) == word
    assert words.leave_out(np.array([[1.5, 2.0]]), []) == []


spans = st.lists(st.floats(0, 30), min_size=2, max_size=12).map(sorted)


@given(spans, st.lists(st.floats(0, 30), max_size=12).map(sorted))
def test_words_stay_in_order_whatever_the_pauses(edges, silences):
    given_words = [(start, end, "w") for start, end in itertools.pairwise(edges)]
    silence = np.array(list(zip(silences[::2], silences[1::2], strict=False))).reshape(-1, 2)
    found = words.leave_out(silence, given_words)
    flat = [moment for start, end, _ in found for moment in (start, end)]
    assert flat == sorted(flat)
    assert len(found) == len(given_words)


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=8), st.integers(0, 20))
def test_the_beginning_of_a_text_is_made_up_of_its_first_words(words_, size):
    spans = [(float(at), at + 1.0, word) for at, word in enumerate(words_)]
    said = "".join(words_)[:size]
    found = words.beginning(spans, " ".join(said))
    assert "".join(word for *_, word in found) == said
    assert [span[:2] for span in found] == [span[:2] for span in spans[: len(found)]]
    assert not found or spans[len(found) - 1][2].startswith(found[-1][2])


def test_a_word_across_the_end_of_the_beginning_is_cut():
    spans = [(0.0, 0.2, "他"), (0.2, 0.4, "说"), (0.4, 0.6, "他"), (0.6, 1.0, "不是"), (1.0, 1.2, "很")]
    assert words.beginning(spans, "他说他不") == [*spans[:3], (0.6, 1.0, "不")]


def test_errors_are_those_of_the_edges_whose_word_was_transcribed():
    truth = [(0.0, 1.0, "One two."), (1.5, 2.5, "Three"), (3.0, 4.0, "four five")]
    said = [(0.1, 0.5, "one"), (0.5, 0.9, "too"), (1.4, 2.6, "three"), (float("nan"), 3.4, "four"), (3.4, 4.2, "five")]
    found = words.edge_errors(said, truth, lambda text: text.lower().strip("."))
    expected = {(0, "start"): 100, (1, "start"): -100, (1, "end"): 100, (2, "end"): 200}
    assert found == pytest.approx(expected)
    assert words.edge_errors([], truth) == {}
    assert words.edge_errors(truth, truth) == {(span, edge): 0 for span in range(3) for edge in ("start", "end")}


@pytest.fixture(scope="module")
def long_clip(speech):
    """Return the longest clip, in whole positions of the encoder."""
    samples = audio.load(speech[int(np.argmax(speech["seconds"]))]["audio"])
    return samples[: len(samples) // 320 * 320]


@pytest.mark.weights
def test_weights_and_boundaries_are_those_of_the_library(tiny_en, long_clip):
    model, processor = tiny_en
    eager = type(model).from_pretrained(model.name_or_path, dtype=torch.float32, attn_implementation="eager").eval()
    inputs = processor(long_clip, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    out = eager.generate(**inputs, return_token_timestamps=True, return_timestamps=False)
    tokens = [token for token in out["sequences"][0].tolist() if token < model.generation_config.eos_token_id]
    given_times = out["token_timestamps"][0][-len(tokens) - 1 :][: len(tokens)].numpy()
    said = processor.tokenizer.decode(tokens)
    same, weights = words.attention(model, processor, long_clip, said)
    assert same == tokens
    assert words.boundaries(weights[:, 1:]) == pytest.approx(given_times, abs=0.021)
    _, weights = words.attention(model, processor, long_clip, said, heads=[(1, 0), (3, 4)])
    start = whisper.prompt(model.generation_config)
    read = torch.tensor([start + tokens])
    with torch.inference_mode():
        looks = eager(inputs.input_features, decoder_input_ids=read, output_attentions=True).cross_attentions
    for caught, (layer, head) in zip(weights, [(1, 0), (3, 4)], strict=True):
        theirs = looks[layer][0, head, len(start) - 1 :, : caught.shape[1]]
        assert torch.allclose(caught, theirs, atol=1e-5)


@pytest.mark.weights
def test_heads_that_are_left_in_a_pruned_model_keep_their_weights(tiny_en, speech, without_heads):
    model, processor = tiny_en
    samples, said = audio.load(speech[0]["audio"]), "Please enter the number."
    _, whole = words.attention(model, processor, samples, said, heads=[(0, 3), (0, 5), (1, 2)])
    pruned = copy.deepcopy(model)
    without_heads(pruned.model.decoder.layers[0].encoder_attn, {0, 4})
    _, left = words.attention(pruned, processor, samples, said, heads=[(0, 2), (0, 3)])
    assert torch.allclose(left, whole[:2], atol=1e-5)
    assert words._alignment_heads(pruned) == [(layer, head) for layer in (2, 3) for head in range(6)]
    assert words._alignment_heads(model) == [tuple(pair) for pair in model.generation_config.alignment_heads]


@pytest.mark.weights
def test_a_text_gets_the_tokens_that_the_decoder_wrote(tiny_en, speech):
    model, processor = tiny_en
    clips = [audio.load(row["audio"]) for row in speech.select(range(8))]
    features = processor(clips, sampling_rate=RATE, return_tensors="pt").input_features
    states, _ = network.encode(model, features)
    for written in search.greedy(model, states, [whisper.prompt(model.generation_config)] * len(clips)):
        assert words._encode(processor, processor.decode(written), "en") == written


@pytest.mark.weights
def test_words_of_a_long_recording_are_timed(tiny_en, speech):
    model, processor = tiny_en
    long = audio.stitch(speech, seconds=75, seed=0)
    (heard,) = transcription.transcribe(model, processor, [long.audio], timestamps=True)
    timed = words.times(model, processor, long.audio, heard)
    assert " ".join(word for *_, word in timed).split() == heard.text.split()
    flat = [moment for start, end, _ in timed for moment in (start, end)]
    assert flat == sorted(flat)
    assert flat[-1] <= long.seconds + 0.01
    assert np.median(onsets(timed, long.segments)) < 0.2


def onsets(timed, segments):
    """How far off the first word of each clip is, in seconds, where it was heard right."""
    normalize = texts.normalizer("en")
    said = [
        (word, start if number == 0 else None)
        for start, _, text in segments
        for number, word in enumerate(normalize(text).split())
    ]
    heard = [(word, start) for start, _, text in timed for word in normalize(text).split()]
    pairs = scoring.align(" ".join(word for word, _ in said), " ".join(word for word, _ in heard)).pairs
    left, right = iter(said), iter(heard)
    off = []
    for kind, reference, hypothesis in pairs:
        _, truth = next(left) if reference else ("", None)
        _, found = next(right) if hypothesis else ("", None)
        if kind == "equal" and truth is not None:
            off.append(abs(truth - found))
    return off


@pytest.mark.weights
def test_a_word_is_split_from_its_neighbours_where_a_language_has_spaces_and_where_it_has_none(base):
    encode = base[1].tokenizer.encode
    spelled = words.spell(base[1], encode(" Ça va, où «êtes»-vous?", add_special_tokens=False), "fr")
    assert [word for *_, word in spelled] == ["Ça", "va,", "où", "«êtes»-vous?"]
    spelled = words.spell(base[1], encode("你好，龘", add_special_tokens=False), "zh")
    assert "".join(word for *_, word in spelled) == "你好，龘"
    assert spelled[-1][2] == "龘"
    assert spelled[-1][1] - spelled[-1][0] > 1  # a rare character takes several tokens


@pytest.mark.weights
def test_what_cannot_be_aligned_is_one_sentence(tiny_en, base):
    model, processor = tiny_en
    second = bursts((0, 1), seconds=1)
    with pytest.raises(AsrlibError, match="at most 30 s"):
        words.attention(model, processor, np.tile(second, 31), "too long")
    for text in ("", "word " * 500):
        with pytest.raises(AsrlibError, match="tokens of text cannot be aligned"):
            words.attention(model, processor, second, text)
    with pytest.raises(AsrlibError, match="exported model"):
        words.attention(object(), processor, second, "a")
    with pytest.raises(AsrlibError, match="reads the words of one language"):
        words.attention(*base, second, "a")


@pytest.mark.weights
def test_segments_beyond_the_end_of_the_sound_are_timed_within_it(tiny_en):
    heard = Hypothesis(
        "x", "one two three", "en", 3.0, 0.1, ((0.0, 2.0, "one"), (2.0, 29.0, "two"), (29.0, 58.0, "three"))
    )
    timed = words.times(*tiny_en, bursts((0, 3), seconds=3), heard)
    assert [word for *_, word in timed] == ["one", "two", "three"]
    assert all(0 <= start <= end <= 3 for start, end, _ in timed)
    silent = Hypothesis("x", " ", "en", 1.0, 0.1, ((0.0, 1.0, " "),))
    assert words.times(*tiny_en, bursts((0, 1), seconds=1), silent) == []
