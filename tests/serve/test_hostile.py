"""Requests that somebody made up: JSON that others read otherwise, names and texts that are none, sizes that cost."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from sac_rag import SacRag
from sac_rag.errors import ConfigError, LibraryCorrupt, LibraryFull, LibraryLocked, LibraryNotFound
from sac_rag.library.library import Library
from sac_rag.serve import asking, connections, errors
from sac_rag.serve.chat import ChatMessage
from sac_rag.serve.keys import Key, Keys
from sac_rag.serve.libraries import ServedLibraries, ServedLibrary
from tests.serve.conftest import SECRETS, Live, served
from tests.serve.test_guard import DOCUMENTS, error_of

JSON = {"content-type": "application/json"}
ROUTES = {
    "/v1/chat/completions": b'{"model": "three", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]%s}',
    "/v1/responses": b'{"model": "three", "max_output_tokens": 2, "input": "Hi"%s}',
    "/v1/embeddings": b'{"model": "three", "input": "Hi"%s}',
    "/v1/libraries/three/search": b'{"query": "Hi"%s}',
    "/v1/libraries/three/ask": b'{"question": "Hi", "settings": {"max_new_tokens": 2}%s}',
    DOCUMENTS: b'{"documents": []%s}',
}
FORGED = {
    "a key twice": b', "where": {"team": "sea"}, "where": {}',
    "a key twice, once escaped": b', "where": {"team": "sea", "te\\u0061m": "land"}',
    "NaN": b', "user": NaN',
    "infinity": b', "user": -Infinity',
    "beyond floats": b', "user": 1e999',
    "deep": b', "user": ' + b"[" * 200 + b"]" * 200,
    "deeper than Python": b', "user": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "no UTF-8": b', "user": "\xff"',
    "a surrogate as bytes": b', "user": "\xed\xa0\x80"',
}


@pytest.mark.parametrize("route", ROUTES)
def test_json_that_others_read_otherwise_is_refused(live: Live, route: str) -> None:
    with live.client() as client:
        client.headers.update(JSON)
        assert client.post(route, content=ROUTES[route] % b"").status_code == 200
        for name, forged in FORGED.items():
            assert error_of(client.post(route, content=ROUTES[route] % forged)) == (400, "invalid_request"), name
        for whole in (
            (ROUTES[route] % b"").decode().encode("utf-16"),
            b"\xef\xbb\xbf" + ROUTES[route] % b"",
            b"",
            b"[]",
        ):
            assert error_of(client.post(route, content=whole)) == (400, "invalid_request"), whole[:9]


LONE = "a\ud800z"


def test_texts_that_are_no_unicode_harm_nobody(live: Live) -> None:
    """A cut emoji was stored in metadata, and from then on nobody could list the documents."""
    with live.client() as client:
        client.headers.update(JSON)

        def post(route: str, body: Any, method: str = "POST") -> Any:
            return client.request(method, route, content=json.dumps(body))

        put = {"document": "cut.md", "text": LONE, "meta": {"note": LONE, LONE: [LONE]}}
        assert post(DOCUMENTS, {"documents": [put]}).json()["added"] == 1
        listed = {d["document"]: d["meta"] for d in client.get(DOCUMENTS).json()["documents"]}
        assert listed["cut.md"] == {"note": "a\ufffdz", "a\ufffdz": ["a\ufffdz"]} and len(listed) == 4
        assert error_of(post(DOCUMENTS, {"documents": [{"document": "\ud800\n", "text": "x"}]})) == (400, "bad_name")
        assert error_of(post(DOCUMENTS, {"documents": [LONE]}, "DELETE")) == (404, "document_not_found")
        chat = {"model": LONE, "messages": [{"role": "user", "content": "Hi"}]}
        assert error_of(post("/v1/chat/completions", chat)) == (404, "model_not_found")
        told = {"model": "three", "input": LONE, "instructions": LONE, "max_output_tokens": 2}
        assert post("/v1/responses", told).json()["instructions"] == "a\ufffdz"
        found = post("/v1/libraries/three/search", {"query": LONE, "where": {LONE: LONE, "$document": LONE}})
        assert found.json() == {"passages": []}
        meta = client.put(DOCUMENTS, params={"document": "a.txt", "meta": '{"a": "\\ud800", "a": 1}'}, content=b"x")
        assert error_of(meta) == (400, "bad_meta")
        deep = client.put(DOCUMENTS, params={"document": "a.txt", "meta": '{"a":' * 2000}, content=b"x")
        assert error_of(deep) == (400, "bad_meta")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/shadow", "C:\\boot.ini", "file:///etc/passwd", "a.pdf/../b.txt", "..", "~/x.txt"]
)
def test_names_of_documents_are_names(live: Live, tmp_path: Path, name: str) -> None:
    """What looks like a path is stored under this name, and no file of it is made, read or removed."""
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with live.client() as client:
        assert client.post(DOCUMENTS, json={"documents": [{"document": name, "text": "Mine."}]}).json()["added"] == 1
        one = client.get(DOCUMENTS, params={"document": name}).json()
        assert [p["text"] for p in one["contents"]] == ["Mine."]
        assert client.request("DELETE", DOCUMENTS, json={"documents": [name]}).json()["removed"] == 1
        assert client.post("/v1/libraries/three/gc").status_code == 200
    outside = {p for p in map(str, tmp_path.rglob("*")) if ".lib/" not in p}
    assert outside == {p for p in before if ".lib/" not in p}


NUMBERS = [
    ("/v1/libraries/three/search", {"query": "tides", "k": 10**30}),
    ("/v1/libraries/three/search", {"query": "tides", "k": -1}),
    ("/v1/libraries/three/search", {"query": "tides", "min_score": 2}),
    ("/v1/libraries/three/ask", {"question": "tides", "settings": {"seed": 2**70, "temperature": 1}}),
    ("/v1/libraries/three/ask", {"question": "tides", "settings": {"temperature": 1e308, "max_new_tokens": 2}}),
    ("/v1/libraries/three/ask", {"question": "tides", "settings": {"k": [1]}}),
    ("/v1/libraries/three/ask", {"question": "tides", "settings": {"prior": 1e300, "max_new_tokens": 2}}),
    ("/v1/libraries/three/ask", {"question": "tides " * 20_000}),
    ("/v1/libraries/three/search", {"query": "tides", "where": {"a": 10**4000}}),
    ("/v1/libraries/three/search", {"query": "tides", "where": {"$not": {"$not": {"$or": [{"team": {"$gt": {}}}]}}}}),
    ("/v1/chat/completions", {"model": "three", "messages": [{"role": "user", "content": "x"}], "seed": -(2**63)}),
]


@pytest.mark.parametrize(("route", "body"), NUMBERS, ids=[str(n) for n in range(len(NUMBERS))])
def test_numbers_beyond_use_are_no_failure_of_the_server(live: Live, route: str, body: dict[str, Any]) -> None:
    with live.client() as client:
        reply = client.post(route, json=body)
        assert reply.status_code in (200, 400), reply.text


def test_of_anothers_damage_a_key_is_told_nothing(three: Path, key_file: Path) -> None:
    """The notice of a damaged library names documents."""
    with Library.open(three) as library:
        (passage,) = library.passages("canal.md")
        view = library._view
        slot = view.catalog.memories(view.catalog.require([passage.id]))[view.catalog.require([passage.id])[0]].slot
    (segment,) = three.glob("seg-*")
    data = bytearray(segment.read_bytes())
    data[slot.offset + slot.length // 2] ^= 255
    segment.write_bytes(data)
    with served(SacRag.open(three), Keys.read(key_file)) as live:
        told = {}
        for key in ("all", "sea", "all"):
            body = {"question": "How long is the Erie Canal?", "settings": {"max_new_tokens": 2}}
            with live.client(key) as client:
                reply = client.post("/v1/libraries/three/ask", json=body)
            assert reply.status_code == 200, reply.text
            told[key] = reply.text
        assert "canal.md" in told["all"] and "sac repair" in told["all"]
        assert "canal" not in told["sea"] and "damaged" not in told["sea"]


# -- what costs ---------------------------------------------------------------------------------------------


def test_what_ends_an_answer_is_short(live: Live) -> None:
    """Every token is compared with every beginning of every such string."""
    chat = {"model": "three", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    with live.client() as client:
        for stop in (["x"] * 17, "x" * 257, ["x" * 1_000_000]):
            reply = client.post("/v1/chat/completions", json={**chat, "stop": stop})
            assert error_of(reply) == (400, "unsupported_parameter")
            asked = client.post("/v1/libraries/three/ask", json={"question": "Hi", "stop": [*stop]})
            assert asked.status_code == 400
        assert client.post("/v1/chat/completions", json={**chat, "stop": ["x" * 256] * 16}).status_code == 200


def test_many_messages_of_one_role_are_joined_once() -> None:
    """They were joined pair by pair, which took as long as their number squared."""
    many = [ChatMessage(role="user", content="x" * 30)] * 200_000
    began = time.monotonic()
    _, turns, question, _ = asking.conversation([ChatMessage(role="system", content="Be brief."), *many])
    assert (turns, len(question)) == ((), 200_000 * 32 - 2)
    assert time.monotonic() - began < 20
    turns = [ChatMessage(role=r, content=r) for r in ("user", "user", "assistant", "developer", "user")]
    assert asking.conversation(turns) == ("developer", (("user\n\nuser", "assistant"),), "user", 0)


# -- tenants ------------------------------------------------------------------------------------------------

SEA = Key("sea", frozenset({"read", "write"}), None, {"team": "sea"})


@pytest.mark.parametrize(
    ("where", "meta", "owns"),
    [
        ({"team": "sea"}, {"team": "sea"}, True),
        ({"team": "sea"}, {"team": ["sea"]}, True),
        ({"team": "sea"}, {"team": ["sea", "land"]}, False),
        ({"team": "sea"}, {"team": "sea", "tags": ["land", "law"]}, True),
        ({"team": {"$in": ["sea", "air"]}}, {"team": ["sea", "air"]}, True),
        ({"team": {"$in": ["sea", "air"]}}, {"team": ["sea", "land"]}, False),
        ({"$or": [{"team": "sea"}, {"open": True}]}, {"team": ["land"], "open": [False, True]}, False),
        ({"$not": {"team": "land"}}, {"team": ["sea", "air"]}, True),
        ({"org.team": "sea"}, {"org": {"team": ["sea", "land"], "of": 1}}, False),
        ({"org.team": "sea", "org.of": 1}, {"org": {"team": ["sea"], "of": 1}}, True),
        ({"org.team": "sea"}, {"org": "x", "org.team": ["sea", "land"]}, False),
        ({"team": "sea"}, {"team": ["sea"] * 2000}, False),
        (None, {"team": ["sea", "land"] * 2000}, True),
        ({"document": {"$contains": "sea/"}}, {"document": ["sea/", "land/"]}, False),
    ],
)
def test_whose_a_document_is_by_each_member_of_a_list(where: Any, meta: dict[str, Any], owns: bool) -> None:
    assert Key("a", frozenset(), None, where).owns("x.md", meta) is owns


def test_a_tenant_puts_nothing_into_another_ones_part(guarded: Live) -> None:
    """A list is matched by any of its members, so one document could be in two parts."""
    both = {"document": "both.md", "text": "Read by land, too.", "meta": {"team": ["sea", "land"]}}
    with guarded.client("sea") as sea:
        assert error_of(sea.post(DOCUMENTS, json={"documents": [both]})) == (403, "forbidden")
        file = sea.put(DOCUMENTS, params={"document": "b.txt", "meta": json.dumps(both["meta"])}, content=b"Mine.")
        assert error_of(file) == (403, "forbidden")
        mine = {**both, "meta": {"team": ["sea"], "tags": ["land"]}}
        assert sea.post(DOCUMENTS, json={"documents": [mine]}).json()["added"] == 1
    assert guarded.rag.newest().documents(where={"team": "land", "$document": ["both.md", "b.txt"]}) == []


@pytest.mark.parametrize(
    "where",
    [
        {"$or": [{"team": "land"}, {"team": "sea"}]},
        {"$not": {"team": "sea"}},
        {"$and": [{"$not": {"$and": [{"team": "sea"}]}}]},
        {"$document": ["canal.md", "bridge.md"]},
        {"document": "canal.md"},
        {"team": {"$ne": "sea"}},
        {"team": {"$not": {"$eq": "sea"}}},
        {"team": {"$nin": []}},
        {"nothing": None},
        {},
    ],
)
def test_no_filter_of_a_request_widens_that_of_its_key(guarded: Live, where: dict[str, Any]) -> None:
    with guarded.client("sea") as sea:
        search = sea.post("/v1/libraries/three/search", json={"query": "canal bridge tides", "k": 9, "where": where})
        assert {p["document"] for p in search.json()["passages"]} <= {"tides.md"}
        body = {"question": "canal bridge tides?", "where": where, "settings": {"k": 9, "max_new_tokens": 2}}
        asked = sea.post("/v1/libraries/three/ask", json=body)
        assert {s["document"] for s in asked.json()["sources"]} <= {"tides.md"}


# -- what is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LibraryLocked("/srv/secret.lib is being written by process 7"), 409),
        (LibraryFull("no room left to write /srv/secret.lib"), 507),
        (LibraryNotFound("no library at /srv/secret.lib"), 503),
        (LibraryCorrupt("/srv/secret.lib/catalog.sqlite is damaged"), 500),
        (RuntimeError("/srv/secret.lib"), 500),
    ],
)
def test_clients_are_not_told_places_on_the_disk(error: Exception, status: int) -> None:
    told = errors.of(error)
    assert told.status_code == status and "/srv" not in json.dumps(told.body)
    assert errors.of(ConfigError("k is 0")).message == "k is 0"


async def test_over_http_nobody_is_everybody(open_rag: Any) -> None:
    """Where a tool is called without a request, no key can say what may be seen: nothing is."""
    mcp = pytest.importorskip("mcp", reason='the MCP package is not installed: pip install "sac-rag[serve]"')
    from sac_rag.serve.mcp import make

    libraries = ServedLibraries([ServedLibrary("three", open_rag)])
    for over_http in (False, True):
        async with mcp.Client(make(libraries, over_http=over_http)) as client:
            result = await client.call_tool("list_documents", {})
            assert result.is_error is over_http
            assert ("tides.md" in result.content[0].text) is not over_http
    libraries.close()


# -- the line -------------------------------------------------------------------------------------------------

BODY = b'{"query": "tides"}'
HEAD = b"POST /v1/libraries/three/search HTTP/1.1\r\nContent-Type: application/json\r\n"
GET = b"GET /v1/models HTTP/1.1\r\n"


def said(live: Live, data: bytes) -> bytes:
    """What the server sends before it hangs up, or is silent for a while."""
    host, port = live.url.removeprefix("http://").split(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(data)
        try:
            while part := line.recv(1 << 16):
                found += part
                line.settimeout(2)
        except (TimeoutError, ConnectionResetError):
            pass
    return found


LOCAL = b"Host: localhost\r\nConnection: close\r\n"


def test_a_request_by_hand_is_answered(live: Live) -> None:
    assert said(live, GET + LOCAL + b"\r\n").startswith(b"HTTP/1.1 200 OK")
    assert said(live, HEAD + LOCAL + b"Content-Length: 18\r\n\r\n" + BODY).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "data",
    [
        GET + LOCAL + b"Host: evil.example\r\n\r\n",
        GET + b"Host: evil.example\r\n" + LOCAL + b"\r\n",
        GET + b"Connection: close\r\n\r\n",
        GET + LOCAL + b"X: a\r\n\x00: b\r\n\r\n",
        HEAD + LOCAL + b"Content-Length: 18\r\nContent-Length: 5\r\n\r\n" + BODY,
        HEAD + LOCAL + b"Content-Length: +18\r\n\r\n" + BODY,
        HEAD + LOCAL + b"Content-Length: 1_8\r\n\r\n" + BODY,
        HEAD + LOCAL + b"Content-Length: \xb2\r\n\r\n" + BODY,
        HEAD + LOCAL + b"Transfer-Encoding: xchunked\r\n\r\n12\r\n" + BODY + b"\r\n0\r\n\r\n",
        GET.replace(b"/v1", b"/v1 ") + LOCAL + b"\r\n",
    ],
    ids=[
        "hosts",
        "other host first",
        "no host",
        "names",
        *("lengths", "plus", "underscore", "superscript"),
        "coding",
        "blank",
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(live: Live, data: bytes) -> None:
    found = said(live, data)
    assert found.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")) and found.count(b"HTTP/1.") == 1, found


def test_a_length_and_a_coding_are_never_two_requests(live: Live) -> None:
    """By the length the body ends here, and what follows is a request; by the coding it is its body."""
    hidden = GET + LOCAL + b"\r\n"
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden)
    head = HEAD + b"Host: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n"
    found = said(live, head % len(b"%x\r\n" % len(hidden)) + chunks)
    assert found.count(b"HTTP/1.") == 1 and b'"owned_by"' not in found, found


@pytest.mark.parametrize(
    "path", ["//v1/models", "/V1/models", "/v1/../v1/models", "/%2fv1/models", "/v1%2fmodels", "/./mcp"]
)
def test_other_ways_to_write_a_path_lead_past_no_key(guarded: Live, path: str) -> None:
    found = said(guarded, b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
    assert found.split(b" ")[1] in (b"401", b"404"), found[:200]
    assert b"three" not in found


# -- clients that take their time ---------------------------------------------------------------------------


def connected(live: Live, data: bytes = b"") -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)), timeout=30)
    line.sendall(data)
    return line


def hung_up(line: socket.socket) -> bool:
    """Whether the server ends a connection of itself, without a word."""
    with line:
        try:
            return line.recv(1) == b""
        except ConnectionResetError:
            return True


POSTED = HEAD + b"Host: localhost\r\nContent-Length: 18\r\n\r\n"


@pytest.mark.parametrize("data", [b"", b"G", GET + b"Host: localh", POSTED, POSTED + BODY[:-1]])
def test_who_does_not_say_what_it_wants_is_not_waited_for(open_rag: SacRag, data: bytes) -> None:
    with served(open_rag, patience=0.5) as live:
        assert hung_up(connected(live, data))
        with live.client() as client:
            assert client.get("/v1/models").status_code == 200
            time.sleep(0.7)  # whoever was answered may take as long to ask again
            assert client.get("/v1/models").status_code == 200


def test_a_drip_of_bytes_is_not_waited_for_and_a_body_under_way_is(
    open_rag: SacRag, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(open_rag, patience=1.0) as live:
        began, line = time.monotonic(), connected(live, GET)
        with pytest.raises(OSError):
            while time.monotonic() < began + 20:
                line.sendall(b"X: y\r\n")
                time.sleep(0.1)
        assert time.monotonic() < began + 10
        monkeypatch.setattr(connections, "SLOWEST", 4)  # of the 18 bytes each is worth a quarter of a second
        with connected(live, POSTED.replace(b"Content", b"Connection: close\r\nContent", 1)) as line:
            for at in range(0, len(BODY), 2):
                line.sendall(BODY[at : at + 2])
                time.sleep(0.2)
            assert line.recv(15) == b"HTTP/1.1 200 OK"


def test_an_answer_takes_as_long_as_it_takes(open_rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    retrieve = SacRag.retrieve

    def slowly(*args: Any, **how: Any) -> Any:
        time.sleep(1.0)
        return retrieve(*args, **how)

    monkeypatch.setattr(SacRag, "retrieve", slowly)
    with served(open_rag, patience=0.3) as live, live.client() as client:
        assert client.post("/v1/libraries/three/search", json={"query": "tides"}).status_code == 200


def test_silent_clients_leave_files_for_the_library(open_rag: SacRag) -> None:
    with served(open_rag, connections=8, patience=3.0) as live:
        lines = [connected(live) for _ in range(40)]
        assert all(map(hung_up, lines[8:])), "more than may be were held"
        time.sleep(0.1)
        with live.client() as client, pytest.raises(httpx.TransportError):
            client.get("/healthz")
        assert all(map(hung_up, lines[:8]))
        with live.client() as client:
            assert client.get("/v1/models").status_code == 200


def test_two_keys_are_nobodys(guarded: Live) -> None:
    """Which of them a proxy in front has looked at is not known here."""
    sea, everything = (f"Bearer {SECRETS[name]}" for name in ("sea", "all"))
    shown = {
        (("authorization", sea),): 200,
        (("authorization", sea), ("authorization", sea), ("x-api-key", SECRETS["sea"])): 200,
        (("authorization", "Basic dTpw"), ("x-api-key", SECRETS["sea"])): 200,
        (("authorization", sea), ("authorization", everything)): 401,
        (("authorization", everything), ("x-api-key", SECRETS["sea"])): 401,
        (("x-api-key", SECRETS["sea"]), ("x-api-key", SECRETS["all"])): 401,
        (("authorization", f"{sea}, {everything}"),): 401,
        (("authorization", sea), ("x-api-key", "unknown-0123456789")): 401,
    }
    with guarded.client() as client:
        for headers, status in shown.items():
            assert client.get("/v1/models", headers=[*headers]).status_code == status, headers


def test_there_is_no_other_protocol_to_go_to(guarded: Live) -> None:
    """A WebSocket would pass by whoever looks at keys."""
    wanted = b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    wanted += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    for path in (b"/v1/models", b"/mcp", b"/metrics"):
        assert said(guarded, b"GET %s HTTP/1.1\r\n" % path + wanted).startswith(b"HTTP/1.1 401"), path
    assert said(guarded, b"GET / HTTP/1.1\r\n" + wanted).startswith(b"HTTP/1.1 200")
