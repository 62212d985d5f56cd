"""A query engine whose model reads memories instead of text, and answers exactly as `SacRag.ask` does."""

from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.sac import SacLLM
from llama_index.response_synthesizers.sac import SacSynthesizer
from llama_index.retrievers.sac import SacRetriever

from sac_rag import SacRag, samples

rag = SacRag.index(samples.documents() / "pluto_and_charon.md", "pluto.lib")

llm = SacLLM(rag, max_tokens=48)
engine = RetrieverQueryEngine(SacRetriever(rag, k=1), SacSynthesizer(llm))
response = engine.query("Who discovered Pluto in February 1930?")
print(response)
for scored in response.source_nodes:
    print(f"{scored.score:.3f}", scored.node.metadata["document"], scored.node.get_content()[:60])

streaming = RetrieverQueryEngine(SacRetriever(rag, k=1), SacSynthesizer(llm, streaming=True))
streaming.query("How many moons does Pluto have?").print_response_stream()
print()

stock = RetrieverQueryEngine.from_args(SacRetriever(rag, k=1), llm=llm)
print(stock.query("Who discovered Pluto in February 1930?"))

rag.close()
