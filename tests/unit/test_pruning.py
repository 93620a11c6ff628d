"""Pruning: masks have the sparsity that was asked for, zeros survive training, and what is cut out equals what was masked."""

import ast
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.pytorch_utils import prune_linear_layer

from asrlib import AsrlibError
from asrlib.course import records
from asrlib.io import files
from asrlib.training import pruning

FEATURES = torch.randn(2, 80, 50, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[3, 14, 15, 9, 26], [2, 7, 18, 28, 18]])
SHARES = st.floats(0.05, 0.95)
HEADS = 4
SPARSITY, STEPS = 0.7, 20  # of the schedule


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=25,
        max_target_positions=12, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
        init_std=0.2,
    )  # fmt: skip
    made = WhisperForConditionalGeneration(config).eval()
    for layer in pruning.linear_layers(made).values():
        if layer.bias is not None:  # a bias of zero, as a new model has it, would hide a unit that is not quite gone
            torch.nn.init.normal_(layer.bias)
    return made


@pytest.fixture(scope="module")
def taught():
    """The functions that notebook 10 teaches, by name."""
    (path,) = (files.repository() / "notebooks").rglob("10_pruning.ipynb")
    source = "\n".join(records.notebook_code(path))
    wanted = {"columns", "cut_heads", "cut_width", "two_of_four", "break_even", "thin", "ramp"}
    found = [node for node in ast.parse(source).body if getattr(node, "name", "") in wanted]
    assert {node.name for node in found} == wanted
    space = {"torch": torch, "prune": prune, "pruning": pruning, "prune_linear_layer": prune_linear_layer}
    space |= {"SPARSITY": SPARSITY, "STEPS": STEPS}
    exec(compile(ast.Module(found, []), "10_pruning", "exec"), space)
    return space


def globally(model, share):
    copied = copy.deepcopy(model)
    layers = [(layer, "weight") for layer in pruning.linear_layers(copied).values()]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=share)
    return copied


def logits(model):
    with torch.no_grad():
        return model(input_features=FEATURES, labels=LABELS).logits


def states(model):
    with torch.no_grad():
        return model.model.encoder(FEATURES).last_hidden_state


def train(model, steps=3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        model(input_features=FEATURES, labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_the_head_is_not_among_the_layers_and_every_layer_has_a_part(model):
    layers = pruning.linear_layers(model)
    assert len(layers) == 2 * 6 + 2 * 10
    assert all(layer is not model.proj_out for layer in layers.values())
    assert {pruning.part(name) for name in layers} == {
        "encoder self-attention", "encoder feed-forward",
        "decoder self-attention", "decoder cross-attention", "decoder feed-forward",
    }  # fmt: skip


def test_a_model_without_a_head_is_refused():
    with pytest.raises(AsrlibError, match="A Linear has no head proj_out"):
        pruning.linear_layers(torch.nn.Linear(2, 2))


@settings(max_examples=20)
@given(SHARES)
def test_a_mask_has_the_share_that_was_asked_for_and_takes_the_smallest(model, share):
    masked = globally(model, share)
    kept = torch.cat([mask.flatten() for mask in pruning.masks(masked).values()]).bool()
    size = torch.cat([layer.weight.detach().abs().flatten() for layer in pruning.linear_layers(model).values()])
    assert int((~kept).sum()) == round(share * len(kept))
    assert size[~kept].max() <= size[kept].min()
    assert pruning.zeros(masked) == pytest.approx(100 * share, abs=0.01)


@settings(max_examples=5)
@given(SHARES)
def test_making_masks_permanent_changes_no_output_and_leaves_an_ordinary_model(model, share):
    masked = globally(model, share)
    before = logits(masked)
    assert pruning.make_permanent(masked) is masked
    assert torch.equal(logits(masked), before)
    assert masked.state_dict().keys() == model.state_dict().keys()
    assert not prune.is_pruned(masked)
    assert pruning.zeros(masked) == pytest.approx(100 * share, abs=0.01)


@settings(max_examples=5)
@given(SHARES)
def test_zeros_survive_training_with_the_mask(model, share):
    masked = globally(model, share)
    wanted = pruning.masks(masked)
    train(masked)
    assert pruning.zeros(masked) == pytest.approx(100 * share, abs=0.01)
    pruning.make_permanent(masked)
    for name, layer in pruning.linear_layers(masked).items():
        assert not layer.weight[wanted[name] == 0].any(), name
        moved = layer.weight != pruning.linear_layers(model)[name].weight
        assert moved[wanted[name] == 1].any() or not wanted[name].any(), name


def test_without_the_mask_one_step_fills_the_zeros(model):
    assert pruning.zeros(train(pruning.make_permanent(globally(model, 0.5)), steps=1)) < 5


def test_zeros_are_counted_after_a_step_and_before_the_next_pass(model):
    """A hook's ``weight`` is older than what the optimiser has just written."""
    masked = globally(model, 0.5)
    logits(masked)
    with torch.no_grad():
        for layer in pruning.linear_layers(masked).values():
            layer.weight_orig.zero_()
    assert pruning.zeros(masked) == 100


def test_masks_go_from_one_model_to_another(model):
    wanted = pruning.masks(globally(model, 0.5))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in pruning.linear_layers(other).values():
            layer.weight.mul_(-2)
    masked = pruning.with_masks(other, wanted)
    found = pruning.masks(masked)
    assert all(torch.equal(found[name], mask) for name, mask in wanted.items())
    assert pruning.zeros(other) == 0
    assert masked.proj_out.weight is masked.model.decoder.embed_tokens.weight


@pytest.mark.parametrize("name", ["model.encoder.layers.9.fc1", "model.encoder.layers.0.fc2"])
def test_a_mask_that_fits_nothing_is_refused(model, name):
    with pytest.raises(AsrlibError, match=f"mask for {name} fits no layer"):
        pruning.with_masks(model, {name: torch.ones(64, 32)})


def test_the_importance_of_a_head_is_the_slope_of_the_loss_by_its_share(model):
    """The oracle scales a head's columns a little up and a little down."""
    given = {"input_features": FEATURES, "labels": LABELS}
    before = logits(model)
    scores = pruning.head_importance(model, [given], 30)
    assert torch.equal(logits(model), before)
    assert len(scores) == 2 + 2 * 2
    for name in ("model.encoder.layers.1.self_attn", "model.decoder.layers.0.encoder_attn"):
        losses = []
        for factor in (0.99, 1.01):
            changed = copy.deepcopy(model)
            with torch.no_grad():
                changed.get_submodule(name).out_proj.weight[:, 8:16] *= factor  # the second head
                losses.append(float(changed(**given).loss))
        assert float(scores[name][1]) == pytest.approx(abs(losses[1] - losses[0]) / 0.02, rel=0.05, abs=1e-4)


@settings(max_examples=10)
@given(st.lists(st.sets(st.integers(0, HEADS - 1), max_size=HEADS - 1), min_size=2, max_size=2))
def test_heads_cut_out_equal_heads_that_are_masked(model, taught, closed):
    masked, smaller = copy.deepcopy(model), copy.deepcopy(model)
    for number, heads in enumerate(closed):
        attention = masked.model.encoder.layers[number].self_attn
        mask = (~taught["columns"](attention, sorted(heads))).float().expand_as(attention.out_proj.weight)
        prune.custom_from_mask(attention.out_proj, "weight", mask)
        taught["cut_heads"](smaller.model.encoder.layers[number].self_attn, sorted(heads))
    assert torch.allclose(states(smaller), states(masked), atol=1e-5)
    assert torch.allclose(logits(smaller), logits(masked), atol=1e-4)
    gone = 32 // HEADS * sum(map(len, closed))
    lost = sum(weight.numel() for weight in model.parameters()) - sum(weight.numel() for weight in smaller.parameters())
    assert lost == gone * (4 * 32 + 2)  # a row of q, k and v, a column of out, the biases of q and v
    assert torch.allclose(states(masked), states(model), atol=1e-5) == (gone == 0)


@settings(max_examples=10)
@given(st.floats(0.1, 0.9))
def test_width_cut_out_equals_width_that_is_masked(model, taught, share):
    masked, smaller = copy.deepcopy(model), copy.deepcopy(model)
    for layer, like in zip(smaller.model.encoder.layers, masked.model.encoder.layers, strict=True):
        prune.ln_structured(like.fc2, "weight", amount=share, n=2, dim=1)
        taught["cut_width"](layer, like.fc2.weight_mask)
    assert smaller.model.encoder.layers[0].fc1.out_features == 64 - round(share * 64)
    assert torch.allclose(states(smaller), states(masked), atol=1e-5)
    assert not torch.allclose(states(smaller), states(model), atol=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_two_of_four_keeps_the_two_largest_of_each_four(taught, rows, fours, seed):
    weight = torch.randn(rows, 4 * fours, generator=torch.Generator().manual_seed(seed))
    mask = taught["two_of_four"](weight)
    assert mask.shape == weight.shape
    for group, kept in zip(weight.abs().reshape(-1, 4), mask.reshape(-1, 4).bool(), strict=True):
        assert kept.sum() == 2
        assert group[kept].min() >= group[~kept].max()


@settings(max_examples=20)
@given(st.integers(2, 40), st.integers(2, 40), st.sampled_from([2, 4]), st.sampled_from([4, 8]))
def test_csr_breaks_even_where_the_formula_says(taught, rows, columns, value, index):
    limit = taught["break_even"](rows, columns, value, index)
    left = (1 - limit) * rows * columns
    assert left * (value + index) + (rows + 1) * index == pytest.approx(rows * columns * value)


@settings(max_examples=5)
@given(st.lists(SHARES, min_size=2, max_size=3))
def test_a_model_is_thinned_further_in_the_decoder_only_and_nothing_comes_back(model, taught, shares):
    thinned, gone = copy.deepcopy(model), None
    for share in sorted(shares):
        taught["thin"](thinned, share)
        found = pruning.masks(thinned)
        assert set(found) == {name for name in pruning.linear_layers(model) if ".decoder." in name}
        kept = torch.cat([mask.flatten() for mask in found.values()]).bool()
        assert int((~kept).sum()) == round(share * len(kept))
        assert gone is None or not kept[gone].any()
        gone = ~kept
        logits(thinned)


def test_the_share_follows_zhu_and_gupta_and_stays_at_its_end(taught):
    shares = [taught["ramp"](step) for step in range(STEPS)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[5] == pytest.approx(SPARSITY * (1 - 0.5**3))  # halfway up the ramp of ten steps
    assert shares[10:] == [SPARSITY] * 10
