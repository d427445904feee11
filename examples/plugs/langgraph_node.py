"""A LangGraph graph of your own with bounded memory: one node that folds old messages, before the one that replies.

pip install 'memtrain[langchain]' langchain-openai
python langgraph_node.py --url http://127.0.0.1:8000/v1         # then type messages, one a line

Any OpenAI-compatible server will do (vLLM, Ollama, a hosted one).
With --memory http://127.0.0.1:8080 a running `memtrain serve` writes the memory, whatever model the graph talks with.
"""

import argparse
import asyncio
import os
import sys

from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from openai import OpenAI

from memtrain.plugs.langchain import MemoryState, memory_node, with_memory
from memtrain.plugs.served import ServedMemory


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
    parser.add_argument("--model", default="", help="default: the first one that the server lists")
    parser.add_argument("--memory", help="address of a memtrain serve; default: the model writes its own")
    parser.add_argument("--tokens", type=int, default=4096, help="what the model may be shown at a time")
    given = parser.parse_args()
    key = os.environ.get("OPENAI_API_KEY", "none")
    name = given.model or OpenAI(base_url=given.url, api_key=key).models.list().data[0].id
    model = ChatOpenAI(model=name, base_url=given.url, api_key=key, temperature=0)

    async def reply(state: MemoryState) -> dict:
        return {"messages": [await model.ainvoke(with_memory(state, "You help with travel plans."))]}

    writer = ServedMemory(given.memory, memory_tokens=256) if given.memory else model
    graph = StateGraph(MemoryState)
    graph.add_node("remember", memory_node(writer, context_tokens=given.tokens, reserved_tokens=50))
    graph.add_node("reply", reply)
    graph.add_edge(START, "remember")
    graph.add_edge("remember", "reply")
    graph.add_edge("reply", END)
    chat = graph.compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "ada"}}
    for line in sys.stdin:
        state = await chat.ainvoke({"messages": [("user", line.strip())]}, thread)
        print(state["messages"][-1].text)
        print(f"   [{len(state['messages'])} messages; memory: {state.get('memtrain_memory', '-')!r}]", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
