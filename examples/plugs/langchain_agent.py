"""A LangChain agent whose context stays bounded: old messages are folded into a memory that the model writes itself.

pip install 'memtrain[langchain]' langchain-openai
python langchain_agent.py --url http://127.0.0.1:8000/v1        # then type messages, one a line

Any OpenAI-compatible server will do (vLLM, Ollama, a hosted one); --tools gives the agent one, where the model can.
With --memory http://127.0.0.1:8080 a running `memtrain serve` writes the memory, whatever model the agent talks with.
"""

import argparse
import os
import sys

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from openai import OpenAI

from memtrain.plugs.langchain import BoundedMemoryMiddleware
from memtrain.plugs.served import ServedMemory


@tool
def price(hotel: str) -> str:
    """The price of a night in a hotel."""
    return f"A night in the {hotel} costs {100 + 7 * len(hotel)} euros."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
    parser.add_argument("--model", default="", help="default: the first one that the server lists")
    parser.add_argument("--memory", help="address of a memtrain serve; default: the model writes its own")
    parser.add_argument("--tokens", type=int, default=4096, help="what the model may be shown at a time")
    parser.add_argument("--tools", action="store_true")
    given = parser.parse_args()
    key = os.environ.get("OPENAI_API_KEY", "none")
    name = given.model or OpenAI(base_url=given.url, api_key=key).models.list().data[0].id
    model = ChatOpenAI(model=name, base_url=given.url, api_key=key, temperature=0)
    writer = ServedMemory(given.memory, memory_tokens=256) if given.memory else model
    agent = create_agent(
        model,
        [price] if given.tools else [],
        system_prompt="You help with travel plans.",
        middleware=[BoundedMemoryMiddleware(writer, context_tokens=given.tokens)],
        checkpointer=InMemorySaver(),  # SqliteSaver or PostgresSaver keep it for good
    )
    thread = {"configurable": {"thread_id": "ada"}}
    for line in sys.stdin:
        state = agent.invoke({"messages": [("user", line.strip())]}, thread)
        print(state["messages"][-1].text)
        print(f"   [{len(state['messages'])} messages; memory: {state.get('memtrain_memory', '-')!r}]", flush=True)


if __name__ == "__main__":
    main()
