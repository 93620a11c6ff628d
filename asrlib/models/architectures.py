"""The published Whisper architectures, without their weights: for counting, and for what only depends on shapes.

``data/architectures.toml`` holds the shapes; special tokens and generation configuration follow from the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, whisper
from asrlib.io import files

if TYPE_CHECKING:
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

__all__ = ["architecture", "config", "generation", "parameters", "special_tokens"]

POSITIONS = "encoder.embed_positions.weight"  # the encoder's fixed sinusoids
END, START = "<|endoftext|>", "<|startoftranscript|>"
ROLES = {
    "bos_token_id": END, "eos_token_id": END, "pad_token_id": END, "decoder_start_token_id": START,
    "prev_sot_token_id": "<|startofprev|>", "no_timestamps_token_id": "<|notimestamps|>",
}  # fmt: skip
ENGLISH_START = 50_257  # START in an English-only vocabulary


def architecture(
    model_id: str, weights: str = "meta", dtype: torch.dtype | None = None, seed: int = 0
) -> WhisperForConditionalGeneration:
    """Build a published Whisper architecture without its weights.

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
    settings = generation(special_tokens(shape.vocab_size), shape.max_target_positions)
    model.generation_config = GenerationConfig.from_dict(settings)
    return model.eval()


def parameters(model: torch.nn.Module, sinusoids: bool = True) -> int:
    """Count a model's parameters; tied weights count once.

    Args:
        model: any module, on any device.
        sinusoids: False leaves out the encoder's fixed positions, a parameter in transformers and a buffer in
            openai-whisper: OpenAI prints 71,825,408 parameters for base.en, transformers has 72,593,408.
    """
    counted = (each for name, each in model.named_parameters() if sinusoids or not name.endswith(POSITIONS))
    return sum(parameter.numel() for parameter in counted)


def config(model_id: str) -> WhisperConfig:
    """Return the transformers configuration of a published architecture."""
    from transformers import WhisperConfig

    table = files.read_toml(files.data_file("architectures.toml"))["architecture"]
    if model_id not in table:
        raise AsrlibError(f"The architecture of {model_id!r} is unknown: use one of {', '.join(table)}.")
    shape = table[model_id]
    tokens = special_tokens(shape["vocabulary"])
    sides = {"encoder": shape["layers"][0], "decoder": shape["layers"][1]}
    return WhisperConfig(
        vocab_size=shape["vocabulary"],
        num_mel_bins=shape["mel_bins"],
        d_model=shape["width"],
        **{f"{side}_layers": layers for side, layers in sides.items()},
        **{f"{side}_attention_heads": shape["heads"] for side in sides},
        **{f"{side}_ffn_dim": 4 * shape["width"] for side in sides},
        **{f"{role}_token_id": tokens[END] for role in ("bos", "eos", "pad")},
        decoder_start_token_id=tokens[START],
        begin_suppress_tokens=None,  # belongs in the generation config
        architectures=["WhisperForConditionalGeneration"],
    )


def special_tokens(vocabulary: int) -> dict[str, int]:
    """Return Whisper's special tokens, which follow from the size of its vocabulary (openai/whisper, tokenizer.py)."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    multilingual = whisper.speaks_languages(vocabulary)
    languages = [*LANGUAGES][: vocabulary - whisper.MULTILINGUAL + 100 - multilingual]
    steering = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    names = [END, START, *(f"<|{name}|>" for name in [*languages, *steering])]
    return {name: number for number, name in enumerate(names, ENGLISH_START - 1 + multilingual)}


def generation(known: dict[str, int], positions: int) -> dict[str, Any]:
    """Return a generation config as on the Hub, without the forced prompt that newer transformers warns about.

    Args:
        known: number of each token, the special ones at least.
        positions: of the decoder.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    settings = {role: known[name] for role, name in ROLES.items() if name in known} | {
        "is_multilingual": known.get(START) != ENGLISH_START,
        "max_initial_timestamp_index": 50,
        "max_length": positions,
        "return_timestamps": False,
        # Of the version that wrote the originals: by a later one, generate() of 4.50 to 4.57 warns about the suppress lists.
        "transformers_version": "4.31.0",
    }
    if settings["is_multilingual"]:
        settings["lang_to_id"] = {name: known[name] for code in LANGUAGES if (name := f"<|{code}|>") in known}
        settings["task_to_id"] = {task: known[f"<|{task}|>"] for task in ("transcribe", "translate")}
        settings["task"] = "transcribe"  # unless told otherwise, also when the language is detected
    return settings
