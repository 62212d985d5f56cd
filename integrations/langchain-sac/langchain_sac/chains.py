"""Questions to answers with documents: one runnable, and its prompt for stock chains."""

from __future__ import annotations

import copy
from typing import Any

from langchain_core.messages import SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, HumanMessagePromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.runnables.base import RunnableBindingBase
from pydantic import Field

from langchain_sac.chat_models import ChatSac
from langchain_sac.compressors import SacDocumentCompressor
from langchain_sac.formatting import chat_of, format_docs_sac
from langchain_sac.opening import rag_of, user_of
from langchain_sac.retrievers import SacRetriever
from sac_rag.answer.small_talk import is_small_talk
from sac_rag.errors import ConfigError
from sac_rag.library.filters import all_of, example
from sac_rag.records import NO_ANSWER


def sac_prompt(source: Any) -> ChatPromptTemplate:
    """The prompt that the library's adapter was trained with: {context}, {input} and, if given, {chat_history}.

    source: a SacRag, a library's folder or a component over one; it is opened. With documents rendered as tags, the
    model reads the same tokens and memories as `SacRag.ask` on the same passages.
    """
    # Braces are a template's own: the layout's are doubled, the two variables put in afterwards.
    *front, (_, question) = rag_of(source).layout("\ue000", "\ue001")
    escaped = question.replace("{", "{{").replace("}", "}}").replace("\ue000", "{context}").replace("\ue001", "{input}")
    return ChatPromptTemplate.from_messages(
        [
            *(SystemMessage(text) for _, text in front),
            MessagesPlaceholder("chat_history", optional=True),
            HumanMessagePromptTemplate.from_template(escaped),
        ]
    )


def create_sac_chain(
    source: Any,
    *,
    retriever: BaseRetriever | Runnable[str, Any] | None = None,
    llm: ChatSac | Runnable[Any, Any] | None = None,
    k: int | None = None,
    search_type: str | None = None,
    where: dict[str, Any] | None = None,
    remember: bool = True,
    closed_book: bool = False,
    **settings: Any,
) -> Runnable[Any, dict[str, Any]]:
    """A runnable from a question to {"input", "context": documents, "answer": text}; it opens the library when it runs.

    source: a SacRag, a library's folder or a component over one. The input is a str or a dict with "input" or
    "question" and, if there is one, "chat_history". k (1), search_type ("hybrid"), where: of the SacRetriever, where
    also of the ChatSac. settings: fields of the ChatSac, with max_tokens=64. llm: in place of the ChatSac, with what is
    bound to it. retriever: in place of the SacRetriever; its documents are compressed as they pass by, or with
    `remember=False` read as text. Where nothing was found the answer is NO_ANSWER, "The passages do not say.", and the
    model is not asked; closed_book: it is. Small talk is answered without documents, unless the ChatSac says otherwise.
    Raises ConfigError for settings of what is replaced.
    """
    given = {
        **{"source": source, "retriever": retriever, "llm": llm, "k": k, "search_type": search_type, "where": where},
        **{"remember": remember, "closed_book": closed_book, **settings},
    }
    user = user_of(source)
    if llm is not None and (settings or where):
        unused = settings | ({"where": where} if where else {})
        raise ConfigError(f"llm is given, and settings for another: {unused}; set them there")
    search: dict[str, Any] = {name: v for name, v in (("k", k), ("search_type", search_type)) if v is not None}
    if retriever is not None and search:
        raise ConfigError(f"retriever is given, and settings for another: {search}; set them there")
    chat = llm or ChatSac(**user, where=where, **{"max_tokens": 64, **settings})
    asked = chat if remember else chat.bind(recall=False)
    model, bound = chat_of(chat)
    if model is None:
        raise ConfigError(f"llm is a {type(llm).__name__}: give a ChatSac, or make a chain with format_docs_sac")
    found: Runnable[str, Any] = retriever or SacRetriever(**user, where=where, **{"k": 1, **search})
    if retriever is not None and remember:
        meta = example(all_of(model.where, bound.get("where")))
        found = found | _remembering(SacDocumentCompressor(**user_of(model), meta=meta))
    # A lambda that returns a runnable runs it: the prompt is looked up when there is something to ask.
    prompt = RunnableLambda(lambda _: sac_prompt(model), name="sac_prompt")
    said = (
        RunnablePassthrough.assign(context=lambda x: format_docs_sac(x["context"], chat, quiet=not remember))
        | prompt
        | asked
        | StrOutputParser()
    )

    def answered(x: dict[str, Any]) -> Any:
        return said if closed_book or x["context"] or chats(x) else NO_ANSWER

    def chats(x: dict[str, Any]) -> bool:
        return bool(bound.get("small_talk", model.small_talk)) and is_small_talk(x["input"])

    def context(x: dict[str, Any]) -> Any:
        return [] if chats(x) else RunnableLambda(lambda x: x["input"]) | found

    answer = RunnableLambda(answered, name="sac_answer")
    chain = (
        RunnableLambda(_question)
        | RunnablePassthrough.assign(context=RunnableLambda(context, name="sac_context"))
        | RunnablePassthrough.assign(answer=answer)
    )
    return SacChain(bound=chain, config={"run_name": "sac_chain"}, given=given)


class SacChain(RunnableBindingBase[Any, dict[str, Any]]):
    """What `create_sac_chain` makes. It is pickled and copied as what it was made of."""

    given: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        source = user_of(self.given["source"])
        path = source["library"] if source.get("library") else str(source["rag"].library.path)
        return _made, ({**self.given, "source": path},)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> SacChain:
        given = dict(self.given)
        source = given.pop("source")
        return _made({**copy.deepcopy(given, memo), "source": source})


def _made(given: dict[str, Any]) -> Any:
    return create_sac_chain(**given)


def _question(given: Any) -> dict[str, Any]:
    values = {"input": given} if isinstance(given, str) else dict(given)
    question = values.get("input", values.get("question"))
    if not isinstance(question, str) or not question.strip():
        raise ConfigError(f'no question in {sorted(values)}: give a str, or a dict with "input" or "question"')
    return {**values, "input": question.strip()}


def _remembering(compressor: SacDocumentCompressor) -> Runnable[Any, Any]:
    async def later(documents: Any) -> Any:
        return await compressor.acompress_documents(documents, "")

    return RunnableLambda(lambda documents: compressor.compress_documents(documents, ""), later, name="remember")
