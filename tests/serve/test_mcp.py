"""The official MCP client against a library: lists, searches, reads and asks, over both transports."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from sac_rag import SacRag
from tests.serve.conftest import SECRETS, TEXTS, Live

mcp = pytest.importorskip("mcp", reason='the MCP package is not installed: pip install "sac-rag[serve]"')


async def call(client: Any, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    text = result.content[0].text
    return text if result.is_error else json.loads(text)


async def test_an_agent_lists_searches_reads_and_asks_by_stdio(three: Path) -> None:
    with SacRag.open(three) as rag:
        want = rag.ask("How long is the Erie Canal?", k=2)
    place = {k: v for k, v in os.environ.items() if k in ("PYTHONPATH", "SAC_CACHE", "OMP_NUM_THREADS")}
    server = mcp.StdioServerParameters(command=sys.executable, args=["-m", "sac_cli", "mcp", str(three)], env=place)
    async with mcp.Client(server) as client:
        tools = {t.name: t for t in (await client.list_tools()).tools}
        assert set(tools) == {"search", "ask", "read_source", "list_documents"}
        assert all(t.annotations.read_only_hint and t.description for t in tools.values())
        listed = await call(client, "list_documents")
        assert [d["document"] for d in listed["documents"]] == sorted(TEXTS)
        found = await call(client, "search", query="rooster", k=1)
        (passage,) = found["passages"]
        assert passage["document"] == "bridge.md"
        read = await call(client, "read_source", document="bridge.md", start=passage["start"], end=passage["end"])
        assert [p["text"] for p in read["passages"]] == [TEXTS["bridge.md"]]
        asked = await call(client, "ask", question="How long is the Erie Canal?", k=2)
        assert asked["answer"] == want.text
        assert [s["document"] for s in asked["sources"]] == [h.passage.document for h in want.sources]
        assert "no document 'x'" in await call(client, "read_source", document="x")
        assert "no library 'y'" in await call(client, "search", query="rooster", library="y")
        assert "query is empty" in await call(client, "search", query=" ")


async def test_over_http_a_key_sees_its_own_alone(guarded: Live) -> None:
    import httpx2  # the client's own
    from mcp.client.streamable_http import streamable_http_client

    headers = {"authorization": f"Bearer {SECRETS['sea']}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        mcp.Client(streamable_http_client(f"{guarded.url}/mcp", http_client=http)) as client,
    ):
        listed = await call(client, "list_documents")
        assert [d["document"] for d in listed["documents"]] == ["tides.md"]
        found = await call(client, "search", query="rooster")
        assert [p["document"] for p in found["passages"]] == ["tides.md"]
        assert "no document 'bridge.md'" in await call(client, "read_source", document="bridge.md")
        wider = await call(client, "search", query="rooster", where={"team": "land"})
        assert wider["passages"] == []
    refused = await asyncio.to_thread(httpx.post, f"{guarded.url}/mcp", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "no_api_key")


async def test_over_http_without_keys(live: Live) -> None:
    async with mcp.Client(f"{live.url}/mcp") as client:
        found = await call(client, "search", query="rooster", k=1)
        assert found["passages"][0]["document"] == "bridge.md"
