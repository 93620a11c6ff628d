"""The clips of a fine-tuning: which are learnt from, which are scored, and what is left out, each with its reason."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asrlib import AsrlibError, corpora, text, whisper
from asrlib.corpora import catalogue
from asrlib.io.progress import Meter
from asrlib.training import context
from asrlib.training.finetuning.settings import Settings
from asrlib.training.sources import Source

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Limits", "Part", "Speech", "by_text", "features", "gather", "labels", "order", "seconds"]

SHARE = 0.1  # of the clips that are kept for validation where there is no split for it
NAMED = 3  # clips that are named of those left out
FEWEST = 3  # that are kept of few clips, or a third of them: a single clip chooses the best step by chance


@dataclass(frozen=True)
class Part:
    """Clips of one source: its place, its table as `corpora.load` returns it, and its share of the batches."""

    place: str
    table: Dataset
    share: float | None = None

    @property
    def languages(self) -> list[str]:
        """Return Whisper's code of each clip's language; for an English-only model it need not be stated."""
        return [text.language_code(language or "en") for language in self.table["language"]]


@dataclass(frozen=True)
class Limits:
    """What a model can learn from.

    Attributes:
        generation: its generation configuration.
        tokenizer: its own.
        seconds: of its context.
        tokens: of a label at most, without the start token.
    """

    generation: Any
    tokenizer: Any
    seconds: int
    tokens: int

    def code(self, language: str) -> str:
        """Return the code of a language that the model knows.

        Raises:
            AsrlibError: a multilingual model's language is not stated, or the model does not know it.
        """
        multilingual = whisper.is_multilingual(self.generation)
        if multilingual and not language:
            raise AsrlibError("The clips' language is not stated: name it with --language.")
        code = text.language_code(language or "en")
        if f"<|{code}|>" not in (self.generation.lang_to_id if multilingual else ["<|en|>"]):
            raise AsrlibError(f"The model knows no language {language!r}: start from another one.")
        return code

    def reason(self, row: dict[str, Any]) -> str:
        """Return why a clip cannot be learnt from, or an empty string."""
        if not any(letter.isalnum() for letter in row["text"]):
            return "no transcript"
        if row["seconds"] == 0:
            return "cannot be read"
        if row["seconds"] > self.seconds:
            return f"lasts {row['seconds']:.1f} s, over {self.seconds}"
        count = len(labels(row["text"], self.code(row["language"]), self.generation, self.tokenizer)) - 1
        return f"its transcript has {count} tokens, over {self.tokens}" if count > self.tokens else ""


@dataclass
class Speech:
    """What is learnt from and what is scored.

    Attributes:
        train, validation: by source.
        left_out: ``id``, ``place`` and ``reason`` of each clip that is neither.
    """

    train: list[Part] = field(default_factory=list)
    validation: list[Part] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    @property
    def languages(self) -> set[str]:
        """Return Whisper's codes of the languages that are learnt."""
        return {code for part in self.train for code in part.languages}


def seconds(parts: Sequence[Part]) -> list[float]:
    """Return how long each clip lasts."""
    return [length for part in parts for length in part.table["seconds"]]


def labels(said: str, language: str, generation: Any, tokenizer: Any) -> list[int]:
    """Return what the decoder learns to write: start, language and task, no times, the text, the end.

    Args:
        said: the text as it is to be written.
        language: code.
        generation: the model's generation configuration, which names the tokens before the text.
        tokenizer: of the model.
    """
    tokens = whisper.spell(tokenizer, said, language)
    return [*whisper.prompt(generation, language), *tokens, tokenizer.eos_token_id]


def gather(settings: Settings, limits: Limits) -> Speech:
    """Return the clips of a fine-tuning.

    Raises:
        AsrlibError: what `corpora.load` refuses, a language that is not stated or not known, too few texts to divide, or no clip
            that is left.
    """
    speech = Speech()
    fitting = functools.partial(_fitting, limits=limits, left_out=speech.left_out)
    for source in settings.sources:
        train, scored = _splits(source, settings)
        train = fitting(Part(source.place, train, source.share))
        if scored is not None:
            speech.validation.append(fitting(Part(source.place, scored)))
        elif not settings.validation:
            train, scored = _divided(train, settings.seed)
            speech.validation.append(scored)
        speech.train.append(train)
    for written in settings.validation:
        source = Source.brought(written)
        rows = _load(source, settings, source.split or "validation")
        speech.validation.append(fitting(Part(source.place, rows)))
    speech.train, speech.validation = (
        [part for part in parts if len(part.table)] for parts in (speech.train, speech.validation)
    )
    for kind, parts in (("learn from", speech.train), ("score", speech.validation)):
        if not parts:
            such = ", ".join(f"{row['id']} ({row['reason']})" for row in speech.left_out[:NAMED])
            raise AsrlibError(f"No clip is left to {kind}: {len(speech.left_out)} are left out, such as {such}.")
    return speech


def _load(source: Source, settings: Settings, split: str | None) -> Dataset:
    if source.name == "folder":
        language = settings.language and text.language_code(settings.language)
        rows = corpora.load("folder", language, root=source.root)
        chosen = [at for at, name in enumerate(rows["split"]) if name == split]
        return rows.select(chosen) if chosen else rows
    return corpora.load(source.name, source.language, split, root=settings.root)


def _splits(source: Source, settings: Settings) -> tuple[Dataset, Dataset | None]:
    """Return what is learnt from a source, and its split for validation if there is one and no other is named."""
    if source.name == "folder":
        rows = _load(source, settings, None)
        splits = list(rows["split"])
        chosen = {name: [at for at, split in enumerate(splits) if split == name] for name in sorted(set(splits))}
        unnamed = list(chosen) in ([], ["test"])  # as clips are called whose table names no split
        if "train" not in chosen and not unnamed:
            raise AsrlibError(f"{source.place} has the splits {', '.join(chosen)}: one must be called train.")
        train = rows.select(chosen.get("train", range(len(rows))))
        scored = rows.select(chosen["validation"]) if "validation" in chosen else None
        return train, None if settings.validation else scored
    train = _load(source, settings, source.split or "train")
    known = corpora.card(source.name, source.language).clips or catalogue.facts(source.name).get("splits", [])
    if settings.validation or source.split not in (None, "train") or "validation" not in known:
        return train, None
    return train, _load(source, settings, "validation")


def _divided(part: Part, seed: int) -> tuple[Part, Part]:
    """Divide clips by text, to be learnt from and to be scored."""
    if not len(part.table):
        return part, part
    scored = by_text(list(part.table["text"]), list(part.table["language"]), seed, part.place)
    train, scored = (part.table.select(np.flatnonzero(side == scored)) for side in (False, True))
    return replace(part, table=train), Part(part.place, scored)


def by_text(texts: Sequence[str], languages: Sequence[str], seed: int, place: str = "") -> np.ndarray:
    """Return which clips are scored where nobody has split them: a tenth, or three of few, and none whose text is learnt from too.

    Args:
        texts: what is said in each clip; equal ones, after normalisation, stay together.
        languages: of the clips.
        seed: of the choice.
        place: named where there are too few texts.

    Returns:
        Booleans, shape (clips,).
    """
    said = [text.normalizer(language or "en")(one) for one, language in zip(texts, languages, strict=True)]
    families = Counter(one for one in said if one)
    if len(families) < 2:
        raise AsrlibError(f"{place} has fewer than two different texts: name other clips with --validation.")
    names, scored, count = sorted(families), set(), 0
    wanted = max(SHARE * len(texts), min(FEWEST, len(texts) // 3), 1)
    for at in np.random.default_rng(seed).permutation(len(names))[:-1]:
        if count >= wanted:
            break
        scored.add(names[at])
        count += families[names[at]]
    return np.array([one in scored for one in said])


def _fitting(part: Part, limits: Limits, left_out: list[dict[str, str]]) -> Part:
    """Return a part without the clips that cannot be learnt from, which are added to the list."""
    names = ("id", "text", "language", "seconds")
    kept = []
    for at, values in enumerate(zip(*(list(part.table[name]) for name in names), strict=True)):
        row = dict(zip(names, values, strict=True))
        if reason := limits.reason(row):
            left_out.append({"id": row["id"], "place": part.place, "reason": reason})
        else:
            kept.append(at)
    return replace(part, table=part.table.select(kept))


def features(
    part: Part, processor: Any, limits: Limits, *, cache: Path | None, label: str, begun: bool = False
) -> tuple[Part, Any, dict[str, str]]:
    """Return the clips that could be read, what the collator takes of each, and why the others could not.

    Args:
        part: clips that fit.
        processor: of the model, for its context.
        limits: of the model.
        cache: file for the features; None makes them anew whenever a batch needs them, and reads no clip now.
        label: shown in the progress line; none is shown without it.
        begun: a training of what the cache holds is to go on; else a clip that can be read by now is taken, too.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()  # a `Meter` shows how far it is
    make = functools.partial(_example, processor=processor, limits=limits)
    if cache is None:
        return part, part.table.with_transform(functools.partial(_batch, make)), {}
    if label and not begun and cache.is_file() and _mended(make, part, Dataset.from_file(str(cache))["failed"]):
        cache.unlink()
    with Meter(label, len(part.table), "clips") as meter:
        made = part.table.map(
            functools.partial(_tried, make, meter.step if label else None), remove_columns=part.table.column_names,
            cache_file_name=str(cache), new_fingerprint=cache.stem,
        )  # fmt: skip
    failed = {name: why for name, why in zip(part.table["id"], made["failed"], strict=True) if why}
    kept = [at for at, why in enumerate(made["failed"]) if not why]
    made = made.select(kept).select_columns(["input_features", "labels"]).with_format("numpy")
    return replace(part, table=part.table.select(kept)), made, failed


def _mended(make: Callable[..., Any], part: Part, failed: Sequence[str]) -> bool:
    """Say whether a clip that an earlier run could not read can be read now."""
    ways = (_tried(make, None, part.table[at]) for at, why in enumerate(failed) if why)
    return any(not made["failed"] for made in ways)


def _example(row: dict[str, Any], *, processor: Any, limits: Limits) -> dict[str, Any]:
    """Return what `context.prepare` does, with the prompt of the row's own language."""
    said = labels(row["text"], limits.code(row["language"]), limits.generation, limits.tokenizer)
    return context.prepare(row, processor, limits.seconds) | {"labels": said}


def _batch(make: Callable[[dict[str, Any]], dict[str, Any]], rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    made = [make(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
    return {name: [one[name] for one in made] for name in ("input_features", "labels")}


def _tried(
    make: Callable[[dict[str, Any]], dict[str, Any]], step: Callable[[], None] | None, row: dict[str, Any]
) -> Any:
    if step:
        step()
    try:
        return make(row) | {"failed": ""}
    except AsrlibError as error:
        return {"input_features": None, "labels": None, "failed": str(error)}


def order(counts: Sequence[int], shares: Sequence[float | None], total: int, seed: int) -> list[int]:
    """Return the clips of a whole training, one after another.

    Each source goes through its clips in a new order each time it is through; where there are several, chance draws the source
    of each clip by the shares. That order is all that decides what a step sees: neither processes nor a restart change it.

    Args:
        counts: clips of each source; the clips of all are numbered one source after another.
        shares: of the sources, relative to each other; None for as much as it has clips.
        total: clips to draw.
        seed: of chance.
    """
    generator = np.random.default_rng(seed)
    weights = np.array([count if share is None else share for count, share in zip(counts, shares, strict=True)], float)
    firsts = np.cumsum([0, *counts[:-1]])
    drawn = generator.choice(len(counts), total, p=weights / weights.sum())
    found = np.empty(total, dtype=int)
    for source, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        places = np.flatnonzero(drawn == source)
        rounds = [generator.permutation(count) for _ in range(-(-len(places) // count))]
        found[places] = first + np.concatenate([*rounds, np.empty(0, int)])[: len(places)]
    return found.tolist()
