"""Loading a Whisper model with its processor, or refusing it in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor

from asrlib import AsrlibError, hardware, whisper
from asrlib.io import noise
from asrlib.models import checkpoints, folders, graphs, int8

__all__ = ["load"]


def load(
    model: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None
) -> tuple[WhisperForConditionalGeneration | graphs.ExportedWhisper, WhisperProcessor]:
    """Load a Whisper checkpoint and its processor.

    Args:
        model: Hub id such as ``"openai/whisper-base"``, or a local folder: of transformers, of a PEFT adapter, which is merged
            into its base, or exported to ONNX by Optimum.
        device: default `hardware.best_device()`; an exported model runs on the CPU.
        dtype: default `hardware.best_dtype()` of the device; ``torch.int8`` rounds the linear layers (`asrlib.models.int8`), on the
            CPU. An exported model keeps the precision of its files.

    Returns:
        (model in eval mode, processor).

    Raises:
        AsrlibError: the checkpoint cannot be had, is not a Whisper model, is not complete, or its parts do not fit together; 8 bits on
            another device than the CPU, of an exported model, or of one that is quantized already.
    """
    path, in_int8 = checkpoints.fetch(str(model)), dtype == torch.int8
    device = device or ("cpu" if in_int8 else hardware.best_device())
    if in_int8 and folders.exported(path):
        raise AsrlibError(
            f"{model} keeps the precision of its files: leave out int8, or take what it was exported from."
        )
    if in_int8 and torch.device(device).type != "cpu":
        raise AsrlibError(f"8 bits are for processors here: leave the device at 'cpu', or take float16 on {device}.")
    with folders.one_sentence(f"{model} is not a complete Whisper checkpoint", "fetch or save it again"):
        processor = WhisperProcessor.from_pretrained(path)
        if folders.exported(path):
            loaded: Any = graphs.load(path)
        else:
            loaded = _weights(path, torch.float32 if in_int8 else dtype or hardware.best_dtype(device))
        _check(path, loaded, processor)
    if folders.exported(path):
        return loaded, processor
    loaded = loaded.to(device).eval()
    return (int8.rounded(loaded) if in_int8 else loaded), processor


def _weights(path: Path, dtype: torch.dtype) -> WhisperForConditionalGeneration:
    with noise.no_bars():
        loaded, report = WhisperForConditionalGeneration.from_pretrained(path, dtype=dtype, output_loading_info=True)
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise ValueError(f"it lacks {min(report['missing_keys'])}")
    if report["mismatched_keys"]:
        raise ValueError(f"{min(report['mismatched_keys'])[0]} has another shape than its config.json says")
    if report["unexpected_keys"]:
        raise ValueError(f"its config.json has no place for {min(report['unexpected_keys'])}")
    if min(loaded.config.encoder_attention_heads, loaded.config.decoder_attention_heads) < 1:
        raise ValueError("its config.json gives a layer no attention heads")
    if hasattr(loaded.config, "quantization_config"):
        floating = [parameter for parameter in loaded.parameters() if parameter.is_floating_point()]
        if len(floating) == len([*loaded.parameters()]):
            raise ValueError("its config.json names a quantization that its weights do not have")
        for parameter in floating:  # some keep the precision of the file, and do not fit the others
            parameter.data = parameter.data.to(dtype)
    # The sinusoids are fixed; transformers 5 makes every weight that it loads trainable.
    loaded.model.encoder.embed_positions.requires_grad_(False)
    return loaded


def _check(path: Path, model: Any, processor: WhisperProcessor) -> None:
    """Refuse parts that do not fit together, and keep the model from tokens that the tokenizer does not know."""
    tokenizer, settings, size = processor.tokenizer, model.generation_config, model.config.vocab_size
    known, bins = tokenizer.get_vocab(), processor.feature_extractor.feature_size
    save = f"call save_pretrained({str(path)!r}) of the processor of the model that it was trained from"
    if not {"<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"} <= known.keys():
        raise AsrlibError(f"{path} has a model, but no tokenizer of Whisper: {save}.")
    if max(known.values()) >= size:
        raise AsrlibError(
            f"{path} has a tokenizer with {len(tokenizer):,} tokens and a model with {size:,}: {save}, or train it after "
            "model.resize_token_embeddings(len(tokenizer))."
        )
    for key, right in (("sampling_rate", 16_000), ("hop_length", whisper.HOP), ("n_fft", 400)):
        if (found := getattr(processor.feature_extractor, key, None)) != right:
            raise AsrlibError(f"{path} has a processor with {key} {found}, where every Whisper has {right}: {save}.")
    if bins != model.config.num_mel_bins:
        raise AsrlibError(f"{path} has a model of {model.config.num_mel_bins} mel bins, its processor {bins}: {save}.")
    if wrong := _wrong_setting(settings, known, size):
        raise AsrlibError(
            f"{path}/generation_config.json has a wrong {wrong}: delete the file, and it will be derived from the tokenizer."
        )
    beyond = {*range(max(known.values()) + 1, size)} - {
        *whisper.time_tokens(settings)
    }  # rows that only fill up the embeddings
    for name, more in (("suppress_tokens", sorted(beyond)), ("begin_suppress_tokens", [])):
        setattr(settings, name, [token for token in getattr(settings, name) or [] if token < size] + more)


def _wrong_setting(settings: GenerationConfig, known: dict[str, int], size: int) -> str | None:
    """Return the name of a setting that does not fit the tokenizer, None where all do."""
    for key, token in (("decoder_start_token_id", "startoftranscript"), ("no_timestamps_token_id", "notimestamps")):
        if getattr(settings, key, None) != known[f"<|{token}|>"]:
            return key
    if known["<|endoftext|>"] not in whisper.end_tokens(settings):
        return "eos_token_id"
    if settings.max_length is not None and settings.max_length < 1:
        return "max_length"
    if whisper.is_multilingual(settings):
        languages, tasks = getattr(settings, "lang_to_id", None), getattr(settings, "task_to_id", None)
        if not languages or not languages.items() <= known.items():
            return "lang_to_id"
        if (
            not tasks
            or "transcribe" not in tasks
            or not {f"<|{task}|>": tasks[task] for task in tasks}.items() <= known.items()
        ):
            return "task_to_id"
    return None
