"""An agent whose model calls no tools: the graph does. python agent.py my.lib "How long is the Erie Canal?" """

import sys

from langchain_core.messages import AIMessage
from langchain_core.tools import create_retriever_tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from langchain_sac import ChatSac, SacDocumentPrompt, SacRetriever

library, question = sys.argv[1:]

chat = ChatSac(library=library, max_tokens=64)
search = create_retriever_tool(
    SacRetriever(library=library, k=1),
    "search",
    "Searches the documents.",
    document_prompt=SacDocumentPrompt(llm=chat),
)


def plan(state: MessagesState) -> dict:
    call = {"name": "search", "args": {"query": state["messages"][-1].content}, "id": str(len(state["messages"]))}
    return {"messages": [AIMessage("", tool_calls=[call])]}


def answer(state: MessagesState) -> dict:
    return {"messages": [chat.invoke(state["messages"])]}


graph = StateGraph(MessagesState).add_sequence([plan, ("tools", ToolNode([search])), answer])
agent = graph.add_edge(START, "plan").compile()

print(agent.invoke({"messages": [("user", question)]})["messages"][-1].content)
