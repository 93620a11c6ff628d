"""The profile `colab` fits its machine, a free T4: counted from the architectures, with a line for each chapter."""

from dataclasses import dataclass

import pytest
from rehearsal import PROFILES, fleurs, librispeech, models, values

from asrlib.models import checkpoints

GPU, RAM, DISK = 15e9, 12.7e9, 70e9  # bytes that Colab gives
DOWNLOAD = 8e9  # bytes of weights and speech: more would take much of the hour that a chapter may last
GPU_BASE, RAM_BASE, DISK_BASE = 1e9, 4e9, 30e9  # CUDA and its kernels; the imported libraries; what Colab itself has
PACKAGED = 0.3e9  # all packaged corpora
LIBRISPEECH = {"test-clean": 347e6, "test-other": 329e6}  # bytes of the archives of openslr.org/12
FLEURS = 1.7e9  # bytes of one language as parquet files
FLEURS_TEST = 0.5e9  # ... of its test split alone
TEDLIUM_TEST = 0.3e9  # 2.6 hours in 16 bits at 16 kHz, at most
ON_THE_HUB = 4  # bytes of a parameter: OpenAI's models are in float32 there
FLOAT32, FLOAT16 = 4, 2  # bytes of a parameter, held


@dataclass(frozen=True)
class Held:
    """A model on the GPU: the parameter that names it, bytes of a number, and how often all its weights are there.

    That is twice while openai-whisper loads them, file and model, and four times in a training with AdamW.
    """

    named: str
    size: int
    copies: int = 1
    batch: int = 16  # windows side by side


HELD = {  # what a chapter has on the GPU, as if it let go of nothing
    "00_start_here": [Held("MODEL_ID", FLOAT16)],
    "01_zero_shot_whisper": [
        Held("MODEL_ID", FLOAT32, copies=2),
        Held("ENGLISH_MODEL_ID", FLOAT32, copies=2),
        Held("MODEL_ID", FLOAT32),
        Held("MODEL_ID", FLOAT16),
        Held("ENGLISH_MODEL_ID", FLOAT16),
    ],
    # the published model, and beside it a training: weights, gradients, AdamW's two moments; later the fine-tuned model too
    "02_fine_tune_whisper": [Held("MODEL_ID", FLOAT32, copies=6)],
    "03_int8_inference": [Held("MODEL_ID", FLOAT16, batch=8)],
    # the published model; then the same in 8 and in 4 bits, whose training keeps activations in float32 where gradients start anew
    "04_lora_and_qlora": [
        Held("MODEL_ID", FLOAT16),
        Held("MODEL_ID", 1, copies=2, batch=8),
        Held("MODEL_ID", FLOAT32, copies=0, batch=8),
    ],
    "05_optimum_quantization": [],  # its runtimes compute on the processor
    # a student's encoder in float32, its layers with AdamW's moments and gradients: less than the whole teacher twice
    "06_distil_whisper_training": [
        Held("TEACHER_ID", FLOAT16, copies=1, batch=32),
        Held("SECOND_ID", FLOAT16, copies=1, batch=32),
        Held("TEACHER_ID", FLOAT32, copies=2, batch=6),
    ],
    "07_distil_whisper_benchmark": [
        Held("TEACHER_ID", FLOAT16, copies=2),  # once with random weights
        Held("STUDENT_ID", FLOAT16, copies=2),
        Held("ASSISTANT_ID", FLOAT16),
    ],
    # openai-whisper's twice, for clips and for recordings, and one for single tokens; of the others one for each row
    "08_fast_runtimes": [
        Held("MODEL_ID", FLOAT32, copies=5, batch=1),
        Held("MODEL_ID", FLOAT16, copies=9),
        Held("STUDENT_ID", FLOAT16),
    ],
    "09_static_cache_and_hqq": [Held("MODEL_ID", FLOAT16, copies=3)],  # as published, in 4 bits, and rounded
    # the model, a masked copy of it (weights, masks, products), its gradients and AdamW's moments; before that seven smaller ones
    "10_pruning": [Held("MODEL_ID", FLOAT32, copies=8)],
    # the model of transformers, and openai-whisper's, which decodes one clip with five beams or eight greedily
    "11_languages_and_translation": [
        Held("MODEL_ID", FLOAT16, batch=8),
        Held("MODEL_ID", FLOAT32, copies=2, batch=8),
    ],
    # openai-whisper's model, while it is loaded, and that of transformers, one window at a time; wav2vec 2.0 takes 0.4 GB
    "12_word_times": [Held("MODEL_ID", FLOAT32, copies=3, batch=1)],
    # the notebook's own, and those of `prepare`
    "13_own_data_set": [
        Held("MODEL_ID", FLOAT16, copies=2, batch=8),
        Held("SECOND_ID", FLOAT16, copies=2, batch=8),
    ],
}
CONVERTED = {
    "01_zero_shot_whisper": ["MODEL_ID", "ENGLISH_MODEL_ID"],
    "08_fast_runtimes": ["MODEL_ID", "MODEL_ID", "MODEL_ID", "STUDENT_ID", "STUDENT_ID"],
    "11_languages_and_translation": ["MODEL_ID"],
    "12_word_times": ["MODEL_ID", "MODEL_ID"],  # and CTranslate2's
}  # models of which another runtime's file is written
# Loaded by device_map: each tensor goes from the mapped file, in float16, to the GPU; elsewhere a model and its file lie in the memory.
MAPPED = {"03_int8_inference", "04_lora_and_qlora"}


def weights(model_id: str) -> int:
    return checkpoints.parameters(checkpoints.architecture(model_id))


def activations(model_id: str, windows: int, size: int) -> int:
    """Return the bytes that decoding windows side by side takes at most: caches, a layer of the encoder, logits."""
    config = checkpoints.architecture(model_id).config
    positions = config.max_source_positions + config.max_target_positions
    caches = 2 * config.decoder_layers * positions * config.d_model
    layer = config.max_source_positions * (config.encoder_ffn_dim + 8 * config.d_model)
    scores = config.encoder_attention_heads * config.max_source_positions**2  # where no kernel avoids them
    return windows * (size * (caches + layer + scores) + 4 * 4 * config.vocab_size)


def on_gpu(held: list[Held], given: dict) -> float:
    loaded = sum(item.copies * item.size * weights(given[item.named]) for item in held)
    return GPU_BASE + loaded + max((activations(given[item.named], item.batch, item.size) for item in held), default=0)


def speech(given: dict) -> float:
    splits = given.get("LIBRISPEECH_SPLITS", [given.get("SPLIT", "test-clean")]) if librispeech(given) else []
    languages = FLEURS if given.get("CORPUS") == "fleurs" else FLEURS_TEST
    others = languages * len(fleurs(given)) + TEDLIUM_TEST * (given.get("CORPUS") == "tedlium")
    return sum(LIBRISPEECH[split] for split in splits) + others


@pytest.mark.parametrize("name", PROFILES["colab"])
def test_colab_fits_its_machine(name):
    given = values("colab", name)
    download = speech(given) + sum(ON_THE_HUB * weights(model_id) for model_id in models(given))
    converted = sum(ON_THE_HUB * weights(given[parameter]) for parameter in CONVERTED.get(name, ()))
    largest = max(map(weights, models(given)))
    assert on_gpu(HELD[name], given) < GPU
    assert RAM_BASE + (FLOAT16 if name in MAPPED else 2 * FLOAT32) * largest < RAM
    assert download < DOWNLOAD
    assert DISK_BASE + PACKAGED + download + converted < DISK


def test_what_does_not_fit_is_seen():
    large = {"MODEL_ID": "openai/whisper-large-v2"}
    assert on_gpu([Held("MODEL_ID", FLOAT32, copies=4, batch=1)], large) > GPU
    assert on_gpu([Held("MODEL_ID", FLOAT16)], large) < GPU
