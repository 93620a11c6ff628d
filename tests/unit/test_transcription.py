"""The engine against the library's own ``generate``, on a tiny random model and on real weights and speech."""

import copy
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from asrlib import AsrlibError, audio, corpora, scoring, text, whisper
from asrlib.decoding import batching, features, network, search, transcription
from asrlib.training import metering

GREEDY = {"do_sample": False, "num_beams": 1}


def texts(hypotheses):
    return [hypothesis.text for hypothesis in hypotheses]


@pytest.mark.weights
def test_same_words_as_the_library_clip_by_clip(tiny_en, speech):
    model, processor = tiny_en
    ours = list(transcription.transcribe(model, processor, speech, batch_size=8, strict=True))
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
    engine = transcription.TorchEngine(model, processor, "en", window=window)
    clip = batching._read(row, 0)
    states, bias = engine.encode(engine.features([clip]), [len(clip.samples)] if window == "merged" else None)
    tokens = torch.tensor([whisper.prompt(model.generation_config, "en") + written])
    with torch.inference_mode():
        return network.Decoder(model, states, bias, tokens.shape[1]).step(tokens)[0]


@pytest.mark.weights
@pytest.mark.parametrize("window", ["full", "merged"])
@pytest.mark.parametrize(("dtype", "clips", "tied"), [(torch.float32, 8, 0.01), (torch.bfloat16, 2, 0.5)])
def test_batches_do_not_change_words(tiny_en, speech, window, dtype, clips, tied):
    """Products are rounded differently in a batch, so two tokens as good as tied may change places, and no others."""
    model, processor = transcription.load("openai/whisper-tiny.en", device="cpu", dtype=dtype)
    rows = speech.select(range(clips))
    alone, together = (
        [
            list(map(int, text.split()))
            for text in texts(
                transcription.transcribe(model, spelled(processor), rows, batch_size=size, window=window, strict=True)
            )
        ]
        for size in (1, 1 + clips // 2)
    )
    assert all(alone)
    end = model.generation_config.eos_token_id
    for row, one, other in zip(rows, alone, together, strict=True):
        pairs = enumerate(itertools.zip_longest(one, other, fillvalue=end))
        if differ := next(((at, list(pair)) for at, pair in pairs if pair[0] != pair[1]), None):
            at, pair = differ
            logits = preference(*tiny_en, row, window, one[:at])[pair]
            assert abs(logits[0] - logits[1]) < tied


@pytest.mark.weights
def test_merged_window_hears_the_same(tiny_en, speech):
    model, processor = tiny_en
    full = texts(transcription.transcribe(model, processor, speech))
    rows = [{"id": f"x{number}", "audio": row["audio"]} for number, row in enumerate(speech)]
    merged = list(transcription.transcribe(model, processor, rows, window="merged", batch_size=5))
    assert [one.id for one in merged] == [row["id"] for row in rows]
    assert scoring.score(full, texts(merged), normalizer=text.normalizer("en")).wer < 0.1
    assert sum(one.seconds_audio for one in merged) == pytest.approx(sum(speech["seconds"]), rel=0.01)
    assert batching.rtfx(merged) > 0


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


class Counted:
    """An engine that hears numbers."""

    timestamps = False
    fits = staticmethod(lambda clip: True)
    width = staticmethod(lambda clip: 1)
    features = staticmethod(lambda clips: None)
    decode = staticmethod(lambda clips, features: [(clip.id, "en", ()) for clip in clips])


def test_a_stream_gives_its_first_results_early_and_is_read_ahead_only_a_little(monkeypatch):
    monkeypatch.setattr(batching, "WINDOW_CLIPS", 12)
    taken = itertools.count()
    endless = ((next(taken), np.ones(9, np.float32))[1] for _ in itertools.repeat(None))
    hypotheses = batching.run(Counted(), endless, batch_size=4)
    heard = [next(hypotheses)]
    assert next(taken) <= 4 + 8 + 12  # the first window is one batch; two batches and one under way are ahead of it
    heard += itertools.islice(hypotheses, 99)
    hypotheses.close()
    assert [one.text for one in heard] == [f"clip-{number}" for number in range(100)]


def test_a_stream_that_never_goes_on_can_be_left(monkeypatch):
    monkeypatch.setattr(batching, "PATIENCE", 0.01)
    never = threading.Event()

    def stream():
        yield from [np.ones(9, np.float32)] * 2
        never.wait()

    hypotheses = batching.run(Counted(), stream(), batch_size=1)
    assert next(hypotheses).text == "clip-0"
    hypotheses.close()
    never.set()


@pytest.mark.parametrize("one", [np.ones(9), torch.ones(9), "a.wav", {"audio": "a.wav"}, b"RIFF"])
def test_one_recording_in_the_place_of_several_is_one_sentence(one):
    with pytest.raises(AsrlibError, match=r"one recording.*put it into a list"):
        batching.run(Counted(), one)


def test_a_bad_clip_names_itself_after_those_before_it(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    with pytest.raises(AsrlibError, match=r"bad\.wav"):
        list(batching.run(Counted(), [np.ones(9, np.float32), tmp_path / "bad.wav"]))


def test_nothing_has_no_speed():
    with pytest.raises(AsrlibError, match="Nothing was transcribed"):
        batching.rtfx([])


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
def test_wrong_options_are_one_sentence(tiny_en, options, said):
    with pytest.raises(AsrlibError, match=said):
        next(transcription.transcribe(*tiny_en, [np.ones(16_000, np.float32)], **options))


@pytest.fixture(scope="module", params=[80, 128])
def extractor(request):
    return SimpleNamespace(feature_extractor=WhisperFeatureExtractor(feature_size=request.param))


@settings(max_examples=15)
@given(pieces=st.integers(0, 3), beyond=st.integers(-400, 400), seed=st.integers(0, 99), loud=st.floats(0, 1))
def test_features_are_the_extractors(extractor, pieces, beyond, seed, loud):
    """Around the edges of the pieces, and wherever the loudest sound is: the floor below it is that of the whole."""
    size = max(201, pieces * features.PIECE * 160 + beyond)
    samples = np.random.default_rng(seed).standard_normal(size, np.float32) / 1e4
    samples[int(loud * (len(samples) - 1))] = 1.0
    options = {"sampling_rate": 16_000, "return_tensors": "pt"}
    ours = features.long_log_mel(extractor, samples)
    theirs = extractor.feature_extractor([samples], padding="longest", truncation=False, **options).input_features
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-6)
    clips = [samples[: seed * 5000 + 1], samples]
    assert torch.allclose(
        features.log_mel(extractor, clips), extractor.feature_extractor(clips, **options).input_features, atol=1e-5
    )


def test_features_of_a_long_recording_need_little_more_memory_than_they_are(extractor):
    samples = np.random.default_rng(0).standard_normal(600 * 16_000, np.float32)
    with metering.PeakMemory() as peak:
        sound = features.long_log_mel(extractor, samples)
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
    """Since transformers 5 Whisper's ``max_length`` does not count the prompt; 20 was written where nobody had set one."""
    sound = torch.randn(9, 80, 200) * 3
    states, _ = network.encode(random_model, sound)
    for longest in (21, 20):
        random_model.generation_config.max_length = longest
        ours = search.greedy(random_model, states, [[1, 63]] * 9)
        assert max(map(len, ours)) == (21 if longest == 21 else 118)
        assert longest == 20 or ours == generated(random_model, sound)
    assert list(map(len, search.greedy(random_model, states[[0, 0, 0]], [[1, 63]] * 3, max_new_tokens=[3, 1, 2]))) == [
        3,
        1,
        2,
    ]


@torch.inference_mode()
def test_scores_are_those_of_one_pass_over_what_was_written(random_model):
    states, _ = network.encode(random_model, torch.randn(9, 80, 200) * 3)
    for temperature in (0.0, 0.7):
        found = search.search(random_model, states, [[1, 63]] * 9, temperature=temperature, scores=True)
        assert 0 < min(len(one.tokens) for one in found) < 20
        for state, one in zip(states, found, strict=True):
            read = torch.tensor([[1, 63, *one.tokens]])
            hidden = random_model.model.decoder(input_ids=read, encoder_hidden_states=state[None]).last_hidden_state
            logits = random_model.proj_out(hidden[0]).detach()
            assert one.no_speech == pytest.approx(logits[0].softmax(dim=0)[62].item(), abs=1e-5)
            logits[:, [5, 6]] = logits[1, [29, 7]] = -torch.inf
            chosen = [*one.tokens, 29][: 118 if len(one.tokens) == 118 else None]
            logprobs = logits[1:].log_softmax(dim=1)[range(len(chosen)), chosen]
            assert one.logprob == pytest.approx(logprobs.sum().item() / (len(one.tokens) + 1), abs=1e-4)


def test_what_is_drawn_repeats_and_does_not_depend_on_the_batch(random_model):
    states, _ = network.encode(random_model, torch.randn(5, 80, 200) * 3)
    draw = lambda part: search.search(random_model, part, [[1, 63]] * len(part), temperature=1.0)  # noqa: E731
    together = [one.tokens for one in draw(states)]
    assert together == [one.tokens for one in draw(states)] == [draw(state[None])[0].tokens for state in states]
    assert together != search.greedy(random_model, states, [[1, 63]] * 5)


@torch.inference_mode()
def test_what_is_drawn_follows_the_probabilities(random_model, monkeypatch):
    states, _ = network.encode(random_model, torch.randn(1, 80, 200))
    logits = network.Decoder(random_model, states, None, 2).step(torch.tensor([[1, 63]]))[0].detach()
    logits[[5, 6, 29, 7]] = -torch.inf
    drawn = []
    for seed in range(400):
        monkeypatch.setattr(search, "SEED", seed)
        options = {"temperature": 2.0, "max_new_tokens": 1}
        drawn += [one.tokens[0] for one in search.search(random_model, states, [[1, 63]], **options)]
    expected = (logits / 2.0).softmax(dim=0) * 400
    counts = torch.bincount(torch.tensor(drawn), minlength=64)
    assert float(((counts - expected) ** 2 / expected.clamp_min(1)).sum()) < 120  # chi-square of 60 degrees of freedom


@pytest.mark.slow
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_a_model_that_has_changed_between_two_calls_is_heard_as_it_is(random_model):
    """By a step of fused AdamW, which raises no version of a tensor."""
    clips = [np.random.default_rng(seed).standard_normal(32_000, np.float32) for seed in range(3)]
    processor = spelled(SimpleNamespace(feature_extractor=WhisperFeatureExtractor()))
    before = texts(transcription.transcribe(random_model, processor, clips, strict=True))
    optimizer = torch.optim.AdamW(random_model.parameters(), lr=0.1, fused=True)
    random_model(input_features=torch.ones(1, 80, 200), labels=torch.ones(1, 3, dtype=torch.long)).loss.backward()
    optimizer.step()
    after, anew = (
        texts(transcription.transcribe(model, processor, clips, strict=True))
        for model in (random_model, copy.deepcopy(random_model))
    )
    assert after == anew != before


@pytest.mark.weights
def test_several_end_tokens_end_a_transcript(speech):
    model, _ = loaded = transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float32)
    single = list(transcription.transcribe(*loaded, speech.select([0])))
    model.generation_config.eos_token_id = [model.generation_config.eos_token_id]  # as the library's Trainer leaves it
    sound = transcription.TorchEngine(*loaded, "en").features([batching._read(speech[0], 0)])
    states, _ = network.encode(model, sound)
    prompt = [model.generation_config.decoder_start_token_id, model.generation_config.no_timestamps_token_id]
    assert len(search.greedy(model, states, [prompt])[0]) < 40
    assert texts(transcription.transcribe(*loaded, speech.select([0]))) == texts(single)
