"""An OpenAI-compatible server that keeps perfect notes: what a memory loses behind it, the server in front has lost.

    python benchmarks/serving/notebook_upstream.py --port 9100

It notes every ``key=value``, a later value in place of an earlier one, and replies with its notes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

FACT = re.compile(r"\b([a-z][a-z0-9]*)=([\w-]+)")
app = FastAPI()


def said(messages: list[dict[str, Any]]) -> str:
    """Facts in the order in which they were said: where a prompt holds notes and news, the news come last."""
    prompt = "\n".join(message["content"] for message in messages)
    news, _, notes = prompt.partition("Notes:") if messages[-1]["content"].count("Notes:") else ("", "", prompt)
    facts = dict(FACT.findall(notes)) | dict(FACT.findall(news))
    return " ".join(f"{key}={value}" for key, value in facts.items()) or "nothing"


@app.get("/v1/models")
def models() -> dict[str, Any]:
    """The one model."""
    return {"object": "list", "data": [{"id": "notebook", "object": "model", "max_model_len": 32768}]}


@app.post("/v1/chat/completions", response_model=None)
def complete(body: dict[str, Any]) -> dict[str, Any] | StreamingResponse:
    """The notes, at once or word by word."""
    text = said(body["messages"])
    usage = {"prompt_tokens": sum(len(m["content"].split()) for m in body["messages"])}
    usage |= {"completion_tokens": len(text.split()), "total_tokens": usage["prompt_tokens"] + len(text.split())}
    head = {"id": "n", "created": 0, "model": "notebook"}
    if not body.get("stream"):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return head | {"object": "chat.completion", "choices": [choice], "usage": usage}

    def pieces() -> Iterator[str]:
        for piece in re.findall(r"\S+\s*", text):
            yield chunk([{"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}])
        yield chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        yield chunk([], usage=usage)
        yield "data: [DONE]\n\n"

    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps(head | {'object': 'chat.completion.chunk', 'choices': choices} | more)}\n\n"

    return StreamingResponse(pieces(), media_type="text/event-stream")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9100)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
