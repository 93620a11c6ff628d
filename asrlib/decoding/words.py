"""When each word was said: heads of the cross-attention follow the speech, dynamic time warping finds the boundaries.

As in openai-whisper (``whisper/timing.py``). The path has no place for silence, so that a pause falls to the word before it:
`leave_out` takes it out again. Words are (start seconds, end seconds, text); `asrlib.decoding.subtitles` makes lines of them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from asrlib import AsrlibError, alignment, audio, whisper
from asrlib.decoding import network
from asrlib.decoding.subtitles import Span
from asrlib.text import language_code, spaced
from asrlib.whisper import SAMPLES_PER_POSITION, WINDOW_SECONDS

if TYPE_CHECKING:
    from asrlib.decoding.batching import Hypothesis

__all__ = ["align", "attention", "boundaries", "edge_errors", "leave_out", "pauses", "spell", "times"]

FRAME = 160  # samples, 10 ms: the step in which speech and silence are told apart
QUIET = 40.0  # decibels below the loudest frame, or ...
BACKGROUND = 4.0  # ... above the quietest tenth of the frames, whichever is higher: what is softer is silence
PAUSE = 0.1  # seconds of silence that are more than a stop consonant
REACH = 0.4  # seconds from a boundary in which a pause is its own
MAX_TOKENS = 440  # of a text; a decoder has 448 positions, some for the prompt
SLACK = 1.0  # seconds that a predicted time of a segment may be off: small models round to whole seconds


def attention(
    model: Any,
    processor: Any,
    samples: np.ndarray,
    text: str,
    *,
    language: str | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
) -> tuple[list[int], torch.Tensor]:
    """Let the decoder read a text that is known, and return where in the sound it looks.

    Args:
        model: a ``WhisperForConditionalGeneration``, or a PEFT model around one, in eval mode.
        processor: its ``WhisperProcessor``.
        samples: at most 30 s at 16 kHz, shape (samples,).
        text: what is said in it, for example a transcript.
        language: code or name; needed by a multilingual model.
        heads: (layer, head) pairs; default: the alignment heads of the generation config, else all of the upper half of the
            layers, as in openai-whisper.

    Returns:
        (tokens of the text, weights): the weights have shape (heads, tokens + 1, positions of 20 ms). Row 0 belongs to the last
        token of the prompt, which predicts the first of the text; each row so shows where the *next* token is heard.

    Raises:
        AsrlibError: an exported model, sound of more than 30 s, a text without words or too long for one window, or no language.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(model, "proj_out"):
        raise AsrlibError("An exported model does not show its attention: take word times from the checkpoint itself.")
    if len(samples) > WINDOW_SECONDS * audio.SAMPLING_RATE:
        raise AsrlibError(
            f"A text is aligned with at most {WINDOW_SECONDS:g} s of sound: give `times` the whole transcript."
        )
    if whisper.is_multilingual(model.generation_config) and not language:
        raise AsrlibError("A multilingual model reads the words of one language: name it.")
    start = whisper.prompt(model.generation_config, language and language_code(language))
    tokens = _encode(processor, text, language)
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise AsrlibError(f"{len(tokens)} tokens of text cannot be aligned with one window: give 1 to {MAX_TOKENS}.")
    features = processor(samples, sampling_rate=audio.SAMPLING_RATE, return_tensors="pt").input_features
    with torch.inference_mode():
        states, _ = network.encode(model, features.to(model.device, model.dtype))
        read = torch.tensor([start + tokens], device=model.device)
        weights = _cross_attention(model, read, states, heads or _alignment_heads(model))
    positions = max(1, len(samples) // SAMPLES_PER_POSITION)
    return tokens, weights[:, len(start) - 1 :, :positions]


def _encode(processor: Any, text: str, language: str | None) -> list[int]:
    """Return the tokens of a text as the decoder would have written it."""
    return whisper.spell(processor.tokenizer, text, language) if text.strip() else []


def _alignment_heads(model: Any) -> list[tuple[int, int]]:
    counts = [layer.encoder_attn.num_heads for layer in model.model.decoder.layers]
    upper = [(layer, head) for layer in range(len(counts) // 2, len(counts)) for head in range(counts[layer])]
    if set(counts) != {model.config.decoder_attention_heads}:  # pruned: the published numbers mean other heads now
        return upper
    known = getattr(model.generation_config, "alignment_heads", None) or []
    return [(layer, head) for layer, head in known if layer < len(counts)] or upper  # a distilled decoder is shorter


def _cross_attention(
    model: Any, tokens: torch.Tensor, states: torch.Tensor, heads: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Return the weights of some heads, (heads, tokens, positions), of a model with any implementation of attention.

    Fused attention keeps no weights; queries and keys are caught on their way instead, and multiplied again.
    """
    caught: dict[tuple[int, str], torch.Tensor] = {}

    def catch(layer: int, part: str, module: torch.nn.Module, given: Any, out: torch.Tensor) -> None:
        caught[layer, part] = out[0].float().unflatten(1, (-1, attends[layer].head_dim))

    attends = [layer.encoder_attn for layer in model.model.decoder.layers]
    with contextlib.ExitStack() as hooks:
        for layer, part in itertools.product({layer for layer, _ in heads}, ("q_proj", "k_proj")):
            hook = getattr(attends[layer], part).register_forward_hook(functools.partial(catch, layer, part))
            hooks.callback(hook.remove)
        model.model.decoder(input_ids=tokens, encoder_hidden_states=states, use_cache=False)
    weights = []
    for layer, head in heads:
        query, key = caught[layer, "q_proj"][:, head], caught[layer, "k_proj"][:, head]
        weights.append((query @ key.T * attends[layer].head_dim ** -0.5).softmax(dim=-1))
    return torch.stack(weights).cpu()


def boundaries(weights: torch.Tensor, *, width: int = 7) -> np.ndarray:
    """Return when each row of an attention map begins, in seconds, shape (rows,): dynamic time warping, in steps of 20 ms.

    Args:
        weights: (heads, rows, positions), as `attention` returns them; each position is compared over the rows, smoothed
            over the time, and the heads are averaged.
        width: positions of the median filter, an odd number; 7 in all published checkpoints.
    """
    weights = weights.float()
    spread = weights.std(dim=1, keepdim=True, unbiased=False).clamp_min(1e-9)
    weights = (weights - weights.mean(dim=1, keepdim=True)) / spread
    if weights.shape[2] > width // 2:
        padded = torch.nn.functional.pad(weights, (width // 2, width // 2), mode="reflect")
        weights = padded.unfold(2, width, 1).median(dim=3).values
    step = SAMPLES_PER_POSITION / audio.SAMPLING_RATE
    return step * _first_positions(-weights.mean(dim=0).double().numpy())


def _first_positions(cost: np.ndarray) -> np.ndarray:
    """Return the first position of each row on the cheapest path from corner to corner of a cost matrix (rows, positions).

    The path goes right, down, or both. Rows are filled at once: the best way to a cell comes down into its row somewhere to its left
    and then runs along it, which costs a difference of running sums.
    """
    rows, positions = cost.shape
    total = np.full((rows + 1, positions + 1), np.inf)
    total[0, 0] = 0
    for row in range(rows):
        along = np.cumsum(cost[row])
        down = np.minimum(total[row, :-1], total[row, 1:])
        total[row + 1, 1:] = along + np.minimum.accumulate(down - (along - cost[row]))
    first = np.zeros(rows, dtype=int)
    row, position = rows, positions
    while row:
        first[row - 1] = position - 1
        ways = ((row - 1, position - 1), (row - 1, position), (row, position - 1))
        row, position = min(ways, key=lambda way: total[way])
    return first


def spell(processor: Any, tokens: Sequence[int], language: str = "en") -> list[tuple[int, int, str]]:
    """Group the tokens of a text to words: (first token, token after the last, word) of each, punctuation included.

    A word begins with the token that begins with a space; in languages without spaces, with each whole character.
    """
    tokenizer = processor.tokenizer
    if spaced(language):
        pieces = tokenizer.convert_ids_to_tokens(tokens)
        starts = sorted({0} | {index for index, piece in enumerate(pieces) if piece.startswith("Ġ")})
    else:
        starts = [0]
        for index in range(1, len(tokens)):
            if "\ufffd" not in tokenizer.decode(tokens[starts[-1] : index]):  # else a token holds a part of a character
                starts.append(index)
    words = [
        (start, end, tokenizer.decode(tokens[start:end]).strip())
        for start, end in itertools.pairwise([*starts, len(tokens)])
    ]
    return [word for word in words if word[2]]


def align(
    model: Any,
    processor: Any,
    samples: np.ndarray,
    text: str,
    *,
    language: str | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
) -> list[Span]:
    """Return when each word of a text was said in at most 30 s of sound, silence left out; arguments as for `attention`."""
    tokens, weights = attention(model, processor, samples, text, language=language, heads=heads)
    begins = boundaries(weights, width=getattr(model.config, "median_filter_width", 7))
    code = language_code(language) if language else "en"
    words = [(begins[first], begins[end], word) for first, end, word in spell(processor, tokens, code)]
    return leave_out(pauses(samples), words)


def pauses(samples: np.ndarray) -> np.ndarray:
    """Return the pauses in a sound, (start seconds, end seconds) of each, shape (pauses, 2)."""
    frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    level = 10 * np.log10(np.mean(np.square(frames), axis=1) + 1e-12)  # decibels of each 10 ms
    quiet = level <= max(level.max() - QUIET, np.quantile(level, 0.1) + BACKGROUND)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]])))
    spans = edges.reshape(-1, 2) * FRAME / audio.SAMPLING_RATE
    return spans[spans[:, 1] - spans[:, 0] >= PAUSE]


def leave_out(silence: np.ndarray, words: Sequence[Span]) -> list[Span]:
    """Take the silence out of words that follow each other without gaps.

    The boundary nearest to a pause, if no more than `REACH` away, moves into it: the word before ends where the pause begins,
    the word after begins where it ends. A boundary that has several pauses to choose from takes the longest.

    Args:
        silence: as `pauses` returns it.
        words: in their order; each begins where the one before ends.
    """
    if not words:
        return []
    edges = np.array([start for start, *_ in words] + [words[-1][1]])
    before, after = edges.copy(), edges.copy()
    for start, end in sorted(silence.tolist(), key=lambda pause: pause[1] - pause[0]):
        away = np.maximum(0, np.maximum(start - edges, edges - end))
        nearest = int(away.argmin())
        if away[nearest] <= REACH:
            before[nearest], after[nearest] = start, end
    starts = np.maximum.accumulate(after[:-1])  # a word that lies in a pause has no time of its own
    ends = np.maximum(starts, before[1:])
    return [(start, end, word) for start, end, (*_, word) in zip(starts.tolist(), ends.tolist(), words, strict=True)]


def times(model: Any, processor: Any, samples: np.ndarray, transcript: Hypothesis) -> list[Span]:
    """Return when each word of a transcript was said, for sound of any length.

    As many segments are aligned together as fit into a window. The last of them is there for the sake of the others, because
    the time of its end is only predicted; it is aligned again as the first of the next window, which begins where the word
    before it has ended.

    Args:
        model: as for `attention`; it need not be the one that wrote the transcript.
        processor: its ``WhisperProcessor``.
        samples: the sound, shape (samples,), at 16 kHz.
        transcript: to be timed, from `asrlib.decoding.transcription.transcribe`; that of more than 30 s has segment times.

    Raises:
        AsrlibError: as `attention`.
    """
    rate, whole = audio.SAMPLING_RATE, len(samples) / audio.SAMPLING_RATE
    space = " " if spaced(transcript.language) else ""
    segments = [part for part in transcript.segments or ((0.0, whole, transcript.text),) if part[2].strip()]
    sizes = [len(_encode(processor, text, transcript.language)) for *_, text in segments]
    found: list[Span] = []
    first, begin = 0, 0.0
    while first < len(segments):
        begin = min(max(begin, segments[first][0] - SLACK), max(0.0, whole - SLACK))
        after = _fitting(segments, sizes, first, begin)
        end = min(max(segments[after - 1][1], begin) + SLACK, begin + WINDOW_SECONDS, whole)
        part = samples[round(begin * rate) : round(end * rate)]
        texts = [text.strip() for *_, text in segments[first:after]]
        words = align(model, processor, part, space.join(texts), language=transcript.language)
        if after - first > 1 and after < len(segments):
            after -= 1
            words = beginning(words, space.join(texts[:-1]))
        found += [(start + begin, stop + begin, word) for start, stop, word in words]
        first, begin = after, found[-1][1] if found else begin
    return found


def beginning(words: Sequence[Span], said: str) -> list[Span]:
    """Return those of the words of a text that make up its beginning.

    They are counted by letters: where a language has no spaces, a token may reach from the end of the beginning into the rest. Such
    a word is cut, and keeps its times.

    Args:
        words: of the whole text.
        said: its beginning.
    """
    left, kept = len("".join(said.split())), []
    for start, end, word in words:
        letters = "".join(word.split())
        if left > 0:
            kept.append((start, end, word if len(letters) <= left else letters[:left]))
        left -= len(letters)
    return kept


def _fitting(segments: Sequence[Span], sizes: Sequence[int], first: int, begin: float) -> int:
    """Return the segment after the last that fits into a window, by its time and by its tokens; at least one does."""
    after, tokens = first + 1, sizes[first]
    while after < len(segments):
        tokens += sizes[after]
        if segments[after][1] + SLACK - begin > WINDOW_SECONDS or tokens > MAX_TOKENS:
            break
        after += 1
    return after


def edge_errors(
    words: Sequence[Span], truth: Sequence[Span], normalize: Callable[[str], str] = str
) -> dict[tuple[int, str], float]:
    """Return how late the edges of known spans, such as the clips of a stitched recording, are found.

    Words and truth are aligned word by word. Where the first word of a span was transcribed correctly, its start is compared with
    the start of the span, and the end of the last with its end; of the words between, nothing is known.

    Args:
        words: in their order; a time that is not a number is left out.
        truth: what was said when, in order.
        normalize: makes the texts of both comparable.

    Returns:
        Milliseconds, negative where the edge was found too early, by (number of the span, ``"start"`` or ``"end"``).
    """
    meant, heard = list(_numbered(truth, normalize)), list(_numbered(words, normalize))
    found: dict[tuple[int, str], float] = {}
    left, right = iter(meant), iter(heard)
    lines = [" ".join(word for word, *_ in side) for side in (meant, heard)]
    for kind, reference, hypothesis in alignment.align(*lines).pairs:
        pair = next(left) if reference else None, next(right) if hypothesis else None
        if kind != "equal":
            continue
        (_, span, *rims), (_, place, *edges) = pair
        for edge, name in enumerate(("start", "end")):
            if rims[edge] and edges[edge] and np.isfinite(words[place][edge]):
                found[span, name] = 1000 * (words[place][edge] - truth[span][edge])
    return found


def _numbered(spans: Sequence[Span], normalize: Callable[[str], str]) -> Iterator[tuple[str, int, bool, bool]]:
    """Yield each word, the number of its span, and whether it is the first and the last of it."""
    for number, (*_, text) in enumerate(spans):
        parts = normalize(text).split()
        for place, word in enumerate(parts):
            yield word, number, place == 0, place == len(parts) - 1
