"""Model folders of others: what they name is not imported, and what is wrong with them has a name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sac_rag.errors import ModelError
from sac_rag.models.borrowed import check_borrowed
from sac_rag.models.embedder import Embedder
from sac_rag.models.loading import load_base
from sac_rag.models.reranker import CrossEncoder

DENSE = "sentence_transformers.models.Dense"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tiny_embedder: Path, tmp_path: Path) -> Path:
    """An embedder that sentence-transformers is needed for, with code of its own beside it."""
    folder = shutil.copytree(tiny_embedder, tmp_path / "theirs")
    (folder / "evil.py").write_text("import sys\nsys.modules['it_ran'] = sys\nclass Dense:\n    pass\n")
    return folder


def modules(folder: Path, *more: dict[str, str]) -> None:
    found = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*found, *more]))


@pytest.mark.parametrize(
    "name",
    [
        "evil.Dense",
        "Dense",
        "os.Dense",
        "sentence_transformers.models.Router",
        "sentence_transformers.evil.WordEmbeddings",
    ],
)
def test_modules_of_their_own_are_not_imported(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases of sentence-transformers import them from the folder, whoever is trusted."""
    monkeypatch.syspath_prepend(str(folder))
    modules(folder, {"type": name, "path": ""})
    with pytest.raises(ModelError, match="names the module"):
        Embedder(str(folder), device="cpu").encode(["fox"])
    assert "it_ran" not in sys.modules and "evil" not in sys.modules


@pytest.mark.parametrize("name", ["evil.Dense", "os.system", "torch.hub.load", "torch.nnx", "builtins.print"])
def test_activations_of_their_own_are_not_called(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    modules(folder, {"type": DENSE, "path": "2_Dense"})
    (folder / "2_Dense").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "2_Dense")
    (folder / "2_Dense/config.json").write_text(json.dumps({"activation_function": name, "out_features": 8}))
    with pytest.raises(ModelError, match="activation"):
        Embedder(str(folder), device="cpu").encode(["fox"])
    for key in ("sbert_ce_default_activation_function", "sentence_transformers"):
        value: Any = name if key.startswith("sbert") else {"activation_fn": name}
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, key: value}))
        with pytest.raises(ModelError, match="activation"):
            CrossEncoder(str(folder))("fox", ["dog"])
        (folder / "config.json").write_text(json.dumps(settings))
    assert "it_ran" not in sys.modules


def test_weights_of_modules_are_no_pickles(folder: Path) -> None:
    modules(folder, {"type": DENSE, "path": "2_Dense"})
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense/config.json").write_text(json.dumps({"activation_function": "torch.nn.Tanh"}))
    (folder / "2_Dense/pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ModelError, match="pickles are never loaded"):
        Embedder(str(folder), device="cpu").encode(["fox"])


@pytest.mark.parametrize("text", ["5", "[5]", "{}", '[{"type": 1}]', '[{"path": ""}]', "[" * 9000])
def test_lists_of_modules_that_are_none(folder: Path, text: str) -> None:
    (folder / "modules.json").write_text(text)
    if text != "{}":  # which names none
        with pytest.raises(ModelError):
            check_borrowed(folder)


def changed(path: Path, change: Callable[[Any], None]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


DAMAGE: dict[str, tuple[str, Callable[[Any], None]]] = {
    "a token that is a number": ("tokenizer_config.json", lambda c: c.update(bos_token=5)),
    "tokens that are a list": ("tokenizer_config.json", lambda c: c.update(eos_token=[1], pad_token=[1])),
    "a class of tokenizers": ("tokenizer_config.json", lambda c: c.update(tokenizer_class=7)),
    "an id beyond all": ("tokenizer.json", lambda c: c["added_tokens"][0].update(id=2**63)),
    "another step": ("tokenizer.json", lambda c: c.update(post_processor={"type": "None"})),
    "no model": ("tokenizer.json", lambda c: c.update(model=5)),
    "no layers": ("config.json", lambda c: c.update(num_hidden_layers="x")),
    "heads": ("config.json", lambda c: c.update(num_attention_heads=-1)),
    "a flag that is a text": ("config.json", lambda c: c.update(mlp_bias="default", hidden_act=5)),
    "an end that is a table": ("config.json", lambda c: c.update(eos_token_id={"a": 1})),
    "a width of nothing": ("config.json", lambda c: c.update(hidden_size=0)),
    "code of its own": ("config.json", lambda c: c.update(model_type="x", auto_map={"AutoConfig": "evil.Dense"})),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("kind", ["base", "embedder"])
def test_settings_that_are_nonsense_are_errors_of_ours(
    kind: str, what: str, tiny_base: Path, tiny_embedder: Path, tmp_path: Path
) -> None:
    """What parses them raises whatever it likes, a bare Exception too; some nonsense is not even looked at."""
    folder = shutil.copytree({"base": tiny_base, "embedder": tiny_embedder}[kind], tmp_path / "theirs")
    name, change = DAMAGE[what]
    changed(folder / name, change)
    try:
        if kind == "base":
            load_base(folder, torch.device("cpu"), torch.float32)
        else:
            Embedder(str(folder), device="cpu").encode(["fox"])
    except ModelError as error:
        assert str(folder) in str(error)
