"""Distillation as notebook 06 teaches it, from encoder states on disk, in one process or in many.

The encoder of teacher and student is the same and frozen (Gandhi et al. 2023, arXiv:2311.00430, section 3), so what it says
of a clip never changes: `EncoderStates` computes it once. The padding behind a clip is merged as in `asrlib.decoding.transcription`,
which makes states, and every training step on them, several times smaller; `attending` tells the decoders of transformers,
which take no mask for encoder states, how many positions each state stands for.

`distil` is the whole recipe, and the same code in each of N processes (torchrun, accelerate). Nothing in it depends on N but
who does what: a shard of clips is labelled as one batch whoever labels it, and a training step sums over the tokens of one
batch whoever holds its clips. So on like processors labels are the same to the byte, and losses up to the order of sums.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import io
import itertools
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asrlib import AsrlibError, audio, corpora, hardware, scoring, text, whisper
from asrlib.decoding import network, search, transcription
from asrlib.io import files, noise
from asrlib.io.progress import Meter, track
from asrlib.models import checkpoints, folders

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

__all__ = ["EncoderStates", "attending", "distil", "divergence", "initialise", "repeated_ngrams", "spaced"]

WEIGHTS = {"kl": 0.8, "labels": 1.0}  # of the two losses, as the paper states them
TEMPERATURE = 2.0  # softens both distributions
LONGEST = 30  # seconds: of more, Whisper would hear the beginning and be given all of the text


def repeated_ngrams(text: str, n: int = 5) -> int:
    """Count the runs of n words that have occurred before in a text: the measure 5-Dup of Gandhi et al. 2023, section 6.3.

    A text of a single word said k times has k - n of them; one that never repeats n words has none. Normalise it first.

    Args:
        text: words, separated by white space.
        n: words in a run.
    """
    words = text.split()
    runs = Counter(zip(*(words[first:] for first in range(n)), strict=False))
    return runs.total() - len(runs)


class EncoderStates:
    """States of a frozen encoder for many clips, kept on disk in bfloat16 and mapped into memory when they are read.

    Clips of like length are encoded together, a shard at a time. A shard is complete or absent, so a killed run goes on where
    it stopped; what is held in memory is one shard while writing and one batch while reading. A clip of a second takes 0.3 MB
    with 512 numbers a state, one of 30 seconds 1.5 MB.

    Attributes:
        ids: of all clips, the shortest first.
        shards: number of each shard and the ids in it.
    """

    def __init__(
        self,
        folder: Path | str,
        model: Any,
        processor: Any,
        clips: Any,
        *,
        window: str = "merged",
        clips_per_shard: int = 32,
        share: tuple[int, int] = (0, 1),
        label: str = "",
    ) -> None:
        """Encode what is not there yet.

        Args:
            folder: for these clips and this model, and for nothing else.
            model: a ``WhisperForConditionalGeneration`` in eval mode.
            processor: its ``WhisperProcessor``.
            clips: rows with ``id``, ``audio`` and ``seconds``: a corpus as `corpora.load` returns it, or a list; none over 30 s.
            window: ``"merged"``, or ``"full"`` for all 1,500 positions of each clip (1.5 MB at 512 numbers a state).
            clips_per_shard: clips encoded together.
            share: (r, N): of all shards only r, r + N, r + 2N, ... are made and known here, as one process of N does.
            label: shown in the progress line; none is shown without it.

        Raises:
            AsrlibError: a clip longer than the model's context, an id that occurs twice, unreadable audio, a full disk, or a
                folder with the states of other clips.
        """
        if window not in ("full", "merged"):
            raise AsrlibError(f"There is no window {window!r}: choose 'full' or 'merged'.")
        self.folder, self.window, self.positions = Path(folder), window, model.config.max_source_positions
        self.places: dict[str, tuple[int, int, int]] = {}  # id -> shard, first row, samples
        self.shards: dict[int, list[str]] = {}
        table = hasattr(clips, "column_names")
        ids, seconds = (list(clips[name]) if table else [row[name] for row in clips] for name in ("id", "seconds"))
        order = np.argsort(seconds, kind="stable").tolist()
        cut = [order[first : first + clips_per_shard] for first in range(0, len(order), clips_per_shard)]
        mine = list(enumerate(cut))[slice(share[0], None, share[1])]
        total = sum(len(places) for _, places in mine)
        with Meter(label, total, "clips") if label else contextlib.nullcontext() as meter:
            for number, places in mine:
                self.shards[number] = [ids[place] for place in places]
                self._add(number, functools.partial(self._encode, model, processor, clips, places))
                if meter:
                    meter.step(len(places))
        self.ids = list(self.places)

    def _add(self, number: int, encode: Callable[[], Any]) -> None:
        """Make a shard unless it is there, and note where its clips lie. The list is written last: it says that all is there."""
        listing, names = self.folder / f"{number:06d}.json", self.shards[number]
        if not listing.is_file():
            states, samples = encode()
            stream = io.BytesIO()
            np.save(stream, states)
            files.write_atomic(self.folder / f"{number:06d}.npy", stream.getvalue())
            files.write_atomic(listing, json.dumps({"ids": names, "samples": samples}))
        content = files.read_json(listing)
        if content.get("ids") != names:
            raise AsrlibError(
                f"{self.folder} holds the encoder states of other clips: delete it, or give another folder."
            )
        at = 0
        for name, samples in zip(content["ids"], content["samples"], strict=True):
            if name in self.places:
                raise AsrlibError(f"The clip {name} occurs twice: give each clip an id of its own.")
            self.places[name] = number, at, samples
            at += len(self._weights(samples))

    def _encode(self, model: Any, processor: Any, clips: Any, places: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """Return the states of a shard, all positions of all clips below each other, as bits; and the clips' samples."""
        import torch

        rows = [clips[place] for place in places]
        heard = [audio.load(row["audio"]) for row in rows]
        lengths = [len(samples) for samples in heard]
        context = self.positions * whisper.SAMPLES_PER_POSITION
        if max(lengths) > context:
            name = rows[lengths.index(max(lengths))]["id"]
            raise AsrlibError(
                f"{name} is longer than the model's context of {context / audio.SAMPLING_RATE:g} s: leave it out."
            )
        features = processor.feature_extractor(
            heard, sampling_rate=audio.SAMPLING_RATE, return_tensors="pt"
        ).input_features
        merged = lengths if self.window == "merged" else None
        states, _ = network.encode(model, features.to(model.device, model.dtype), merged)
        kept = [row[: len(self._weights(length))] for row, length in zip(states, lengths, strict=True)]
        return torch.cat(kept).to("cpu", torch.bfloat16).view(torch.int16).numpy(), lengths

    def _weights(self, samples: int) -> torch.Tensor:
        """Return how many positions each state of a clip stands for, (states,)."""
        import torch

        if self.window == "full":
            return torch.ones(self.positions)
        return network.merge_padding([samples], self.positions)[1][0]

    def batch(self, ids: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the states of some clips and their bias, as `network.encode` does: bfloat16, (clips, positions, width),
        and float32, (clips, 1, 1, positions), minus infinity behind the states of a shorter clip; None for the full window.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        states, weights = [], []
        for name in ids:
            number, first, samples = self.places[name]
            weights.append(self._weights(samples))
            shard = np.load(self.folder / f"{number:06d}.npy", mmap_mode="r")
            states.append(torch.from_numpy(shard[first : first + len(weights[-1])].copy()).view(torch.bfloat16))
        bias = None if self.window == "full" else pad_sequence(weights, batch_first=True).log()[:, None, None, :]
        return pad_sequence(states, batch_first=True), bias


@contextlib.contextmanager
def attending(bias: torch.Tensor | None, *models: Any) -> Iterator[None]:
    """Let the cross-attention of some models add a bias to its logits within a ``with`` block.

    Args:
        bias: (clips, 1, 1, positions) as `EncoderStates.batch` returns it; None changes nothing.
        models: ``WhisperForConditionalGeneration``; they are called with ``encoder_outputs``, and without a cache.
    """
    import torch

    def add(module: Any, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        hidden = arguments[0]
        reduced = torch.is_autocast_enabled(hidden.device.type)
        kind = torch.get_autocast_dtype(hidden.device.type) if reduced else hidden.dtype
        return arguments, options | {"attention_mask": bias.to(hidden.device, kind)}

    layers = (
        [layer.encoder_attn for model in models for layer in model.model.decoder.layers] if bias is not None else []
    )
    handles = [layer.register_forward_pre_hook(add, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def spaced(depth: int, layers: int) -> list[int]:
    """Return which of a teacher's ``depth`` decoder layers make a student: maximally spaced, the last always among them."""
    chosen = np.linspace(0, depth - 1, layers, dtype=int)
    chosen[-1] = depth - 1
    return chosen.tolist()


def initialise(original: Any, layers: int) -> Any:
    """Return a student: encoder, embeddings and norms of a teacher, and its `spaced` decoder layers.

    Args:
        original: the teacher, a ``WhisperForConditionalGeneration``, in float32, since the student's weights are to be.
        layers: of the student's decoder, from 1 to the teacher's own number.
    """
    from transformers import WhisperForConditionalGeneration

    config = copy.deepcopy(original.config)
    config.decoder_layers = layers
    student = WhisperForConditionalGeneration(config)
    student.load_state_dict(original.state_dict(), strict=False)  # encoder, embeddings, norms
    chosen = spaced(original.config.decoder_layers, layers)
    for layer, number in zip(student.model.decoder.layers, chosen, strict=True):
        layer.load_state_dict(original.model.decoder.layers[number].state_dict())
    student.generation_config = copy.deepcopy(original.generation_config)
    return student


def divergence(said: torch.Tensor, meant: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence from a teacher's softened distributions to its student's, in nats, mean over tokens.

    Args:
        said: logits of the student, (tokens, vocabulary).
        meant: logits of the teacher.
    """
    from torch.nn import functional

    log_said = functional.log_softmax(said / TEMPERATURE, dim=-1)
    probable = functional.softmax(meant / TEMPERATURE, dim=-1)
    return functional.kl_div(log_said, probable, reduction="batchmean") * TEMPERATURE**2


def distil(
    corpus: str,
    output: Path | str,
    *,
    model: str = "openai/whisper-base",
    root: Path | str | None = None,
    clips: int | None = None,
    layers: int = 2,
    threshold: float = 10.0,
    steps: int = 240,
    batch_size: int = 12,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Distil a Whisper model by the recipe of notebook 06; to be called alike in each process of a run.

    The folder gets ``shards/`` (encoder states and pseudo-labels, each file complete or absent: a killed run goes on),
    ``labels.jsonl`` (id, text, WER of each clip in the corpus's order), ``losses.jsonl`` and ``student/``, an ordinary model.

    Args:
        corpus: ``CORPUS/LANGUAGE/SPLIT``, as `corpora.load` takes them; its transcripts decide which labels are kept.
        output: a folder for this teacher and these clips; processes on several machines must all see it.
        model: the teacher, a Hub id or a folder.
        root: where a corpus lies that is not packaged.
        clips: how many, chosen by the seed among those of at most 30 s; None takes all of these.
        layers: of the student's decoder.
        threshold: labels with a larger WER (%) are left out.
        steps: of the optimiser, each on ``batch_size`` clips, which the processes share.
        learning_rate: its highest value.
        seed: of the choice of clips and the order of batches.

    Returns:
        ``clips``, ``kept`` (labels) and the last ``cross_entropy`` and ``kl`` (nats per token); None in all processes but the
        first.

    Raises:
        AsrlibError: what `corpora.load` and `transcription.load` refuse, more processes than clips in a batch, more layers than
            the teacher's, a folder of another run, or no label within the threshold. All processes end together.
    """
    processes, output = _processes(), Path(output)
    first, count = processes.is_main_process, processes.num_processes
    with _together(processes):
        if count > batch_size:
            raise AsrlibError(
                f"{count} processes cannot share a batch of {batch_size}: start fewer, or raise the batch size."
            )
        rows, language = _choose(corpus, root, clips, seed), text.language_code(corpus.split("/")[1])
        teacher, processor, student = _models(model, layers, str(processes.device))
        prompt = _prompt(teacher, processor, language)
        if first:
            run = {"corpus": corpus, "root": str(root or ""), "teacher": str(model)}
            files.reserve(output, run, "teacher or corpus")
        encode = functools.partial(EncoderStates, output / "shards", teacher, processor, rows)
    with _together(processes):
        mine = encode(share=(processes.process_index, count), label="encoder states" * first)
        _label(mine, teacher, prompt, "pseudo-labels" * first)
    with _together(processes):
        labels, rated = _judged(output / "shards", rows, processor.tokenizer, text.normalizer(language))
        errors = {row["id"]: row["wer_percent"] for row in rated}
        if first:
            files.write_jsonl(output / "labels.jsonl", rated)
        states = encode()  # of all clips: each is there by now
        kept = [name for name in states.ids if errors[name] <= threshold]
        if not kept:
            raise AsrlibError(
                f"Not one of {len(labels)} labels is within {threshold:g} % WER of its transcript: raise the threshold, "
                "or take a better teacher."
            )
    lessons = _Lessons(teacher, processor.tokenizer, prompt, states, labels)
    batches = itertools.islice(_batches(kept, batch_size, seed), steps)
    batches = _shown(batches, "student" * first, steps, "steps")
    losses = _train(student, lessons, batches, learning_rate, steps, processes)
    with _together(processes):
        if first:
            files.write_jsonl(output / "losses.jsonl", ({"step": step, **pair} for step, pair in enumerate(losses, 1)))
            with files.new_folder(output / "student") as folder, noise.no_bars():
                student.save_pretrained(folder)
                processor.save_pretrained(folder)
                shutil.copy(checkpoints.fetch(model) / "generation_config.json", folder)
    return {"clips": len(labels), "kept": len(kept), **losses[-1]} if first else None


@functools.cache
def _processes() -> PartialState:
    """Join the processes that torchrun or accelerate has started; without them this is the only one."""
    try:
        from accelerate import PartialState
    except ImportError:
        raise AsrlibError("Distillation needs accelerate: pip install 'asrlib[methods]' first.") from None
    patience = timedelta(days=7)  # in which the last process must have labelled its share, once the first has
    processes = PartialState(cpu=hardware.best_device() == "cpu", timeout=patience)
    atexit.register(processes.destroy_process_group)
    return processes


@contextlib.contextmanager
def _together(processes: PartialState) -> Iterator[None]:
    """Leave a block when all processes have; an error that a person can mend, in any of them, ends all.

    The first process raises it, for the command line to say it once. The others exit after that: torchrun stops all processes
    when one has failed.
    """
    from accelerate.utils import gather_object

    error = None
    try:
        yield
    except (AsrlibError, OSError) as raised:
        error = raised
    errors = [error for error in gather_object([error]) if error]
    if errors:
        atexit.register(processes.wait_for_everyone)
        if processes.is_main_process:
            raise errors[0]
        sys.exit(1)


def _shown(items: Iterable[Any], label: str, total: int, unit: str) -> Iterable[Any]:
    """Show progress through some items if there is a label for it."""
    return track(items, label, total, unit) if label else items


def _choose(corpus: str, root: Path | str | None, number: int | None, seed: int) -> Any:
    """Return clips of at most 30 s, in the corpus's order."""
    rows = corpora.load(*corpus.split("/"), root=root)
    seconds = list(rows["seconds"])
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    return rows.select(sorted([place for place in order if seconds[place] <= LONGEST][:number]))


def _models(model: str, layers: int, device: str) -> tuple[Any, Any, Any]:
    """Return the teacher in the precision that pays here, its processor, and a student in float32."""
    import torch
    from transformers import WhisperForConditionalGeneration

    path = checkpoints.fetch(model)
    if folders.exported(path):
        raise AsrlibError(f"{model} was exported to ONNX: distil the checkpoint that it came from.")
    teacher, processor = transcription.load(path, device=device)
    if layers > teacher.config.decoder_layers:
        raise AsrlibError(
            f"{model} has {teacher.config.decoder_layers} decoder layers: a student has as many or fewer."
        )
    with noise.no_bars():
        original = WhisperForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    return teacher, processor, initialise(original, layers).to(device)


def _prompt(teacher: Any, processor: Any, language: str) -> list[int]:
    """Return the tokens before each label (start, language, task, no timestamps), and let the tokenizer write them."""
    multilingual = getattr(teacher.generation_config, "is_multilingual", True)
    if not multilingual and language != "en":
        raise AsrlibError("An English-only model labels English: choose a multilingual one for other languages.")
    told = {"language": language, "task": "transcribe"} if multilingual else {}
    processor.tokenizer.set_prefix_tokens(**told, predict_timestamps=False)
    return processor.tokenizer.prefix_tokens


def _label(states: EncoderStates, teacher: Any, prompt: list[int], label: str) -> None:
    """Let a teacher transcribe shard by shard, greedily and without timestamps, what is not transcribed yet.

    Its tokens are kept, not its text: the published multilingual tokenizer splits words that begin with t anew (notebook 06).
    """
    for number, names in _shown(states.shards.items(), label, len(states.shards), "shards"):
        path = states.folder / f"{number:06d}.jsonl"
        if not path.is_file():
            sound, bias = states.batch(names)
            bias = bias if bias is None else bias.to(teacher.device, teacher.dtype)
            sound = sound.to(teacher.device, teacher.dtype)
            written = search.greedy(teacher, sound, [prompt] * len(names), bias)
            files.write_jsonl(
                path, ({"id": name, "tokens": list(row)} for name, row in zip(names, written, strict=True))
            )


def _judged(
    folder: Path, rows: Any, tokenizer: Any, normalizer: Callable[[str], str]
) -> tuple[dict[str, list[int]], list[dict[str, Any]]]:
    """Return the label of each clip, and its id, text and WER in percent against the transcript, in the corpus's order."""
    ids = list(rows["id"])
    labels = {row["id"]: row["tokens"] for path in folder.glob("*.jsonl") for row in files.read_jsonl(path)}
    if labels.keys() != set(ids):
        raise AsrlibError(
            f"{folder} does not hold the labels of these clips: let all processes see the same folder, and delete it if "
            "it is of other clips."
        )
    texts = [tokenizer.decode(labels[name], skip_special_tokens=True).strip() for name in ids]
    quality = scoring.score(rows["text"], texts, normalizer=normalizer)
    errors = (100 * quality.errors / np.maximum(quality.lengths, 1)).round(2).tolist()
    found = zip(ids, texts, errors, strict=True)
    return labels, [{"id": name, "text": words, "wer_percent": error} for name, words, error in found]


@dataclass
class _Lessons:
    """What there is to learn of some clips: the teacher's words, and its distribution at each of them."""

    teacher: Any
    tokenizer: Any
    prompt: list[int]
    states: EncoderStates
    labels: dict[str, list[int]]

    def tokens(self, name: str) -> torch.Tensor:
        """Return prompt, words and end of a label, as far as the decoder can read, (tokens,)."""
        import torch

        room = self.teacher.config.max_target_positions
        return torch.tensor([*self.prompt, *self.labels[name], self.tokenizer.eos_token_id][: room + 1])

    def predicted(self, names: Sequence[str]) -> int:
        """Return how many tokens the losses of some clips are sums over: all but the prompt."""
        return sum(len(self.tokens(name)) - len(self.prompt) for name in names)

    def losses(self, student: Any, names: Sequence[str]) -> torch.Tensor:
        """Return cross-entropy with the labels and divergence from the teacher, sums over tokens, (2,)."""
        import torch
        from torch.nn.functional import cross_entropy
        from torch.nn.utils.rnn import pad_sequence

        device, half = self.teacher.device, self.teacher.dtype
        tokens, (sound, bias) = [self.tokens(name) for name in names], self.states.batch(names)
        inputs = pad_sequence([row[:-1] for row in tokens], batch_first=True, padding_value=self.tokenizer.eos_token_id)
        wanted = pad_sequence([row[1:] for row in tokens], batch_first=True, padding_value=-100)
        wanted[:, : len(self.prompt) - 1] = -100
        sound, inputs, wanted = sound.to(device), inputs.to(device), wanted.to(device)
        spoken = wanted >= 0
        with attending(bias, self.teacher, student):
            with torch.no_grad():
                meant = self.teacher.proj_out(_decode(self.teacher, sound.to(half), inputs)[spoken]).float()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half == torch.bfloat16):
                said = student.proj_out(_decode(student, sound.float(), inputs)[spoken]).float()
        return torch.stack([cross_entropy(said, wanted[spoken], reduction="sum"), len(said) * divergence(said, meant)])


def _decode(model: Any, sound: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return a decoder's last states, (clips, tokens, width)."""
    from transformers.modeling_outputs import BaseModelOutput

    result = model.model(encoder_outputs=BaseModelOutput(sound), decoder_input_ids=inputs, use_cache=False)
    return result.last_hidden_state


def _batches(names: Sequence[str], size: int, seed: int) -> Iterator[Sequence[str]]:
    """Yield batches of clips of like length without end, in a new order each epoch."""
    generator = np.random.default_rng(seed)
    groups = [names[first : first + size] for first in range(0, len(names), size)]
    while True:
        for number in generator.permutation(len(groups)):
            yield groups[number]


def _train(
    student: Any,
    lessons: _Lessons,
    batches: Iterable[Sequence[str]],
    learning_rate: float,
    steps: int,
    processes: PartialState,
) -> list[dict[str, float]]:
    """Train a student's decoder and return both losses of each step, means over the tokens of the batch.

    Each process takes its part of a batch and divides by the tokens of the whole one; gradients are added up, not averaged
    as by DistributedDataParallel. A process without a clip, in a small last batch, adds nothing.
    """
    import torch
    from accelerate.utils import reduce
    from transformers import get_linear_schedule_with_warmup

    student.requires_grad_(False)
    student.model.decoder.requires_grad_(True)
    trained, log = [weights for weights in student.parameters() if weights.requires_grad], []
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(steps / 10), steps)
    weights = torch.tensor([WEIGHTS["labels"], WEIGHTS["kl"]], device=student.device)
    for names in batches:
        losses = torch.zeros(2, device=student.device)
        if mine := names[processes.process_index :: processes.num_processes]:
            losses = lessons.losses(student, mine) / lessons.predicted(names)
            (losses @ weights).backward()
        gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in trained]
        losses, *gradients = reduce([losses.detach(), *gradients], "sum")
        for part, gradient in zip(trained, gradients, strict=True):
            part.grad = gradient
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        log.append(dict(zip(("cross_entropy", "kl"), losses.tolist(), strict=True)))
    return log
