"""Silence for loaders that draw their own bars and advice on standard error."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers inside the block; its settings are put back after."""
    from transformers.utils import logging

    loader: Any = None
    with suppress(ImportError):  # an inner module, which may move
        loader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")

    level, bars, tqdm = logging.get_verbosity(), logging.is_progress_bar_enabled(), getattr(loader, "tqdm", None)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if tqdm is not None:  # this bar does not ask the setting above
        loader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if tqdm is not None:
            loader.tqdm = tqdm
