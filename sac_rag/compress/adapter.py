"""Adapters on disk: a folder with adapter.safetensors (bf16), card.json and, where one was trained for its memories,
reader.safetensors. Nothing in it is ever executed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sac_rag.compress.backbone import Backbone, LoraSpec, least_numbers
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods import METHODS
from sac_rag.compress.methods.base import Method
from sac_rag.compress.placing import Placing
from sac_rag.compress.reader_adapter import ReaderAdapter
from sac_rag.compress.templates import layout_of
from sac_rag.config import check_evidence, check_ratio
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.foreign import check_regular, parse_object, read_bytes, read_text

CARD_VERSION = 1
CARD_BYTES = 16 * 2**20
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": int | float, "bool": bool, "dict": dict, "tuple": list}
"""What a field of a card is in JSON, by its annotation."""
MAX_BYTES = 512 * 2**20
READER_WEIGHTS = "reader.safetensors"
COMPUTED_WITH = ("base_fingerprint", "method", "ratios", "lora", "options", "layout", "placing", "evidence", "reader")
"""Fields of a card that answers depend on."""
HEADER_BYTES = 2**20
"""Room for the names in a safetensors file."""


@dataclass(frozen=True)
class Card:
    """What an adapter is: read before its tensors, and part of every library's fingerprint."""

    base: str
    """Name of the base model it was trained for."""
    base_fingerprint: str
    """Fingerprint of that model's weights."""
    method: str
    """Compression method, by registry name."""
    ratios: tuple[float, ...]
    """Ratios it was trained at."""
    lora: dict[str, Any] = field(default_factory=dict)
    """Fields of LoraSpec."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the method (selector, budget, causal, learn_prefix, sharpness, ...)."""
    layout: dict[str, str] = field(default_factory=dict)
    """Fields of PromptLayout."""
    placing: dict[str, Any] = field(default_factory=dict)
    """Fields of Placing that the adapter was made for; those left out are its method's."""
    evidence: int = 0
    """Sentences that are read as text beside memory, where a question does not say (`AskConfig.evidence`)."""
    reader: dict[str, Any] = field(default_factory=dict)
    """Of a reader adapter beside it: fields of LoraSpec, the SHA-256 of its tensors, and its own `evidence`. Stored
    memory does not depend on it."""
    training: dict[str, Any] = field(default_factory=dict)
    """Data, steps, settings, as printed by the training command."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Results with the command that printed them."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """Ratio -> thresholds on the confidence of answers, as `sac calibrate --write` found them."""
    licence: str = ""
    """Licence of the tensors and of the data behind them."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the file of tensors ("tensors") and of COMPUTED_WITH ("fields"), against rot; cards of before
    have none."""
    version: int = CARD_VERSION

    @classmethod
    def read(cls, folder: Path) -> Card:
        """The card of an adapter folder; raises AdapterError on a missing, damaged or unknown one."""
        path = folder / "card.json"
        try:
            raw = parse_object(read_text(path, CARD_BYTES))
        except FileNotFoundError:
            raise AdapterError(f"{folder} is not an adapter: it has no card.json") from None
        except (OSError, ValueError) as error:
            raise AdapterError(f"{path} does not parse: {error}") from error
        if unknown := set(raw) - set(cls.__dataclass_fields__):
            raise AdapterError(f"{path} has unknown fields {sorted(unknown)}; it may need a newer sac-rag")
        if raw.get("version") != CARD_VERSION:
            raise AdapterError(f"{path} has version {raw.get('version')!r}; this sac-rag reads {CARD_VERSION}")
        if not isinstance(raw.get("calibration", {}), dict):
            raise AdapterError(f"{path}: calibration is {raw['calibration']!r}, not thresholds by ratio")
        for name, value in raw.items():
            kind = _KINDS.get(str(cls.__dataclass_fields__[name].type).partition("[")[0])
            if kind and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
                raise AdapterError(
                    f"{path}: {name} is {str(value)[:80]!r} ({type(value).__name__}), which it cannot be"
                )
        try:
            if not all(type(ratio) in (int, float) for ratio in raw["ratios"]):
                raise ValueError(f"ratios {raw['ratios']} are not numbers")
            ratios = tuple(float(ratio) for ratio in raw["ratios"])
            for ratio in ratios:
                check_ratio(ratio)
            card = cls(**{**raw, "ratios": ratios})
            for count in (card.evidence, card.reader.get("evidence", 0)):
                check_evidence(count)
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise AdapterError(f"{path} is incomplete or damaged: {error}") from error
        found = card.hash_of_fields()
        if (wanted := card.hashes.get("fields", found)) != found:
            raise AdapterError(
                f"{path} is not as it was written (sha256 {found[:12]} in place of {str(wanted)[:12]}): "
                'copy the adapter again; if you changed it yourself, take "hashes" out'
            )
        return card

    def hash_of_fields(self) -> str:
        """SHA-256 (hex) of the fields that say how the tensors are used; of those that say something."""
        values = asdict(self)
        text = json.dumps({name: values[name] for name in COMPUTED_WITH if values[name]}, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def lora_spec(self) -> LoraSpec | None:
        """The LoRA settings; None without any. Raises AdapterError."""
        return _lora_spec(self.lora)

    def reader_spec(self) -> LoraSpec | None:
        """The LoRA settings of the reader adapter; None where there is none. Raises AdapterError."""
        return _lora_spec({name: value for name, value in self.reader.items() if name not in ("sha256", "evidence")})

    def evidence_of(self, reader: str) -> int:
        """Sentences beside memory that a reader was trained with: "base", or "adapter", the one beside it."""
        return self.evidence if reader == "base" else int(self.reader.get("evidence", 0))

    def write(self, folder: Path) -> None:
        """Put this card into an adapter's folder, whole or not at all, with the hash of its fields."""
        values = {**asdict(self), "hashes": {**self.hashes, "fields": self.hash_of_fields()}}
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        write_atomic(folder / "card.json", text.encode())


def _lora_spec(values: Mapping[str, Any]) -> LoraSpec | None:
    if not values:
        return None
    try:
        return LoraSpec(**{**values, "targets": tuple(values["targets"])})
    except (TypeError, KeyError, ValueError) as error:
        raise AdapterError(f"LoRA settings {dict(values)} are not rank, alpha, targets: {error}") from error


def build(model: Any, tokenizer: Any, card: Card, *, trains: bool = False, starts: bool = True) -> Method:
    """A fresh method as a card describes it, untrained. trains, starts: as of `Backbone`."""
    make = METHODS.load(card.method)
    _check_options(card, make)
    # Judged before anything is made.
    layout, placing = PromptLayout.from_mapping(card.layout), placing_of(card)
    backbone = Backbone(model, tokenizer, card.lora_spec(), trains=trains, starts=starts)
    try:
        method: Method = make(backbone, layout, **card.options)
    except TypeError as error:
        raise AdapterError(f"method {card.method!r} does not take the options {card.options}: {error}") from error
    method.placing, method.evidence = placing, card.evidence
    return method


def placing_of(card: Card) -> Placing:
    """The policy that a card names; what it leaves out is as its method was made for."""
    return Placing.from_mapping(card.placing, METHODS.load(card.method).made_for)


def untrained(
    name: str,
    model: Any,
    tokenizer: Any,
    *,
    base: str,
    base_fingerprint: str,
    options: Mapping[str, Any] | None = None,
) -> tuple[Method, Card]:
    """A method without an adapter, with the card of the one that it does without: default options but those given, and
    the prompt in the model's chat template. One that has something to train has it as training would start."""
    layout = layout_of(tokenizer).to_mapping()
    card = Card(
        base=base,
        base_fingerprint=base_fingerprint,
        method=name,
        ratios=(),
        options=dict(options or {}),
        layout=layout,
    )
    return build(model, tokenizer, card), card


def load(
    folder: Path,
    model: Any,
    tokenizer: Any,
    *,
    base_fingerprint: str | None = None,
    options: Mapping[str, Any] | None = None,
    trains: bool = False,
) -> tuple[Method, Card]:
    """The trained method of an adapter folder, ready to compress. options: in place of those of its card. trains: as of
    `Backbone`.

    Raises AdapterError when it was made for other base weights, or when its tensors are not exactly those
    that its card implies (names, shapes, bf16/fp16/fp32, total size).
    """
    card = Card.read(folder)
    if base_fingerprint is not None and card.base_fingerprint != base_fingerprint:
        raise AdapterError(
            f"{folder} was trained for {card.base} ({card.base_fingerprint[:12]}), the loaded model is "
            f"{base_fingerprint[:12]}; choose the adapter of this model, or the model of this adapter"
        )
    card = dataclasses.replace(card, options={**card.options, **(options or {})})
    _check_room(folder / "adapter.safetensors", card, model)
    method = build(model, tokenizer, card, trains=trains, starts=False)
    most = 4 * sum(p.numel() for p in method.parameters().values()) + HEADER_BYTES
    assign(method, read_tensors(folder / "adapter.safetensors", most), str(folder))
    with (folder / "adapter.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if (wanted := card.hashes.get("tensors", found)) != found:
        raise AdapterError(
            f"{folder / 'adapter.safetensors'} is not the file that its card names ({found[:12]} in place of "
            f"{str(wanted)[:12]}): copy the adapter's folder again"
        )
    return method, card


def load_reader(folder: Path, method: Method, card: Card, *, trains: bool = False) -> ReaderAdapter:
    """The reader adapter beside an adapter, for the memories of `method`, loaded from the same folder.

    Raises AdapterError where there is none, or another one than the card names.
    """
    spec = card.reader_spec()
    if spec is None:
        raise AdapterError(
            f'{folder} has no reader adapter: leave reader="adapter" out, or train one with `sac train --objective '
            f"reader --from {folder}`"
        )
    path = folder / READER_WEIGHTS
    _check_lora_room(path, spec, method.backbone.decoder)
    reader = ReaderAdapter(method.backbone, spec, trains=trains)
    try:
        data = read_bytes(path, 4 * sum(p.numel() for p in reader.parameters().values()) + HEADER_BYTES)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    if (found := hashlib.sha256(data).hexdigest()) != card.reader.get("sha256"):
        raise AdapterError(
            f"{path} is not the file that its card names ({found[:12]} in place of "
            f"{str(card.reader.get('sha256'))[:12]}): copy the adapter's folder again"
        )
    _assign(reader.parameters(), _tensors_of(data, str(path)), str(path))
    reader.evidence = card.evidence_of("adapter")
    return reader


def _check_options(card: Card, make: Any) -> None:
    """AdapterError for an option that a method has not, and for one of another type than its default."""
    known = [p.name for p in inspect.signature(make.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(card.options) - set(known)):
        raise AdapterError(
            f"option {unknown[0]} of {card.method!r} is not known; it takes {', '.join(known) or 'none'}"
        )
    for name, parameter in inspect.signature(make).parameters.items():
        value, usual = card.options.get(name), parameter.default
        if value is None or usual is parameter.empty:
            continue
        kind = _KINDS.get(type(usual).__name__)
        if kind and (not isinstance(value, kind) or isinstance(value, bool) != isinstance(usual, bool)):
            raise AdapterError(f"option {name} of {card.method!r} is {str(value)[:80]!r}, not like {usual!r}")


def _check_room(path: Path, card: Card, model: Any) -> None:
    """AdapterError where a card's LoRA alone has more numbers than the file of weights holds: they are made first."""
    if (spec := card.lora_spec()) is not None:
        _check_lora_room(path, spec, model)


def _check_lora_room(path: Path, spec: LoraSpec, model: Any) -> None:
    numbers = least_numbers(model, spec)
    try:
        size = check_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    if 2 * numbers > size:
        raise AdapterError(f"{path} has {size:,} bytes; by its card it has at least {2 * numbers:,}")


def read_tensors(path: Path, most: int = MAX_BYTES) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file of at most `most` bytes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if (size := check_regular(path, MAX_BYTES)) > most:
            raise AdapterError(f"{path} has {size:,} bytes; by its card it has at most {most:,}")
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error


def _tensors_of(data: bytes, origin: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file that was read already."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (ValueError, SafetensorError) as error:
        raise AdapterError(f"{origin} cannot be read: {error}") from error


def assign(method: Method, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copy tensors into the method's parameters; names, shapes and finiteness must match exactly."""
    _assign(method.parameters(), tensors, origin)


def _assign(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    missing, extra = sorted(set(parameters) - set(tensors)), sorted(set(tensors) - set(parameters))
    if missing or extra:
        raise AdapterError(f"{origin}: tensors do not fit its card (missing {missing[:3]}, unknown {extra[:3]})")
    with torch.no_grad():
        for name, parameter in parameters.items():
            t = tensors[name]
            if t.shape != parameter.shape or t.dtype not in (torch.bfloat16, torch.float16, torch.float32):
                raise AdapterError(f"{origin}: {name} is {t.dtype} {tuple(t.shape)}, expected {tuple(parameter.shape)}")
            if not bool(torch.isfinite(t).all()):
                raise AdapterError(f"{origin}: {name} holds NaN or Inf")
            parameter.copy_(t)


def save(method: Method, card: Card, folder: Path) -> Card:
    """Write all files, each by fsync and rename, the card last: a folder with a card is a whole adapter. Returns the
    card as it is written, with the method's reader."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _bytes_of(method.parameters())
    write_atomic(folder / "adapter.safetensors", tensors)
    reader: dict[str, Any] = {}
    if method.reader is not None:
        data = _bytes_of(method.reader.parameters())
        write_atomic(folder / READER_WEIGHTS, data)
        spec = json.loads(json.dumps(dataclasses.asdict(method.reader.spec)))
        reader = {**spec, "sha256": hashlib.sha256(data).hexdigest()}
        reader |= {"evidence": method.reader.evidence} if method.reader.evidence else {}
    card = dataclasses.replace(card, evidence=method.evidence, reader=reader)
    hashes = {"tensors": hashlib.sha256(tensors).hexdigest(), "fields": card.hash_of_fields()}
    card = dataclasses.replace(card, hashes=hashes)
    card.write(folder)
    return card


def _bytes_of(parameters: Mapping[str, nn.Parameter]) -> bytes:
    """A safetensors file of them, in bf16."""
    from safetensors.torch import save

    return save({n: p.detach().to("cpu", torch.bfloat16).contiguous() for n, p in parameters.items()})


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a kill at any moment leaves the old or the new file, whole.

    Raises OSError, and leaves nothing half-written behind.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")  # others may write it too
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
