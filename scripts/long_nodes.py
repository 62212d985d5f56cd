"""How nodes longer than a passage are read: the sample questions over LlamaIndex nodes of several sizes.

    python scripts/long_nodes.py [--sizes 1024,256] [--k 1,2,4]

Splits the sample documents by LlamaIndex's SentenceSplitter (1,024 tokens are its default) and prints how many of the
30 sample questions are answered right by a stock query engine over a SacVectorStore, by one with a SacSynthesizer, and
by a stock one over another vector store, with a SacNodePostprocessor of a library that does not hold the nodes.
"""

import argparse
import tempfile
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.postprocessor.sac import SacNodePostprocessor
from llama_index.response_synthesizers.sac import SacSynthesizer
from llama_index.vector_stores.sac import SacVectorStore

from sac_rag import samples
from sac_rag.evaluate.metrics import contains
from sac_rag.text.readers import read_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1024,256")
    parser.add_argument("--k", default="1,2,4")
    args = parser.parse_args()
    texts = {p.name: read_bytes(p.name, p.read_bytes()).text for p in sorted(samples.documents().iterdir())}
    questions = samples.questions()
    documents = [Document(text=text, doc_id=name) for name, text in texts.items()]
    for size in map(int, args.sizes.split(",")):
        nodes = SentenceSplitter(chunk_size=size, chunk_overlap=min(200, size // 5))(documents)
        with tempfile.TemporaryDirectory() as folder:
            store = SacVectorStore.from_library(Path(folder) / "nodes.lib")
            embed_model, llm = store.embed_model(), store.llm(max_tokens=24)
            index = VectorStoreIndex(nodes, storage_context=store.storage_context(), embed_model=embed_model)
            other = VectorStoreIndex(nodes, embed_model=embed_model)
            empty = SacVectorStore.from_library(Path(folder) / "empty.lib")
            remembering = SacNodePostprocessor(empty.rag)
            for k in map(int, args.k.split(",")):
                engines = {
                    "stock": index.as_query_engine(llm=llm, similarity_top_k=k),
                    "SacSynthesizer": index.as_query_engine(
                        llm=llm, similarity_top_k=k, response_synthesizer=SacSynthesizer(llm)
                    ),
                    "another store": other.as_query_engine(
                        llm=empty.llm(max_tokens=24), similarity_top_k=k, node_postprocessors=[remembering]
                    ),
                }
                for name, engine in engines.items():
                    right = sum(contains(str(engine.query(q.question)), q.answers) for q in questions)
                    print(f"nodes of {size}, k {k}, {name}: {right} of {len(questions)}", flush=True)
            store.rag.close()
            empty.rag.close()


if __name__ == "__main__":
    main()
