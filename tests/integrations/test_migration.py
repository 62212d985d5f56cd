"""Two tutorials, of LangChain and of LlamaIndex, ported: both versions run, five lines differ, and anchors are read."""

from __future__ import annotations

import dataclasses
import difflib
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListChatModel
from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import MockLLM

from sac_rag import IndexConfig, SacRag, samples
from sac_rag.answer.tags import PassageRef
from sac_rag.models.embedder import Embedder

from .real import default_models

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
READMES = {
    "langchain": ROOT / "integrations/langchain-sac/README.md",
    "llama_index": ROOT / "integrations/llama-index-sac/README.md",
}
DOCUMENT = samples.documents() / "adermatoglyphia.txt"
QUESTION = "What do people with adermatoglyphia lack?"

FRAMEWORKS = pytest.mark.parametrize("framework", READMES)


def code(framework: str, version: str) -> list[str]:
    """The lines of an example but for its docstring and blank ones."""
    text = (EXAMPLES / framework / f"migration_{version}.py").read_text("utf-8")
    return [line for line in text.split('"""', 2)[2].splitlines() if line.strip()]


@FRAMEWORKS
def test_five_lines_are_new(framework: str) -> None:
    found = list(difflib.ndiff(code(framework, "before"), code(framework, "after")))
    assert sum(line.startswith("+ ") for line in found) == 5


@FRAMEWORKS
def test_the_readme_shows_that_diff(framework: str) -> None:
    (shown,) = re.findall(r"```diff\n(.*?)```", READMES[framework].read_text("utf-8"), re.S)
    lines = [line for line in shown.splitlines() if line.strip()]
    assert {line[0] for line in lines} == set(" +-")
    for sign, version in (("-", "before"), ("+", "after")):
        mine = [line[1:] for line in lines if line[0] in (" ", sign)]
        whole = code(framework, version)
        changed = {line[2:] for line in difflib.ndiff(code(framework, "before"), code(framework, "after"))
                   if line[0] == sign}  # fmt: skip
        assert changed == {line[1:] for line in lines if line[0] == sign}
        # Sorting of imports aside, what is shown stands in the file in this order, and nothing but imports is left out.
        assert sorted(mine) == sorted(line for line in whole if line in mine)
        assert [line for line in mine if "import" not in line] == [
            line for line in whole if not re.match(r"(from \S+ )?import ", line)
        ]


class Heard:
    """What the models were sent: `texts` by stand-ins, `prompts` and the passages in them by the library's own."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.prompts: list[Any] = []
        self.parts: list[str | PassageRef] = []


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    told, build = Heard(), SacRag.conversation

    def conversation(self: SacRag, messages: Any, *args: Any, **settings: Any) -> Any:
        told.parts += [p for m in messages for p in m.content]
        told.prompts.append(build(self, messages, *args, **settings))
        return told.prompts[-1]

    monkeypatch.setattr(SacRag, "conversation", conversation)
    return told


@pytest.fixture
def stand_ins(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """In place of packages that want an account or a server; they embed with the model of `name`."""
    chosen = {"name": IndexConfig().embedder}

    def encode(texts: list[str], kind: str) -> list[list[float]]:
        return Embedder(chosen["name"]).encode(texts, kind=kind).tolist()

    class OpenAIEmbeddings(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return encode(texts, "passage")

        def embed_query(self, text: str) -> list[float]:
            return encode([text], "query")[0]

    class ChatOpenAI(FakeListChatModel):
        responses: list[str] = ["Fingerprints."]  # noqa: RUF012

        def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
            heard.texts.append("\n".join(m.text for m in messages))
            return super()._call(messages, *args, **kwargs)

    class HuggingFaceEmbedding(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return encode([text], "passage")[0]

        def _get_query_embedding(self, query: str) -> list[float]:
            return encode([query], "query")[0]

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

    class Ollama(MockLLM):
        def __init__(self, model: str) -> None:
            super().__init__()

        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
            heard.texts.append(prompt)
            return super().complete(prompt, formatted=formatted, **kwargs)

    for name, *things in (
        ("langchain_openai", ChatOpenAI, OpenAIEmbeddings),
        ("llama_index.embeddings.huggingface", HuggingFaceEmbedding),
        ("llama_index.llms.ollama", Ollama),
    ):
        module = ModuleType(name)
        module.__dict__.update({thing.__name__: thing for thing in things})
        monkeypatch.setitem(sys.modules, name, module)
    before = dict(Settings.__dict__)
    yield chosen
    Settings.__dict__.clear()
    Settings.__dict__.update(before)


def run(framework: str, version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs an example; its variables."""
    (folder / "data").mkdir(exist_ok=True)
    file = Path(shutil.copy(DOCUMENT, folder / "data"))
    given = [str(file), QUESTION] if framework == "langchain" else [QUESTION]
    program = EXAMPLES / framework / f"migration_{version}.py"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [program.name, *given])
    return runpy.run_path(str(program), run_name="__main__")


def both_run(
    framework: str, heard: Heard, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Runs both versions; the texts of the passages that the new one read as memory."""
    run(framework, "before", folder, monkeypatch)
    assert capsys.readouterr().out.strip()
    (sent,) = heard.texts
    assert "SMARCAD1" in sent and QUESTION in sent
    assert (heard.prompts, "[[sac" in sent) == ([], False)

    run(framework, "after", folder, monkeypatch)
    assert capsys.readouterr().out.strip()
    assert len(heard.texts) == 1
    (prompt,) = heard.prompts
    text = "".join(p for p in heard.parts if isinstance(p, str))
    ids = [p.id for p in heard.parts if isinstance(p, PassageRef)]
    assert QUESTION in text and "SMARCAD1" not in text and "[[sac" not in text
    with SacRag.open(folder / "tutorial.lib") as rag:
        passages = rag.library.get(ids)
        assert len(passages) == len(ids) > 0
        anchors, prefix = sum(a for a, _ in rag.extents(ids)), rag.engine.method.prefix
        slots = prompt.slots - prefix.anchors
        assert 0 < slots <= anchors < sum(p.tokens for p in passages)
        assert (slots < anchors) == bool(prompt.notices), "what is left of a text that is longer than a passage is told"
        left_out = sum(p.tokens for p in passages) - prompt.source_tokens
        assert left_out >= 0 and (left_out > 0) == bool(prompt.notices)
        # Every token that was read is one of the text around the passages.
        frame = rag.engine.method.backbone.tokenizer
        assert prompt.tokens <= len(frame(text).input_ids) + 40
    return [p.text for p in passages]


def small(config: IndexConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """New libraries are made with this config where none is given."""
    monkeypatch.setattr(IndexConfig.__init__, "__defaults__", dataclasses.astuple(config))
    # A token of the tiny model is a byte: a chunk of the tutorials would not fit its context.
    monkeypatch.setattr("sac_rag.compress.backbone.Backbone.context_length", 8192)


@FRAMEWORKS
def test_both_versions_run(
    framework: str,
    heard: Heard,
    stand_ins: dict[str, str],
    tiny_config: IndexConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_ins["name"] = tiny_config.embedder
    small(tiny_config, monkeypatch)
    both_run(framework, heard, tmp_path, monkeypatch, capsys)


@pytest.mark.model
@pytest.mark.slow
@FRAMEWORKS
def test_both_versions_find_the_same(
    framework: str,
    heard: Heard,
    stand_ins: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    default_models()
    read = both_run(framework, heard, tmp_path, monkeypatch, capsys)
    assert all(text in heard.texts[0] for text in read)


def test_running_the_ported_chain_again_compresses_nothing(
    heard: Heard,
    stand_ins: dict[str, str],
    tiny_config: IndexConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    embedded: list[str],
) -> None:
    small(tiny_config, monkeypatch)
    run("langchain", "after", tmp_path, monkeypatch)["vector_store"].close()  # as the end of a process would
    assert embedded
    embedded.clear()
    run("langchain", "after", tmp_path, monkeypatch)
    assert embedded == []
    assert heard.parts[: len(heard.parts) // 2] == heard.parts[len(heard.parts) // 2 :]
