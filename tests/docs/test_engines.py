"""The page on other engines is executed, on a tiny model."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from sac_rag import SacRag
from sac_rag.records import Document
from tests.conftest import tiny_llama

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/engines.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_its_code_runs(
    tiny_config: Any,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = dataclasses.replace(tiny_config, method="full-kv", adapter="default")
    with SacRag.index([], tmp_path / "my.lib", config, device="cpu", dtype="float32") as rag:
        texts = {"travel.md": "Dana approves travel above 500 euros.", "desk.md": "The desk closes at six."}
        rag.put([Document(uri, text) for uri, text in texts.items()])
        question = "Who approves travel above 500 euros?"
        want = [rag.ask(question).text, rag.ask(question, k=3, prior=0.0).text]
    monkeypatch.chdir(tmp_path)
    transformers, llama = (code.replace("MODEL", str(tiny_base)) for code in BLOCK.findall(PAGE.read_text("utf-8")))
    names: dict[str, Any] = {}
    exec(compile(transformers.replace('open("my.lib")', 'open("my.lib", dtype="float32")'), str(PAGE), "exec"), names)
    answer, *sources = capsys.readouterr().out.strip("\n").rsplit("\n", 2)
    assert answer.strip() == want[0] and set(sources) == set(texts)
    if importlib.util.find_spec("llama_cpp"):
        from tests.engines.gguf_files import write

        write(tiny_llama(), tmp_path / "model.gguf")
        exec(compile(llama, str(PAGE), "exec"), names)
        assert capsys.readouterr().out.strip() == want[1]
    names["rag"].close()
