"""What every answer must be: no failure, OpenAI's shape, nothing of anybody else's, nothing of our own inside."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from hostile_wire import Answer, Reply, Shot

OURS = ("Traceback", "site-packages", 'File "', ".py", "sqlalchemy", "sqlite3", "SELECT ", "INSERT ", "memtrain_owners")
"""Signs of a server's inside; allowed only where the request itself said them."""
HEADERS = frozenset(
    """content-type content-length transfer-encoding date connection x-session-id cache-control x-content-type-options
    x-frame-options retry-after www-authenticate allow x-accel-buffering etag last-modified accept-ranges
    content-security-policy cross-origin-opener-policy cross-origin-resource-policy referrer-policy""".split()  # noqa: SIM905
)
SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
MOST_PROBLEMS = 200


class Judge:
    """Judges answers and counts them; for any number of threads."""

    def __init__(self, secrets: Iterable[str], inside: Iterable[str]) -> None:
        """``secrets``: what no answer may hold. ``inside``: what none may hold that was not asked with it."""
        self.secrets, self.inside = tuple(secrets), (*OURS, *inside)
        self.statuses: dict[str, Counter[str]] = {}
        self.problems: list[str] = []
        self.requests: Counter[str] = Counter()
        self.slowest = 0.0
        self._lock = threading.Lock()

    def shot(self, shot: Shot, reply: Reply) -> None:
        """What came back for a shot."""
        found = [self._answer(shot, answer, shot.sent) for answer in reply.answers if _told(shot, answer)]
        problems = [problem for one in found for problem in one]
        # Cut short by us: what came until then must not say anything either.
        problems += self._leaks(reply.raw, shot.sent)
        whole = [answer for answer in reply.answers if answer.complete]
        if shot.valid_http and shot.hang_up is None and len(whole) < shot.requests:
            problems.append(
                f"{len(whole)} of {shot.requests} answered after {reply.seconds:.0f} s: {reply.raw[:200]!r}"
            )
        statuses = [str(answer.status) for answer in reply.answers] or ["none"]
        with self._lock:
            self.slowest = max(self.slowest, reply.seconds)
        self._count(shot.kind, max(shot.requests, 1), statuses, problems, shot.sent)

    def recorded(self, kind: str, method: str, sent: bytes, answer: Answer) -> None:
        """A request that another program sent, and its answer."""
        shot = Shot(kind, (method.encode() + b" " + sent,))
        self._count(kind, 1, [str(answer.status)], self._answer(shot, answer, shot.sent), shot.sent)

    def _count(self, kind: str, requests: int, statuses: list[str], problems: list[str], sent: bytes) -> None:
        with self._lock:
            self.requests[kind] += requests
            self.statuses.setdefault(kind, Counter()).update(statuses)
            for problem in problems:
                if len(self.problems) < MOST_PROBLEMS:
                    self.problems.append(f"{kind}: {problem} <- {sent[:600]!r}")

    def _answer(self, shot: Shot, answer: Answer, sent: bytes) -> list[str]:
        problems = self._leaks(answer.body + repr(answer.headers).encode(), sent)
        names = Counter(name for name, _ in answer.headers)
        head = dict(answer.headers)
        if not shot.valid_http and answer.status == 400 and answer.body == b"Invalid HTTP request received.":
            return problems
        if answer.status >= 500:
            problems.append(f"status {answer.status}: {answer.body[:300]!r}")
        if (
            shot.statuses is not None
            and answer.status not in shot.statuses
            and (shot.valid_http or answer.status != 400)
        ):
            problems.append(f"status {answer.status}, right were {sorted(shot.statuses)}: {answer.body[:200]!r}")
        problems += [f"header {name!r} was not to come" for name in names if name not in HEADERS]
        problems += [f"header {name!r} came {n} times" for name, n in names.items() if n > 1]
        if "x-session-id" in head and not SESSION.fullmatch(head["x-session-id"]):
            problems.append(f"session id {head['x-session-id']!r}")
        if not answer.complete or sent.startswith(b"HEAD "):
            return problems
        kind = head.get("content-type", "")
        if answer.status >= 400:
            problems += _refusal(answer.body, kind)
        elif kind.startswith("text/event-stream"):
            problems += _events(answer.body)
        elif kind == "application/json":
            problems += _json(answer.body)
        elif not kind.startswith("text/"):
            problems.append(f"content type {kind!r}")
        return problems

    def _leaks(self, answer: bytes, sent: bytes) -> list[str]:
        text = answer.decode("utf-8", "replace")
        problems = [f"the secret {secret!r} is in the answer" for secret in self.secrets if secret in text]
        asked: str | None = None
        for sign in self.inside:
            if sign in text:
                asked = _spellings(sent) if asked is None else asked
                if sign not in asked:
                    problems.append(f"{sign!r} is in the answer: {text[:300]!r}")
        return problems


def _told(shot: Shot, answer: Answer) -> bool:
    return answer.complete or shot.hang_up is None


def _spellings(sent: bytes) -> str:
    """What a request says, also where it says it by escapes."""
    text = sent.decode("utf-8", "replace")
    return text + unquote(text) + text.replace('\\"', '"').replace("\\\\", "\\")


def _refusal(body: bytes, kind: str) -> list[str]:
    try:
        answer: Any = json.loads(body)
        error = answer["error"]
        message = error["message"]
    except (ValueError, KeyError, TypeError):
        return [f"no refusal in OpenAI's shape ({kind}): {body[:200]!r}"]
    problems = []
    if kind != "application/json":
        problems.append(f"a refusal as {kind!r}")
    if set(answer) != {"error"} or set(error) != {"message", "type", "param", "code"}:
        problems.append(f"other fields in a refusal: {body[:200]!r}")
    if not isinstance(message, str) or not message.strip() or len(message) > 500:
        problems.append(f"not one sentence: {message!r}")
    return problems


def _json(body: bytes) -> list[str]:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(body, parse_constant=refuse)
    except ValueError as error:
        return [f"not JSON ({error}): {body[:200]!r}"]
    return []


def _events(body: bytes) -> list[str]:
    """Only comments, blanks, and ``data:`` with JSON or ``[DONE]``: no text may become a line of the stream."""
    problems = []
    for line in body.splitlines():
        if not line or line.startswith(b":") or line == b"data: [DONE]":
            continue
        if not line.startswith(b"data: "):
            problems.append(f"a line of its own in the stream: {line[:200]!r}")
        else:
            problems += _json(line[6:])
            if b'"internal"' in line:
                problems.append(f"a failure in the stream: {line[:200]!r}")
    return problems
