"""From a text store to compressed memories. python migration.py my.lib "How long is the Erie Canal?"

Before, with a store of vectors and text (here the one of langchain-core; FAISS reads the same) and any chat model:

    store = FAISS.from_documents(documents, embeddings)
    chat = ChatOpenAI()
    prompt = ChatPromptTemplate.from_template("{context}\\nQuestion: {input}")
    format_docs = lambda docs: "\\n\\n".join(d.page_content for d in docs)

    chain = {"context": store.as_retriever() | format_docs, "input": RunnablePassthrough()} | prompt | chat
"""

import sys

from langchain_core.documents import Document
from langchain_core.runnables import RunnablePassthrough

from langchain_sac import ChatSac, SacVectorStore, format_docs_sac, sac_prompt

library, question = sys.argv[1:]
documents = [
    Document(id="canal", page_content="The Erie Canal spans 363 miles between Albany and Buffalo."),
    Document(id="tower", page_content="The Eiffel Tower was finished in 1889."),
]

with SacVectorStore(library=library) as store:
    store.add_documents(documents)
    chat = ChatSac(rag=store.rag, max_tokens=64)
    prompt = sac_prompt(chat)
    format_docs = lambda docs: format_docs_sac(docs, chat)  # noqa: E731

    chain = {"context": store.as_retriever() | format_docs, "input": RunnablePassthrough()} | prompt | chat
    print(chain.invoke(question).content)
