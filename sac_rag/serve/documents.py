"""The library's own REST: documents in and out, search, and answers with all that is known of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response, StreamingResponse

from sac_rag.config import AskConfig, from_mapping
from sac_rag.errors import ConfigError
from sac_rag.indexing import IndexReport, Listen
from sac_rag.library.library import StoredDocument
from sac_rag.records import Document
from sac_rag.serve import asking, errors
from sac_rag.serve.answering import Answering
from sac_rag.serve.asking import Asked
from sac_rag.serve.body import StrictRoute, read
from sac_rag.serve.chat import ChatMessage, event
from sac_rag.serve.door import Door
from sac_rag.serve.errors import ApiError
from sac_rag.serve.keys import Key
from sac_rag.serve.libraries import ServedLibrary, model_name
from sac_rag.serve.tracing import searching

router = APIRouter(prefix="/v1/libraries", route_class=StrictRoute)

LONGEST_NAME = 1024
PAGE = 1000
LINES = "application/x-ndjson"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchRequest(Strict):
    query: str
    k: int = 5
    search: str = "hybrid"
    min_score: float | None = None
    where: dict[str, Any] | None = None


class AskRequest(Strict):
    """settings: fields of AskConfig, such as k, fidelity, max_new_tokens. text: read as text, for comparison. schema: a
    JSON schema that the answer is held to. heat: also say which anchors of the passages were attended.
    """

    question: str
    messages: list[ChatMessage] = []
    stream: bool = False
    where: dict[str, Any] | None = None
    text: bool = False
    stop: list[str] = []
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    heat: bool = False
    settings: dict[str, Any] = {}


class PutDocument(Strict):
    """A document that is text already."""

    document: str
    text: str
    media_type: str = "text/plain"
    meta: dict[str, Any] = {}


class PutRequest(Strict):
    documents: list[PutDocument]


class DeleteRequest(Strict):
    documents: list[str]


@router.get("", response_model=None)
async def libraries(request: Request) -> Response:
    """Libraries of this key, with their sizes; of all documents, not of the key's alone."""
    door = Door.of(request)
    found = [await asyncio.to_thread(_library, door, s) for s in door.libraries.of(door.key)]
    return JSONResponse({"libraries": found})


def _library(door: Door, served: ServedLibrary) -> dict[str, Any]:
    rag, key = served.rag, door.key
    about = {
        "library": served.name,
        "model": model_name(rag),
        "ratio": rag.config.ratio,
        "codec": rag.config.codec,
        "context_length": rag.context_length,
        "slot_bytes": rag.slot_bytes,
        "writable": "write" in key.rights and not door.limits.read_only and served.is_whole,
        "syncs": bool(served.folders),
    }
    if key.where:  # sizes would tell of others' documents
        return {**about, "documents": len(rag.newest().documents(where=key.where))}
    stats = rag.newest().stats()
    sizes = ("generation", "documents", "passages", "anchors", "source_tokens", "kv_bytes", "total_bytes")
    return {**about, **{name: getattr(stats, name) for name in sizes}}


@router.post("/{library}/search", response_model=None)
async def search(library: str, body: SearchRequest, request: Request) -> Response:
    """Passages, best first, with their scores."""
    door = Door.of(request)
    served = door.reading(library)
    settings = {"k": body.k, "search": body.search, "min_score": body.min_score}
    ask, where = from_mapping(AskConfig, settings), served.where(door.key, body.where)
    query = body.query.strip()
    if not query:
        raise ConfigError("the query is empty; look for something")
    with searching(door.trace, served, query, body.k) as hits:
        hits += await asyncio.to_thread(served.rag.retrieve, query, ask, where=where)
    for hit in hits:  # as the result of a client's tool it is read as memory: see `serve.tools`
        served.rag.offer(hit.passage.text, served.rag.tag(hit.passage.id))
    return JSONResponse({"passages": [asking.source(h) for h in hits]})


@router.post("/{library}/ask", response_model=None)
async def ask(library: str, body: AskRequest, request: Request) -> Response:
    """An answer with its sources, the span that says it, confidence, what was cut, usage and timings.

    stream: server-sent events, `piece`s and then the `answer`. messages: earlier turns. schema: a JSON schema that the
    answer is held to.
    """
    door = Door.of(request)
    served = door.reading(library)
    messages = [*body.messages, ChatMessage(role="user", content=body.question)]
    instructions, turns, question, forgotten = asking.conversation(messages)
    asked = asking.asked(
        served,
        door.key,
        door.limits,
        question=question,
        given={**body.settings, "where": body.where, "text": body.text},
        turns=turns,
        instructions=instructions,
        forgotten=forgotten,
        stop=asking.stops_of(body.stop),
        schema=body.schema_,
        heat=body.heat,
    )
    answering = door.answer(await asking.compiled(asked), library, stream=body.stream)
    if body.stream:
        return StreamingResponse(_answer_events(asked, answering), media_type="text/event-stream")
    return JSONResponse(asked.account(await answering.whole(request)))


async def _answer_events(asked: Asked, answering: Answering) -> AsyncIterator[bytes]:
    async with aclosing(answering):
        try:
            async for piece in answering:
                yield event({"text": piece}, "piece")
            yield event(asked.account(answering.answer), "answer")
        except Exception as error:  # the status is sent already
            yield event(errors.of(error).body, "error")


# -- documents ---------------------------------------------------------------------------------------------


@router.get("/{library}/documents", response_model=None)
async def documents(
    library: str,
    request: Request,
    document: str | None = None,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
) -> Response:
    """Documents by name, from behind `after` on; of one `document` its passages, too."""
    door = Door.of(request)
    served = door.reading(library)
    if document is not None:
        return JSONResponse(await asyncio.to_thread(_document, served, door.key, document))
    found = await asyncio.to_thread(lambda: served.rag.newest().documents(where=door.key.where))
    rest = [d for d in found if d.uri > after]
    more = {"next": rest[limit - 1].uri} if len(rest) > limit else {}
    return JSONResponse({"documents": [_about(d) for d in rest[:limit]], "count": len(found), **more})


def _about(document: StoredDocument) -> dict[str, Any]:
    return {
        "document": document.uri,
        "type": document.media_type,
        "passages": document.passages,
        "tokens": document.source_tokens,
        "meta": document.meta,
    }


def _document(served: ServedLibrary, key: Key, uri: str) -> dict[str, Any]:
    library = served.rag.newest()
    found = library.documents([uri], where=key.where)
    if not found:
        raise _unknown(uri)
    passages = library.passages(uri, where=key.where)
    extents = library.extents([p.id for p in passages])
    fields = ("id", "ordinal", "start", "end", "heading", "tokens", "meta", "text")
    rows = [
        {**{n: getattr(p, n) for n in fields}, "anchors": anchors}
        for p, (anchors, _) in zip(passages, extents, strict=True)
    ]
    return {**_about(found[0]), "contents": rows}


def _unknown(uri: str) -> ApiError:
    return ApiError(404, "document_not_found", f"no document {uri!r} here", param="document")


@router.post("/{library}/documents", response_model=None)
async def put(library: str, body: PutRequest, request: Request) -> Response:
    """Store texts, in one commit; unchanged ones stay as they are. `Accept: application/x-ndjson` tells progress."""
    door = Door.of(request)
    served = door.writing(library)
    given = [
        Document(_name(d.document), d.text, d.media_type, meta=_meta(door.key, d.document, d.meta))
        for d in body.documents
    ]

    def store(listen: Listen) -> IndexReport:
        with served.rag.changing():
            for d in given:
                _check_theirs(served, door.key, d.uri)
            return served.rag.put(given, listen=listen)

    return await _changed(served, request, store)


@router.put("/{library}/documents", response_model=None)
async def put_file(library: str, request: Request, document: str, meta: str = "{}") -> Response:
    """Store a file, the body of the request, under a name whose ending says what it is (PDF, Word, …)."""
    door = Door.of(request)
    served, uri = door.writing(library), _name(document)
    given = _meta(door.key, uri, _object(meta))
    data = await request.body()

    def store(listen: Listen) -> IndexReport:
        with served.rag.changing():
            _check_theirs(served, door.key, uri)
            return served.rag.put_file(uri, data, meta=given, listen=listen)

    return await _changed(served, request, store)


@router.delete("/{library}/documents", response_model=None)
async def delete(library: str, body: DeleteRequest, request: Request) -> Response:
    """Remove documents: gone from search and answers at once, all of them or none; their bytes go with gc."""
    door = Door.of(request)
    served = door.writing(library)

    def remove() -> int:
        with served.rag.changing() as opened:
            mine = {d.uri for d in opened.documents(body.documents, where=door.key.where)}
            if unknown := [uri for uri in body.documents if uri not in mine]:
                raise _unknown(unknown[0])
            return served.rag.remove(body.documents)

    return JSONResponse({"removed": len(set(body.documents)), "passages": await served.change(remove)})


@router.post("/{library}/sync", response_model=None)
async def sync(library: str, request: Request) -> Response:
    """Bring the library up to the folders that the server was started with: new, changed and removed files."""
    door = Door.of(request)
    served = door.writing(library)
    if door.key.where:
        raise ApiError(403, "forbidden", f"key {door.key.name!r} sees a part of the library and may not sync all of it")
    if not served.folders:
        message = f"no folder is named for {library!r}: start the server with --folder {library}=FOLDER"
        raise ApiError(409, "nothing_to_sync", message)
    return await _changed(served, request, lambda listen: served.rag.add(served.folders, sync=True, listen=listen))


@router.post("/{library}/gc", response_model=None)
async def gc(library: str, request: Request) -> Response:
    """Erase what was removed, and give its bytes back."""
    door = Door.of(request)
    served = door.writing(library)
    if door.key.where:
        raise ApiError(403, "forbidden", f"key {door.key.name!r} sees a part of the library and may not rewrite it")
    report = await served.change(served.rag.gc)
    return JSONResponse({name: getattr(report, name) for name in report.__dataclass_fields__})


def _name(uri: str) -> str:
    if not uri.strip() or len(uri) > LONGEST_NAME or not uri.isprintable():
        message = f"a document's name is {ascii(uri)[:80]}; give 1 to {LONGEST_NAME} printable characters"
        raise ApiError(400, "bad_name", message, param="document")
    return uri


def _object(text: str) -> dict[str, Any]:
    try:
        value = read(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApiError(400, "bad_meta", f"meta is {text[:80]!r}; give a JSON object", param="meta")
    return value


def _meta(key: Key, uri: str, meta: dict[str, Any]) -> dict[str, Any]:
    """Metadata with the key's mark; ApiError 403 where the document would still not be the key's."""
    marked = {**key.mark, **meta}
    if not key.owns(uri, marked):
        message = f"document {uri!r} would not be key {key.name!r}'s: its metadata must fit {dict(key.where or {})!r}"
        raise ApiError(403, "forbidden", message, param="meta")
    return marked


def _check_theirs(served: ServedLibrary, key: Key, uri: str) -> None:
    stored = served.rag.library.documents([uri])
    if stored and not key.fits(uri, stored[0].meta):
        raise ApiError(
            403, "forbidden", f"key {key.name!r} may not write {uri!r}: choose another name", param="document"
        )


async def _changed(served: ServedLibrary, request: Request, work: Callable[[Listen], IndexReport]) -> Response:
    """Run what indexes; tell how far it is where the client wants to hear."""
    if LINES not in request.headers.get("accept", ""):
        return JSONResponse(_report(await served.change(lambda: work(lambda _: None))))
    lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(line: dict[str, Any] | None) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, line)

    def run() -> None:
        try:
            tell({"report": _report(work(lambda r: tell({"progress": _progress(r)})))})
        except Exception as error:
            tell(errors.of(error).body)
        finally:
            tell(None)

    async def told() -> AsyncIterator[bytes]:
        changing = asyncio.ensure_future(served.change(run))
        while (line := await lines.get()) is not None:
            yield json.dumps(line).encode() + b"\n"
        await changing

    return StreamingResponse(told(), media_type=LINES)


def _progress(report: IndexReport) -> dict[str, Any]:
    share = min(1.0, (report.done + report.ahead) / report.files) if report.files else 0.0
    return {
        "step": report.step,
        "files": report.files,
        "done": report.done,
        "passages": report.passages,
        "share": share,
    }


def _report(report: IndexReport) -> dict[str, Any]:
    counts = ("files", "added", "changed", "unchanged", "removed", "passages", "tokens", "seconds")
    return {
        **{name: getattr(report, name) for name in counts},
        "skipped": [{"path": s.path, "reason": s.reason} for s in report.skipped],
        "notices": [{"path": n.path, "notice": n.text} for n in report.notices],
    }
