"""A conversation over a library: the passages of a turn are memory, and the next turn goes on from what was read."""

from llama_index.core.chat_engine import ContextChatEngine
from llama_index.llms.sac import SacLLM
from llama_index.retrievers.sac import SacRetriever

from sac_rag import SacRag, samples

rag = SacRag.index(samples.documents() / "pluto_and_charon.md", "pluto.lib")

engine = ContextChatEngine.from_defaults(SacRetriever(rag, k=1), llm=SacLLM(rag, max_tokens=32))
for question in ("Who discovered Pluto?", "In which year was Pluto discovered?"):
    print(engine.chat(question))
for piece in engine.stream_chat("Where was Pluto discovered?").response_gen:
    print(piece, end="", flush=True)
print()

rag.close()
