"""The same tutorial, its documents compressed into `tutorial.lib`: five lines are new."""

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.vector_stores.sac import SacVectorStore

from sac_rag import samples

store = SacVectorStore.from_library("tutorial.lib", tags=True)
Settings.llm = store.llm(max_tokens=32)
Settings.embed_model = store.embed_model()
documents = SimpleDirectoryReader(input_files=[samples.documents() / "adermatoglyphia.txt"]).load_data()
index = VectorStoreIndex.from_documents(documents, storage_context=store.storage_context())
engine = index.as_query_engine(similarity_top_k=1)
print(engine.query("What do people with adermatoglyphia lack?"))
