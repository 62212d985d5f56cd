"""Documents of another retriever, compressed as they pass by. python any_retriever.py my.lib "Who built the barn?" """

import sys

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_sac import SacDocumentCompressor, SacEmbeddings, create_sac_chain
from sac_rag import SacRag

library, question = sys.argv[1:]
documents = [Document("Mary built the barn in 1902."), Document("The barn burned down in 1931.")]
retriever = InMemoryVectorStore.from_documents(documents, SacEmbeddings(library=library)).as_retriever()

with SacRag.open(library) as rag:
    compressor = SacDocumentCompressor(rag=rag)
    remembering = retriever | (lambda docs: compressor.compress_documents(docs, ""))
    print(create_sac_chain(rag, retriever=remembering).invoke(question)["answer"])
