"""Stock chains, unchanged. python retrieval_chain.py my.lib "How long is the Erie Canal?" """

import sys

from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain

from langchain_sac import ChatSac, SacDocumentPrompt, SacRetriever, sac_prompt

library, question = sys.argv[1:]

chat = ChatSac(library=library, max_tokens=64)
stuff = create_stuff_documents_chain(chat, sac_prompt(chat), document_prompt=SacDocumentPrompt(llm=chat))
chain = create_retrieval_chain(SacRetriever(library=library, k=1), stuff)

print(chain.invoke({"input": question})["answer"])
