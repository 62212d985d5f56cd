"""Names to folders: what is taken, what is refused, and in which words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sac_rag.errors import ModelError
from sac_rag.models import sources
from sac_rag.models.cache import models_root


@pytest.fixture
def llama_folder(tiny_llama: Any, cache: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "my-llama"
    tiny_llama.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_importing_loads_no_heavy_module() -> None:
    code = "import sys, sac_rag.models.sources, sac_rag.models.embedder, sac_rag.models.adapters; print(*sys.modules)"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "huggingface_hub", "rich", "gguf"} & set(run.stdout.split())


def test_a_folder_is_taken_as_it_is(llama_folder: Path) -> None:
    assert sources.resolve_base(str(llama_folder)) == llama_folder


def test_the_fingerprint_follows_weights_and_config_only(llama_folder: Path) -> None:
    before, words = sources.fingerprint_of(llama_folder), sources.tokenizer_fingerprint_of(llama_folder)
    config = json.loads((llama_folder / "config.json").read_text())
    config["transformers_version"] = "0"
    (llama_folder / "config.json").write_text(json.dumps(config))
    (llama_folder / "tokenizer.json").write_text('{"other": 1}')
    (llama_folder / "README.md").write_text("notes")
    assert sources.fingerprint_of(llama_folder) == before
    assert sources.tokenizer_fingerprint_of(llama_folder) != words
    config["rms_norm_eps"] = 1e-3
    (llama_folder / "config.json").write_text(json.dumps(config))
    changed = sources.fingerprint_of(llama_folder)
    assert changed != before
    weights = bytearray((llama_folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (llama_folder / "model.safetensors").write_bytes(weights)
    assert sources.fingerprint_of(llama_folder) not in (before, changed)


def test_another_architecture_is_refused_by_name(llama_folder: Path) -> None:
    (llama_folder / "config.json").write_text('{"model_type": "gemma2"}')
    with pytest.raises(ModelError, match=r"my-llama is a 'gemma2' model; sac-rag reads Llama, Mistral, Qwen2 or Qwen3"):
        sources.resolve_base(str(llama_folder))


def test_pickled_weights_are_refused(llama_folder: Path) -> None:
    (llama_folder / "model.safetensors").rename(llama_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles, which are never loaded"):
        sources.resolve_base(str(llama_folder))


def test_a_missing_shard_is_named(llama_folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (llama_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.move(llama_folder / "model.safetensors", llama_folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors \(1 of 2"):
        sources.resolve_base(str(llama_folder))


def test_a_folder_without_tokenizer_is_refused(llama_folder: Path) -> None:
    (llama_folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        sources.resolve_base(str(llama_folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smollm2-135m-instrukt", r"Did you mean 'smollm2-135m-instruct'\?"),
        ("gpt", r"unknown base model 'gpt'.*hub id"),
        ("./nowhere", "no such folder or .gguf file"),
        ("missing.gguf", "no such folder or .gguf file"),
    ],
)
def test_unknown_names(cache: Path, name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        sources.resolve_base(name)


def test_unknown_embedder_and_pull(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"Did you mean 'all-minilm-l6-v2'\?"):
        sources.resolve_embedder("all-minilm-l6")
    with pytest.raises(ModelError, match=r"Known: smollm2-135m-instruct, all-minilm-l6-v2"):
        sources.pull("nothing-like-it")
    with pytest.raises(ModelError, match=r"run `sac models pull smollm2-135m-instruct`"):
        sources.path("smollm2-135m-instruct")


def test_an_empty_folder_is_no_embedder(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no embedding model"):
        sources.resolve_embedder(str(tmp_path))


def test_the_list_names_both_defaults(cache: Path) -> None:
    base, embedder = sources.list_models()
    assert (base.name, base.kind, base.present) == ("smollm2-135m-instruct", "base", False)
    assert (embedder.name, embedder.kind, embedder.licence) == ("all-minilm-l6-v2", "embedder", "Apache-2.0")
    assert base.bytes > 2e8 and base.path.parent == models_root()
