"""A chain with history. python conversation.py my.lib "How long is the Erie Canal?" "And who dug it?" """

import sys
from operator import itemgetter

from langchain_core.runnables import RunnablePassthrough

from langchain_sac import ChatSac, SacRetriever, format_docs_sac, sac_prompt

library, *questions = sys.argv[1:]

chat = ChatSac(library=library, max_tokens=64)
retriever = SacRetriever(library=library, k=1)
context = itemgetter("input") | retriever | (lambda docs: format_docs_sac(docs, chat))
asking = RunnablePassthrough.assign(context=context) | sac_prompt(chat)

history = []
for question in questions:
    messages = asking.invoke({"input": question, "chat_history": history}).to_messages()
    answer = chat.invoke(messages)
    # Kept as it was asked, with its tags: turns that a later one refers to, passages included, are not read again.
    history += [messages[-1], answer]
    read = answer.usage_metadata["input_tokens"] - answer.response_metadata["reused_tokens"]
    print(f"{answer.content}  ({read} tokens read)")
