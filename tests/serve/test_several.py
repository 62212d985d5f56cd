"""Several libraries served under one name: asked as one, changed by none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from sac_rag import SacRag
from sac_rag.errors import ConfigError
from sac_rag.records import Document
from sac_rag.serve.keys import Keys
from sac_rag.serve.libraries import named
from sac_rag.serve.run import open_libraries
from tests.serve.conftest import TEXTS, served


def test_they_are_named_together(tmp_path: Path) -> None:
    assert named(["all=a.lib,b.lib", "c.lib"]) == {"all": "a.lib,b.lib", "c.lib": "c.lib"}
    with pytest.raises(ConfigError, match=r"write NAME=a\.lib,b\.lib to serve them as one"):
        named(["a.lib,b.lib"])


def test_they_are_asked_and_not_changed(three: Path, tiny_config: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.lib"
    with SacRag.open(other, config=tiny_config, write=True, create=True) as opened:
        opened.put([Document("gulls.md", "Gulls nest on the pier.", meta={"team": "sea"})])
    libraries = open_libraries([f"three={three},{other}"])
    with served(libraries["three"].rag) as live, live.client() as client:
        (about,) = client.get("/v1/libraries").json()["libraries"]
        assert (about["documents"], about["passages"], about["writable"]) == (4, 4, False)
        found = client.post("/v1/libraries/three/search", json={"query": "gulls on the pier"}).json()["passages"]
        assert found[0]["document"] == "gulls.md" and len(found) == 4
        asked = {"question": "Where do gulls nest?", "where": {"team": "sea"}, "heat": True}
        answer = client.post("/v1/libraries/three/ask", json={**asked, "settings": {"max_new_tokens": 5}}).json()
        assert {s["document"] for s in answer["sources"]} == {"gulls.md", "tides.md"}
        assert sum(answer["heat"].values()) == pytest.approx(1, abs=1e-5)
        assert all(s["heat"] for s in answer["sources"])
        body = {"documents": [{"document": "new.md", "text": "New."}]}
        refused = client.post("/v1/libraries/three/documents", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "read_only")
        assert "several libraries, read as one" in refused.json()["error"]["message"]
        turn = {**asked, "messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]}
        cold = client.post("/v1/libraries/three/ask", json=turn)
        assert cold.status_code == 400 and "not of a conversation" in cold.json()["error"]["message"]


def test_a_key_reads_its_own_document_and_not_another_of_that_name(
    three: Path, tiny_config: Any, tmp_path: Path, key_file: Path
) -> None:
    other = tmp_path / "other.lib"
    with SacRag.open(other, config=tiny_config, write=True, create=True) as opened:
        opened.put([Document("tides.md", "The cook hides gold in a jar.", meta={"team": "land"})])
    for place in (f"three={three},{other}", f"three={other},{three}"):
        rag = open_libraries([place])["three"].rag
        with served(rag, Keys.read(key_file)) as live, live.client("sea") as client:
            found = client.get("/v1/libraries/three/documents", params={"document": "tides.md"}).json()
            assert [p["text"] for p in found["contents"]] == [TEXTS["tides.md"]] and found["meta"] == {"team": "sea"}
            asked = {"question": "Where is the gold of tides.md?", "settings": {"max_new_tokens": 4}}
            seen = [
                client.get("/v1/libraries/three/documents").text,
                client.post("/v1/libraries/three/search", json={"query": "gold in a jar", "k": 9}).text,
                client.post("/v1/libraries/three/ask", json=asked).text,
                called(client, "search", {"query": "gold in a jar"}),
                called(client, "read_source", {"document": "tides.md"}),
                called(client, "list_documents", {}),
            ]
            assert "Spring tides" in seen[4] and not [text for text in seen if "the cook" in text.lower()]


def called(client: httpx.Client, tool: str, arguments: dict[str, Any]) -> str:
    """What a tool gives over HTTP."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    found = client.post("/mcp", json=body, headers={"accept": "application/json, text/event-stream"})
    assert found.status_code == 200, found.text
    assert not found.json()["result"].get("isError"), found.text
    return found.text
