"""Starting a training run: base model, fresh or warm-started method, data, then `train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.backbone import LoraSpec
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods import METHODS
from sac_rag.compress.methods.base import Method
from sac_rag.compress.templates import layout_of
from sac_rag.config import DEFAULT_MODEL
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.models.adapters import adapter_sha256, find_adapter
from sac_rag.models.loading import choose_device, choose_dtype, load_base
from sac_rag.models.sources import fingerprint_of, resolve_base
from sac_rag.train.config import TrainConfig
from sac_rag.train.data import Encode, Mixture, Source
from sac_rag.train.loop import Progress, train
from sac_rag.train.objectives import OBJECTIVES, configured
from sac_rag.train.specs import kind_of, sources_of
from sac_rag.train.teacher import Teacher


def run(
    data: Sequence[str],
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    base: str | None = None,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    lora: LoraSpec | None = None,
    layout: Mapping[str, str] | None = None,
    placing: Mapping[str, Any] | None = None,
    start_from: str | Path | None = None,
    teacher: str | Path | None = None,
    licence: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    listen: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Card:
    """Train an adapter on `data` (PATH or PATH=WEIGHT) into the folder `output`; a run that was stopped goes on.

    `ask:PATH` turns the file's questions round (an answer is given, its question is to be said), `choice:PATH` offers
    two answers with about half of them, `cloze:PATH` asks questions made out of its texts in place of those it has,
    `quote:PATH` for the texts themselves. teacher: folder of a Full-FT adapter of the same base and layout, for
    `config.distil_weight`.
    placing: fields of Placing, in place of those of `start_from` or the method's own. layout: strings of the prompt in
    place of those of the model's chat template.
    What is None comes from the adapter `start_from`, whose tensors are then the first ones, or else is a default: the
    pinned base, method "sac", LoraSpec() and the "qa" prompt in the model's chat template. options change those of
    `start_from` where its tensors fit them. Raises ConfigError when something else is asked for that it does not have,
    or than the run in `output` has, TrainingError for unusable data or checkpoints, ModelError, AdapterError.
    """
    config = config or configured()
    if method is not None and not METHODS.load(method).trains:
        raise ConfigError(f"method {method!r} has nothing to train: index with it at once, without an adapter")
    specs = _checked(sources_of(data))
    folder = None if start_from is None else find_adapter(base or DEFAULT_MODEL, method or "sac", str(start_from))
    before = Card.read(folder) if folder else None
    name = base or (before.base if before else DEFAULT_MODEL)
    wanted = {
        "method": method,
        "lora": None if lora is None else lora.to_mapping(),
        "layout": layout,
    }
    if before:
        _agree(before, wanted, str(folder))
    path = resolve_base(name, fetch=base is not None or before is None)
    place = choose_device(device)
    model, tokenizer = load_base(path, place, choose_dtype(dtype, place))
    built: Method
    if folder:
        found = fingerprint_of(path)
        built, card = adapter.load(folder, model, tokenizer, base_fingerprint=found, options=options, trains=True)
        ratios = tuple(sorted({*card.ratios, *config.ratios}))
        licence = card.licence if licence is None else licence
        card = dataclasses.replace(card, ratios=ratios, metrics={}, calibration={}, licence=licence)
    else:
        card = Card(
            base=name,
            base_fingerprint=fingerprint_of(path),
            method=method or "sac",
            ratios=config.ratios,
            lora=spec.to_mapping() if (spec := _spec(lora, method or "sac")) else {},
            placing=METHODS.load(method or "sac").made_for.unusual(),
            options=dict(options or {}),
            layout=PromptLayout.from_mapping({**layout_of(tokenizer).to_mapping(), **(layout or {})}).to_mapping(),
            licence=licence or "",
        )
        built = adapter.build(model, tokenizer, card, trains=True)
    card = dataclasses.replace(card, placing={**card.placing, **(placing or {})})
    built.placing = adapter.placing_of(card)
    shown = None
    if teacher is not None:
        shown = Teacher.load(find_adapter(name, "full-ft", str(teacher)), built, card.base_fingerprint)
    OBJECTIVES.load(config.objective).prepare(config, built, folder, card)
    mixture = _mixture(specs, built.backbone.tokens, config)
    begun = adapter_sha256(folder) if folder else None
    return train(built, mixture, config, card, Path(output), start_from=begun, teacher=shown, listen=listen, stop=stop)


def _spec(lora: LoraSpec | None, method: str) -> LoraSpec | None:
    """As asked for, where the method carries LoRA: in the last layer, too, if it says "whole"."""
    adapts = METHODS.load(method).adapts
    if adapts == "nothing":
        if lora is not None:
            raise ConfigError(f"method {method!r} carries no LoRA: leave its settings out")
        return None
    lora = lora or LoraSpec()
    return dataclasses.replace(lora, whole=True) if adapts == "whole" else lora


def _checked(specs: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Data that can be told apart in a checkpoint, with weights one can draw by."""
    names = [kind + Path(path).name for kind, path in (kind_of(path) for path, _ in specs)]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise ConfigError(f"two data files are named {twice!r}; checkpoints tell files by their name: rename one")
    for path, weight in specs:
        if not 0 < weight < float("inf"):
            raise ConfigError(f"the weight of {path} is {weight:g}; it must be above 0")
    return specs


def _mixture(specs: Sequence[tuple[str, float]], encode: Encode, config: TrainConfig) -> Mixture:
    sources, plain = [], OBJECTIVES.load(config.objective).plain
    for path, weight in specs:
        kind, path = kind_of(path)
        sources.append(Source(path, encode, weight=weight, seed=config.seed, kind=kind, plain=plain))
    return Mixture(sources, seed=config.seed)


def _agree(card: Card, wanted: Mapping[str, Any], origin: str) -> None:
    """An adapter keeps its shape; what was asked for beside it must be that shape."""
    try:
        spec = card.lora_spec()
    except AdapterError as error:
        raise AdapterError(f"{origin}: {error}") from error
    lora = spec.to_mapping() if spec else {}
    layout = PromptLayout.from_mapping(card.layout).to_mapping()
    if wanted["layout"] is not None:
        wanted = {**wanted, "layout": {**layout, **wanted["layout"]}}
    has = {"method": card.method, "lora": lora, "layout": layout}
    for name, value in wanted.items():
        if value is not None and value != has[name]:
            raise ConfigError(
                f"{origin} has {name} {has[name]!r}, not {value!r}: leave it out, or train without --from"
            )
