"""Folders of Whisper checkpoints as people have them: recognised, checked, and completed where something is lacking.

Completed are a PEFT adapter, the body alone (``WhisperModel``), a compiled model, a checkpoint of the Trainer without its
processor, and one with the generation configuration of 2022; any other folder that cannot be used is refused in one sentence.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError
from asrlib.io import files, noise
from asrlib.models import architectures

if TYPE_CHECKING:
    from transformers import WhisperConfig

__all__ = ["check", "complete", "exported", "generation", "incomplete", "one_sentence", "origin", "refuse_file"]

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
INDEX, GENERATION = "model.safetensors.index.json", "generation_config.json"
TOKENIZER = ("tokenizer.json", "vocab.json")
EXTRACTOR = ("preprocessor_config.json", "processor_config.json")
SPECIAL = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json")  # one of them lists the special tokens
PROCESSOR = {*TOKENIZER, *EXTRACTOR, *SPECIAL, "merges.txt", "normalizer.json", "special_tokens_map.json"}
DROPPED = ("forced_decoder_ids", "clean_up_tokenization_spaces")  # settings of the originals
TOKENS = (*architectures.ROLES, "is_multilingual", "lang_to_id", "task_to_id")
SPACE = "\u0120"  # in the vocabulary
NEEDED = ("decoder_start_token_id", "eos_token_id", "no_timestamps_token_id", "is_multilingual", "max_length")
PROGRAMS = {
    "model.bin": "faster-whisper", "openvino_*.xml": "OpenVINO", "onnx/*.onnx": "Transformers.js", "*.h5": "TensorFlow",
    "*.msgpack": "Flax", "ggml*.bin": "whisper.cpp", "*.gguf": "whisper.cpp", "*.npz": "MLX", "*.pt": "openai-whisper",
}  # fmt: skip
PREFIXES = re.compile(r"^(_orig_mod\.|module\.)*(model\.)?(?=(encoder|decoder)\.)")  # compiled, in parallel, body only


def refuse_file(path: Path) -> AsrlibError:
    """Return the sentence for a file in the place of a folder."""
    program = {".pt": "openai-whisper", ".onnx": "ONNX Runtime"}.get(path.suffix)
    program = {b"lmgg": "whisper.cpp", b"GGUF": "whisper.cpp"}.get(_head(path)[:4], program)
    kind = f"a file of {program}, which only {program} reads" if program else "a file"
    return AsrlibError(
        f"{path} is {kind}: name a folder that save_pretrained has written, or an id such as openai/whisper-base."
    )


def _head(path: Path) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(64)


@contextlib.contextmanager
def one_sentence(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever transformers, tokenizers and PEFT raise of a file's content into an `AsrlibError`."""
    try:
        yield
    except (AsrlibError, MemoryError):
        raise
    except Exception as error:
        if files.no_room(error):
            raise files.DiskFullError(files.cache_dir()) from None
        if isinstance(error, RuntimeError) and re.search("allocate memory|out of memory", str(error)):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AsrlibError(f"{what} ({reason}): {remedy}.") from None


def exported(folder: str | Path) -> bool:
    """Tell whether a folder holds a model that Optimum has exported to ONNX."""
    return Path(folder, "encoder_model.onnx").is_file()


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER[0]).is_file() and not any(folder.glob("model*.safetensors"))


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in names)


def check(folder: Path) -> None:
    """Refuse a folder that is no Whisper checkpoint, has pickled weights only, or lacks or has damaged a file."""
    adapter, config = _is_adapter(folder), files.read_json(folder / "config.json")
    if not adapter and config.get("model_type") != "whisper":
        raise AsrlibError(f"{folder} {_other(folder)}.")
    if any("attn_implementation" in key and "/" in str(value) for key, value in config.items()):  # CVE-2026-4372
        raise AsrlibError(
            f"{folder}/config.json names code on the Hub for its attention, which transformers would run: the model is hostile "
            "and was not opened."
        )
    if not any(folder.glob("*.safetensors")):
        if exported(folder):
            return
        raise AsrlibError(f"{folder} {_no_weights(folder, adapter)}.")
    if any("lora_" in name for name in _tensors(folder)) and not adapter:
        raise AsrlibError(
            f"{folder} holds LoRA layers that are not merged: call merge_and_unload(), then save it again."
        )


def _other(folder: Path) -> str:
    """Say what a folder is that has no configuration of a Whisper model."""
    if program := _program(folder):
        return f"holds a model for {program} alone: name the checkpoint that it was converted from"
    places = ("*/config.json", f"*/{ADAPTER[0]}", "snapshots/*/config.json")  # of the Trainer, of the Hub's cache
    if below := [path for place in places for path in folder.glob(place)]:
        return f"is no checkpoint itself, but holds some: name {max(below, key=os.path.getmtime).parent}"
    return "has no config.json of a Whisper model: name a folder that save_pretrained has written"


def _program(folder: Path) -> str | None:
    return next((program for pattern, program in PROGRAMS.items() if any(folder.glob(pattern))), None)


def _no_weights(folder: Path, adapter: bool) -> str:
    """Say why a folder with a configuration has no weights that could be loaded."""
    if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("adapter_model.bin")):
        kind = "peft.PeftModel" if adapter else "transformers.WhisperForConditionalGeneration"
        return (
            "has no *.safetensors, and pickled weights can run code when they are opened: if you trust them, load them with "
            f"{kind}.from_pretrained and call save_pretrained, which writes safetensors"
        )
    if program := _program(folder):
        return f"holds a model for {program} alone: name the checkpoint that it was converted from"
    return "has a configuration, but no weights (*.safetensors): copy or fetch the whole folder again"


def _tensors(folder: Path) -> list[str]:
    """Return the names of the tensors in a folder, after a look at the header of each file."""
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.glob("*.safetensors"))
    index = files.read_json(folder / INDEX).get("weight_map", {})
    if not isinstance(index, dict) or (
        missing := {str(name) for name in index.values()} - {path.name for path in weights}
    ):
        lost = min(missing) if isinstance(index, dict) else "the list of its weights"
        raise AsrlibError(f"{folder} lacks {lost}: copy or fetch the whole folder again.")
    names = []
    for path in weights:
        try:
            with safe_open(path, framework="np") as tensors:
                names += tensors.keys()
        except (OSError, SafetensorError) as error:  # OSError: a link to nowhere
            if path.is_file() and _head(path).startswith(b"version https://git-lfs"):
                raise AsrlibError(
                    f"{path} only stands for the weights, which git has not fetched: run `git lfs pull`."
                ) from None
            raise AsrlibError(f"{path} is damaged or truncated ({error}): copy or save it again.") from None
    return names


def incomplete(folder: Path) -> bool:
    """Tell whether a folder that `check` has accepted lacks what `complete` can add."""
    if exported(folder):
        return False
    if _is_adapter(folder) or any(_renamed(name) != name for name in _tensors(folder)):
        return True
    if not _has(folder, TOKENIZER):
        return _training_output(folder) is not None
    if not any(b"<|notimestamps|>" in path.read_bytes() for name in SPECIAL if (path := folder / name).is_file()):
        return False  # no tokenizer of Whisper, from which something could be derived
    return not _has(folder, EXTRACTOR) or _is_old(files.read_json(folder / GENERATION))


def _is_old(settings: dict[str, Any]) -> bool:
    """Tell whether a generation configuration lacks what Whisper's has had since 2023."""
    needed = (*NEEDED, "lang_to_id", "task_to_id") if settings.get("is_multilingual") else NEEDED
    return any(settings.get(key) is None for key in needed)


def _training_output(folder: Path) -> Path | None:
    """Return the folder above a checkpoint of the Trainer, if it holds the processor."""
    above = folder.absolute().parent
    return above if (folder / "trainer_state.json").is_file() and _has(above, TOKENIZER) else None


def _renamed(name: str) -> str:
    return PREFIXES.sub("model.", name)


def origin(folder: Path, fetch: Callable[[str], Path]) -> Path | None:
    """Return the folder that what is lacking comes from: the base of an adapter, or what a checkpoint was trained in.

    Args:
        folder: accepted by `check`.
        fetch: returns the folder of a checkpoint.

    Raises:
        AsrlibError: an adapter's base is not named, is an adapter too, or cannot be had.
    """
    if not _is_adapter(folder):
        return _training_output(folder)
    base = files.read_json(folder / ADAPTER[0]).get("base_model_name_or_path")
    if not isinstance(base, str) or not base or _is_adapter(files.user_path(base)):
        raise AsrlibError(
            f"{folder} is an adapter whose base is {base!r}: write the model that it was trained on into its {ADAPTER[0]}."
        )
    try:
        return fetch(base)
    except AsrlibError as error:
        raise AsrlibError(f"{folder} is an adapter, and its base cannot be had: {error}") from None


def complete(folder: Path, new: Path, base: Path | None) -> None:
    """Fill a new folder with a checkpoint and what it lacks; files that stay as they are are linked, not copied.

    Args:
        folder: accepted by `check`.
        new: an empty folder.
        base: what `origin` returned.
    """
    if _is_adapter(folder):
        _merge(folder, base, new)
        own = [folder / name for name in PROCESSOR]
    else:
        own = [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt")]
    for path in (*own, *(base / name for name in PROCESSOR if base)):
        if path.is_file() and not (new / path.name).exists():
            files.link(path, new / path.name)
    with one_sentence(f"{folder} is not a complete Whisper checkpoint", "fetch or save it again"):
        _drop_settings(new)
        _rename(new)
        if _has(new, TOKENIZER):
            _fill(new)


def _merge(folder: Path, base: Path, new: Path) -> None:
    """Write the model of an adapter, merged into its base in float32."""
    try:
        import peft
    except ImportError:
        raise AsrlibError(f"{folder} is an adapter of PEFT: pip install 'asrlib[methods]' first.") from None
    from safetensors import safe_open
    from transformers import WhisperForConditionalGeneration

    do = f"correct base_model_name_or_path in its {ADAPTER[0]}, or call merge_and_unload() where it was trained, and save the result"
    with one_sentence(f"{folder} cannot be merged into {base}", do), noise.no_bars(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lacking weights, which are looked for below
        model = WhisperForConditionalGeneration.from_pretrained(base, dtype="float32")
        with safe_open(folder / ADAPTER[1], "np") as tensors:
            saved = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        if rows := [shape[0] for name, shape in saved.items() if name.endswith("embed_tokens.weight")]:
            model.resize_token_embeddings(rows[0])  # words were added before it was trained
        adapted = peft.PeftModel.from_pretrained(model, folder)
        if lost := set(peft.get_peft_model_state_dict(adapted)) - saved.keys():
            raise ValueError(f"it lacks {min(lost)}")  # PEFT would fill them with random numbers
        adapted.merge_and_unload().save_pretrained(new)


def _drop_settings(folder: Path) -> None:
    """Drop two settings that transformers 5 warns about: the forced decoder prompt, and the cleaning of spaces, which it ignores."""
    for path in folder.glob("*config.json"):
        content = files.read_json(path)
        kept = {key: value for key, value in content.items() if key not in DROPPED}
        if kept == content:
            continue
        if content.get("forced_decoder_ids") and "task_to_id" in content:
            kept.setdefault("task", "transcribe")  # what the forced prompt said
        _write_json(path, kept)


def _rename(folder: Path) -> None:
    """Give tensors the names that they have in a ``WhisperForConditionalGeneration``."""
    from safetensors.torch import load_file, save

    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        if any(_renamed(name) != name for name in tensors):
            renamed = {_renamed(name): tensor for name, tensor in tensors.items()}
            files.write_atomic(path, save(renamed, metadata={"format": "pt"}))
    path = folder / INDEX
    if index := files.read_json(path):
        index["weight_map"] = {_renamed(name): file for name, file in index["weight_map"].items()}
        _write_json(path, index)


def _fill(folder: Path) -> None:
    """Write the feature extractor and the generation configuration that a folder with a tokenizer lacks."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperTokenizer

    config = WhisperConfig.from_pretrained(folder)
    if not _has(folder, EXTRACTOR):
        WhisperFeatureExtractor(config.num_mel_bins).save_pretrained(folder)
    settings = files.read_json(folder / GENERATION)
    if _is_old(settings):
        settings = generation(WhisperTokenizer.from_pretrained(folder).get_vocab(), config, settings)
        _write_json(folder / GENERATION, settings)


def generation(known: dict[str, int], config: WhisperConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Derive a generation configuration as published from a tokenizer, which alone knows the tokens of an extended vocabulary.

    Args:
        known: number of each token of the tokenizer.
        config: of the model.
        settings: an incomplete configuration; what it says of the search stays.
    """
    from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS, NON_SPEECH_TOKENS_MULTI

    end = known[architectures.END]
    symbols = {50_256: NON_SPEECH_TOKENS, 50_257: NON_SPEECH_TOKENS_MULTI}.get(end, [])  # of Whisper's two vocabularies
    steering = ("translate", "transcribe", "startoftranscript", "startofprev", "startoflm", "nospeech", "nocaptions")
    suppressed = {token for token in symbols if token < end}
    suppressed |= {known[name] for name in (f"<|{word}|>" for word in steering) if name in known}
    first = [known[name] for name in (SPACE, architectures.END) if name in known]
    lists = {"suppress_tokens": sorted(suppressed), "begin_suppress_tokens": first}
    kept = {key: value for key, value in settings.items() if value is not None and key[:1] != "_" and key not in TOKENS}
    return architectures.generation(known, config.max_target_positions) | lists | kept


def _write_json(path: Path, content: dict[str, Any]) -> None:
    files.write_atomic(path, json.dumps(content, indent=2) + "\n")
