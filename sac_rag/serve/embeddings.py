"""/v1/embeddings and /v1/models: vectors by a library's embedder, and what there is to ask."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from sac_rag.serve.asking import Lenient
from sac_rag.serve.body import StrictRoute
from sac_rag.serve.door import Door
from sac_rag.serve.errors import ApiError
from sac_rag.serve.libraries import ServedLibrary, model_name

router = APIRouter(route_class=StrictRoute)

MOST_TEXTS = 2048
"""Of one request, as OpenAI's."""


class EmbeddingsRequest(Lenient):
    """input_type: "query" embeds as a question is, where the embedder makes a difference."""

    model: str
    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    input_type: Literal["passage", "query"] = "passage"
    dimensions: int | None = None


@router.post("/v1/embeddings", response_model=None)
async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """Vectors of length 1 by the embedder of the library that `model` names."""
    body.check(frozenset({"user"}), {})
    door = Door.of(request)
    served = door.model(body.model)
    rag = served.rag
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        message = "input must be a text or a list of texts, none of them empty; lists of token ids are not taken"
        raise ApiError(
            400, "unsupported_input", f"{message} (LangChain: check_embedding_ctx_length=False)", param="input"
        )
    if len(texts) > MOST_TEXTS:
        raise ApiError(400, "too_many_texts", f"{len(texts)} texts, at most {MOST_TEXTS} at once", param="input")
    if door.trace is not None:
        about = {"request.encoding_formats": [body.encoding_format], "embeddings.dimension.count": rag.embedder.dim}
        door.trace.asked("embeddings", served, body.model, {**about, "response.model": Path(rag.config.embedder).name})
    rows = await asyncio.to_thread(rag.embed, texts, kind=body.input_type)
    if body.dimensions not in (None, rows.shape[1]):
        message = f"vectors of this embedder have {rows.shape[1]} dimensions, not {body.dimensions}"
        raise ApiError(400, "unsupported_parameter", message, param="dimensions")

    def written(row: Any) -> Any:
        return (
            base64.b64encode(row.astype("<f4").tobytes()).decode() if body.encoding_format == "base64" else row.tolist()
        )

    data = [{"object": "embedding", "index": n, "embedding": written(row)} for n, row in enumerate(rows)]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


@router.get("/v1/models", response_model=None)
async def models(request: Request) -> Response:
    """Libraries that this key may ask, each as a model."""
    door = Door.of(request)
    return JSONResponse({"object": "list", "data": [_model(s) for s in door.libraries.of(door.key)]})


@router.get("/v1/models/{model}", response_model=None)
async def model(model: str, request: Request) -> Response:
    """One of them."""
    return JSONResponse(_model(Door.of(request).model(model)))


def _model(served: ServedLibrary) -> dict[str, Any]:
    rag = served.rag
    return {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "sac-rag",
        "base_model": model_name(rag),
        "ratio": rag.config.ratio,
        "context_length": rag.context_length,
    }
