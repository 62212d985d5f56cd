"""One loaded model with one adapter: what compresses with it, and what also answers.

`Engine.shared` is loaded once per process, for every library, chain and command.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from sac_rag.answer.constrained import Grammars
from sac_rag.answer.reader import Reader
from sac_rag.answer.service import Service
from sac_rag.answer.tools import ToolFormat, format_of
from sac_rag.compress import adapter as adapters
from sac_rag.compress.adapter import Card
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.methods import METHODS
from sac_rag.compress.methods.base import Method
from sac_rag.compress.placing import Placing
from sac_rag.config import DEFAULT_MODEL, AskConfig, IndexConfig, options_of
from sac_rag.errors import AdapterError, ConfigError, SacError, check_process
from sac_rag.models.adapters import adapter_sha256, find_adapter
from sac_rag.models.embedder import Embedder
from sac_rag.models.loading import choose_device, choose_dtype, eos_ids, load_base
from sac_rag.models.sources import fingerprint_of, resolve_base, tokenizer_fingerprint_of

UNTRAINED = "none"
"""In place of an adapter: the method as training would start."""


def adapter_folder(model: str, method: str, adapter: str = "default") -> Path | None:
    """Where the adapter of a method lies; None for a method that has nothing to train, and for "none".

    Raises AdapterError where it cannot be found, ConfigError where one is named for a method without.
    """
    if METHODS.load(method).trains:
        return None if adapter == UNTRAINED else find_adapter(model, method, adapter)
    if adapter != "default":
        raise ConfigError(f"method {method!r} has nothing to train, so it takes no adapter: leave {adapter!r} out")
    return None


def placing_of(model: str, method: str, adapter: str = "default") -> Placing:
    """How memories of a method stand in a prompt, by its adapter's card. Nothing is loaded to know it."""
    folder = adapter_folder(model, method, adapter)
    made_for: Placing = METHODS.load(method).made_for
    return adapters.placing_of(Card.read(folder)) if folder else made_for


class Encoder:
    """Base model, adapter and prompt layout, ready to compress."""

    def __init__(
        self,
        model: str,
        method: str,
        adapter: str,
        *,
        option: Sequence[str] = (),
        device: str = "auto",
        dtype: str = "auto",
        fetch: bool = True,
    ) -> None:
        """option: as of `IndexConfig`."""
        self.model_name, self.method_name, self.adapter_name = model, method, adapter
        self.path = resolve_base(model, fetch=fetch)
        self.adapter_path = adapter_folder(model, method, adapter)
        self.adapter_sha256 = adapter_sha256(self.adapter_path) if self.adapter_path else None
        if self.adapter_path and (found := Card.read(self.adapter_path).method) != method:
            raise ConfigError(f"adapter {self.adapter_path} is for method {found!r}, not {method!r}")
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        base, tokenizer = load_base(self.path, self.device, self.dtype)
        self._options = options_of(option)
        made: dict[str, Any] = {"base_fingerprint": fingerprint_of(self.path), "options": self._options}
        self.method: Method
        if self.adapter_path:
            self.method, self.card = adapters.load(self.adapter_path, base, tokenizer, **made)
        else:
            self.method, self.card = adapters.untrained(method, base, tokenizer, base=model, **made)
        self._ends = eos_ids(base)
        self._busy, self._pid = threading.RLock(), os.getpid()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Held while tensors of this engine are computed with; tokenizers and caches are not thread-safe. ProcessForked
        in the child of a fork, where computing would wait for threads that are not there."""
        check_process(self._pid, "the model was loaded")
        with self._busy:
            yield

    @property
    def tokenizer(self) -> Any:
        """The base model's; held for the caller alone within `busy`."""
        return self.method.backbone.tokenizer

    def compress(self, texts: Sequence[str], ratio: float, done: Callable[[int], None] | None = None) -> list[AnchorKV]:
        """Memories of passages, on the CPU. done: called with the number compressed, now and then."""
        with self.busy():
            backbone = self.method.backbone
            found = self.method.compress([backbone.tokens(t) for t in texts], ratio, done=done)
            return [m.to(device="cpu") for m in found]

    def is_current(self) -> bool:
        """Whether the adapter's folder still holds what was loaded; calibrating changes nothing of that."""
        if self.adapter_path is None:
            return True
        try:
            card, found = Card.read(self.adapter_path), adapter_sha256(self.adapter_path)
        except (SacError, OSError):
            return False
        card = dataclasses.replace(card, options={**card.options, **self._options})
        fixed = ("lora", "options", "layout", "placing", "evidence", "reader")
        return found == self.adapter_sha256 and all(getattr(card, n) == getattr(self.card, n) for n in fixed)

    def fingerprint(self, config: IndexConfig, embedder: Embedder) -> dict[str, Any]:
        """Everything that stored memories depend on, by name: what a library is opened against."""
        return {
            **self.method.identity(),
            "model": config.model,
            "model_sha256": fingerprint_of(self.path),
            "tokenizer_sha256": tokenizer_fingerprint_of(self.path),
            "rope": {k: v for k, v in sorted(self.method.backbone.config.rope_parameters.items()) if v is not None},
            "method": config.method,
            **({"option": list(config.option)} if config.option else {}),
            "adapter": config.adapter,
            "adapter_sha256": self.adapter_sha256,
            "ratio": config.ratio,
            "passage_tokens": config.passage_tokens,
            "overlap": config.overlap,
            "embedder": config.embedder,
            "embedder_sha256": embedder.fingerprint,
        }


class Engine(Encoder):
    """Base model, adapter and prompt layout, ready to compress and to answer. Use `Engine.shared`."""

    _shared: ClassVar[dict[tuple[str, ...], Engine]] = {}
    _lock = threading.Lock()

    def __init__(
        self,
        model: str,
        method: str,
        adapter: str,
        *,
        option: Sequence[str] = (),
        device: str = "auto",
        dtype: str = "auto",
        fetch: bool = True,
    ) -> None:
        super().__init__(model, method, adapter, option=option, device=device, dtype=dtype, fetch=fetch)
        backbone = self.method.backbone
        self._packed: Future[None] | None = None
        if not self.method.reads_with_lora:
            # Beside what a question needs first, the embedder and the library; `busy` waits for it.
            beside = ThreadPoolExecutor(1, "sac-packing")
            self._packed = beside.submit(backbone.pack)
            beside.shutdown(wait=False)
        self.reader = self._reading(backbone, use_lora=self.method.reads_with_lora)
        self.service = Service(self.reader, self.busy)
        """Answers questions of all threads as one batch."""
        self._adapted: Service | None = None
        self.grammars = Grammars(backbone.tokenizer, sorted(self.reader.stop_ids), self.busy)
        """What answers are held to."""

    @contextmanager
    def busy(self) -> Iterator[None]:
        with super().busy():
            if self._packed is not None:
                self._packed.result()
            yield

    @functools.cached_property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools."""
        with self.busy():
            return format_of(self.method.backbone)

    def service_of(self, reader: str) -> Service:
        """What answers with "base", the model as it is, or with "adapter", the reader beside this engine's adapter,
        which is loaded at its first use. Raises AdapterError where there is none."""
        if reader not in ("base", "adapter"):
            raise ConfigError(f"reader is {reader!r}; use base or adapter")
        return self.service if reader == "base" else self.adapted

    def evidence(self, ask: AskConfig) -> int:
        """Sentences that are read as text beside memory: those asked for, else as what reads was trained."""
        if ask.evidence is not None:
            return ask.evidence
        return 0 if ask.fidelity == "auto" else self.card.evidence_of(ask.reader)

    @property
    def adapted(self) -> Service:
        """Answers with the adapter's own reader, as a batch of its own. Raises AdapterError where it has none."""
        with self.busy():
            if self._adapted is None:
                if self.adapter_path is None:
                    raise AdapterError(f"method {self.method_name!r} has no adapter, and so no reader: use reader base")
                with torch.inference_mode(False):
                    backbone = adapters.load_reader(self.adapter_path, self.method, self.card).folded()
                backbone.pack()
                self._adapted = Service(self._reading(backbone), self.busy)
                self._adapted.max_rows = self.service.max_rows
            return self._adapted

    @property
    def load(self) -> tuple[int, int]:
        """(answers being made, answers that wait for a row), with either reader."""
        loads = [service.load for service in (self.service, self._adapted) if service is not None]
        return sum(made for made, _ in loads), sum(waiting for _, waiting in loads)

    def limit_rows(self, rows: int) -> None:
        """Make at most so many answers at the same time, with either reader."""
        for service in filter(None, (self.service, self._adapted)):
            service.max_rows = rows

    def _reading(self, backbone: Backbone, *, use_lora: bool = False) -> Reader:
        stop = backbone.template(self.method.layout.end)[:1]
        return Reader(backbone, [*stop, *self._ends], use_lora=use_lora)

    @classmethod
    def shared(
        cls,
        model: str = DEFAULT_MODEL,
        method: str = "sac",
        adapter: str = "default",
        *,
        option: Sequence[str] = (),
        device: str = "auto",
        dtype: str = "auto",
        fetch: bool = True,
    ) -> Engine:
        """The engine of these settings, loaded at the first call of the process, and anew when its adapter has been
        trained on since; "auto" is the device that it means. fetch: whether the model may be, see `resolve_base`."""
        key = (*cls._key(model, method, adapter, device, dtype), *option)
        with cls._lock:
            engine = cls._shared.get(key)
            if engine is not None:
                check_process(engine._pid, "the model was loaded")
            if engine is None or not engine.is_current():
                engine = cls._shared[key] = cls(
                    model, method, adapter, option=option, device=device, dtype=dtype, fetch=fetch
                )
            return engine

    @staticmethod
    def _key(model: str, method: str, adapter: str, device: str, dtype: str) -> tuple[str, ...]:
        where = choose_device(device)
        if where.type == "cuda" and where.index is None:
            where = torch.device("cuda", torch.cuda.current_device())
        return model, method, adapter, str(where), str(choose_dtype(dtype, where))
