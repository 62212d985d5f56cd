"""Turn after turn. python conversation.py my.lib "How long is the Erie Canal?" "And who dug it?" """

import sys

from langchain_core.messages import HumanMessage, SystemMessage

from langchain_sac import ChatSac, SacRetriever, format_docs_sac

library, *questions = sys.argv[1:]

chat = ChatSac(library=library, max_tokens=64)
retriever = SacRetriever(library=library, k=1)
messages = [SystemMessage("Answer the question in a few words, from the text.")]
for question in questions:
    found = format_docs_sac(retriever.invoke(question), chat)
    messages.append(HumanMessage(f"{found}\nQuestion: {question}"))
    answer = chat.invoke(messages)
    messages.append(answer)
    # Earlier turns, their passages included, are not read again.
    read = answer.usage_metadata["input_tokens"] - answer.response_metadata["reused_tokens"]
    print(f"{answer.content}  ({read} tokens read)")
