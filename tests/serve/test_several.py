"""Several libraries served under one name: asked as one, changed by none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sac_rag import SacRag
from sac_rag.errors import ConfigError
from sac_rag.records import Document
from sac_rag.serve.libraries import named
from sac_rag.serve.run import open_libraries
from tests.serve.conftest import served


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
