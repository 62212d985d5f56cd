"""Memories in the cache of llama.cpp: a question for the `generate` of a `llama_cpp.Llama` of one's own.

llama.cpp's cells are shared by all heads, and nothing is added to scores: memories must be a plain prefix, with even
heads. They go in as a sequence state, in the form in which llama.cpp itself writes one; what is not in that form, or
would read other keys than ours, is refused before anything is generated.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sac_rag.compress.anchor_kv import Memory
from sac_rag.compress.placing import compose
from sac_rag.config import AskConfig
from sac_rag.engines.asking import laid_out
from sac_rag.errors import ConfigError, GateError, LibraryMismatch, MemoryInvalid, SacError
from sac_rag.pipeline import SacRag
from sac_rag.records import Hit

PAIRED = {"llama": True, "qwen2": False, "qwen3": False}
"""Architectures of .gguf files, and whether the two halves of a key's numbers, which RoPE turns together, stand number
by number side by side in them instead of one behind the other."""
NUMBERS: Mapping[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
"""Number types of caches that are written, by ggml's number."""
PROBE = "The lamp of the lighthouse burned whale oil until 1911."
APART = 0.5
"""Largest relative error of keys and values by llama.cpp against ours: quantised weights are far below, another model
or another order of numbers far above."""


@dataclass(frozen=True)
class Prefilled:
    """A question whose memories stand in a model's cache: `llm.generate(prefilled.tokens, temp=0.0, reset=False)`."""

    tokens: list[int]
    """What is to be read behind them."""
    ends: frozenset[int]
    """Ids that end an answer."""
    hits: tuple[Hit, ...]
    """The passages that are read, best first."""
    notices: tuple[str, ...]


def prefill(
    rag: SacRag,
    question: str,
    llm: Any,
    ask: AskConfig | None = None,
    *,
    where: Mapping[str, Any] | None = None,
    hits: Sequence[Hit] | None = None,
    **settings: Any,
) -> Prefilled:
    """A question of `SacRag.ask`, of the same arguments, for `llm.generate`; what the cache of `llm` held is gone.

    llm: a `llama_cpp.Llama` with the library's base model, whose cache is of F16 or F32. Raises ConfigError for
    memories of uneven heads or with biases (ask with `prior=0`), and for a context that is too short, LibraryMismatch
    and GateError for another model, SacError for a llama.cpp that keeps its cache in another form, and as `laid_out`
    does.
    """
    assembled = laid_out(rag, question, ask, where, hits, settings)
    engine = rag.engine
    with engine.busy(), torch.no_grad():
        *parts, last = assembled.prompt.after(0)
        form = _checked(engine.method.backbone, llm)
    if isinstance(last, Memory):
        raise MemoryInvalid("a prompt must end with at least one token: nothing follows from memory alone")
    position = sum(p.next_position - p.start if isinstance(p, Memory) else len(p) for p in parts) + len(last)
    if position >= llm.n_ctx():
        raise ConfigError(f"the prompt takes {position} positions and n_ctx is {llm.n_ctx()}: load the model with more")
    _clear(llm)
    for part in parts:
        if isinstance(part, Memory):
            held = _State.of(llm) if llm.n_tokens else form.beginning()
            held.with_memory(part, form.paired).into(llm)
            llm.n_tokens = part.next_position
        else:
            llm.eval(list(part))
    return Prefilled(list(last), engine.reader.stop_ids, assembled.hits, assembled.notices)


@dataclass(frozen=True)
class _State:
    """What a sequence state holds. keys, values: per layer (cells, numbers of all heads); positions: int32 (cells,)."""

    magic: bytes
    positions: np.ndarray
    keys: list[np.ndarray]
    values: list[np.ndarray]
    types: tuple[int, int]
    """ggml's numbers of the number types of keys and of values."""
    turned: bool
    """Whether values are written number by number instead of cell by cell."""
    paired: bool = False

    @classmethod
    def of(cls, llm: Any) -> _State:
        """The state of sequence 0. Raises SacError for what is not written as we know it."""
        import llama_cpp

        size = llama_cpp.llama_state_seq_get_size(llm.ctx, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_seq_get_data(llm.ctx, buffer, size, 0)
        data = bytes(buffer)[:written]
        try:
            made = cls._parsed(data)
            if made.bytes() == data:
                return made
        except (struct.error, ValueError, KeyError, IndexError):
            pass
        raise SacError(
            "this llama.cpp keeps its cache in a form that is not known here (F16 or F32, one stream, plain cells): "
            "use the defaults of llama_cpp.Llama, or the release that docs/how-to/engines.md names"
        )

    @classmethod
    def _parsed(cls, data: bytes) -> _State:
        at = 0

        def take(form: str) -> tuple[Any, ...]:
            nonlocal at
            found = struct.unpack_from("<" + form, data, at)
            at += struct.calcsize("<" + form)
            return found

        def numbers(count: int, kind: np.dtype[Any]) -> np.ndarray:
            nonlocal at
            found = np.frombuffer(data, kind, count, at)
            at += found.nbytes
            return found

        (magic, _, streams, cells) = take("4siII")
        if streams != 1:
            raise ValueError(f"{streams} streams")
        positions = np.array([take("iIi")[0] for _ in range(cells)], np.int32)
        turned, layers = take("II")
        keys, values, kinds = [], [], []
        for _ in range(layers):
            kind, row = take("iQ")
            width = row // NUMBERS[kind].itemsize
            keys.append(numbers(cells * width, NUMBERS[kind]).reshape(cells, width))
            kinds.append(kind)
        for _ in range(layers):
            if turned:
                kind, _, width = take("iII")
                values.append(numbers(cells * width, NUMBERS[kind]).reshape(width, cells).T)
            else:
                kind, row = take("iQ")
                width = row // NUMBERS[kind].itemsize
                values.append(numbers(cells * width, NUMBERS[kind]).reshape(cells, width))
            kinds.append(kind)
        if len(set(kinds[:layers])) != 1 or len(set(kinds[layers:])) != 1:
            raise ValueError("layers of different number types")
        return cls(magic, positions, keys, values, (kinds[0], kinds[-1]), bool(turned))

    def bytes(self) -> bytes:
        """As llama.cpp writes it."""
        out = [self.magic, struct.pack("<iII", 0, 1, len(self.positions))]
        out += [struct.pack("<iIi", position, 1, 0) for position in self.positions.tolist()]
        out.append(struct.pack("<II", self.turned, len(self.keys)))
        for keys in self.keys:
            out.append(struct.pack("<iQ", self.types[0], keys.shape[1] * keys.itemsize))
            out.append(np.ascontiguousarray(keys).tobytes())
        for values in self.values:
            width, size = values.shape[1], values.itemsize
            head = struct.pack("<iII", self.types[1], size, width) if self.turned else None
            out.append(head or struct.pack("<iQ", self.types[1], width * size))
            out.append(np.ascontiguousarray(values.T if self.turned else values).tobytes())
        return b"".join(out)

    def beginning(self) -> _State:
        """The same form without a cell."""
        keys, values = ([t[:0] for t in tensors] for tensors in (self.keys, self.values))
        return _State(self.magic, self.positions[:0], keys, values, self.types, self.turned, self.paired)

    def with_memory(self, memory: Memory, paired: bool) -> _State:
        """This state with the slots of a memory behind it. Raises ConfigError where they are no plain prefix."""
        if memory.bias is not None or int(memory.counts.min()) != int(memory.counts.max()):
            uneven = "keeps other numbers of slots in each head"
            what = uneven if memory.bias is None else "adds to its attention scores"
            raise ConfigError(
                f"this memory {what}, which llama.cpp's cache cannot hold: ask with prior=0, and index with even heads "
                "(an adapter of `sac train` without --option budget=learned, or a method with even_heads=true and "
                "bias=false)"
            )
        slots, span = int(memory.counts[0, 0]), memory.next_position - memory.start
        # Only their order counts: keys are rotated already. The next token must follow upon the last.
        places = memory.start - 1 + np.ceil(np.arange(1, slots + 1) * span / slots)
        keys, values = (_rows(t, memory, paired and t is memory.keys) for t in (memory.keys, memory.values))
        kinds = [NUMBERS[t] for t in self.types]
        return _State(
            self.magic,
            np.concatenate((self.positions, places.astype(np.int32))),
            [np.concatenate((a, b.astype(kinds[0]))) for a, b in zip(self.keys, keys, strict=True)],
            [np.concatenate((a, b.astype(kinds[1]))) for a, b in zip(self.values, values, strict=True)],
            self.types,
            self.turned,
        )

    def into(self, llm: Any) -> None:
        """Make it the state of sequence 0, and see that it is."""
        import llama_cpp

        data = self.bytes()
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        _clear(llm)
        if llama_cpp.llama_state_seq_set_data(llm.ctx, buffer, len(data), 0) != len(data):
            raise SacError(f"llama.cpp took no state of {len(self.positions):,} cells: load it with a larger n_ctx")
        if _State.of(llm).bytes() != data:
            raise SacError("llama.cpp holds another cache than it was given: report it, with the release installed")


def _checked(backbone: Any, llm: Any) -> _State:
    """The form of a model's cache, once llama.cpp has computed the keys and values of a short text as ours are."""
    name = llm.metadata.get("general.architecture")
    if name not in PAIRED:
        raise LibraryMismatch(f"the .gguf is of architecture {name!r}; memories are given to {', '.join(PAIRED)}")
    ids = torch.tensor(backbone.tokens(PROBE))
    (own,) = backbone.encode([ids], [backbone.even(torch.arange(len(ids)))], causal=True, use_lora=False)
    memory = compose([own], backbone.inv_freq, scaling=backbone.rope_scaling, dtype=backbone.dtype)
    _clear(llm)
    llm.eval(ids.tolist())
    found = _State.of(llm)
    layers, heads, dim = backbone.kv_shape
    shapes = {t.shape for t in (*found.keys, *found.values)}
    if len(found.keys) != layers or shapes != {(len(ids), heads * dim)}:
        raise LibraryMismatch(
            f"the .gguf has {len(found.keys)} layers of keys {shapes}; the base model of the library has {layers} of "
            f"{(len(ids), heads * dim)}: load that model"
        )
    paired = PAIRED[name]
    for kind, theirs, ours in (
        ("keys", found.keys, _rows(memory.keys, memory, paired)),
        ("values", found.values, _rows(memory.values, memory, False)),
    ):
        for layer, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            if not (error := float(np.linalg.norm(a - b) / np.linalg.norm(b))) <= APART:
                raise GateError(
                    f"llama.cpp computes other {kind} in layer {layer} than the library's base model (relative error "
                    f"{error:.2f}, at most {APART} is allowed): load a .gguf of that very model"
                )
    return _State(found.magic, found.positions, found.keys, found.values, found.types, found.turned, paired)


def _rows(tensor: torch.Tensor, memory: Memory, paired: bool) -> list[np.ndarray]:
    """Keys or values of a memory of even heads as cells: per layer float32 (slots, kv_heads * head_dim)."""
    layers, heads = memory.counts.shape
    rows = tensor.float().cpu().view(layers, heads, -1, tensor.shape[1])
    if paired:
        rows = rows.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return list(rows.transpose(1, 2).flatten(2).numpy())


def _clear(llm: Any) -> None:
    llm.reset()
    llm._ctx.kv_cache_clear()
