"""Hub models: the config is judged before any weight moves, pickles stay away, failures are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from sac_rag.errors import ModelError
from sac_rag.models import hub, sources


class Hub:
    """A hub that serves one folder and notes what was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def file(self, repo: str, name: str, **where: Any) -> str:
        self.asked.append(("file", repo, name, where["revision"], where["local_files_only"]))
        if self.error is not None:
            raise self.error
        return str(self.folder / name)

    def snapshot(self, repo: str, **options: Any) -> str:
        self.asked.append(("snapshot", repo, options["allow_patterns"], options["revision"]))
        return str(self.folder)


@pytest.fixture
def served(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"w")
    (folder / "tokenizer.json").write_text("{}")
    fake = Hub(folder)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot)
    return fake


def test_a_llama_is_fetched_without_pickles(served: Hub) -> None:
    assert sources.resolve_base("owner/model@v1.0") == served.folder
    (_, repo, name, revision, local), (_, _, patterns, again) = served.asked
    assert (repo, name, revision, local, again) == ("owner/model", "config.json", "v1.0", False, "v1.0")
    assert "*.safetensors" in patterns and not any("bin" in pattern or "py" in pattern for pattern in patterns)


def test_another_architecture_moves_no_weights(served: Hub) -> None:
    (served.folder / "config.json").write_text('{"model_type": "gemma3"}')
    with pytest.raises(ModelError, match="owner/model is a 'gemma3' model"):
        sources.resolve_base("owner/model")
    assert [asked[0] for asked in served.asked] == ["file"]


def test_an_embedder_may_be_of_any_architecture(served: Hub) -> None:
    (served.folder / "config.json").write_text('{"model_type": "bert"}')
    assert sources.resolve_embedder("owner/model") == served.folder


class ConnectTimeout(Exception):
    """As the HTTP libraries name theirs."""


@pytest.mark.parametrize(
    "error",
    [LocalEntryNotFoundError("x"), OfflineModeIsEnabled("x"), ConnectionError("x"), ConnectTimeout("https://x")],
)
def test_no_network_is_one_clear_line(served: Hub, error: Exception) -> None:
    served.error = error
    with pytest.raises(ModelError) as caught:
        sources.resolve_base("owner/model")
    assert "not in the local cache and the hub is out of reach" in str(caught.value)
    assert "://" not in str(caught.value) and "\n" not in str(caught.value)


def test_any_other_failure_is_one_clear_line_too(served: Hub) -> None:
    served.error = RuntimeError("https://secret")
    with pytest.raises(ModelError, match=r"^owner/model cannot be fetched from the hub \(RuntimeError\)") as caught:
        sources.resolve_base("owner/model")
    assert "secret" not in str(caught.value)


def test_offline_asks_only_the_local_cache(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAC_OFFLINE", "1")
    sources.resolve_base("owner/model")
    assert served.asked[0][-1] is True


@pytest.mark.parametrize(
    ("name", "yes"),
    [("a/b", True), ("meta-llama/Llama-3.2-1B@main", True), ("a", False), ("a/b/c", False), ("../b", False)],
)
def test_what_counts_as_a_hub_id(name: str, yes: bool) -> None:
    assert hub.is_hub_id(name) is yes
