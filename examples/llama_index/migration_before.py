"""The starter tutorial of LlamaIndex, with stand-ins for a model and an embedder of your choice."""

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM

from sac_rag import samples

Settings.llm = MockLLM()
Settings.embed_model = MockEmbedding(384)
documents = SimpleDirectoryReader(input_files=[samples.documents() / "adermatoglyphia.txt"]).load_data()
index = VectorStoreIndex.from_documents(documents)
engine = index.as_query_engine(similarity_top_k=1)
print(engine.query("What do people with adermatoglyphia lack?"))
