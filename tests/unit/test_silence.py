"""Words that nobody said: the tests and the fallback by themselves, and silence, noise and tones through real weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from asrlib import audio, corpora, engines, text, whisper
from asrlib.decoding import features, guards, transcription
from asrlib.decoding.search import Found
from asrlib.models import checkpoints

RATE = audio.SAMPLING_RATE
TINY, BASE = "openai/whisper-tiny.en", "openai/whisper-base"
PROSE, LOOP = [*range(97, 110)], [97] * 100  # letters as tokens; the second compresses well

# What a search finds at temperatures 0, 0.2 and 0.4, each (tokens, mean log-probability, probability of silence), and which is taken.
TRIES = {
    "good": ([(PROSE, -0.9, 0.7)], 0),
    "good where the bound is": ([(PROSE, -1.0, 0.6)], 0),
    "improbable once": ([(PROSE, -1.01, 0.5), (PROSE[:5], -0.8, 0.5)], 1),
    "a loop": ([(LOOP, -0.1, 0.5), (LOOP, -0.2, 0.5), (PROSE, -0.9, 0.5)], 2),
    "silence": ([(PROSE, -1.01, 0.61)], None),
    "a loop in silence": ([(LOOP, -1.01, 0.61)], None),
    "a loop, then silence": ([(LOOP, -0.1, 0.61), (PROSE, -1.01, 0.61)], None),
    "never good": ([(PROSE, -1.3, 0.3), (PROSE[:5], -1.2, 0.3), (LOOP, -0.1, 0.3)], 1),
    "never good, perhaps silence": ([(PROSE, -1.3, 0.31), (PROSE[:5], -1.2, 0.31), (LOOP, -0.1, 0.31)], None),
    "nothing but loops": ([(LOOP, -0.3, 0.5), (LOOP[:90], -0.1, 0.5), (LOOP, -0.2, 0.5)], 1),
}


@pytest.mark.parametrize(("together", "times"), [(False, None), (True, object())])
def test_each_clip_is_decoded_again_until_it_can_be_believed(monkeypatch, together, times):
    asked = []

    def search(model, states, prompts, bias, *, rules, temperature, scores, max_new_tokens):
        asked.append((temperature, [prompt[0] for prompt in prompts]))
        assert [state.item() for state in states] == [10 * prompt[0] for prompt in prompts]
        assert rules is times
        assert max_new_tokens == [min(224 if times else 448, 24 + 40 * prompt[0]) for prompt in prompts]
        step = round(5 * temperature)
        return [Found(*list(TRIES.values())[prompt[0]][0][step], temperature) for prompt in prompts]

    monkeypatch.setattr(guards, "search", search)
    assert guards.TEMPERATURES == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    monkeypatch.setattr(guards, "TEMPERATURES", guards.TEMPERATURES[:3])
    config = SimpleNamespace(max_target_positions=448)
    model = SimpleNamespace(
        generation_config=SimpleNamespace(no_timestamps_token_id=500, is_multilingual=False), config=config
    )
    processor = SimpleNamespace(batch_decode=lambda rows, **_: ["".join(map(chr, row)) for row in rows])
    rows = list(range(len(TRIES)))
    found = []
    for part in [rows] if together else [[row] for row in rows]:
        sounds = [torch.arange(20.0 + 200.0 * row).expand(80, -1) for row in part]
        states = torch.tensor([10 * row for row in part])
        found += guards.guarded(model, processor, states, [[row] for row in part], sounds, rules=times)
    for one, (tries, best) in zip(found, TRIES.values(), strict=True):
        assert one.tokens == ([] if best is None else tries[best][0])
        assert best is None or round(5 * one.temperature) == best
    assert sum(len(part) for _, part in asked) == sum(len(tries) for tries, _ in TRIES.values())


def test_a_loop_of_text_compresses_well():
    assert guards.compression("thank you for watching " * 10) > guards.COMPRESSION
    assert guards.compression("To leave a message, please enter a mailbox number.") < guards.COMPRESSION
    assert guards.compression("") == 0


@pytest.mark.weights
def test_no_packaged_clip_has_even_half_the_tokens_that_it_may_have():
    tokenizer = WhisperTokenizer.from_pretrained(checkpoints.fetch(BASE))
    packaged = {"telephone": "en ru", "picture_words": "be da el"}
    for corpus, languages in packaged.items():
        for language in languages.split():
            rows = corpora.load(corpus, language, "test")
            counts = map(len, tokenizer(list(rows["text"]), add_special_tokens=False).input_ids)
            assert all(
                2 * count <= guards.most_tokens(seconds) for count, seconds in zip(counts, rows["seconds"], strict=True)
            )


# The first sentence of the Universal Declaration of Human Rights, and its syllables.
DENSE = {
    "ka": ("ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით", 33),
    "lo": ("ມະນຸດທຸກຄົນເກີດມາມີກຽດສັກສີ, ສິດທິ, ເສລີພາບ ແລະ ຄວາມສະເໝີພາບເທົ່າທຽມກັນ", 27),
    "bn": ("সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে", 27),
}


@pytest.mark.weights
@pytest.mark.parametrize("language", DENSE)
def test_languages_that_are_spelled_byte_by_byte_are_not_cut_off(language):
    said, syllables = DENSE[language]
    tokenizer = WhisperTokenizer.from_pretrained(checkpoints.fetch(BASE))
    count = len(tokenizer(said, add_special_tokens=False).input_ids)
    quick = syllables / 8  # seconds: eight syllables a second
    assert guards.most_tokens(quick) < count <= guards.most_tokens(quick, language)


def test_a_prompt_tells_its_language():
    generation = SimpleNamespace(
        is_multilingual=True, lang_to_id={"<|en|>": 5, "<|ka|>": 6}, task_to_id={"transcribe": 7}, decoder_start_token_id=4,
        no_timestamps_token_id=9,
    )  # fmt: skip
    assert whisper.language_of(generation, [1, 2, *whisper.prompt(generation, "ka")]) == "ka"
    generation.is_multilingual = False
    assert whisper.language_of(generation, [4, 6, 9]) is None


def noise(seconds, decibels, seed=0):
    """Return white noise of a loudness below full scale."""
    draw = np.random.default_rng(seed)
    return (10 ** (decibels / 20) * draw.standard_normal(round(seconds * RATE))).astype(np.float32)


def room(seconds, decibels, seed=0):
    """Return pink noise, as the air in a room is heard."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(round(seconds * RATE)))
    made = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), round(seconds * RATE))
    return (made / made.std() * 10 ** (decibels / 20)).astype(np.float32)


def tone(seconds, *pitches):
    """Return sines that sound together."""
    at = np.arange(round(seconds * RATE))[:, None] / RATE
    return (0.1 * np.sin(2 * np.pi * at * np.array(pitches)).mean(axis=1)).astype(np.float32)


def silence(seconds):
    """Return digital silence after a click, without which it would be refused."""
    return np.concatenate([[0.01], np.zeros(round(seconds * RATE))]).astype(np.float32)


EMPTY = {
    "digital silence": silence(5),
    "long digital silence": silence(40),
    "noise": noise(5, -60),
    "long noise": noise(40, -60),
    "a tone": tone(5, 1000),
    "a long tone": tone(40, 1000),
    "a chord": tone(5, 220, 277, 330, 440),
    "a long chord": tone(40, 220, 277, 330, 440),
    "a room": room(5, -45),
    "a room for long": room(40, -45),
}


def gusts(every):
    """Return six seconds of noise that comes and goes."""
    rise = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(6 * RATE) / RATE / every)
    return (noise(6, -30) * rise**2).astype(np.float32)


SCALE = [tone(0.4, pitch) * np.hanning(6400).astype(np.float32) for pitch in (262, 294, 330, 349, 392, 440, 494, 523)]
KEYS = [np.pad(tone(0.2, *pair), (0, 1600)) for pair in ((697, 1209), (770, 1336), (852, 1477), (941, 1336))]
VARIED = {  # as speech does
    "gusts of wind": gusts(2.0),
    "quick gusts": gusts(0.3),
    "a scale": np.concatenate(2 * SCALE),
    "keys of a telephone": np.concatenate(5 * KEYS),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_sound_without_syllables_is_told_from_speech(name):
    extractor = WhisperFeatureExtractor()
    heard = SimpleNamespace(feature_extractor=extractor)
    assert guards.steady(features.log_mel(heard, [EMPTY[name][: 30 * RATE]])[0, :, : len(EMPTY[name]) // 160])
    burst = np.concatenate([EMPTY[name], noise(0.2, 0)])
    assert not guards.steady(features.log_mel(heard, [burst[-30 * RATE :]])[0, :, : len(burst) // 160])


def test_where_silence_is_probable_a_sound_without_syllables_is_silent(monkeypatch):
    found = Found(PROSE, -0.1, 0.61)
    varied, flat = torch.arange(20.0).expand(80, -1), torch.zeros(80, 20)
    assert [guards._silent(found, 13, sound) for sound in (varied, flat)] == [False, True]
    assert not guards._silent(Found(PROSE, -0.1, 0.6), 13, flat)


def test_where_silence_is_probable_a_text_of_few_tokens_must_be_more_probable():
    second = torch.arange(100.0).expand(80, -1)
    asked = [(-0.51, 0.61, 0), (-0.5, 0.61, 0), (-0.51, 0.6, 0), (-0.51, 0.61, 1), (-1.01, 0.61, 1)]
    silent = [guards._silent(Found([], logprob, none), tokens, second) for logprob, none, tokens in asked]
    assert silent == [True, False, False, False, True]


@pytest.fixture(scope="module")
def said(speech):
    """Return a sentence."""
    (row,) = (row for row in speech if row["text"] == "Your call cannot be completed as dialed.")
    return audio.load(row["audio"])


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "longest"), [(TINY, torch.float32, 40), (BASE, torch.float32, 40), (TINY, torch.bfloat16, 6)]
)
def test_nothing_is_written_where_nobody_speaks(name, dtype, longest, said):
    loud = int(np.abs(said).argmax())
    clips = EMPTY | {"10 ms": said[loud:][:160], "100 ms": said[loud:][:1600], "quiet": said[loud:][:3200] / 1000}
    clips = {kind: clip for kind, clip in clips.items() if len(clip) <= longest * RATE + 1}
    model = transcription.load(name, device="cpu", dtype=dtype)
    for times in (False, True):
        heard = transcription.transcribe(*model, list(clips.values()), language="en", timestamps=times)
        assert {kind: one.text for kind, one in zip(clips, heard, strict=True) if one.text or one.segments} == {}


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize("peer", ["openai-whisper", "faster-whisper"])
def test_nothing_is_written_where_another_runtime_writes_nothing(tiny_en, peer):
    for times in (False, True):
        options = {"language": "en", "timestamps": times}
        theirs = engines.load(peer, TINY).transcribe(list(VARIED.values()), strict=False, **options)
        ours = transcription.transcribe(*tiny_en, list(VARIED.values()), **options)
        texts = {kind: (one.text, other.text) for kind, one, other in zip(VARIED, ours, theirs, strict=True)}
        assert [kind for kind, (one, other) in texts.items() if one and not other] == []
        assert not all(other for _, other in texts.values())


@pytest.mark.weights
@pytest.mark.slow
def test_speech_is_kept_word_for_word_between_silences_and_nothing_is_written_in_them(said):
    gaps = [noise(45, -70), silence(90), room(70, -45)]
    clips = [np.concatenate(parts) for parts in ([gaps[0], said], [said, gaps[1]], [said, gaps[2], said])]
    model, normalize = transcription.load(BASE, device="cpu", dtype=torch.float32), text.normalizer("en")
    for clip, heard in zip(clips, transcription.transcribe(*model, clips, language="en"), strict=True):
        times = 2 if clip is clips[2] else 1
        assert normalize(heard.text).split() == times * ["your", "call", "cannot", "be", "completed", "as", "dialed"]
        assert len(heard.segments) == times
        assert heard.segments[0][0] >= 30 or heard.segments[0][1] < 9
