"""What a model is, as one hash: of its source for what we converted, of its files for any other folder."""

from __future__ import annotations

from pathlib import Path

from sac_rag import foreign
from sac_rag.config import fingerprint
from sac_rag.errors import HashMismatch, ModelError
from sac_rag.models.cache import Manifest, cached_hash, read_manifest

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
MODULE_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
VOLATILE = ("transformers_version", "_name_or_path")
"""Config keys that say who saved the model, not what it computes."""


def fingerprint_of(path: str | Path) -> str:
    """SHA-256 (hex) that names weights and config of a model folder, without its tokenizer.

    A pinned or converted model has the fingerprint of its source, equal on every machine. Files are read again only
    when their size or mtime changed. Raises HashMismatch when a cached model was altered, ModelError when the folder
    holds no safetensors.
    """
    folder = Path(path)
    if manifest := read_manifest(folder):
        _check_cached(folder, manifest)
        return manifest.fingerprint
    return fingerprint({"weights": _hashes(folder, weight_files(folder)), "config": _configs(folder)})


def tokenizer_fingerprint_of(path: str | Path) -> str:
    """SHA-256 (hex) that names the tokenizer and chat template of a model folder; as `fingerprint_of` otherwise."""
    folder = Path(path)
    if manifest := read_manifest(folder):
        _check_cached(folder, manifest)
        return manifest.tokenizer_fingerprint
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        raise ModelError(f"{folder} holds no tokenizer ({', '.join(TOKENIZER_FILES[:2])}, …)")
    return fingerprint({"tokenizer": _hashes(folder, files)})


def weight_files(folder: Path) -> list[Path]:
    """The safetensors a folder's model consists of, sorted; raises ModelError when there are none or one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted({Path(shard).name for shard in foreign.read_json(index)["weight_map"].values()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} is not a shard index ({error})") from error
        files = [folder / shard for shard in shards]
    else:
        files = [folder / "model.safetensors"]
        if not files[0].is_file():
            files = sorted(folder.glob("*.safetensors"))
    # sentence-transformers keeps the weights of later modules in subfolders such as 2_Dense
    files += sorted(folder.glob("[0-9]*_*/*.safetensors"))
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{folder} lacks {missing[0]} ({len(missing)} of {len(files)} weight files missing)")
    if not files:
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        why = ": its weights are pickles, which are never loaded; save it as safetensors" if pickles else ""
        raise ModelError(f"{folder} holds no *.safetensors weights{why}")
    return files


def _check_cached(folder: Path, manifest: Manifest) -> None:
    for name, (_, digest) in manifest.files.items():
        try:
            found = cached_hash(folder / name)
        except OSError:
            found = "(missing)"
        if found != digest:
            raise HashMismatch(f"{folder / name} has sha256 {found}, expected {digest}: {anew(folder, manifest)}")


def anew(folder: Path, manifest: Manifest) -> str:
    """How a damaged model of the cache is had again."""
    own = manifest.source.startswith("file ")
    return f"remove {folder} and " + ("name the .gguf file again" if own else f"run `sac models pull {manifest.name}`")


def _hashes(folder: Path, files: list[Path]) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): cached_hash(file) for file in files}


def _configs(folder: Path) -> dict[str, object]:
    paths = [folder / "config.json", *(folder / name for name in MODULE_FILES)]
    paths += sorted(folder.glob("[0-9]*_*/config.json"))
    found: dict[str, object] = {}
    for path in paths:
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = _stable(read_json(path))
    return found


def _stable(value: object) -> object:
    return {k: v for k, v in value.items() if k not in VOLATILE} if isinstance(value, dict) else value


def read_json(path: Path) -> object:
    """The JSON of a model's file; raises ModelError when it cannot be read."""
    try:
        value: object = foreign.read_json(path)
        return value
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error})") from error
