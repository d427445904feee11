"""`memtrain serve` through the official openai client: turns, streams, long files, the ways to name a session."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from notebook_model import notebook_agent
from serve_here import MODEL, serving

LONG = "\n\n".join(f"Paragraph {number} of a long report says little. " + "word " * 60 for number in range(12))


def client(url: str, **more: Any) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, **more)


def say(ai: Any, text: str | list[Any], session: str | None = None, **more: Any) -> Any:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    if session is not None:
        more["extra_headers"] = {"X-Session-Id": session}
    return ai.chat.completions.create(model=MODEL, messages=messages, **more)


def text_of(answer: Any) -> str:
    return answer.choices[0].message.content


def file_part(text: str | bytes, name: str = "report.txt") -> dict[str, Any]:
    raw = text.encode() if isinstance(text, str) else text
    data = f"data:text/plain;base64,{base64.b64encode(raw).decode()}"
    return {"type": "file", "file": {"filename": name, "file_data": data}}


def test_a_turn_and_what_is_told_of_it(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        ai = client(url)
        assert [model.id for model in ai.models.list()] == [MODEL]
        assert ai.models.retrieve(MODEL).id == MODEL
        first = say(ai, "FACT hotel=Ritz", "trip")
        assert text_of(first) == "I know hotel is Ritz."
        assert first.choices[0].finish_reason == "stop"
        assert first.memtrain["memory"] == "FACT hotel=Ritz"
        assert (first.memtrain["session_id"], first.memtrain["turn"]) == ("trip", 1)
        calls = first.memtrain["calls"]
        assert [call["kind"] for call in calls] == ["reply", "write"]
        assert first.usage.prompt_tokens == sum(call["prompt_tokens"] for call in calls) > 0
        assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
        assert first.usage.completion_tokens_details.reasoning_tokens == calls[1]["completion_tokens"] == 2
        changed = say(ai, "FACT hotel=Astoria FACT nights=3", "trip")
        assert changed.memtrain["memory"] == "FACT hotel=Astoria\nFACT nights=3"
        assert text_of(say(ai, "hotel?", "trip")) == "Astoria"
        assert text_of(say(ai, "hotel?", "another")) == "unknown"
        cut = say(ai, "tell me all", "trip", max_tokens=3)
        assert (text_of(cut), cut.choices[0].finish_reason) == ("I know hotel", "length")
        assert text_of(say(ai, "tell me all", "trip", stop=[",", "nights"])) == "I know hotel is Astoria"


def test_streaming_says_the_same(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        ai = client(url)
        texts = ["FACT hotel=Ritz FACT nights=2", "FACT hotel=Astoria", "hotel?", "what else do you know"]
        for text in texts:
            whole = say(ai, text, "whole")
            chunks = list(say(ai, text, "streamed", stream=True, stream_options={"include_usage": True}))
            assert {chunk.id for chunk in chunks} == {chunks[0].id}
            deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
            assert deltas[0].role == "assistant"
            assert "".join(delta.content or "" for delta in deltas) == text_of(whole)
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
            assert chunks[-1].usage == whole.usage
            [told] = [chunk.memtrain for chunk in chunks if getattr(chunk, "memtrain", None)]
            assert told == {**whole.memtrain, "event": "memory", "session_id": "streamed"}
        with ai.chat.completions.with_streaming_response.create(
            model=MODEL, messages=[{"role": "user", "content": "hotel?"}], stream=True
        ) as raw:
            assert raw.headers["content-type"].startswith("text/event-stream")
            assert raw.headers["x-session-id"].startswith("auto-")
            assert list(raw.iter_lines())[-2:] == ["data: [DONE]", ""]


def test_the_asynchronous_client(tmp_path: Path) -> None:
    async def talk(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as ai:

            async def one(number: int) -> str:
                head = {"X-Session-Id": f"s{number}"}
                for text in (f"FACT seat={number}", "FACT meal=fish"):
                    asked = [{"role": "user", "content": text}]
                    await ai.chat.completions.create(model=MODEL, messages=asked, extra_headers=head)
                asked = [{"role": "user", "content": "seat?"}]
                stream = await ai.chat.completions.create(model=MODEL, messages=asked, extra_headers=head, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            assert await asyncio.gather(*(one(number) for number in range(12))) == [str(n) for n in range(12)]

    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        asyncio.run(talk(url))


def test_three_ways_to_name_a_session_and_one_way_not_to(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        ai = client(url)
        say(ai, "FACT a=1", "one")
        assert say(ai, "FACT b=2", extra_body={"session_id": "one"}).memtrain["turn"] == 2
        assert say(ai, "FACT c=3", metadata={"session_id": "one"}).memtrain["turn"] == 3
        last = say(ai, "b? c?", "one", extra_body={"session_id": "one"})
        assert text_of(last) == "2 and 3"
        with pytest.raises(openai.BadRequestError, match="different sessions"):
            say(ai, "a?", "one", metadata={"session_id": "two"})
        for bad in ("", "a/b", "../x", "-a", "a" * 129, "a b"):
            with pytest.raises(openai.BadRequestError, match="a session id has 1 to 128"):
                say(ai, "a?", extra_body={"session_id": bad})
            with pytest.raises(openai.BadRequestError, match="a session id has 1 to 128"):
                say(ai, "a?", metadata={"session_id": bad})


def test_sessions_survive_a_restart(tmp_path: Path) -> None:
    history: list[dict[str, str]] = []
    for number in range(3):
        with serving(notebook_agent()[0], tmp_path / "s.db") as url:
            ai = client(url)
            assert say(ai, f"FACT round={number} FACT r{number}=yes", "trip").memtrain["turn"] == number + 1
            history.append({"role": "user", "content": f"FACT whole={number}"})
            answer = say(ai, history)  # a session that nobody named is found again, too
            assert answer.memtrain["turn"] == number + 1
            history.append({"role": "assistant", "content": text_of(answer)})
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        body = httpx2.get(f"{url}/v1/memory/trip").json()
        assert body["memory"] == "FACT round=2\nFACT r0=yes\nFACT r1=yes\nFACT r2=yes"
        assert [message["content"] for message in body["recent"][-2::-2]][-1] == "FACT round=0 FACT r0=yes"
        assert text_of(say(client(url), "r0? round?", "trip")) == "yes and 2"


def test_clients_that_send_the_whole_history(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        ai = client(url)
        history: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
        seen = []
        for turn, text in enumerate(["FACT hotel=Ritz", "FACT hotel=Astoria", "FACT nights=3", "hotel? nights?"], 1):
            history[0] = {"role": "system", "content": f"Be brief. It is {turn} o'clock."}  # what clients do
            history.append({"role": "user", "content": text})
            answer = say(ai, history, "trip")
            assert answer.memtrain["turn"] == turn
            assert [call["kind"] for call in answer.memtrain["calls"]] == ["reply", "write"]  # nothing is read again
            history.append({"role": "assistant", "content": f" {text_of(answer)}\n"})  # white space may differ
            seen.append(answer.memtrain["memory"])
        assert text_of(answer) == "Astoria and 3"
        assert seen[-1] == "FACT hotel=Astoria\nFACT nights=3"

        # The user has the third turn told again, in other words: the session goes back to the second.
        again = say(ai, [*history[:5], {"role": "user", "content": "FACT nights=9"}], "trip")
        assert again.memtrain["turn"] == 3
        assert again.memtrain["memory"] == "FACT hotel=Astoria\nFACT nights=9"
        export = httpx2.get(f"{url}/v1/memory/trip/export").json()
        assert [turn["turn"] for turn in export["turns"]] == [1, 2, 3]
        assert export["session"]["memory"] == again.memtrain["memory"]
        # And on from there.
        history = [*history[:5], {"role": "user", "content": "FACT nights=9"}]
        history += [{"role": "assistant", "content": text_of(again)}, {"role": "user", "content": "nights?"}]
        assert text_of(on := say(ai, history, "trip")) == "9"
        assert on.memtrain["turn"] == 4


def test_clients_that_send_a_window_of_the_history(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        ai = client(url)
        history: list[dict[str, str]] = []
        for turn, text in enumerate(["FACT a=1", "FACT b=2", "FACT c=3", "FACT d=4", "a? d?"], 1):
            history.append({"role": "user", "content": text})
            answer = say(ai, history[-3:], "window")
            assert answer.memtrain["turn"] == turn
            assert len(answer.memtrain["calls"]) == 2
            history.append({"role": "assistant", "content": text_of(answer)})
        assert text_of(answer) == "1 and 4"


def test_sessions_that_nobody_named(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        ai = client(url)
        first = say(ai, "FACT hotel=Ritz")
        session = first.memtrain["session_id"]
        assert session.startswith("auto-")
        history = [
            {"role": "user", "content": "FACT hotel=Ritz"},
            {"role": "assistant", "content": text_of(first)},
            {"role": "user", "content": "FACT hotel=Astoria"},
        ]
        second = say(ai, history)
        assert (second.memtrain["session_id"], second.memtrain["turn"]) == (session, 2)
        # The same once more: that session has moved on, so a new one reads it all.
        other = say(ai, history)
        assert other.memtrain["session_id"] != session
        assert other.memtrain["turn"] == 1
        assert other.memtrain["memory"] == second.memtrain["memory"] == "FACT hotel=Astoria"
        # A conversation that began elsewhere.
        elsewhere = say(
            ai, [{"role": "user", "content": "FACT a=1"}, {"role": "assistant", "content": "well"}, *history]
        )
        assert elsewhere.memtrain["memory"] == "FACT a=1\nFACT hotel=Astoria"
        assert httpx2.get(f"{url}/v1/memory").json()["data"][0]["session_id"].startswith("auto-")


def test_a_long_message_is_read_in_chunks_and_told(tmp_path: Path) -> None:
    text = LONG.replace("Paragraph 3 ", "FACT code=4711 Paragraph 3 ")
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        ai = client(url)
        content = [file_part(text), {"type": "text", "text": "code?"}]
        chunks = list(say(ai, [{"role": "user", "content": content}], "file", stream=True))
        told = [chunk.memtrain for chunk in chunks if getattr(chunk, "memtrain", None)]
        reading = [event for event in told if event["event"] == "reading"]
        assert len(reading) == reading[0]["chunks"] >= 8
        assert [event["chunk"] for event in reading] == list(range(1, len(reading) + 1))
        assert "code=4711" not in reading[0]["memory"]
        assert reading[-1]["memory"] == "FACT code=4711"
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "4711"
        assert text_of(say(ai, "code?", "file")) == "4711"
        whole = say(ai, [{"role": "user", "content": f"{text}\n\ncode?"}], "whole")
        assert text_of(whole) == "4711"
        kinds = [call["kind"] for call in whole.memtrain["calls"]]
        assert kinds == ["read"] * (len(kinds) - 2) + ["reply", "write"]
        for bad in (file_part(b"\xff\xfe\x00", "x.pdf"), {"type": "file", "file": {"file_data": "data:text/plain,hi"}}):
            with pytest.raises(openai.BadRequestError, match="file"):
                say(ai, [{"role": "user", "content": [bad]}], "file")


def test_a_document_is_read_and_asked(tmp_path: Path) -> None:
    text = LONG.replace("Paragraph 9 ", "FACT code=4711 Paragraph 9 ")
    with serving(notebook_agent()[0], tmp_path / "s.db") as url, httpx2.Client(base_url=f"{url}/v1/memory") as http:
        done = http.post("/doc/read", json={"text": text, "question": "codes"}).json()
        assert done["memory"] == "FACT code=4711"
        assert done["chunks"] == len(done["calls"]) >= 8
        assert http.post("/doc/ask", json={"question": "code?"}).json() == {
            "answer": "4711",
            "session_id": "doc",
            "turn": 1,
        }
        streamed = http.post("/doc/read", json={"text": "FACT colour=red", "stream": True})
        lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
        assert lines[-1] == "[DONE]"
        assert '"event":"reading"' in lines[0]
        assert '"turn":2' in lines[-2]
        assert text_of(say(client(url), "colour? code?", "doc")) == "red and 4711"
        assert http.post("/nowhere/ask", json={"question": "code?"}).status_code == 404


def test_what_cannot_be_had_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        ai = client(url)
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        refused: list[tuple[dict[str, Any], str]] = [
            ({"n": 2}, "n must be 1"),
            ({"tools": [tool]}, "tools are not supported"),
            ({"logprobs": True}, "log-probabilities"),
            ({"response_format": {"type": "json_object"}}, "only plain text"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"temperature": 3}, "temperature"),
            ({"stop": 5}, "stop"),
        ]
        for more, sentence in refused:
            with pytest.raises(openai.BadRequestError, match=sentence) as caught:
                say(ai, "hello", "x", **more)
            assert "Traceback" not in caught.value.response.text
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        messages: list[tuple[list[Any], str]] = [
            ([{"role": "user", "content": [image]}], "only text and file parts are read, not image_url"),
            ([{"role": "assistant", "content": "hm"}], "the last message must be the user's"),
            ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "role"),
            ([{"role": "user", "content": " "}], "the last message is empty"),
            ([], "messages"),
        ]
        for content, sentence in messages:
            with pytest.raises(openai.BadRequestError, match=sentence):
                say(ai, content, "x")
        with pytest.raises(openai.NotFoundError, match="there is no model gpt-9; served are notebook"):
            ai.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
        ignored = {"seed": 1, "user": "me", "store": False, "frequency_penalty": 0.1, "n": 1, "logprobs": False}
        assert say(ai, "hello", "y", **ignored, tools=[], extra_body={"unheard": {"of": 1}}).memtrain["turn"] == 1
        assert httpx2.get(f"{url}/v1/memory/x").status_code == 404  # nothing of what was refused is kept
