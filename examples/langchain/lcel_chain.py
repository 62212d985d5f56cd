"""A chain of pieces. python lcel_chain.py my.lib "How long is the Erie Canal?" """

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnablePassthrough

from langchain_sac import ChatSac, SacRetriever, format_docs_sac, sac_prompt

library, question = sys.argv[1:]

chat = ChatSac(library=library, max_tokens=64)
retriever = SacRetriever(library=library, k=1)
chain = (
    {"context": retriever | (lambda docs: format_docs_sac(docs, chat)), "input": RunnablePassthrough()}
    | sac_prompt(chat)
    | chat
    | StrOutputParser()
)

for piece in chain.stream(question):
    print(piece, end="", flush=True)
print()
