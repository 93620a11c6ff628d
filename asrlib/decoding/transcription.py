"""Batched greedy decoding of any number of clips, in order, at constant memory.

Whisper always encodes 30 seconds. Three things make that fast here without changing the words:

- clips of like length share a batch, features are prepared in a thread while the model decodes, and the precision is the one
  this machine is fast in;
- the loop below calls the model's own layers and keeps the caches in place, where ``generate`` copies and re-checks;
- ``window="merged"``, on request: the silence that pads a clip to 30 seconds is represented by few positions, each weighted
  by the number it stands for (proportional attention, Bolya et al. 2022, arXiv:2210.09461, section 3, applied to padding).
  That is an approximation: compare it with ``window="full"`` on your own speech, as notebook 01 does.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from asrlib import AsrlibError, audio, hardware
from asrlib.decoding.kernels import attention, laid_out, linear
from asrlib.io import noise
from asrlib.io.progress import Meter
from asrlib.models import checkpoints, graphs
from asrlib.text import language_code

if TYPE_CHECKING:
    import torch

__all__ = [
    "Clip",
    "Engine",
    "Hypothesis",
    "encode",
    "greedy",
    "hear",
    "load",
    "log_mel",
    "long_log_mel",
    "merge_padding",
    "rtfx",
    "transcribe",
]

TAIL = (
    8_000  # samples of silence behind a clip that are transformed: more than the 400 that a frame can mix with speech
)
PIECE = 3000  # frames of a long recording that are transformed together
HOP = 160  # samples from frame to frame of the features
SAMPLES_PER_POSITION = 320  # 10 ms hop, convolution of stride 2: 50 encoder positions a second
WHOLE_CONTEXT = 1500  # positions of a published model: 30 seconds
MARGIN = 100  # positions of padding kept one by one after the clip: two seconds
MERGE = 8  # further positions of padding that one position stands for
STEP = 64  # positions: a batch is as wide as a multiple of it, for kernels of each width are made anew and kept
WINDOW_CLIPS = 256  # clips sorted by length together, and at most so many ...
WINDOW_AUDIO = 1200.0  # ... seconds of audio, so that memory does not grow with the corpus
T = TypeVar("T")


@dataclass(frozen=True)
class Hypothesis:
    """What a model heard in one clip.

    Attributes:
        id: the clip's.
        text: transcript as the model wrote it, not normalised.
        language: code the model was told or detected; ``"en"`` for an English-only model.
        seconds_audio: length of the clip.
        seconds_compute: this clip's share of the wall time of features, encoding and decoding.
        segments: (start seconds, end seconds, text); empty for a short clip decoded without timestamps.
    """

    id: str
    text: str
    language: str
    seconds_audio: float
    seconds_compute: float
    segments: tuple[tuple[float, float, str], ...] = ()


@dataclass
class Clip:
    """One clip on its way through an engine: its place in the input, its name, its samples at 16 kHz."""

    index: int
    id: str
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        """Return its length."""
        return len(self.samples) / audio.SAMPLING_RATE


def load(model: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Load a Whisper checkpoint and its processor.

    Args:
        model: Hub id such as ``"openai/whisper-base"``, or a local directory: of Transformers, or exported to ONNX by Optimum.
        device: default `hardware.best_device()`; an exported model runs on the CPU.
        dtype: default `hardware.best_dtype()` of the device; an exported model keeps the precision of its files.

    Returns:
        (model in eval mode, processor).

    Raises:
        AsrlibError: the checkpoint cannot be had, or is not a Whisper model.
    """
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    path = checkpoints.fetch(str(model))
    device = device or hardware.best_device()
    try:
        processor = WhisperProcessor.from_pretrained(path)
        if checkpoints.exported(path):
            return graphs.load(path), processor
        with noise.no_bars():
            loaded, told = WhisperForConditionalGeneration.from_pretrained(
                path, dtype=dtype or hardware.best_dtype(device), output_loading_info=True
            )
        if told["missing_keys"]:  # transformers would fill them with random numbers
            raise ValueError(f"it lacks {min(told['missing_keys'])}")
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # RuntimeError: a tensor of another shape
        raise AsrlibError(
            f"{model} is not a complete Whisper checkpoint ({str(error).splitlines()[0]}): fetch or save it again."
        ) from None
    return loaded.to(device).eval(), processor


def rtfx(hypotheses: Iterable[Hypothesis]) -> float:
    """Return seconds of audio per second of computing (higher is faster) over features, encoding and decoding."""
    pairs = [(hypothesis.seconds_audio, hypothesis.seconds_compute) for hypothesis in hypotheses]
    return sum(length for length, _ in pairs) / sum(spent for _, spent in pairs)


def transcribe(
    model: Any,
    processor: Any,
    clips: Iterable[Any],
    *,
    language: str | None = None,
    task: str = "transcribe",
    batch_size: int = 16,
    window: str = "full",
    timestamps: bool = False,
    label: str = "",
) -> Iterator[Hypothesis]:
    """Transcribe clips greedily and yield hypotheses in the clips' order.

    Clips are read ahead in windows of at most `WINDOW_CLIPS`, so an endless iterator is welcome and memory stays flat. Audio
    of more than 30 s is transcribed whole, window after window, as in the Whisper paper, section 3.8, without its
    temperature fallback.

    Args:
        model: a ``WhisperForConditionalGeneration``, or a PEFT model around one, in eval mode; on any device, in any
            precision. Or an `asrlib.models.graphs.ExportedWhisper`.
        processor: its ``WhisperProcessor``.
        clips: paths, encoded bytes, arrays of shape (samples,) at 16 kHz, or mappings with ``audio`` and perhaps ``id``, such
            as the rows of a corpus.
        language: code or name; None lets a multilingual model detect it, clip by clip. Not for English-only models.
        task: ``"transcribe"``, or ``"translate"`` to English.
        batch_size: clips decoded together.
        window: ``"full"`` encodes all 1,500 positions; ``"merged"`` merges the padding (module docstring).
        timestamps: find segment times in short clips too; long ones always have them.
        label: shown in the progress line; none is shown without it.

    Raises:
        AsrlibError: audio that `audio.load` refuses, an unknown language, task or window; the merged window of an exported
            model; audio longer than the context of a model whose context was cut (`asrlib.training.context.cut_context`), which was
            never trained to go from window to window.
    """
    if window not in ("full", "merged"):
        raise AsrlibError(f"There is no window {window!r}: choose 'full' or 'merged'.")
    if task not in ("transcribe", "translate"):
        raise AsrlibError(f"Whisper has no task {task!r}: choose 'transcribe' or 'translate'.")
    engine = Engine(model, processor, language and language_code(language), task, window, timestamps)
    return hear(engine, clips, batch_size=batch_size, label=label)


def hear(engine: Any, clips: Iterable[Any], *, batch_size: int = 16, label: str = "") -> Iterator[Hypothesis]:
    """Let any engine transcribe clips; yield hypotheses in the clips' order, at constant memory.

    Args:
        engine: what has the methods ``fits``, ``width``, ``features`` and ``decode`` of `Engine`, and its attribute
            ``timestamps``; such as the runtimes of `asrlib.engines`.
        clips, batch_size, label: as in `transcribe`. Clips of like length share a batch; those that are longer than the
            engine's window, or whose times are wanted, are not mixed with others.
    """
    total = len(clips) if hasattr(clips, "__len__") else 0
    waiting: dict[int, Hypothesis] = {}
    following = 0
    with (
        contextlib.closing(_ahead(_batches(clips, engine, batch_size))) as batches,
        Meter(label, total, "clips") if label else contextlib.nullcontext() as meter,
    ):
        started = time.perf_counter()
        for group, features in batches:
            results = engine.decode(group, features)
            share = (time.perf_counter() - started) / len(group)
            for clip, (words, spoken, segments) in zip(group, results, strict=True):
                waiting[clip.index] = Hypothesis(clip.id, words, spoken, clip.seconds, share, segments)
            if meter:
                meter.step(len(group))
            while following in waiting:
                yield waiting.pop(following)
                following += 1
            started = time.perf_counter()  # what the caller does with a hypothesis is not ours to count


def _read(item: Any, index: int) -> Clip:
    row = item if isinstance(item, Mapping) and "audio" in item else {"audio": item}
    name = row.get("id") or (str(item) if isinstance(item, str | Path) else f"clip-{index}")
    return Clip(index, str(name), audio.load(row["audio"]))


def _batches(clips: Iterable[Any], engine: Engine, batch_size: int) -> Iterator[tuple[list[Clip], Any]]:
    """Yield (clips of like length, their features); no batch has both clips of one window and others."""
    numbered = (_read(item, index) for index, item in enumerate(clips))
    while True:
        ahead, seconds = [], 0.0
        for clip in itertools.islice(numbered, WINDOW_CLIPS):
            ahead.append(clip)
            seconds += clip.seconds
            if seconds >= WINDOW_AUDIO:
                break
        if not ahead:
            return
        ahead.sort(key=lambda clip: clip.seconds)
        short = [clip for clip in ahead if engine.fits(clip) and not engine.timestamps]
        for clips_of_a_kind in (short, ahead[len(short) :]):
            for group in _alike(clips_of_a_kind, engine, batch_size):
                yield group, engine.features(group)


def _alike(clips: Sequence[Clip], engine: Engine, batch_size: int) -> Iterator[list[Clip]]:
    """Cut clips, shortest first, into batches; what fills them up to their longest clip may cost no more than one window."""
    group: list[Clip] = []
    used = 0
    for clip in clips:
        width = engine.width(clip)
        if len(group) == batch_size or len(group) * width - used > WHOLE_CONTEXT:
            yield group
            group, used = [], 0
        group.append(clip)
        used += width
    if group:
        yield group


def _ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Run an iterator in a thread, ``depth`` items ahead of its consumer; errors come out where they belong."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(entry: tuple[bool, Any]) -> None:
        while not stop.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((True, item))
                if stop.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, name="asrlib-features", daemon=True)
    thread.start()
    try:
        while True:
            good, value = ready.get()
            if good:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stop.set()
        thread.join()


class Engine:
    """One model, one language setting: features, encoding, decoding of a batch."""

    def __init__(
        self, model: Any, processor: Any, language: str | None, task: str, window: str, timestamps: bool
    ) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.processor, self.task, self.window, self.timestamps = processor, task, window, timestamps
        self.generation = self.model.generation_config
        self.multilingual = bool(getattr(self.generation, "is_multilingual", True))
        self.positions = self.model.config.max_source_positions
        self.language = language
        self.blocks: dict[Any, torch.Tensor] = {}  # nobody changes the weights while this engine is used
        if isinstance(self.model, graphs.ExportedWhisper) and window == "merged":
            raise AsrlibError("An exported model always encodes 30 seconds: choose the window 'full' for it.")
        if not self.multilingual and (language not in (None, "en") or task != "transcribe"):
            raise AsrlibError(
                "An English-only model transcribes English: choose a multilingual one for other languages or translation."
            )

    def fits(self, clip: Clip) -> bool:
        """Say whether a clip is heard in one window; refuse it if it is not and the model cannot go on to a second one."""
        context = self.positions * SAMPLES_PER_POSITION
        if len(clip.samples) > context and self.positions < WHOLE_CONTEXT:
            raise AsrlibError(
                f"{clip.id} lasts {clip.seconds:.1f} s, but this model's encoder context was cut to "
                f"{context / audio.SAMPLING_RATE:g} s: give it shorter clips, or take a model with the whole context of 30 s."
            )
        return len(clip.samples) <= context

    def width(self, clip: Clip) -> int:
        """Return the encoder positions that a clip takes."""
        if self.window == "full":
            return self.positions
        speech = _own_positions(len(clip.samples), self.positions)
        return speech + math.ceil((self.positions - speech) / MERGE)

    def features(self, clips: Sequence[Clip]) -> torch.Tensor | list[torch.Tensor]:
        """Return log-mel features, (clips, mel bins, frames of the context: 3000); of clips that `decode` goes through window
        after window a list of (1, mel bins, frames), with at least a window of frames.
        """
        if not self._windowed(clips):
            return log_mel(self.processor, [clip.samples for clip in clips], self.positions)
        return [
            log_mel(self.processor, [clip.samples], self.positions)
            if self.fits(clip)
            else long_log_mel(self.processor, clip.samples)
            for clip in clips
        ]

    def _windowed(self, clips: Sequence[Clip]) -> bool:
        """Say whether clips, shortest first, are heard with times and, as far as they are longer, in several windows."""
        return self.timestamps or not self.fits(clips[-1])

    def decode(
        self, clips: Sequence[Clip], features: torch.Tensor | list[torch.Tensor]
    ) -> list[tuple[str, str, tuple]]:
        """Return (text, language, segments) of each clip."""
        with laid_out(self.blocks):
            return self._decode(clips, features)

    def _decode(
        self, clips: Sequence[Clip], features: torch.Tensor | list[torch.Tensor]
    ) -> list[tuple[str, str, tuple]]:
        if self._windowed(clips):
            features = [one.to(self.model.device, self.model.dtype) for one in features]
            return self._decode_long(clips, features)
        features = features.to(self.model.device, self.model.dtype)
        lengths = [len(clip.samples) for clip in clips] if self.window == "merged" else None
        states, bias = self.encode(features, lengths)
        languages = self._languages(states, bias)
        prompts = [self._prompt(spoken) for spoken in languages]
        tokens = greedy(self.model, states, prompts, bias)
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [(text.strip(), spoken, ()) for text, spoken in zip(texts, languages, strict=True)]

    def encode(self, features: torch.Tensor, lengths: Sequence[int] | None = None) -> tuple[torch.Tensor, Any]:
        """Return the encoder's states and the bias over them, as the function `encode` does."""
        return encode(self.model, features, lengths)

    def _prompt(self, language: str) -> list[int]:
        generation = self.generation
        start = [generation.decoder_start_token_id]
        if self.multilingual:
            start += [generation.lang_to_id[f"<|{language}|>"], generation.task_to_id[self.task]]
        return [*start, generation.no_timestamps_token_id]

    def _languages(self, states: torch.Tensor, bias: torch.Tensor | None) -> list[str]:
        if not self.multilingual or self.language:
            return [self.language or "en"] * len(states)
        codes = list(self.generation.lang_to_id.values())
        start = [[self.generation.decoder_start_token_id]] * len(states)
        choice = greedy(self.model, states, start, bias, allowed=codes, max_new_tokens=1)
        names = {token: name.strip("<|>") for name, token in self.generation.lang_to_id.items()}
        return [names[tokens[0]] for tokens in choice]

    def _decode_long(self, clips: Sequence[Clip], features: Sequence[torch.Tensor]) -> list[tuple[str, str, tuple]]:
        """Decode clips window after window, side by side, as the library's ``generate`` does; a window begins where the whole
        segments of the last one end.
        """
        import torch
        from transformers.generation import WhisperTimeStampLogitsProcessor

        frames, window = [max(1, len(clip.samples) // HOP) for clip in clips], 2 * self.positions
        languages: list[str] = []
        segments: list[list[tuple[float, float, list[int]]]] = [[] for _ in clips]
        at, going = [0] * len(clips), list(range(len(clips)))
        while going:
            parts = [features[row][:, :, at[row] : at[row] + window] for row in going]
            parts = [torch.nn.functional.pad(part, (0, window - part.shape[2])) for part in parts]
            states, _ = self.encode(torch.cat(parts))
            languages = languages or self._languages(states, None)
            prompts = [self._prompt(languages[row])[:-1] for row in going]  # with times
            rules = WhisperTimeStampLogitsProcessor(self.generation, begin_index=len(prompts[0]))
            rules.eos_token_id = min(_ends(self.generation))  # the Trainer makes a list of it
            for row, tokens in zip(going, greedy(self.model, states, prompts, rules=rules), strict=True):
                found, gone = _cut(tokens, rules.timestamp_begin, min(window, frames[row] - at[row]))
                segments[row] += [((at[row] + start) / 100, (at[row] + end) / 100, part) for start, end, part in found]
                at[row] += gone
            going = [row for row in going if at[row] < frames[row]]
        return [self._written(*parts) for parts in zip(clips, languages, segments, strict=True)]

    def _written(
        self, clip: Clip, language: str, segments: Sequence[tuple[float, float, list[int]]]
    ) -> tuple[str, str, tuple]:
        """Return the text of tokens, all together and in segments, without those that begin in the padding of the clip."""
        decode = functools.partial(self.processor.tokenizer.decode, skip_special_tokens=True)
        kept = [segments[0], *(segment for segment in segments[1:] if segment[0] < clip.seconds)]
        # Tokens bring their own spaces, where a language has them.
        whole = decode([token for *_, tokens in kept for token in tokens]).strip()
        return whole, language, tuple((start, end, decode(tokens).strip()) for start, end, tokens in kept)


def _ends(generation: Any) -> set[int]:
    """Return the tokens that end a transcript; a published model has one, the Trainer makes a list of it."""
    end = generation.eos_token_id
    return set(end) if isinstance(end, list) else {end}


def _cut(tokens: Sequence[int], begin: int, frames: int) -> tuple[list[tuple[int, int, list[int]]], int]:
    """Cut what was written of a window into segments, at each pair of times: the end of one and the start of the next.

    Args:
        tokens: of one window, with times.
        begin: token of the time 0; each further one is two frames later.
        frames: of the window that are not padding.

    Returns:
        ((start, end, tokens) of each segment, in frames of the window; how many frames of the window are done with). A last
        segment without an end is left to the next window, which begins where it does. Without any pair, all is one segment.
    """
    timed = [token >= begin for token in tokens]
    pairs = [place for place in range(1, len(tokens)) if timed[place - 1] and timed[place]]
    ended = timed[-2:] == [False, True]  # nothing was heard after the last time
    if not pairs:
        last = next((2 * (token - begin) for token in reversed(tokens) if token > begin), frames)
        return [(0, last, list(tokens))], frames
    places = [0, *pairs, *([len(tokens)] if ended else [])]
    segments = [
        (2 * (tokens[first] - begin), 2 * (tokens[last - 1] - begin), list(tokens[first:last]))
        for first, last in itertools.pairwise(places)
    ]
    return segments, frames if ended else segments[-1][1]


def log_mel(processor: Any, samples: Sequence[np.ndarray], positions: int = WHOLE_CONTEXT) -> torch.Tensor:
    """Return Whisper's features of clips, those of its feature extractor.

    What follows a clip in its window is silence, whose log-mel is known: the floor that the extractor sets 8 decades of energy
    below a clip's loudest bin, 2 after its scaling. So only the clips and half a second are transformed.

    Args:
        processor: a ``WhisperProcessor``.
        samples: clips at 16 kHz.
        positions: encoder positions of the window, half of its frames.

    Returns:
        (clips, mel bins, frames).
    """
    options = {"sampling_rate": audio.SAMPLING_RATE, "return_tensors": "pt", "padding": "longest", "truncation": False}
    whole = positions * SAMPLES_PER_POSITION
    heard = processor.feature_extractor([np.pad(clip, (0, TAIL))[:whole] for clip in samples], **options).input_features
    floor = heard.amax(dim=(1, 2), keepdim=True) - 2
    features = floor.repeat(1, heard.shape[1], 2 * positions)
    features[:, :, : heard.shape[2]] = heard
    return features


def long_log_mel(processor: Any, samples: np.ndarray) -> torch.Tensor:
    """Return Whisper's features of one recording of any length, those of its feature extractor, at the memory of the result.

    The extractor transforms all frames at once, which takes some ten times the memory of the features. Frames do not depend
    on each other, so `PIECE` of them are enough at a time; only the floor below the loudest bin must wait for the last.

    Args:
        processor: a ``WhisperProcessor``.
        samples: at 16 kHz, at least 201 of them.

    Returns:
        (1, mel bins, frames), a frame for each whole 10 ms.
    """
    import torch

    extractor = processor.feature_extractor
    size, hop = extractor.n_fft, extractor.hop_length
    window, filters = torch.hann_window(size), torch.from_numpy(extractor.mel_filters).float().T
    features = torch.empty(1, len(filters), len(samples) // hop)
    for first in range(0, features.shape[2], PIECE):
        last = min(first + PIECE, features.shape[2])
        begin, end = first * hop - size // 2, (last - 1) * hop + size // 2
        beyond = (max(0, -begin), max(0, end - len(samples)))  # at its ends the sound is mirrored
        piece = torch.from_numpy(np.pad(samples[max(0, begin) : end], beyond, mode="reflect"))
        energy = torch.stft(piece, size, hop, window=window, center=False, return_complex=True).abs() ** 2
        features[0, :, first:last] = (filters @ energy).clamp_min(1e-10).log10()
    return features.clamp_min_(features.max() - 8).add_(4).div_(4)


def _own_positions(samples: int, positions: int) -> int:
    """Return how many positions of a clip stand for themselves."""
    return min(positions, math.ceil(samples / SAMPLES_PER_POSITION) + MARGIN)


def merge_padding(lengths: Sequence[int], positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which encoder positions represent each clip, and how many each stands for; both (clips, kept).

    Speech and `MARGIN` positions after it stand for themselves, each further group of `MERGE` for one. Rows are filled up
    with weight 0. A clip's choice depends on its own length only, so its words do not depend on its batch.
    """
    import torch

    rows = []
    for length in lengths:
        speech = _own_positions(length, positions)
        first = torch.arange(speech, positions, MERGE)
        last = torch.clamp(first + MERGE, max=positions)
        kept = torch.cat([torch.arange(speech), (first + last) // 2])
        rows.append((kept, torch.cat([torch.ones(speech), (last - first).float()])))
    width = max(len(kept) for kept, _ in rows)
    pad = torch.nn.functional.pad
    return (
        torch.stack([pad(kept, (0, width - len(kept))) for kept, _ in rows]),
        torch.stack([pad(weight, (0, width - len(weight))) for _, weight in rows]),
    )


def _heads(x: torch.Tensor, attend: Any) -> torch.Tensor:
    """View (batch, time, width) as (batch, heads, time, size of a head); each layer of a pruned model has heads of its own."""
    return x.unflatten(2, (attend.num_heads, attend.head_dim)).transpose(1, 2)


def _pair(attend: Any, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values of an attention module for states (batch, time, width), each split into heads."""
    return _heads(linear(attend.k_proj, states), attend), _heads(linear(attend.v_proj, states), attend)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attend with few queries to many keys, all (batch, heads, time, size of a head).

    Two plain matrix products: for a single query they are five times faster on a CPU than the fused kernel, which is made
    for many.
    """
    import torch

    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    precision = torch.promote_types(query.dtype, torch.float32)
    weights = (scores if bias is None else scores + bias).softmax(dim=-1, dtype=precision).to(query.dtype)
    return (weights @ value).transpose(1, 2).flatten(2)


@laid_out()
def encode(model: Any, features: torch.Tensor, lengths: Sequence[int] | None = None) -> tuple[torch.Tensor, Any]:
    """Run the encoder.

    Args:
        model: a ``WhisperForConditionalGeneration``, or an `asrlib.models.graphs.ExportedWhisper`.
        features: log-mel, (clips, mel bins, twice the model's positions: 3000), in the model's precision and on its device.
        lengths: samples of each clip, to merge the padding after it; None keeps all positions, as an exported model must.

    Returns:
        (states, bias): states (clips, positions, width); bias (clips, 1, 1, positions) is added to every attention logit over
        these positions, the logarithm of how many positions each stands for, minus infinity where a clip is only filled up;
        or None.
    """
    import torch
    from torch.nn.functional import gelu

    if isinstance(model, graphs.ExportedWhisper):
        return model.encode(features), None
    encoder = model.model.encoder
    with torch.inference_mode():
        states = gelu(encoder.conv2(gelu(encoder.conv1(features)))).transpose(1, 2) + encoder.embed_positions.weight
        bias = None
        if lengths is not None:
            kept, weights = merge_padding(lengths, states.shape[1])
            filling = (0, -kept.shape[1] % STEP)
            kept, weights = (torch.nn.functional.pad(x, filling).to(states.device) for x in (kept, weights))
            states = states.gather(1, kept[:, :, None].expand(-1, -1, states.shape[2]))
            bias = weights.log().to(states.dtype)[:, None, None, :]
        states = states.contiguous()
        for layer in encoder.layers:
            normed, attend = layer.self_attn_layer_norm(states), layer.self_attn
            parts = (attend.q_proj, attend.k_proj, attend.v_proj)
            query, key, value = (_heads(linear(part, normed), attend) for part in parts)
            heard = attention(query, key, value, bias)
            states = states + linear(attend.out_proj, heard.transpose(1, 2).flatten(2))
            states = states + linear(layer.fc2, linear(layer.fc1, layer.final_layer_norm(states), "gelu"))
        return encoder.layer_norm(states), bias


class _Cache:
    """Keys and values of a decoder for a batch, (clips, heads, positions, size of a head) in each layer.

    Those of self-attention grow in place; those of cross-attention are computed once.
    """

    def __init__(self, model: Any, states: torch.Tensor, room: int) -> None:
        layers, clips = model.model.decoder.layers, len(states)
        self.cross = [tuple(x.contiguous() for x in _pair(layer.encoder_attn, states)) for layer in layers]
        attends = [layer.self_attn for layer in layers]
        shapes = [(clips, attend.num_heads, room, attend.head_dim) for attend in attends]
        self.own = [(states.new_empty(shape), states.new_empty(shape)) for shape in shapes]

    def append(self, index: int, at: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Store new keys and values of a layer at a position; return all up to them."""
        import torch

        end = at + key.shape[2]
        if end > self.own[index][0].shape[2]:  # double the room: most clips never need it
            self.own[index] = tuple(torch.cat([x, torch.empty_like(x)], dim=2) for x in self.own[index])
        for store, new in zip(self.own[index], (key, value), strict=True):
            store[:, :, at:end] = new
        return tuple(store[:, :, :end] for store in self.own[index])

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the clips that are finished."""
        self.cross = [tuple(x[rows] for x in pair) for pair in self.cross]
        self.own = [tuple(x[rows] for x in pair) for pair in self.own]


class _Decoder:
    """A decoder of PyTorch's layers that has read nothing yet, for a batch."""

    def __init__(self, model: Any, states: torch.Tensor, bias: torch.Tensor | None, room: int) -> None:
        self.model, self.bias, self.at = model, bias, 0
        self.cache = _Cache(model, states, room)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read tokens (clips, new), the prompt first, then one at a time; return the last logits, (clips, vocabulary)."""
        decoder, cache, new = self.model.model.decoder, self.cache, tokens.shape[1]
        states = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[self.at : self.at + new]
        # Only the prompt brings several tokens at once; none may see what follows it.
        causal = states.new_full((new, new), -float("inf")).triu(1) if new > 1 else None
        for index, layer in enumerate(decoder.layers):
            normed, attend = layer.self_attn_layer_norm(states), layer.self_attn
            key, value = cache.append(index, self.at, *_pair(attend, normed))
            query = _heads(linear(attend.q_proj, normed), attend)
            states = states + linear(attend.out_proj, _attend(query, key, value, causal))
            normed, attend = layer.encoder_attn_layer_norm(states), layer.encoder_attn
            query = _heads(linear(attend.q_proj, normed), attend)
            states = states + linear(attend.out_proj, _attend(query, *cache.cross[index], self.bias))
            states = states + linear(layer.fc2, linear(layer.fc1, layer.final_layer_norm(states), "gelu"))
        self.at += new
        return linear(self.model.proj_out, decoder.layer_norm(states[:, -1]))

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the clips that are finished."""
        self.cache.keep(rows)
        self.bias = self.bias if self.bias is None else self.bias[rows]


def _decoder(model: Any, states: torch.Tensor, bias: torch.Tensor | None, room: int) -> _Decoder | graphs.GraphDecoder:
    """Return what reads tokens and gives logits: ``step`` and ``keep`` of layers or of a graph; `greedy` cannot tell which."""
    if isinstance(model, graphs.ExportedWhisper):
        return model.decoder(states)
    return _Decoder(model, states, bias, room)


@laid_out()
def greedy(
    model: Any,
    states: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    bias: torch.Tensor | None = None,
    *,
    allowed: Sequence[int] | None = None,
    rules: Any = None,
    max_new_tokens: int | None = None,
) -> list[list[int]]:
    """Decode greedily; the tokens are those of ``model.generate`` without beams, sampling and timestamps.

    Clips that have ended leave the batch once they are half of it.

    Args:
        model: a ``WhisperForConditionalGeneration``, or an `asrlib.models.graphs.ExportedWhisper`.
        states: encoder states, (clips, positions, width).
        prompts: start tokens of each clip, all of one length.
        bias: as `encode` returns it.
        allowed: only these tokens may be chosen (language detection); default: all but the suppressed ones.
        rules: a ``LogitsProcessor``, such as the library's for times.
        max_new_tokens: default: the ``max_length`` of the generation configuration, which Whisper's ``generate`` counts without
            the prompt since transformers 5; at most what the decoder has positions for, 448 with the prompt as published.

    Returns:
        New tokens of each clip, without the prompt and the end token.
    """
    import torch

    generation = model.generation_config
    room = min(model.config.max_target_positions - len(prompts[0]), generation.max_length or math.inf)
    ends = _ends(generation)
    with torch.inference_mode():
        barred = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        barred[list(generation.suppress_tokens or []) if allowed is None else slice(None)] = True
        barred[list(allowed or [])] = False
        barred = barred.to(states.device)
        at_first = torch.tensor(generation.begin_suppress_tokens or [], dtype=torch.long, device=states.device)
        decoder = _decoder(model, states, bias, room=len(prompts[0]) + 60)
        found: list[list[int]] = [[] for _ in prompts]
        rows, ended = list(range(len(prompts))), set()
        tokens = torch.tensor(prompts, device=states.device)
        written = tokens
        for step in range(min(room, max_new_tokens or room)):
            logits = decoder.step(tokens).masked_fill(barred, -torch.inf)
            if step == 0:
                logits[:, at_first] = -torch.inf
            if rules is not None:
                logits = rules(written, logits)
            chosen = logits.argmax(dim=-1)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if token in ends:
                    ended.add(row)
                elif row not in ended:
                    found[row].append(token)
            if len(ended) == len(found):
                break
            alive = [place for place, row in enumerate(rows) if row not in ended]
            if len(alive) <= len(rows) // 2:
                places = torch.tensor(alive, device=states.device)
                decoder.keep(places)
                rows, chosen, written = [rows[place] for place in alive], chosen[places], written[places]
            tokens = chosen[:, None]
            written = torch.cat([written, tokens], dim=1)
    return found
