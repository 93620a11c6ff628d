"""The engine against the library's own ``generate``, on a tiny random model and on real weights and speech."""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from asrlib import AsrlibError, audio, corpora, scoring, text, whisper
from asrlib.decoding import batching, features, longform, network, search, transcription
from asrlib.training import metering

GREEDY = {"do_sample": False, "num_beams": 1}


@pytest.fixture(scope="module")
def speech():
    """Clips of several lengths: real speech, an eighth of the telephone test set."""
    return corpora.load("telephone", "en", "test").select(range(0, 96, 4))


@pytest.fixture(scope="module")
def exact():
    return transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float32)


def texts(hypotheses):
    return [hypothesis.text for hypothesis in hypotheses]


@pytest.mark.weights
def test_same_words_as_the_library_clip_by_clip(exact, speech):
    model, processor = exact
    ours = list(transcription.transcribe(model, processor, speech, batch_size=8))
    assert [hypothesis.id for hypothesis in ours] == speech["id"]
    for row, hypothesis in zip(speech, ours, strict=True):
        inputs = processor(
            audio.load(row["audio"]), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
        )
        tokens = model.generate(**inputs, **GREEDY)
        assert hypothesis.text == processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


def spelled(processor):
    """Return what stands for a processor and writes tokens as numbers."""
    return SimpleNamespace(
        feature_extractor=processor.feature_extractor,
        batch_decode=lambda rows, **_: [" ".join(map(str, row)) for row in rows],
    )


def preference(model, processor, row, window, written):
    """Return the logits of a model's next token after what was written of a clip."""
    engine = transcription.TorchEngine(model, processor, "en", "transcribe", window, False)
    clip = batching._read(row, 0)
    states, bias = engine.encode(engine.features([clip]), [len(clip.samples)] if window == "merged" else None)
    tokens = torch.tensor([whisper.prompt(model.generation_config, "en") + written])
    with torch.inference_mode():
        return network.Decoder(model, states, bias, tokens.shape[1]).step(tokens)[0]


@pytest.mark.weights
@pytest.mark.parametrize("window", ["full", "merged"])
@pytest.mark.parametrize(("dtype", "clips", "tied"), [(torch.float32, 8, 0.01), (torch.bfloat16, 2, 0.5)])
def test_batches_do_not_change_words(exact, speech, window, dtype, clips, tied):
    """Products are rounded differently in a batch, so two tokens as good as tied may change places, and no others."""
    model, processor = transcription.load("openai/whisper-tiny.en", device="cpu", dtype=dtype)
    rows = speech.select(range(clips))
    alone, together = (
        [
            list(map(int, text.split()))
            for text in texts(transcription.transcribe(model, spelled(processor), rows, batch_size=size, window=window))
        ]
        for size in (1, 1 + clips // 2)
    )
    assert all(alone)
    end = model.generation_config.eos_token_id
    for row, one, other in zip(rows, alone, together, strict=True):
        pairs = enumerate(itertools.zip_longest(one, other, fillvalue=end))
        if differ := next(((at, list(pair)) for at, pair in pairs if pair[0] != pair[1]), None):
            at, pair = differ
            logits = preference(*exact, row, window, one[:at])[pair]
            assert abs(logits[0] - logits[1]) < tied


@pytest.mark.weights
def test_merged_window_hears_the_same(exact, speech):
    model, processor = exact
    full = texts(transcription.transcribe(model, processor, speech))
    merged = texts(transcription.transcribe(model, processor, speech, window="merged"))
    assert scoring.score(full, merged, normalizer=text.normalizer("en")).wer < 0.1


@pytest.mark.weights
def test_multilingual_model_detects_and_obeys_language(speech):
    model, processor = transcription.load("openai/whisper-base", device="cpu", dtype=torch.float32)
    italian = corpora.load("telephone", "it", "test")
    longest = max(range(len(italian)), key=lambda row: italian[row]["seconds"])
    rows = [speech[int(np.argmax(speech["seconds"]))], italian[longest]]
    heard = list(transcription.transcribe(model, processor, rows, window="merged"))
    assert [hypothesis.language for hypothesis in heard] == ["en", "it"]
    told = list(transcription.transcribe(model, processor, rows[1:], language="Italian", window="merged"))
    assert told[0].text == heard[1].text


@pytest.mark.weights
@pytest.mark.parametrize("seconds", [12, 75])
def test_windows_are_cut_as_generate_cuts_them(exact, speech, seconds):
    model, processor = exact
    long = audio.stitch(speech, seconds=seconds, seed=0)
    (heard,) = transcription.transcribe(model, processor, [long.audio], timestamps=True)
    sound = features.long_log_mel(processor, long.audio)
    sound = torch.nn.functional.pad(sound, (0, max(0, 3000 - sound.shape[2])), value=float(sound.min()))
    out = model.generate(sound, return_timestamps=True, return_segments=True)
    decode = processor.tokenizer.decode
    theirs = [
        (float(part["start"]), float(part["end"]), decode(part["tokens"], skip_special_tokens=True).strip())
        for part in out["segments"][0]
    ]
    if seconds < 30:  # it goes on to listen to the padding
        theirs = theirs[: len(heard.segments)]
    assert [text for *_, text in heard.segments] == [text for *_, text in theirs]
    assert np.array([times for *times, _ in heard.segments]) == pytest.approx(np.array([times for *times, _ in theirs]))


@pytest.mark.weights
def test_recordings_side_by_side_are_heard_as_each_alone(speech):
    """In double precision, for products are rounded differently side by side: no two tokens are tied to its last digits."""
    model, processor = transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float64)
    long = [audio.stitch(speech, seconds=seconds, seed=0).audio for seconds in (40, 8)]
    alone = list(transcription.transcribe(model, processor, long, batch_size=1, timestamps=True))
    together = list(transcription.transcribe(model, processor, long, timestamps=True))
    assert [(heard.text, heard.segments) for heard in alone] == [(heard.text, heard.segments) for heard in together]
    assert [heard.segments[-1][1] > seconds for heard, seconds in zip(alone, (30, 5), strict=True)] == [True] * 2


windows = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 3), st.integers(0, 60)), min_size=1, max_size=8
)  # pause, tokens of text and length of a segment, in steps of 20 ms


@given(windows, st.integers(0, 40), st.integers(1, 3000))
def test_a_window_is_cut_as_the_library_cuts_it(window, cut_off, frames):
    at, tokens, begin = 0, [], 100
    for pause, words, length in window:
        tokens += [begin + at + pause, *range(words), begin + at + pause + length]
        at += pause + length
    tokens = tokens[: max(1, len(tokens) - cut_off)]
    seconds = {"time_precision": 0.02, "time_precision_features": 0.01}
    theirs, gone = WhisperGenerationMixin._retrieve_segment(
        torch.tensor(tokens), [None], [0.0], begin, [frames], **seconds, input_stride=2, prev_idx=0, idx=0,
        return_token_timestamps=False, decoder_input_ids=torch.zeros(1, 3),
    )  # fmt: skip
    ours, done = longform._cut(tokens, begin, frames)
    assert done == gone
    for (start, end, written), part in zip(ours, theirs, strict=True):
        assert (start / 100, end / 100) == pytest.approx((float(part["start"]), float(part["end"])), abs=0.0101)
        assert [token for token in written if token < begin] == [token for token in part["tokens"] if token < begin]


@pytest.mark.weights
def test_long_recording_is_transcribed_whole(exact, speech):
    model, processor = exact
    long = audio.stitch(speech, seconds=75, seed=0)
    (heard,) = transcription.transcribe(model, processor, [long.audio])
    assert heard.seconds_audio == pytest.approx(long.seconds)
    assert heard.segments[-1][1] == pytest.approx(long.seconds, abs=5)
    assert all(start <= end for start, end, _ in heard.segments)
    assert scoring.score([long.text], [heard.text], normalizer=text.normalizer("en")).wer < 0.3


@pytest.mark.weights
def test_an_iterator_is_read_ahead_only_a_little(exact, speech, monkeypatch):
    monkeypatch.setattr(batching, "WINDOW_CLIPS", 4)
    model, processor = exact
    taken = itertools.count()
    clip = audio.load(min(speech, key=lambda row: row["seconds"])["audio"])
    endless = ((next(taken), clip)[1] for _ in itertools.repeat(None))
    hypotheses = transcription.transcribe(model, processor, endless, batch_size=2, window="merged")
    first = list(itertools.islice(hypotheses, 6))
    hypotheses.close()
    assert len(first) == 6
    assert next(taken) <= 24  # two windows decoded, at most a few more prepared


@pytest.mark.weights
def test_order_ids_and_speed(exact, speech):
    model, processor = exact
    rows = [{"id": f"x{number}", "audio": row["audio"]} for number, row in enumerate(speech)][::-1]
    heard = list(transcription.transcribe(model, processor, rows, window="merged", batch_size=5))
    assert [hypothesis.id for hypothesis in heard] == [row["id"] for row in rows]
    assert sum(hypothesis.seconds_audio for hypothesis in heard) == pytest.approx(sum(speech["seconds"]), rel=0.01)
    assert batching.rtfx(heard) > 0


@pytest.mark.weights
def test_a_bad_clip_names_itself(exact, speech, tmp_path):
    model, processor = exact
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"not audio")
    with pytest.raises(AsrlibError, match=r"bad\.wav"):
        list(transcription.transcribe(model, processor, [speech[0], bad]))


@pytest.mark.weights
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": "half"}, "no window 'half'"),
        ({"task": "sing"}, "no task 'sing'"),
        ({"language": "klingon"}, "no language 'klingon'"),
        ({"language": "fr"}, "English-only model"),
        ({"task": "translate"}, "English-only model"),
    ],
)
def test_wrong_options_are_one_sentence(exact, options, said):
    with pytest.raises(AsrlibError, match=said):
        next(transcription.transcribe(*exact, [np.ones(16_000, np.float32)], **options))


@pytest.mark.weights
def test_features_are_the_extractors(exact, speech):
    model, processor = exact
    engine = transcription.TorchEngine(model, processor, None, "transcribe", "full", False)
    samples = [audio.load(row["audio"]) for row in speech.select(range(4))] + [
        np.tile(audio.load(speech[0]["audio"]), 40)[:480_000]
    ]
    ours = engine.features([batching.Clip(0, "x", clip) for clip in samples])
    theirs = processor(samples, sampling_rate=16_000, return_tensors="pt").input_features
    assert ours.shape == theirs.shape == (5, 80, 3000)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.fixture(scope="module", params=[80, 128])
def extractor(request):
    return WhisperFeatureExtractor(feature_size=request.param)


@settings(deadline=None, max_examples=15)
@given(pieces=st.integers(1, 3), beyond=st.integers(-400, 400), seed=st.integers(0, 99), loud=st.floats(0, 1))
def test_features_of_a_long_recording_are_the_extractors(extractor, pieces, beyond, seed, loud):
    """Around the edges of the pieces, and wherever the loudest sound is: the floor below it is that of the whole."""
    samples = np.random.default_rng(seed).standard_normal(pieces * features.PIECE * 160 + beyond, np.float32) / 1e4
    samples[int(loud * (len(samples) - 1))] = 1.0
    ours = features.long_log_mel(SimpleNamespace(feature_extractor=extractor), samples)
    options = {"sampling_rate": 16_000, "return_tensors": "pt", "padding": "longest", "truncation": False}
    theirs = extractor([samples], **options).input_features
    assert ours.shape == theirs.shape == (1, extractor.feature_size, len(samples) // 160)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_features_of_a_long_recording_need_little_more_memory_than_they_are(extractor):
    samples = np.random.default_rng(0).standard_normal(600 * 16_000, np.float32)
    with metering.PeakMemory() as peak:
        sound = features.long_log_mel(SimpleNamespace(feature_extractor=extractor), samples)
    assert peak.mib < 4 * sound.nbytes / 2**20  # all frames at once would need more than ten times


def test_merging_keeps_speech_and_counts_every_position_once():
    kept, weights = network.merge_padding([16_000, 16_000 * 12, 16_000 * 30], 1500)
    assert kept.shape == weights.shape
    assert weights.sum(dim=1).tolist() == [1500] * 3
    for row, seconds in zip(range(3), (1, 12, 30), strict=True):
        speech = min(1500, seconds * 50 + network.MARGIN)
        assert kept[row, :speech].tolist() == list(range(speech))
    alone, _ = network.merge_padding([16_000], 1500)
    assert kept[0, : alone.shape[1]].tolist() == alone[0].tolist()


@given(
    st.lists(st.integers(1, 480_000), max_size=60).map(sorted), st.integers(1, 16), st.sampled_from(["full", "merged"])
)
def test_a_batch_is_full_or_its_next_clip_would_cost_more_than_a_window(lengths, batch_size, window):
    engine = SimpleNamespace(window=window, positions=1500)
    engine.width = lambda clip: transcription.TorchEngine.width(engine, clip)
    clips = [batching.Clip(index, str(index), np.empty(length)) for index, length in enumerate(lengths)]
    groups = list(batching._alike(clips, engine, batch_size))
    assert [clip for group in groups for clip in group] == clips

    def filling(group):
        widths = network.merge_padding([len(clip.samples) for clip in group], 1500)[1].count_nonzero(dim=1)
        return int((widths.max() - widths).sum()) if window == "merged" else 0

    for group in groups:
        assert len(group) <= batch_size
        assert filling(group) <= 1500
    for group, following in itertools.pairwise(groups):
        assert len(group) == batch_size or filling([*group, following[0]]) > 1500


@pytest.fixture
def random_model():
    """Random weights, which end a transcript at random places: some clips early, others late."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=100, max_target_positions=120, num_mel_bins=80,
        pad_token_id=0, bos_token_id=1, eos_token_id=29, decoder_start_token_id=1, init_std=0.6,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        decoder_start_token_id=1, eos_token_id=29, pad_token_id=29, bos_token_id=1, suppress_tokens=[5, 6],
        begin_suppress_tokens=[29, 7], is_multilingual=False, no_timestamps_token_id=63, max_length=120, return_timestamps=False,
    )  # fmt: skip
    return model


def generated(model, sound):
    """What the library's ``generate`` writes, each clip up to its end token."""
    rows = model.generate(sound, attention_mask=torch.ones(len(sound), sound.shape[2]), **GREEDY).tolist()
    return [list(itertools.takewhile(lambda token: token != 29, row)) for row in rows]


def test_decoding_an_ended_batch_matches_generate_on_random_weights(random_model):
    """Clips leave the batch early, the cache grows, tokens stay those of generate."""
    sound = torch.randn(9, 80, 200) * 3
    states, _ = network.encode(random_model, sound)
    assert torch.allclose(states, random_model.model.encoder(sound).last_hidden_state, atol=1e-5)
    ours = search.greedy(random_model, states, [[1, 63]] * 9)
    assert ours == generated(random_model, sound)
    assert min(map(len, ours)) < 10 < 100 < max(map(len, ours))
    assert not {5, 6} & set(itertools.chain(*ours))


def test_a_transcript_ends_at_the_latest_where_generate_ends_it(random_model):
    """Since transformers 5 Whisper's ``max_length`` does not count the prompt."""
    random_model.generation_config.max_length = 20
    sound = torch.randn(9, 80, 200) * 3
    states, _ = network.encode(random_model, sound)
    ours = search.greedy(random_model, states, [[1, 63]] * 9)
    assert ours == generated(random_model, sound)
    assert max(map(len, ours)) == 20


@pytest.mark.slow
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.lists(st.sets(st.integers(0, 1), max_size=1), min_size=5, max_size=5))
def test_a_model_with_fewer_heads_is_heard_as_it_is(random_model, without_heads, cut):
    """Heads are taken out of each attention module, another one or none of each; the config goes on naming two."""
    model = copy.deepcopy(random_model)
    encoder, decoder = model.model.encoder.layers, model.model.decoder.layers
    attends = [layer.self_attn for layer in (*encoder, *decoder)] + [layer.encoder_attn for layer in decoder]
    for attend, heads in zip(attends, cut, strict=True):
        without_heads(attend, heads)
    sound = torch.randn(4, 80, 200, generator=torch.Generator().manual_seed(1)) * 3
    states, _ = network.encode(model, sound)
    assert torch.allclose(states, model.model.encoder(sound).last_hidden_state, atol=1e-5)
    assert search.greedy(model, states, [[1, 63]] * 4) == generated(model, sound)


def by_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(-1)


def by_fused_adamw(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(input_features=torch.ones(1, 80, 200), labels=torch.ones(1, 3, dtype=torch.long)).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("change", [by_data, by_fused_adamw])
def test_a_model_that_has_changed_between_two_calls_is_heard_as_it_is(random_model, change):
    clips = [np.random.default_rng(seed).standard_normal(32_000, np.float32) for seed in range(3)]
    processor = spelled(SimpleNamespace(feature_extractor=WhisperFeatureExtractor()))
    before = texts(transcription.transcribe(random_model, processor, clips))
    change(random_model)
    after = texts(transcription.transcribe(random_model, processor, clips))
    assert after == texts(transcription.transcribe(copy.deepcopy(random_model), processor, clips)) != before
    sound = features.log_mel(processor, clips, 100)
    states, _ = network.encode(random_model, sound)
    with torch.no_grad():
        assert torch.allclose(states, random_model.model.encoder(sound).last_hidden_state, atol=1e-4)


@pytest.mark.weights
def test_several_end_tokens_end_a_transcript(speech):
    model, _ = exact = transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float32)
    single = list(transcription.transcribe(*exact, speech.select([0])))
    model.generation_config.eos_token_id = [model.generation_config.eos_token_id]  # as the library's Trainer leaves it
    sound = transcription.TorchEngine(*exact, "en", "transcribe", "full", False).features(
        [batching._read(speech[0], 0)]
    )
    states, _ = network.encode(model, sound)
    prompt = [model.generation_config.decoder_start_token_id, model.generation_config.no_timestamps_token_id]
    assert len(search.greedy(model, states, [prompt])[0]) < 40
    assert texts(transcription.transcribe(*exact, speech.select([0]))) == texts(single)
