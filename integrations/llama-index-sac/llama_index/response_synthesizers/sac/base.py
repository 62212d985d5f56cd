"""One prompt with all memories, in the very layout that the library's adapter was trained with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.types import RESPONSE_TEXT_TYPE
from llama_index.llms.sac import SacLLM
from llama_index.schema.sac.base import SacNode, with_stored_memory

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from sac_rag import SacRag
    from sac_rag.answer.tags import PassageRef

logger = logging.getLogger(__name__)

_GAP = " "
"""Between two nodes, while the best passages of all are chosen."""


class SacSynthesizer(BaseSynthesizer):
    """Answers from memories exactly as `SacRag.ask` does from the same passages.

    Nodes that the library holds under their id, with the same text, are read as memory, whether they are SacNodes or
    not; edited and foreign ones as text. Of nodes longer than a passage the passages are read that fit the query best.
    Repeated ones are read once. The lowest ranked are left out, with a warning, when they do not fit the context.
    `source_nodes` are the nodes as given.
    """

    def __init__(
        self,
        llm: SacLLM | SacRag,
        *,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        empty_response: str | None = None,
    ) -> None:
        self._sac = llm if isinstance(llm, SacLLM) else SacLLM(llm)
        super().__init__(
            llm=self._sac, callback_manager=callback_manager, streaming=streaming, empty_response=empty_response
        )

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if prompts:
            raise ValueError(f"the prompt is the adapter's own, not to be changed (given: {', '.join(prompts)})")

    def synthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> Any:
        read = self._chunks(nodes)
        response = super().synthesize(query, read, **response_kwargs)
        response.source_nodes = [*nodes, *(additional_source_nodes or ())]
        return response

    async def asynthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> Any:
        read = await asyncio.to_thread(self._chunks, nodes)
        response = await super().asynthesize(query, read, **response_kwargs)
        response.source_nodes = [*nodes, *(additional_source_nodes or ())]
        return response

    def get_response(self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any) -> RESPONSE_TEXT_TYPE:
        messages = self._messages(query_str, text_chunks)
        if self._streaming:
            return _deltas(self._sac.stream_chat(messages, **response_kwargs))
        return str(self._sac.chat(messages, **response_kwargs).message.content)

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        messages = await asyncio.to_thread(self._messages, query_str, text_chunks)
        if self._streaming:
            return _adeltas(await self._sac.astream_chat(messages, **response_kwargs))
        return str((await self._sac.achat(messages, **response_kwargs)).message.content)

    def _chunks(self, nodes: Sequence[NodeWithScore]) -> list[NodeWithScore]:
        """What is read of each node: its tags where this LLM may read them, else what it shows a model."""
        out = []
        for scored in with_stored_memory(self._sac.newest(), nodes):
            node = scored.node
            known = isinstance(node, SacNode) and node.remembered and self._sac.reads(node.sac_tag)
            chunk = node.sac_tag if known and isinstance(node, SacNode) else node.get_content(MetadataMode.LLM)
            out.append(NodeWithScore(node=TextNode(id_=node.node_id, text=chunk), score=scored.score))
        return out

    def _best(self, rag: SacRag, chunks: list[str], query: str) -> list[str]:
        """Chunks, with the passages of long nodes that fit the query best in place of their tags."""
        pieces: list[str | PassageRef] = []
        for chunk in chunks:
            cited = rag.cite(chunk, where=self._sac.where)
            tags = not any(isinstance(p, str) and p.strip() for p in cited)
            pieces += [*(cited if tags else (chunk,)), _GAP]
        found = rag.best(tuple(pieces), query)
        return [p if isinstance(p, str) else rag.tag(p.id) for p in found if not isinstance(p, str) or p.strip()]

    def _messages(self, query: str, chunks: Sequence[str]) -> list[ChatMessage]:
        rag, query, count = self._sac.rag, query.strip(), self._sac.tokenizer
        chunks = self._best(rag, list(dict.fromkeys(chunks)), query)
        kept = rag.fitting([len(count(chunk)) for chunk in chunks], query, self._sac.max_tokens)
        if kept < len(chunks):
            logger.warning(
                "%d of %d nodes do not fit the model's context and are left out", len(chunks) - kept, len(chunks)
            )
        asked = rag.layout(rag.separator.join(chunks[:kept]), query)
        return [ChatMessage(role=role, content=text) for role, text in asked]


def _deltas(responses: Any) -> Generator[str, None, None]:
    for r in responses:
        yield r.delta or ""


async def _adeltas(responses: Any) -> AsyncGenerator[str, None]:
    r: ChatResponse
    async for r in responses:
        yield r.delta or ""
