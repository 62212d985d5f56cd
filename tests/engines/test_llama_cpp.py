"""A question for llama.cpp: the tokens are those of SacRag where heads are even, and all else is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason='llama.cpp is an extra: pip install "sac-rag[llama-cpp]"')
import llama_cpp

from sac_rag import SacRag
from sac_rag.engines import llama_cpp as bridge
from sac_rag.engines.llama_cpp import Prefilled, prefill
from sac_rag.engines.transformers import model_of
from sac_rag.errors import ConfigError, GateError, LibraryMismatch, SacError
from sac_rag.samples import documents, questions
from tests.conftest import byte_tokenizer, tiny_model
from tests.engines.gguf_files import write
from tests.engines.library_questions import EVEN, QUESTION, TOKENS, WHERE, library, ours

F32, F16, BF16 = 0, 1, 30
ASKS: tuple[dict[str, Any], ...] = (
    {"k": 1},
    {"k": 3, "prior": 0.0},
    {"k": 3, "prior": 0.0, "placing": "packed"},
    {"k": 3, "fidelity": "mixed", "prior": 0.0},
    {"k": 3, "fidelity": "text"},
)


def loaded(gguf: Path, **how: Any) -> Any:
    usual = {"type_k": F32, "type_v": F32, "n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return llama_cpp.Llama(str(gguf), **{**usual, **how})


def said(llm: Any, prefilled: Prefilled, tokens: int = TOKENS) -> list[int]:
    found: list[int] = []
    for token in llm.generate(prefilled.tokens, temp=0.0, repeat_penalty=1.0, reset=False):
        if token in prefilled.ends or len(found) == tokens:
            break
        found.append(token)
    return found


@pytest.fixture(params=["llama", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_model(request.param).save_pretrained(tmp_path / request.param)
    byte_tokenizer().save_pretrained(tmp_path / request.param)
    write(tiny_model(request.param), tmp_path / "model.gguf")
    return tmp_path / request.param


@pytest.fixture(params=EVEN)
def rag(request: pytest.FixtureRequest, base: Path, tiny_config: Any, tmp_path: Path) -> Iterator[SacRag]:
    with library(base, request.param, tiny_config, tmp_path) as rag:
        yield rag


def test_the_tokens_are_ours(rag: SacRag, tmp_path: Path) -> None:
    llm = loaded(tmp_path / "model.gguf")
    for ask in ASKS:
        prefilled = prefill(rag, QUESTION, llm, **ask)
        want, got = ours(rag, prefilled.hits, **ask), said(llm, prefilled)
        assert got == want and len(got) > 1, ask


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_other_forms_of_the_cache(rag: SacRag, tmp_path: Path) -> None:
    """Number types, and values cell by cell (with flash attention) or number by number."""
    short = {"type_k": F16, "type_v": F16}
    for how in (short, {"flash_attn": True}, {"flash_attn": True, **short}):
        llm = loaded(tmp_path / "model.gguf", **how)
        prefilled = prefill(rag, QUESTION, llm, k=3, prior=0.0)
        assert said(llm, prefilled) == ours(rag, prefilled.hits, k=3, prior=0.0), how


@pytest.mark.parametrize("base", ["llama"], indirect=True)
@pytest.mark.parametrize("rag", ["full-kv"], indirect=True)
def test_what_it_cannot_hold_is_refused(rag: SacRag, tiny_config: Any, base: Path, tmp_path: Path) -> None:
    llm = loaded(tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="adds to its attention scores.*ask with prior=0"):
        prefill(rag, QUESTION, llm, k=3, prior=0.5)
    for method, what in (("kvzip", "other numbers of slots"), ("attention-matching", "adds to its attention scores")):
        (tmp_path / method).mkdir()
        with library(base, method, tiny_config, tmp_path / method) as other, pytest.raises(ConfigError, match=what):
            prefill(other, QUESTION, llm, k=1)
    with pytest.raises(ConfigError, match="n_ctx is 256: load the model with more"):
        prefill(rag, QUESTION, loaded(tmp_path / "model.gguf", n_ctx=256), k=3, prior=0.0)
    with pytest.raises(SacError, match="in a form that is not known here"):
        prefill(rag, QUESTION, loaded(tmp_path / "model.gguf", type_k=BF16, type_v=BF16), k=1)
    with pytest.raises(ConfigError, match=r"are for SacRag\.ask"):
        prefill(rag, QUESTION, llm, abstain=True)


@pytest.mark.parametrize("base", ["llama"], indirect=True)
@pytest.mark.parametrize("rag", ["full-kv"], indirect=True)
def test_another_model_is_refused(rag: SacRag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateError, match="computes other keys in layer 0"):
        prefill(rag, QUESTION, loaded(write(tiny_model("llama", seed=1), tmp_path / "other.gguf")), k=1)
    with pytest.raises(LibraryMismatch, match="2 layers"):
        prefill(rag, QUESTION, loaded(write(tiny_model("llama", num_hidden_layers=2), tmp_path / "short.gguf")), k=1)
    llm = loaded(tmp_path / "model.gguf")
    monkeypatch.setitem(bridge.PAIRED, "llama", False)  # as if its numbers stood in another order
    with pytest.raises(GateError, match="computes other keys"):
        prefill(rag, QUESTION, llm, k=1)
    monkeypatch.delitem(bridge.PAIRED, "llama")
    with pytest.raises(LibraryMismatch, match="architecture 'llama'"):
        prefill(rag, QUESTION, llm, k=1)


@pytest.mark.model
@pytest.mark.slow
def test_the_default_model_answers_as_ours(tmp_path: Path) -> None:
    """Kept whole by `full-kv`, in float32: the adapter that ships has uneven heads, and is refused."""
    from sac_rag import IndexConfig

    files = [str(documents() / q.document) for q in questions()[:4]]
    with SacRag.index(files, tmp_path / "a.lib", IndexConfig(method="full-kv"), **WHERE) as rag:
        llm = loaded(write(model_of(rag), tmp_path / "model.gguf"), n_ctx=2048)
        for sample in questions()[:4]:
            prefilled = prefill(rag, sample.question, llm, k=2, prior=0.0)
            answer = rag.ask(sample.question, hits=prefilled.hits, k=2, prior=0.0)
            text = rag.engine.tokenizer.decode(said(llm, prefilled, 64), skip_special_tokens=True).strip()
            assert text == answer.text
    with SacRag.index(files[:1], tmp_path / "b.lib", **WHERE) as rag, pytest.raises(ConfigError, match="other numbers"):
        prefill(rag, questions()[0].question, llm, k=1)
