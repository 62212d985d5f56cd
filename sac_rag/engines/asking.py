"""A question laid out for another engine: what is searched, loaded and refused alike for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sac_rag.answer.assemble import Assembled
from sac_rag.config import AskConfig, from_mapping
from sac_rag.errors import ConfigError, LibraryError
from sac_rag.pipeline import SacRag
from sac_rag.records import Hit, nfc


def laid_out(
    rag: SacRag,
    question: str,
    ask: AskConfig | None,
    where: Mapping[str, Any] | None,
    hits: Sequence[Hit] | None,
    settings: Mapping[str, Any],
) -> Assembled:
    """The prompt that `SacRag.ask` would read, of the same arguments.

    Raises LibraryError where no passage fits, ConfigError for settings that judge an answer (abstain, fidelity "auto")
    or choose another reader, GateError for memories that do not read as they should.
    """
    ask = from_mapping(AskConfig, {**(dataclasses.asdict(ask) if ask else {}), **settings})
    if ask.abstain or ask.fidelity == "auto" or ask.reader != "base":
        raise ConfigError(
            f"abstain {ask.abstain}, fidelity {ask.fidelity!r} and reader {ask.reader!r} are for SacRag.ask: another "
            "engine is given memory, text or both (fidelity mixed), to be read by the base model"
        )
    if not (question := nfc(question).strip()):
        raise ConfigError("the question is empty; ask something")
    rag.check()
    found = rag.retrieve(question, ask, where=where) if hits is None else hits
    with rag.engine.busy(), torch.no_grad():
        assembled = rag.assemble(found, question, ask)
    if not (assembled.hits or ask.closed_book):
        raise LibraryError(
            f"no passage of {rag.library.path} fits the question: say so, or set closed_book to have the model answer "
            "alone"
        )
    return assembled
