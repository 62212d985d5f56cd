"""Who is let in, with what, how often; and what is told of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sac_rag import SacRag
from sac_rag.errors import ConfigError
from sac_rag.serve.errors import ApiError
from sac_rag.serve.keys import Keys
from sac_rag.serve.rates import Rates
from sac_rag.serve.settings import ServeConfig
from tests.serve.conftest import SECRETS, Live, served

DOCUMENTS = "/v1/libraries/three/documents"


def error_of(reply: Any) -> tuple[int, str]:
    assert set(reply.json()) == {"error"} and set(reply.json()["error"]) == {"message", "type", "param", "code"}
    return reply.status_code, reply.json()["error"]["code"]


# -- keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/v1/libraries", "/metrics", "/v1/nothing"])
def test_nothing_of_value_is_told_without_a_key(guarded: Live, path: str) -> None:
    with guarded.client() as client:
        assert error_of(client.get(path)) == (401, "no_api_key")
        wrong = client.get(path, headers={"authorization": "Bearer secret-of-all-0002"})
        assert error_of(wrong) == (401, "invalid_api_key")
        assert wrong.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready", "libraries": 1}


def test_a_key_is_refused_before_its_body_is_read(guarded: Live) -> None:
    """The body is no JSON: whoever has no key does not learn that."""
    with guarded.client("secret-of-nobody-1") as client:
        assert error_of(client.post("/v1/chat/completions", content=b"{")) == (401, "invalid_api_key")


def test_openai_says_that_the_key_is_bad(guarded: Live) -> None:
    package = pytest.importorskip("openai", reason="the openai client is not installed")
    with (
        package.OpenAI(base_url=f"{guarded.url}/v1", api_key="secret-of-nobody-1", max_retries=0) as client,
        pytest.raises(package.AuthenticationError, match="not known here"),
    ):
        client.models.list()


def test_rights_of_a_key(guarded: Live) -> None:
    body = {"documents": [{"document": "new.md", "text": "New."}]}
    with guarded.client("looks") as client:
        assert client.get(DOCUMENTS).json()["count"] == 3
        assert error_of(client.post(DOCUMENTS, json=body)) == (403, "forbidden")
        assert error_of(client.request("DELETE", DOCUMENTS, json={"documents": ["canal.md"]})) == (403, "forbidden")
        assert error_of(client.get("/metrics")) == (403, "forbidden")
    with guarded.client("all") as client:
        assert 'sac_library{library="three",of="documents"} 3.0' in client.get("/metrics").text


def test_a_tenant_sees_changes_and_removes_its_own_alone(guarded: Live) -> None:
    search = {"query": "Who crossed the bridge with a rooster?", "k": 5}
    with guarded.client("sea") as sea:
        assert [d["document"] for d in sea.get(DOCUMENTS).json()["documents"]] == ["tides.md"]
        assert [p["document"] for p in sea.post("/v1/libraries/three/search", json=search).json()["passages"]] == [
            "tides.md"
        ]
        asked = sea.post("/v1/libraries/three/ask", json={"question": search["query"], "where": {"team": "land"}})
        assert asked.json()["sources"] == [] and asked.json()["abstained"]
        chat = {"model": "three", "messages": [{"role": "user", "content": search["query"]}], "max_tokens": 4}
        assert [s["document"] for s in sea.post("/v1/chat/completions", json=chat).json()["sac"]["sources"]] == [
            "tides.md"
        ]
        widened = {**chat, "sac": {"where": {"$or": [{"team": "land"}, {"team": "sea"}]}}}
        assert [s["document"] for s in sea.post("/v1/chat/completions", json=widened).json()["sac"]["sources"]] == [
            "tides.md"
        ]
        # another tenant's document
        assert error_of(sea.get(DOCUMENTS, params={"document": "canal.md"})) == (404, "document_not_found")
        gone = sea.request("DELETE", DOCUMENTS, json={"documents": ["tides.md", "canal.md"]})
        assert error_of(gone) == (404, "document_not_found")
        over = sea.post(DOCUMENTS, json={"documents": [{"document": "canal.md", "text": "Mine now."}]})
        assert error_of(over) == (403, "forbidden")
        file = sea.put(DOCUMENTS, params={"document": "canal.md"}, content=b"Mine now.")
        assert error_of(file) == (403, "forbidden")
        false = {"document": "x.md", "text": "X.", "meta": {"team": "land"}}
        assert error_of(sea.post(DOCUMENTS, json={"documents": [false]})) == (403, "forbidden")
        # its own, which is marked as such
        mine = sea.post(DOCUMENTS, json={"documents": [{"document": "surf.md", "text": "Surf is up."}]})
        assert mine.json()["added"] == 1
        assert sea.get("/v1/libraries").json()["libraries"][0]["documents"] == 2
        assert "passages" not in sea.get("/v1/libraries").json()["libraries"][0]
        assert error_of(sea.post("/v1/libraries/three/gc")) == (403, "forbidden")
        assert error_of(sea.post("/v1/libraries/three/sync")) == (403, "forbidden")
    stored = {d.uri: d.meta for d in guarded.rag.newest().documents()}
    assert stored["surf.md"] == {"team": "sea"} and stored["canal.md"] == {"team": "land"}
    assert {"tides.md", "bridge.md"} < set(stored) and "x.md" not in stored


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[keys]]\nname = 'a'\nkey = 'short'", "16 printable ASCII characters or more"),
        ("[[keys]]\nname = 'a'", "needs either `key`"),
        ("[[keys]]\nname = 'a'\nsha256 = 'ab'", "64 hex digits"),
        ("[[keys]]\nname = 'a'\nkey = 'sixteen-letters-1'\nrights = ['rule']", "rights of key 1"),
        ("[[keys]]\nname = 'a'\nkey = 'sixteen-letters-1'\nwhere = {}", "leave it out for everything"),
        ("[[keys]]\nname = 'a'\nkey = 'sixteen-letters-1'\nwhere = {a = {'$about' = 1}}", "unknown operator"),
        ("[[keys]]\nname = 'a'\nkey = 'sixteen-letters-1'\nlibraries = []", "libraries of key 1"),
        ("[[keys]]\nname = 'a'\nkey = 'sixteen-letters-1'\nadmin = true", "admin"),
        ("[[keys]]\nname = 'a'\nkey = 'sixteen-letters-1'\n" * 2, "two keys of the name 'a'"),
        (
            "[[keys]]\nname='a'\nkey='sixteen-letters-1'\n[[keys]]\nname='b'\nkey='sixteen-letters-1'",
            "one secret twice",
        ),
        ("keys = 1", "must hold tables"),
        ("[[keys]", "is no TOML"),
    ],
)
def test_a_key_file_that_says_less_than_it_seems_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "k.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        Keys.read(path)


def test_a_key_file_is_its_owners(key_file: Path) -> None:
    key_file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keys.read(key_file)


def test_a_key_may_stand_as_its_hash(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "k.toml"
    path.write_text(f"[[keys]]\nname = 'a'\nsha256 = '{hashlib.sha256(SECRETS['all'].encode()).hexdigest()}'")
    path.chmod(0o600)
    keys = Keys.read(path)
    assert keys.holder(SECRETS["all"]).name == "a"  # type: ignore[union-attr]
    assert keys.holder(SECRETS["all"] + " ") is None and keys.holder("") is None
    with pytest.raises(ConfigError, match="for library 'x'"):
        Keys([(b"", Keys.read(path)._keys[0][1].__class__("a", frozenset(), frozenset({"x"})))]).of_libraries(["three"])


# -- reach -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::"])
def test_the_network_is_let_in_with_keys_or_when_that_is_said(host: str) -> None:
    with pytest.raises(ConfigError, match="other machines reach"):
        ServeConfig(host=host).check_reach(keys=False)
    ServeConfig(host=host).check_reach(keys=True)
    ServeConfig(host=host, open_to_all=True).check_reach(keys=False)
    ServeConfig().check_reach(keys=False)


def test_a_page_of_the_web_does_not_ask_in_its_visitors_name(live: Live) -> None:
    with live.client() as client:
        assert error_of(client.get("/v1/models", headers={"host": "evil.example"})) == (421, "wrong_host")
        assert error_of(client.get("/v1/models", headers={"origin": "https://evil.example"})) == (403, "wrong_origin")
        assert error_of(client.get("/v1/models", headers={"origin": "null"})) == (403, "wrong_origin")
        here = {"origin": live.url, "host": live.url.removeprefix("http://")}
        assert client.get("/v1/models", headers=here).status_code == 200
        plain = client.post(DOCUMENTS, content=b'{"documents": []}', headers={"content-type": "text/plain"})
        assert plain.status_code == 400  # what a form may send without being asked is not taken for JSON


# -- sizes and rates ---------------------------------------------------------------------------------------


def chunks(megabytes: int) -> Any:
    return (b"x" * 1_000_000 for _ in range(megabytes))


def test_a_body_of_100_MB_is_refused_with_its_reason(live: Live) -> None:
    with live.client() as client:
        big = client.put(DOCUMENTS, params={"document": "a.txt"}, content=b"x" * 100_000_000)
        assert error_of(big) == (413, "body_too_large")
        assert "32,000,000 bytes" in big.json()["error"]["message"]
        assert client.get("/healthz").status_code == 200


def test_a_body_of_unknown_length_is_counted(open_rag: SacRag) -> None:
    with served(open_rag, body_bytes=1_500_000) as live, live.client() as client:
        big = client.put(DOCUMENTS, params={"document": "a.txt"}, content=chunks(2))
        assert error_of(big) == (413, "body_too_large")
        big = client.post("/v1/chat/completions", content=chunks(2), headers={"content-type": "application/json"})
        assert error_of(big) == (413, "body_too_large")


def test_rates_are_by_key(open_rag: SacRag, key_file: Path) -> None:
    with served(open_rag, Keys.read(key_file), requests_per_minute=3) as live:
        with live.client("all") as client:
            replies = [client.get("/v1/models") for _ in range(4)]
            assert [r.status_code for r in replies] == [200, 200, 200, 429]
            assert error_of(replies[3]) == (429, "rate_limit_exceeded")
            assert 1 <= int(replies[3].headers["retry-after"]) <= 20
        with live.client("sea") as client:
            assert client.get("/v1/models").status_code == 200


def test_a_bucket_fills_steadily() -> None:
    rates = Rates(60)
    for _ in range(60):
        rates.take("a", now=100.0)
    with pytest.raises(ApiError):
        rates.take("a", now=100.5)
    rates.take("a", now=101.1)
    with pytest.raises(ApiError):
        rates.take("a", now=101.2)
    for _ in range(60):
        rates.take("a", now=500.0)
    with pytest.raises(ApiError):
        rates.take("a", now=500.0)
    Rates(0).take("a")


# -- documents ---------------------------------------------------------------------------------------------


def test_documents_go_in_and_out(live: Live) -> None:
    with live.client() as client:
        put = client.post(DOCUMENTS, json={"documents": [{"document": "new.md", "text": "Gulls nest here."}]}).json()
        assert (put["added"], put["changed"], put["passages"]) == (1, 0, 1)
        again = client.post(DOCUMENTS, json={"documents": [{"document": "new.md", "text": "Gulls nest here."}]}).json()
        assert (again["added"], again["unchanged"], again["passages"]) == (0, 1, 0)
        one = client.get(DOCUMENTS, params={"document": "new.md"}).json()
        assert [p["text"] for p in one["contents"]] == ["Gulls nest here."] and one["contents"][0]["anchors"] > 0
        found = client.post("/v1/libraries/three/search", json={"query": "gulls", "k": 1, "search": "lexical"}).json()
        assert [(p["document"], p["start"], p["end"]) for p in found["passages"]] == [("new.md", 0, 16)]
        assert client.request("DELETE", DOCUMENTS, json={"documents": ["new.md"]}).json() == {
            "removed": 1,
            "passages": 1,
        }
        assert error_of(client.get(DOCUMENTS, params={"document": "new.md"})) == (404, "document_not_found")
        pages, after = [], ""
        while after is not None:
            page = client.get(DOCUMENTS, params={"limit": 2, "after": after}).json()
            pages.append([d["document"] for d in page["documents"]])
            after = page.get("next")
        assert pages == [["bridge.md", "canal.md"], ["tides.md"]]


def test_files_are_read_by_their_ending_and_tell_their_progress(live: Live) -> None:
    page = b"<html><body><h1>Gulls</h1><p>They nest on the pier.</p></body></html>"
    with live.client() as client:
        lines = client.put(
            DOCUMENTS,
            params={"document": "gulls.html", "meta": '{"team": "sea"}'},
            content=page,
            headers={"accept": "application/x-ndjson"},
        ).text.splitlines()
        import json

        told = [json.loads(line) for line in lines]
        assert [next(iter(t)) for t in told] == ["progress"] * (len(told) - 1) + ["report"] and len(told) > 1
        assert told[-1]["report"]["added"] == 1
        one = client.get(DOCUMENTS, params={"document": "gulls.html"}).json()
        assert one["type"] == "text/html" and one["meta"]["team"] == "sea"
        assert "They nest on the pier." in one["contents"][0]["text"]
        bad = client.put(DOCUMENTS, params={"document": "broken.pdf"}, content=b"%PDF-1.4 nothing")
        assert error_of(bad) == (422, "unreadable_document")
        odd = client.put(DOCUMENTS, params={"document": "a.exe"}, content=b"MZ")
        assert error_of(odd) == (422, "unreadable_document")
        assert error_of(client.put(DOCUMENTS, params={"document": "a\nb.txt"}, content=b"x")) == (400, "bad_name")


def test_sync_brings_the_library_up_to_its_folders(open_rag: SacRag, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "one.txt").write_text("The first file.")
    (docs / "two.txt").write_text("The second file.")
    with served(open_rag, folders=(str(docs),)) as live, live.client() as client:
        assert client.post("/v1/libraries/three/sync").json()["added"] == 2
        os.unlink(docs / "one.txt")
        report = client.post("/v1/libraries/three/sync").json()
        assert (report["removed"], report["unchanged"]) == (1, 1)
        names = [d["document"] for d in client.get(DOCUMENTS).json()["documents"]]
        assert names == [str(docs / "two.txt"), "bridge.md", "canal.md", "tides.md"]


def test_without_folders_there_is_nothing_to_sync(live: Live) -> None:
    with live.client() as client:
        assert error_of(client.post("/v1/libraries/three/sync")) == (409, "nothing_to_sync")


def test_another_writer_is_named_in_the_log_alone(live: Live, three: Path, caplog: pytest.LogCaptureFixture) -> None:
    import subprocess
    import sys

    hold = "import sys; from sac_rag.library.library import Library; l = Library.open(sys.argv[1], write=True); "
    hold += "print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", hold, three], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with live.client() as client:
            taken = client.post(DOCUMENTS, json={"documents": [{"document": "n", "text": "A note."}]})
            assert error_of(taken) == (409, "library_locked")
            assert str(three) not in taken.text and f"is being written by process {other.pid}" in caplog.text
    finally:
        other.communicate(b"")
    with live.client() as client:
        assert client.post(DOCUMENTS, json={"documents": [{"document": "n", "text": "A note."}]}).json()["added"] == 1


def test_writers_take_turns(live: Live) -> None:
    def put(i: int) -> None:
        with live.client() as client:
            body = {"documents": [{"document": f"n{i}", "text": f"Note number {i}."}]}
            assert client.post(DOCUMENTS, json=body).json()["added"] == 1

    threads = [threading.Thread(target=put, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=60)
    assert len(live.rag.newest().documents()) == 9


def test_a_read_only_server_takes_nothing(open_rag: SacRag) -> None:
    with served(open_rag, read_only=True) as live, live.client() as client:
        body = {"documents": [{"document": "n", "text": "A note."}]}
        assert error_of(client.post(DOCUMENTS, json=body)) == (403, "read_only")
        assert client.get("/v1/libraries").json()["libraries"][0]["writable"] is False


# -- answers -----------------------------------------------------------------------------------------------


def test_ask_gives_all_that_is_known_as_fields(live: Live) -> None:
    want = live.rag.ask("How long is the canal?", k=2, max_new_tokens=7)
    with live.client() as client:
        body = {"question": "How long is the canal?", "settings": {"k": 2, "max_new_tokens": 7}}
        got = client.post("/v1/libraries/three/ask", json=body).json()
        assert got["answer"] == want.text and got["cut"] == {"passages": 0, "turns": 0}
        assert got["finish_reason"] == want.finish_reason and got["fidelity"] == "memory"
        assert got["usage"] == want.usage.account()
        assert [(s["document"], s["start"], s["end"]) for s in got["sources"]] == [
            (h.passage.document, h.passage.start, h.passage.end) for h in want.sources
        ]
        text = client.post("/v1/libraries/three/ask", json={**body, "text": True}).json()
        assert text["fidelity"] == "text" and text["usage"]["memory_tokens"] == 0
        assert text["answer"] == live.rag.ask("How long is the canal?", k=2, max_new_tokens=7, text=True).text
        import json

        lines = client.post("/v1/libraries/three/ask", json={**body, "stream": True}).text.splitlines()
        pieces = [json.loads(b[6:])["text"] for a, b in zip(lines, lines[1:], strict=False) if a == "event: piece"]
        assert "".join(pieces) == want.text
        (last,) = (json.loads(b[6:]) for a, b in zip(lines, lines[1:], strict=False) if a == "event: answer")
        assert last["answer"] == want.text


def test_what_did_not_fit_is_a_field(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = live.rag.engine.method.backbone
    monkeypatch.setattr(type(backbone), "context_length", property(lambda self: 260))
    with live.client() as client:
        body = {"question": "How long is the canal?", "settings": {"k": 3, "max_new_tokens": 4}}
        got = client.post("/v1/libraries/three/ask", json=body).json()
        assert got["cut"]["passages"] == 3 - len(got["sources"]) > 0
        assert "did not fit" in got["notices"][0]


def test_unknown_paths_and_methods_are_errors_of_the_same_shape(live: Live) -> None:
    with live.client() as client:
        assert error_of(client.get("/v1/nothing"))[0] == 404
        assert error_of(client.get("/v1/chat/completions")) == (405, "method_not_allowed")
        assert error_of(client.post("/v1/chat/completions", content=b"{")) == (400, "invalid_request")
        assert error_of(client.post("/v1/libraries/three/ask", json={"question": "?", "kk": 1})) == (
            400,
            "invalid_request",
        )
        assert error_of(client.get("/static/../app.py"))[0] == 404
        assert error_of(client.get("/static/%2e%2e/app.py"))[0] == 404
