"""Three hundred real files of mixed kinds: killed twice and resumed, changed, removed, given back."""

from __future__ import annotations

import html
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sac_rag import SacRag
from sac_rag.library.library import Library
from sac_rag.samples import documents
from sac_rag.text.readers import read
from sac_rag.text.walk import walk
from tests.test_pipeline import contents

FILES = 300
INDEX = """
import sys
from sac_rag import SacRag, IndexConfig
model, adapter, embedder, library = sys.argv[1:]
config = IndexConfig(model=model, adapter=adapter, embedder=embedder, passage_tokens=510)
SacRag.index("many", library, config, listen=lambda r: print(r.done, flush=True)).close()
print("end", flush=True)
"""


def as_file(kind: str, title: str, text: str) -> str:
    if kind == "html":
        return f"<html><body><h1>{html.escape(title)}</h1><p>{html.escape(text)}</p></body></html>"
    if kind == "jsonl":
        return "".join(json.dumps({"text": line}) + "\n" for line in text.splitlines() if line.strip())
    return f"# {title}\n\n{text}\n" if kind == "md" else text


@pytest.fixture
def many(tmp_path) -> Path:
    """The sample documents as they are, then pieces of their texts as md, txt, html, rst and jsonl."""
    folder = tmp_path / "many"
    shutil.copytree(documents(), folder / "whole")
    pieces = [
        (d.uri.rpartition("/")[2], d.text[i : i + 700])
        for d in map(read, walk([documents()], on_skip=pytest.fail))
        for i in range(0, len(d.text), 700)
        if len(d.text[i : i + 700].split()) > 5
    ]
    chosen = random.Random(0).sample(pieces, FILES - sum(1 for p in (folder / "whole").iterdir() if p.is_file()))
    for i, (title, text) in enumerate(chosen):
        kind = ("md", "txt", "html", "rst", "jsonl")[i % 5]
        place = folder / f"part-{i % 7}"
        place.mkdir(exist_ok=True)
        (place / f"{i:03d}.{kind}").write_text(as_file(kind, title, text), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.minutes
def test_three_hundred_files(many, tiny_config, tmp_path, monkeypatch):
    def start(library: str) -> subprocess.Popen[str]:
        c = tiny_config
        return subprocess.Popen(
            [sys.executable, "-c", INDEX, c.model, c.adapter, c.embedder, library],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    out, _ = start("whole.lib").communicate(timeout=600)
    assert "end" in out
    for kill_after in (60, 200):
        run = start("killed.lib")
        assert run.stdout
        for line in run.stdout:
            if line.strip().isdigit() and int(line) >= kill_after:
                run.send_signal(signal.SIGKILL)
                break
        run.wait(timeout=60)
        run.stdout.close()
    with Library.open(tmp_path / "killed.lib") as library:
        assert 0 < len(library.documents()) < FILES and library.verify() == []
    out, _ = start("killed.lib").communicate(timeout=600)
    assert "end" in out
    whole = contents(tmp_path / "whole.lib")
    assert contents(tmp_path / "killed.lib") == whole and len(whole) > FILES

    monkeypatch.chdir(tmp_path)
    with SacRag.index("many", "whole.lib") as rag:
        assert (rag.report.files, rag.report.unchanged, rag.report.passages) == (FILES, FILES, 0)
        path = next(Path("many/part-1").iterdir())
        path.write_text(path.read_text() + "\nA last line that was not there before.\n")
        changed = rag.add("many")
        assert (changed.changed, changed.unchanged) == (1, FILES - 1)
        assert changed.passages <= len(rag.library.passage_ids(path.as_posix()))
        before = rag.stats().total_bytes
        gone = [d.uri for d in rag.library.documents()][: FILES // 3]
        rag.remove(gone)
        assert not set(gone) & {h.passage.document for h in rag.library.search(None, "the", 10**6, mode="lexical")}
        rag.gc()
        assert rag.stats().total_bytes < 0.9 * before and rag.library.verify() == []
