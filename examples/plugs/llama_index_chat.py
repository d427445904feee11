"""A LlamaIndex chat engine with bounded memory: what leaves its Memory is folded into a text the model writes itself.

pip install 'memtrain[llama-index]' openai
python llama_index_chat.py --url http://127.0.0.1:8000/v1       # then type messages, one a line

Any OpenAI-compatible server will do; with --memory http://127.0.0.1:8080 a running `memtrain serve` writes the memory.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import CustomLLM
from llama_index.core.memory import Memory
from openai import OpenAI

from memtrain.plugs.llama_index import BoundedMemoryBlock
from memtrain.plugs.served import ServedMemory


class Server(CustomLLM):
    # The shortest model class there is; the package llama-index-llms-openai-like has a whole one.
    client: Any
    name: str
    max_tokens: int = 512  # of a reply; the memory sets its own

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=4096, is_chat_model=True)

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        asked = [{"role": message.role.value, "content": message.content} for message in messages]
        answer = self.client.chat.completions.create(model=self.name, messages=asked, max_tokens=self.max_tokens)
        return ChatResponse(message=ChatMessage(role="assistant", content=answer.choices[0].message.content))

    def complete(self, prompt: str, *args: Any, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.chat([ChatMessage(prompt)]).message.content or "")

    def stream_complete(self, prompt: str, *args: Any, **kwargs: Any) -> Any:
        yield self.complete(prompt)


parser = argparse.ArgumentParser()
parser.add_argument("--url", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
parser.add_argument("--memory", help="address of a memtrain serve")
parser.add_argument("--tokens", type=int, default=4096, help="what the model may be shown at a time")
given = parser.parse_args()
client = OpenAI(base_url=given.url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
llm = Server(client=client, name=client.models.list().data[0].id)
block = BoundedMemoryBlock(llm=ServedMemory(given.memory) if given.memory else llm, context_tokens=given.tokens)
memory = Memory.from_defaults(session_id="ada", token_limit=given.tokens, memory_blocks=[block])
chat = SimpleChatEngine.from_defaults(llm=llm, memory=memory, system_prompt="You help with travel plans.")
for line in sys.stdin:
    print(chat.chat(line.strip()).response)
    print(f"   [memory: {block.memories.get('ada', '-')!r}]", flush=True)
