"""How sure an answer is, and what follows: thresholds on its mean log-probability, kept in the adapter's card."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sac_rag.compress.adapter import Card
from sac_rag.config import DEFAULT_MODEL, AskConfig
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.records import NO_ANSWER

MEMORY, TEXT = "memory", "text"
"""Readers, as an evaluation names them, that fidelity "auto" chooses between; confidences of each are a scale of their
own."""


def reader_name(ask: AskConfig, fidelity: str) -> str:
    """What reads passages so ("memory", "mixed" or "text"), as an evaluation names it. A mixed prompt is judged as
    text, which its best passage is."""
    own = ask.reader == "base" and not ask.evidence
    if fidelity == TEXT or (fidelity == "mixed" and own):
        return TEXT
    name = fidelity if ask.reader == "base" else "adapted" if fidelity == MEMORY else f"adapted {fidelity}"
    return f"{name}+{ask.evidence}" if ask.evidence else name


@dataclass(frozen=True)
class Thresholds:
    """Confidences (nats) below which an answer is doubted, at one ratio; None is never."""

    abstain: Mapping[str, float | None]
    """Per reader that was measured: below it, the passages are taken not to say."""
    fallback: float | None
    """Of memory alone: below it, text answers better."""
    doubt: Mapping[str, float | None] = field(default_factory=dict)
    """Per reader: below it, an answer is marked as doubtful. Those of a reader that is not there never are: it was not
    measured, and cards of before have none."""

    @classmethod
    def known(cls, folder: Path | None, ratio: float) -> Thresholds | None:
        """Those in the card of an adapter folder; None when it has none that can be read."""
        if folder is None:
            return None
        try:
            state = os.stat(folder / "card.json")
        except OSError:
            return None
        return _known(folder, ratio, (state.st_mtime_ns, state.st_size, state.st_ino))

    @classmethod
    def of(
        cls,
        folder: Path | None,
        ratio: float,
        readers: Sequence[str] = (),
        *,
        model: str = DEFAULT_MODEL,
        adapter: str = "default",
    ) -> Thresholds:
        """Those in the card of an adapter folder; ConfigError with the remedy when it has none for this ratio, or none
        of one of these readers.

        model, adapter: how they are called, for the remedy. folder: None where the method has no adapter.
        """
        if folder is None:
            raise ConfigError(
                "a method without an adapter has no card that holds thresholds, so no answer can be told doubtful: ask "
                "without abstain and with fidelity memory, mixed or text"
            )
        known = Card.read(folder).calibration
        entry = known.get(key_of(ratio))
        names = {
            "--model": model if model != DEFAULT_MODEL else "",
            "--adapter": adapter if adapter != "default" else "",
        }
        flags = "".join(f" {flag} {name}" for flag, name in names.items() if name)
        chosen = f" --reader {','.join(readers)}" if set(readers) - {MEMORY, TEXT} else ""
        remedy = f"run `sac calibrate FILE… --ratio {key_of(ratio)}{chosen}{flags} --write` on files of questions"
        if entry is None:
            others = f" (it is at {', '.join(known)})" if known else ""
            raise ConfigError(
                f"the adapter {adapter!r} is not calibrated at ratio {key_of(ratio)}{others}, so no answer can be told "
                f"doubtful: {remedy}, or ask without abstain and with fidelity memory, mixed or text"
            )
        try:
            abstain, doubt = (
                {str(r): _threshold(limit) for r, limit in table.items()}
                for table in (entry["abstain"], entry.get("doubt", {}))
            )
            found = cls(abstain, _threshold(entry["fallback"]), doubt)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise AdapterError(
                f"{folder / 'card.json'}: calibration at {key_of(ratio)} is damaged ({error!r}): {remedy}"
            ) from error
        if missing := [r for r in readers if r not in found.abstain]:
            raise ConfigError(
                f"the adapter {adapter!r} is calibrated at ratio {key_of(ratio)} for {', '.join(found.abstain)}, not "
                f"for {missing[0]}: {remedy}, or ask without abstain"
            )
        return found

    def to_mapping(self) -> dict[str, Any]:
        """As a card holds them."""
        return {"abstain": dict(self.abstain), "fallback": self.fallback, "doubt": dict(self.doubt)}

    def abstains(self, reader: str, confidence: float, text: str) -> bool:
        """Whether an answer of this reader is withheld."""
        limit = self.abstain.get(reader)
        return says_nothing(text) or (limit is not None and confidence < limit)

    def doubts(self, reader: str, confidence: float, text: str) -> bool:
        """Whether an answer of this reader is marked as doubtful; NO_ANSWER in the model's own words never is."""
        limit = self.doubt.get(reader)
        return limit is not None and confidence < limit and not says_nothing(text)


@functools.lru_cache(maxsize=16)
def _known(folder: Path, ratio: float, state: tuple[int, ...]) -> Thresholds | None:
    """state: of the card's file, so that a card which was calibrated meanwhile is read anew."""
    try:
        return Thresholds.of(folder, ratio)
    except (AdapterError, ConfigError):
        return None


def key_of(ratio: float) -> str:
    """A ratio as a key of a card's calibration."""
    return f"{float(ratio):g}"


def says_nothing(text: str) -> bool:
    """Whether an answer is NO_ANSWER in the model's own words."""
    return text.strip().rstrip(".").casefold() == NO_ANSWER.rstrip(".").casefold()


def _threshold(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not value <= 0:
        raise ValueError(f"{value!r} is no log-probability")
    return float(value)
