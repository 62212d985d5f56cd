"""Tutorials whose models call tools, ported: both versions run, five lines differ, what is found is read as memory."""

from __future__ import annotations

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

pytest.importorskip("llguidance", reason='tools are an extra: pip install "sac-rag[tools]"')

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms.mock import MockFunctionCallingLLM

from sac_rag import AskConfig, IndexConfig, SacRag
from sac_rag.answer.engine import Engine
from sac_rag.answer.tags import PassageRef
from sac_rag.models.embedder import Embedder

from .langchain.conftest import TEMPLATE
from .real import default_models
from .test_migration import DOCUMENT, EXAMPLES, QUESTION, small

PROGRAMS = ["langchain/agentic", "langchain/analysis", "llama_index/agent"]
EACH = pytest.mark.parametrize("program", PROGRAMS)


def code(program: str, version: str) -> list[str]:
    """The lines of an example but for its docstring and blank ones."""
    text = (EXAMPLES / f"{program}_{version}.py").read_text("utf-8")
    return [line for line in text.split('"""', 2)[2].splitlines() if line.strip()]


@EACH
def test_at_most_five_lines_are_new(program: str) -> None:
    found = list(difflib.ndiff(code(program, "before"), code(program, "after")))
    assert 0 < sum(line.startswith("+ ") for line in found) <= 5


class Heard:
    """The conversations that the library's own model was given."""

    def __init__(self) -> None:
        self.prompts: list[tuple[list[Any], Any]] = []

    def memories(self, at: int) -> list[str]:
        return [p.id for m in self.prompts[at][0] for p in m.content if isinstance(p, PassageRef)]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    told, build = Heard(), SacRag.conversation

    def conversation(self: SacRag, messages: Any, *args: Any, **offered: Any) -> Any:
        prompt = build(self, messages, *args, **offered)
        told.prompts.append((list(messages), prompt))
        return prompt

    monkeypatch.setattr(SacRag, "conversation", conversation)
    return told


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """In place of packages that want an account or a server: models that call tools, and the embedder of `name`."""
    chosen = {"name": IndexConfig().embedder}

    def encode(texts: list[str], kind: str) -> list[list[float]]:
        return Embedder(chosen["name"]).encode(texts, kind=kind).tolist()

    class OpenAIEmbeddings(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return encode(texts, "passage")

        def embed_query(self, text: str) -> list[float]:
            return encode([text], "query")[0]

    call = {"name": "retrieve_context", "args": {"query": QUESTION}, "id": "1", "type": "tool_call"}

    class ChatOpenAI(FakeMessagesListChatModel):
        responses: Any = [AIMessage("", tool_calls=[call]), AIMessage("Fingerprints.")]  # noqa: RUF012

        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

        def with_structured_output(self, schema: Any, **kwargs: Any) -> Any:
            self.i = 1
            return RunnableLambda(lambda question: {"query": question, "section": "beginning"})

    class HuggingFaceEmbedding(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return encode([text], "passage")[0]

        def _get_query_embedding(self, query: str) -> list[float]:
            return encode([query], "query")[0]

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

    class Ollama(MockFunctionCallingLLM):
        def __init__(self, model: str) -> None:
            super().__init__()

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


def run(
    program: str, version: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What an example prints."""
    (folder / "data").mkdir(exist_ok=True)
    file = Path(shutil.copy(DOCUMENT, folder / "data"))
    path = EXAMPLES / f"{program}_{version}.py"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [path.name, *([str(file)] if "langchain" in program else []), QUESTION])
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out.strip()


def tools_then_answer(program: str, heard: Heard) -> None:
    """The model called a tool, or made a query; what that found, it read as memory."""
    first, last = heard.prompts[0][0], heard.prompts[-1][0]
    assert [m.role for m in first] == ["user"] and not heard.memories(0)
    if program == "langchain/analysis":
        assert [m.role for m in last] == ["system", "user"]
        return
    assert [m.role for m in last] == ["user", "assistant", "tool"]
    call = last[1].calls[0]
    if program == "langchain/agentic":
        assert call.name == "retrieve_context" and heard.memories(-1)
    else:  # its query engine reads the passages, the agent its answer
        assert call.name == "search_documents" and len(heard.prompts) == 3 and heard.memories(1)


@EACH
def test_both_versions_run(
    program: str,
    heard: Heard,
    stand_ins: dict[str, str],
    tiny_config: IndexConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_ins["name"] = tiny_config.embedder
    small(tiny_config, monkeypatch)
    engine = Engine.shared(tiny_config.model, tiny_config.method, tiny_config.adapter)
    monkeypatch.setattr(engine.method.backbone.tokenizer, "chat_template", TEMPLATE)
    assert run(program, "before", tmp_path, monkeypatch, capsys) and not heard.prompts
    # Of the tiny model a token is a byte: 64 do not hold a call.
    source = (EXAMPLES / f"{program}_after.py").read_text("utf-8")
    (tmp_path / program).parent.mkdir(exist_ok=True)
    (tmp_path / f"{program}_after.py").write_text(source.replace("max_tokens=64", "max_tokens=128"))
    monkeypatch.setattr(f"{__name__}.EXAMPLES", tmp_path)
    assert run(program, "after", tmp_path, monkeypatch, capsys)
    tools_then_answer(program, heard)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.minutes
@EACH
def test_the_default_model_runs_them(
    program: str,
    heard: Heard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It calls the tool with the question, or a part of it, and answers from what that found."""
    default_models()
    before = dict(Settings.__dict__)
    try:
        printed = run(program, "after", tmp_path, monkeypatch, capsys)
    finally:
        Settings.__dict__.clear()
        Settings.__dict__.update(before)
    tools_then_answer(program, heard)
    if program == "langchain/agentic":
        query = heard.prompts[-1][0][1].calls[0].values["query"]
        assert re.search("adermatoglyphia", query, re.I) and heard.prompts[-1][1].source_tokens > 100
        with SacRag.open("tutorial.lib") as rag:  # the answer is the library's own over the same passages
            hits = rag.retrieve(query, AskConfig(k=2, search="dense"))
            assert printed.splitlines()[-1] == rag.ask(QUESTION, hits=hits, max_new_tokens=64).text
