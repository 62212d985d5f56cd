"""An ingestion pipeline that compresses its nodes, beside any vector store and any reranker."""

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.sac import SacEmbedding
from llama_index.ingestion.sac import SacCompressor
from llama_index.llms.sac import SacLLM
from llama_index.postprocessor.sac import SacNodePostprocessor

from sac_rag import SacRag, samples

text = (samples.documents() / "adermatoglyphia.txt").read_text("utf-8")
rag = SacRag.open("nodes.lib", write=True, create=True)

pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=0), SacCompressor(rag)])
nodes = pipeline.run(documents=[Document(text=text, doc_id="adermatoglyphia")])
index = VectorStoreIndex(nodes, embed_model=SacEmbedding(rag))
engine = index.as_query_engine(
    llm=SacLLM(rag, max_tokens=32), similarity_top_k=2, node_postprocessors=[SacNodePostprocessor(rag)]
)
print(engine.query("What do people with adermatoglyphia lack?"))

rag.close()
