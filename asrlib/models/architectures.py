"""The published Whisper architectures, without their weights: for counting, and for what only depends on shapes.

``data/architectures.toml`` holds the shapes; the special tokens and the generation config follow from the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, whisper
from asrlib.io import files

if TYPE_CHECKING:
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

__all__ = ["architecture", "config", "generation", "parameters"]

POSITIONS = "encoder.embed_positions.weight"  # the encoder's fixed sinusoids


def architecture(
    model_id: str, weights: str = "meta", dtype: torch.dtype | None = None, seed: int = 0
) -> WhisperForConditionalGeneration:
    """Build a published Whisper architecture without its weights.

    What does not depend on the numbers in the weights can be measured so: parameters, bytes, memory, latency.

    Args:
        model_id: a key of ``data/architectures.toml``, such as ``openai/whisper-large-v2``.
        weights: ``meta``: shapes only, no memory; ``random``: initialised as for training.
        dtype: of the parameters; None is float32.
        seed: of the random weights.

    Returns:
        The model in evaluation mode, with a generation config that knows languages, tasks and special tokens.

    Raises:
        AsrlibError: unknown architecture or kind of weights.
    """
    import torch
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    if weights not in ("meta", "random"):
        raise AsrlibError(f"weights={weights!r} is unknown: use 'meta' for shapes only or 'random'.")
    shape = config(model_id)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if weights == "meta" else "cpu"):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration._from_config(shape, dtype=dtype or torch.float32)
    model.generation_config = GenerationConfig.from_dict(generation(shape))
    return model.eval()


def parameters(model: torch.nn.Module, sinusoids: bool = True) -> int:
    """Count a model's parameters; tied weights count once.

    Args:
        model: any module, on any device.
        sinusoids: False leaves out the encoder's fixed positions, a parameter in transformers and a buffer in
            openai-whisper: so are counted the 71,825,408 parameters that OpenAI prints for base.en (transformers has
            72,593,408).
    """
    return sum(
        parameter.numel() for name, parameter in model.named_parameters() if sinusoids or not name.endswith(POSITIONS)
    )


def config(model_id: str) -> WhisperConfig:
    """Return the transformers configuration of a published architecture."""
    from transformers import WhisperConfig

    table = files.read_toml(files.data_file("architectures.toml"))["architecture"]
    if model_id not in table:
        raise AsrlibError(f"The architecture of {model_id!r} is unknown: use one of {', '.join(table)}.")
    shape = table[model_id]
    tokens = _special_tokens(shape["vocabulary"])
    return WhisperConfig(
        vocab_size=shape["vocabulary"],
        num_mel_bins=shape["mel_bins"],
        d_model=shape["width"],
        encoder_layers=shape["layers"][0],
        decoder_layers=shape["layers"][1],
        encoder_attention_heads=shape["heads"],
        decoder_attention_heads=shape["heads"],
        encoder_ffn_dim=4 * shape["width"],
        decoder_ffn_dim=4 * shape["width"],
        bos_token_id=tokens["end"],
        eos_token_id=tokens["end"],
        pad_token_id=tokens["end"],
        decoder_start_token_id=tokens["start"],
        begin_suppress_tokens=None,  # belongs in the generation config
        architectures=["WhisperForConditionalGeneration"],
    )


def _special_tokens(vocabulary: int) -> dict[str, int]:
    """Return the ids of Whisper's special tokens, which follow from the size of its vocabulary (openai/whisper, tokenizer.py)."""
    multilingual = whisper.speaks_languages(vocabulary)
    start = 50258 if multilingual else 50257
    languages = vocabulary - 51765 - multilingual
    names = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    return {"end": start - 1, "start": start, "languages": languages} | {
        name: start + 1 + languages + position for position, name in enumerate(names)
    }


def generation(config: WhisperConfig) -> dict[str, Any]:
    """Return a generation config as on the Hub, without the forced prompt that newer transformers warns about."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    tokens = _special_tokens(config.vocab_size)
    content = {
        "bos_token_id": tokens["end"],
        "decoder_start_token_id": tokens["start"],
        "eos_token_id": tokens["end"],
        "pad_token_id": tokens["end"],
        "is_multilingual": whisper.speaks_languages(config.vocab_size),
        "max_initial_timestamp_index": 50,
        "max_length": config.max_target_positions,
        "no_timestamps_token_id": tokens["notimestamps"],
        "prev_sot_token_id": tokens["startofprev"],
        "return_timestamps": False,
        # Of the version that wrote the originals: by a later one, generate() of 4.50 to 4.57 warns about the suppress lists.
        "transformers_version": "4.31.0",
    }
    if content["is_multilingual"]:
        codes = list(LANGUAGES)[: tokens["languages"]]
        content["lang_to_id"] = {f"<|{code}|>": tokens["start"] + 1 + place for place, code in enumerate(codes)}
        content["task_to_id"] = {"transcribe": tokens["transcribe"], "translate": tokens["translate"]}
        content["task"] = "transcribe"  # unless told otherwise, also when the language is detected
    return content
