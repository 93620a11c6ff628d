"""Speculative decoding: whatever is drafted, the tokens are those of the teacher's greedy search; the counts add up."""

import copy
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, audio, whisper
from asrlib.decoding import network, search, speculative, transcription
from asrlib.decoding.features import log_mel
from asrlib.training.distillation.recipe import initialise

PROMPT, END = [1, 63], 29
ALIKE = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def capricious(written, logits):
    """Rules: a token may not be written, another one after each text."""
    return logits.index_fill(1, written.sum(dim=1) % 64, -torch.inf)


def disturbed(model, noise, seed):
    """Return a decoder that differs from a model's own by random numbers: the more, the fewer of its drafts are right."""
    other = copy.deepcopy(model)
    random_numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.model.decoder.layers.parameters():
            weight += noise * torch.randn(weight.shape, generator=random_numbers)
    return other


@ALIKE
@given(
    noise=st.sampled_from([0.0, 0.03, 0.1, 1.0]), seed=st.integers(0, 99), drafts=st.integers(1, 9),
    frequent=st.none() | st.sets(st.integers(0, 63)), limit=st.none() | st.integers(1, 12),
    rules=st.sampled_from([None, capricious]),
)  # fmt: skip
def test_any_assistant_leaves_the_teachers_words(random_model, noise, seed, drafts, frequent, limit, rules):
    sound = torch.randn(1, 80, 200, generator=torch.Generator().manual_seed(seed)) * 3
    states, _ = network.encode(random_model, sound)
    options = {"max_new_tokens": limit, "rules": rules}
    expected = search.greedy(random_model, states, [PROMPT], **options)[0]
    assistant = speculative.Assistant(disturbed(random_model, noise, seed), frequent)
    found = speculative.speculate(random_model, assistant, states, PROMPT, drafts=drafts, **options)
    assert found.tokens == expected
    assert found.accepted + found.rejected <= found.drafted <= drafts * found.rounds
    ended = (
        found.accepted + found.rounds - len(found.tokens)
    )  # the end token, and what a teacher says after a drafted one
    assert ended in ((0,) if len(expected) in (limit, 118) else (1, 2))
    assert 0 <= found.acceptance <= 1
    if not noise and frequent is None and not rules:
        assert found.rejected <= 1  # nothing but a begin or a token that is barred for the teacher only


@ALIKE
@given(seed=st.integers(0, 99))
def test_drafts_by_chance_leave_the_teachers_words(random_model, seed):
    """An assistant that draws its drafts, the end token among them, keeps nobody from going on."""

    class Chance(speculative.Assistant):
        def choose(self, logits):
            return dice.choice([END, 5, 7, *range(64)])

    dice = random.Random(seed)
    states, bias = network.encode(random_model, torch.randn(1, 80, 200), lengths=[3200])
    found = speculative.speculate(random_model, Chance(random_model), states, PROMPT, bias, drafts=3)
    assert found.tokens == search.greedy(random_model, states, [PROMPT], bias)[0]


def test_a_cut_output_layer_chooses_among_its_tokens_as_the_whole_one_does(random_model):
    kept = [3, 40, 8]
    assistant = speculative.Assistant(random_model, kept)
    assert assistant.output.weight.equal(random_model.proj_out.weight[[3, 8, END, 40]])
    states, _ = network.encode(random_model, torch.randn(1, 80, 200))
    with torch.inference_mode():
        whole = network.Decoder(random_model, states, None, 9).step(torch.tensor([PROMPT]))
        cut = assistant.decoder(states, None, 9).step(torch.tensor([PROMPT]))
    assert assistant.choose(cut) == max([*kept, END], key=whole[0].tolist().__getitem__)


@torch.inference_mode()
def test_a_decoder_reads_several_tokens_as_one_by_one_and_forgets(random_model):
    states, _ = network.encode(random_model, torch.randn(1, 80, 200))
    once, single = (network.Decoder(random_model, states, None, 4) for _ in range(2))
    for decoder in (once, single):
        decoder.step(torch.tensor([PROMPT]))
    expected = torch.stack([single.step(torch.tensor([[token]]))[0] for token in (9, 8, 40)])
    once.step(torch.tensor([[50, 51, 52]]))
    once.at = 2
    assert torch.allclose(once.step(torch.tensor([[9, 8, 40]]), [0, 1, 2])[0], expected, atol=1e-5)


def test_frequent_tokens_come_in_the_order_of_their_counts():
    assert speculative.frequent_tokens([[4, 4, 9], [9, 4, 7]], 2) == [4, 9]
    assert speculative.frequent_tokens([[4]], 5) == [4]


@given(acceptance=st.floats(0, 0.99), drafts=st.integers(1, 12))
def test_the_tokens_of_a_round_are_those_of_the_closed_form(acceptance, drafts):
    closed = (1 - acceptance ** (drafts + 1)) / (1 - acceptance)
    assert speculative.tokens_per_round(acceptance, drafts) == pytest.approx(closed)
    assert speculative.tokens_per_round(1.0, drafts) == drafts + 1


def test_the_gain_counts_drafts_and_check():
    assert speculative.predicted_gain(3.0, drafts=4, draft=0.25, check=2.0) == 1.0
    assert speculative.predicted_gain(5.0, drafts=4, draft=0.0, check=1.0) == 5.0  # drafts for nothing


def test_costs_are_those_of_each_pass_beside_the_teachers_own(random_model, monkeypatch):
    """The clock is played: a decoder of two layers takes two seconds a token, one of one layer one."""
    small, now, real = copy.deepcopy(random_model), [0.0], network.Decoder.step
    del small.model.decoder.layers[1]
    monkeypatch.setattr(speculative.time, "perf_counter", lambda: now[0])

    def slow(decoder, tokens, places=-1):
        now[0] += len(decoder.model.model.decoder.layers) * tokens.shape[1]
        return real(decoder, tokens, places)

    monkeypatch.setattr(network.Decoder, "step", slow)
    states, drafter = torch.zeros(1, 100, 32), speculative.Assistant(small)
    assert speculative.costs(random_model, {"small": drafter}, states, 4, rounds=3) == {"check": 5.0, "small": 0.5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clips": 2}, "one clip at a time, not 2"),
        ({"drafts": 0}, "draft one token at least"),
        ({"frequent": [70]}, "cannot be drafted"),
        ({"positions": 60}, "distilled from this teacher"),
    ],
)
def test_what_cannot_be_decoded_together_is_refused(random_model, change, said):
    other = copy.deepcopy(random_model)
    other.config.max_target_positions = change.get("positions", 120)
    states = torch.zeros(change.get("clips", 1), 100, 32)
    with pytest.raises(AsrlibError, match=said):
        assistant = speculative.Assistant(other, change.get("frequent"))
        speculative.speculate(random_model, assistant, states, PROMPT, drafts=change.get("drafts", 4))


def test_an_assistant_is_refused_that_cannot_draft_or_whose_drafts_nobody_checks(
    random_model, random_whisper, tmp_path
):
    with pytest.raises(AsrlibError, match="An exported model cannot draft"):
        speculative.Assistant(object())
    model, processor = transcription.load(random_whisper(tmp_path / "small"), device="cpu")
    with pytest.raises(AsrlibError, match="An assistant goes with strict=True"):
        transcription.transcribe(model, processor, [], language="en", assistant=speculative.Assistant(model))


@pytest.mark.weights
def test_transcripts_with_an_assistant_are_those_without(tiny_en, speech):
    """Clips of a batch, whose padding is merged, and a recording of two windows with the times that rules allow."""
    model, processor = tiny_en
    clips = [*speech.select(range(2)), audio.stitch(speech, seconds=40, seed=0).audio]
    options = {"window": "merged", "strict": True}
    plain = list(transcription.transcribe(model, processor, clips, **options))
    assistant = speculative.Assistant(disturbed(model, 0.002, 0))
    found = list(transcription.transcribe(model, processor, clips, **options, assistant=assistant, drafts=3))
    assert [(one.text, one.segments) for one in found] == [(one.text, one.segments) for one in plain]
    assert found[2].segments[-1][1] > 30


@pytest.mark.weights
def test_the_library_writes_the_same_with_the_same_assistant(speech):
    """The oracle: assisted generation of transformers, which encodes and checks in code of its own."""
    teacher, processor = transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float32)
    student = initialise(teacher, 3).eval()
    sound = log_mel(processor, [audio.load(speech[2]["audio"])], 1500)
    mask = torch.ones(1, sound.shape[2], dtype=torch.long)
    theirs = teacher.generate(sound, attention_mask=mask, assistant_model=student, do_sample=False)
    states, _ = network.encode(teacher, sound)
    prompt = whisper.prompt(teacher.generation_config)
    for frequent in (None, range(0, 50_000, 3)):
        ours = speculative.speculate(teacher, speculative.Assistant(student, frequent), states, prompt)
        assert processor.decode(ours.tokens) == processor.decode(theirs[0], skip_special_tokens=True)
        assert ours.rounds > 1
