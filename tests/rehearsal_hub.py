"""What the played Hub serves in a rehearsal: models and data sets in the published form, with small and random content."""

import functools
import hashlib
import io
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import soundfile
from hub_server import Repository
from rehearsal import SHAPES

from asrlib import audio, corpora
from asrlib.corpora import catalogue
from asrlib.corpora.hub import PARQUET_BRANCH
from asrlib.io import files
from asrlib.models import architectures, checkpoints

PINNED = files.read_toml(files.data_file("checkpoints.toml"))
WIDTH = 32  # whisper.cpp's quantized formats take no other than multiples of it
SIDE = {"layers": 1, "attention_heads": 1, "ffn_dim": 4 * WIDTH}  # openai-whisper knows no other
SMALL = {"d_model": WIDTH} | {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in SIDE.items()}
POSITIONS = 16  # of the decoder, so that a model that never ends a text ends soon
NOT_OF_THE_MODEL = ("README.md", "flax_model.msgpack", "pytorch_model.bin", "tf_model.h5")  # the real ones have them
NOT_OF_THE_SPEECH = ("all/test.clean/0000.parquet", "clean/train.360/0000.parquet")
DECOYS = NOT_OF_THE_MODEL + NOT_OF_THE_SPEECH  # no profile needs them
CLIPS = 12  # of LibriSpeech, each of another speaker: ten have an interval


def model(model_id: str) -> Repository:
    """Return a published Whisper with one thin layer a side; where asrlib pins a commit, with that one alone."""
    packaged = checkpoints.fetch("openai/whisper-tiny.en" if model_id.endswith(".en") else "openai/whisper-base")
    content = _weights(model_id) | _tokenizer(packaged)
    for name, settings in _settings(model_id, files.read_json(packaged / "generation_config.json")).items():
        content[name] = json.dumps(settings, indent=2).encode()
    content |= dict.fromkeys(NOT_OF_THE_MODEL, b"not wanted")
    pinned = PINNED.get(model_id, {}).get("revision")
    if pinned:  # who asks for the main branch gets nothing
        return Repository(model_id, pinned, content, branch=pinned)
    return Repository(model_id, _commit(model_id), content)


def _commit(name: str) -> str:
    return hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()


def _config(model_id: str):
    config = architectures.config(model_id)
    for name, value in SMALL.items():
        setattr(config, name, value)
    config.max_target_positions = POSITIONS
    return config


def _weights(model_id: str) -> dict[str, bytes]:
    import torch
    from safetensors.torch import save
    from transformers import WhisperForConditionalGeneration

    torch.manual_seed(0)
    tensors = WhisperForConditionalGeneration(_config(model_id)).state_dict()
    del tensors["proj_out.weight"]  # tied to the embeddings, and stored once
    return {"model.safetensors": save(tensors, metadata={"format": "pt"})}


def _tokenizer(packaged: Path) -> dict[str, bytes]:
    """Return a tokenizer in all the files of the real repositories, some of which only older transformers read."""
    whole = files.read_json(packaged / "tokenizer.json")
    model, added = whole["model"], whole["added_tokens"]
    special = [token["content"] for token in added if token["special"]]
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), special[0])
    names["additional_special_tokens"] = special
    settings = {"tokenizer_class": "WhisperTokenizer", "processor_class": "WhisperProcessor", "errors": "replace"}
    settings |= {"add_prefix_space": False, "clean_up_tokenization_spaces": True}
    settings["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
    }
    content = {
        "tokenizer.json": whole,
        "tokenizer_config.json": names | settings,
        "special_tokens_map.json": names,
        "added_tokens.json": {token["content"]: token["id"] for token in added},
        "vocab.json": model["vocab"],
        "normalizer.json": files.read_json(files.data_file("english_spelling.json")),
    }
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    written = {name: json.dumps(value).encode() for name, value in content.items()}
    return written | {"merges.txt": "\n".join(["#version: 0.2", *merges]).encode()}


def _settings(model_id: str, generation: dict) -> dict[str, dict]:
    """Return the settings as published in 2022 and 2023, with what later releases of transformers have moved or renamed."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(SHAPES[model_id]["mel_bins"])
    config = _config(model_id).to_dict()
    tasks = generation.get("task_to_id")
    forced = [[1, None], [2, tasks["transcribe"]]] if tasks else [[1, generation["no_timestamps_token_id"]]]
    lists = {name: generation[name] for name in ("suppress_tokens", "begin_suppress_tokens")}
    legacy = {"forced_decoder_ids": forced, "max_length": POSITIONS}
    config = {name: value for name, value in config.items() if name != "dtype"} | legacy | lists
    config |= {"torch_dtype": "float32", "transformers_version": "4.27.0.dev0"}
    generation = generation | legacy | {"alignment_heads": [[0, 0]], "transformers_version": "4.31.0.dev0"}
    generation.pop("task", None)
    sound = {name: value for name, value in extractor.to_dict().items() if name != "dither"}
    sound |= {"mel_filters": extractor.mel_filters.T.tolist()}
    return {"config.json": config, "generation_config.json": generation, "preprocessor_config.json": sound}


def letters(name: str) -> Repository:
    """Return a published wav2vec 2.0 that writes English letters, with one thin layer and the real one's frames of 20 ms."""
    import torch
    from safetensors.torch import save
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    signs = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    size = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    config = Wav2Vec2Config(vocab_size=len(signs), conv_dim=[16] * 7, num_conv_pos_embeddings=16, **size)
    config.architectures = ["Wav2Vec2ForCTC"]
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    spelling = special | {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "word_delimiter_token": "|",
        "do_lower_case": False,
    }
    sound = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": 16_000}
    sound |= {"do_normalize": True, "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False}
    content = {
        "config.json": config.to_dict(),
        "preprocessor_config.json": sound,
        "special_tokens_map.json": special,
        "tokenizer_config.json": spelling,
        "vocab.json": {sign: number for number, sign in enumerate(signs)},
    }
    written = {file: json.dumps(value).encode() for file, value in content.items()}
    written["model.safetensors"] = save(Wav2Vec2ForCTC(config).state_dict(), metadata={"format": "pt"})
    return Repository(name, _commit(name), written | dict.fromkeys(NOT_OF_THE_MODEL, b"not wanted"))


def _prompts() -> list[tuple[str, bytes]]:
    """Return a dozen telephone prompts, as FLAC, with their texts."""
    prompts = corpora.load("telephone", "en", "test")
    found = []
    for row in [row for row in prompts if 1.5 < row["seconds"] < 5][:CLIPS]:
        sound = io.BytesIO()
        soundfile.write(sound, audio.load(row["audio"]), audio.SAMPLING_RATE, format="FLAC")
        found.append((row["text"], sound.getvalue()))
    return found


@functools.cache
def librispeech() -> Repository:
    """Return the parquet branch of LibriSpeech with a dozen telephone prompts for each test set."""
    rows = []
    for number, (text, sound) in enumerate(_prompts()):
        clip = f"{1000 + number}-{2000 + number}-0000"
        rows.append(
            {
                "file": f"{clip}.flac",
                "audio": {"bytes": sound, "path": f"{clip}.flac"},
                "text": text.upper(),
                "speaker_id": 1000 + number,
                "chapter_id": 2000 + number,
                "id": clip,
            }
        )
    content = {"clean/test/0000.parquet": _parquet(rows), "other/test/0000.parquet": _parquet(rows[::-1])}
    content |= dict.fromkeys(NOT_OF_THE_SPEECH, b"not wanted")
    name = "openslr/librispeech_asr"
    return Repository(name, _commit(name), content, "dataset", PARQUET_BRANCH)


@functools.cache
def fleurs(*configurations: str) -> Repository:
    """Return the parquet branch of FLEURS with the same sounds for each split; each sentence is read twice, under one id."""
    rows = [
        {
            "id": number // 2,
            "num_samples": soundfile.info(io.BytesIO(sound)).frames,
            "audio": {"bytes": sound, "path": f"{number}.wav"},
            "transcription": "नमस्ते",
        }
        for number, (_, sound) in enumerate(_prompts())
    ]
    parts = itertools.product(configurations, ("train", "validation", "test"))
    content = {f"{configuration}/{split}/0000.parquet": _parquet(rows) for configuration, split in parts}
    content |= dict.fromkeys(NOT_OF_THE_SPEECH, b"not wanted")
    name = catalogue.facts("fleurs")["hub"]
    return Repository(name, _commit(name), content, "dataset", PARQUET_BRANCH)


@functools.cache
def published(corpus: str) -> Repository:
    """Return the test set of a corpus whose parquet files lie where their makers uploaded them: a dozen telephone prompts."""
    facts = catalogue.facts(corpus)
    rows = [
        {
            "id": str(number),
            "audio": {"bytes": sound, "path": f"{number}.flac"},
            "text": text,
            "speaker_id": str(number),
        }
        for number, (text, sound) in enumerate(_prompts())
    ]
    content = {f"{facts['splits']['test']}-00000-of-00001.parquet": _parquet(rows)}
    return Repository(facts["hub"], _commit(facts["hub"]), content, "dataset", facts["branch"])


def _parquet(rows: list[dict]) -> bytes:
    """Return rows as the Hub converts a data set: with the columns' types for `datasets` in the schema."""
    import pyarrow
    from pyarrow import parquet

    features = {
        name: {"dtype": "int64" if isinstance(value, int) else "string", "_type": "Value"}
        for name, value in rows[0].items()
    }
    features["audio"] = {"sampling_rate": audio.SAMPLING_RATE, "_type": "Audio"}
    table = pyarrow.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    written = io.BytesIO()
    parquet.write_table(table, written)
    return written.getvalue()


def link_speech(pairs: Iterable[tuple[str, str]], cache: Path) -> None:
    """Give another cache the packaged corpora of this one, fetched when they are not there yet."""
    for name, language in pairs:
        place = corpora.fetch(name, language)
        if place == Path("/"):  # installed for everybody
            continue
        target = cache / "corpora" / name / language
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(place)
