"""A node of a graph with checkpoints. python langgraph_node.py my.lib "How long is the Erie Canal?" """

import sys

from langchain_core.documents import Document
from langgraph.checkpoint.memory import MemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from langchain_sac import ChatSac, SacRetriever, format_docs_sac, sac_prompt

library, question = sys.argv[1:]

chat = ChatSac(library=library, max_tokens=64)
retriever = SacRetriever(library=library, k=1)
prompt = sac_prompt(chat)


class State(MessagesState):
    question: str
    documents: list[Document]


def retrieve(state: State) -> dict:
    return {"documents": retriever.invoke(state["question"])}


def answer(state: State) -> dict:
    context = format_docs_sac(state["documents"], chat)
    asked = prompt.invoke({"context": context, "input": state["question"], "chat_history": state["messages"]})
    return {"messages": [asked.to_messages()[-1], chat.invoke(asked)]}


graph = StateGraph(State).add_sequence([retrieve, answer]).add_edge(START, "retrieve")
app = graph.compile(checkpointer=MemorySaver())
thread = {"configurable": {"thread_id": "1"}}

print(app.invoke({"question": question}, thread)["messages"][-1].content)
