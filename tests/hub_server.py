"""A hub on this machine: the few endpoints that an upload by huggingface_hub needs, files kept in memory.

Speaks what huggingface_hub 2.4 asks for: create, validate-yaml, preupload, the LFS batch protocol with basic transfers,
and commits as lines of JSON. Not the xet protocol.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """State of the server."""

    def __init__(self, token: str, lfs: bool) -> None:
        self.token, self.lfs = token, lfs
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.asked: list[str] = []
        self.broken = False
        self.url = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            repository = self.path.removeprefix("/api/models/").split("?")[0]
            hub.asked.append(f"GET {self.path.split('?')[0]}")
            if repository not in hub.private:
                return self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            self._say(200, {"id": repository, "private": hub.private[repository], "sha": "0" * 40, "siblings": []})

        def do_PUT(self) -> None:
            hub.asked.append("PUT object")
            body = self._body()
            hub.objects[hashlib.sha256(body).hexdigest()] = body
            self._say(200, {})

        def do_POST(self) -> None:
            path, body = self.path.split("?")[0], self._body()
            hub.asked.append(f"POST {path}")
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._say(401, {"error": "Invalid username or password."})
            if hub.broken and "/commit/" in path:
                return self._say(403, {"error": "Your storage is full."})
            if path.endswith("/commit/main"):
                return self._commit(body)
            data = json.loads(body)
            if path == "/api/repos/create":
                name = f"{data['organization'] or 'me'}/{data['name']}"
                if name in hub.private:
                    return self._say(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
                hub.private[name] = data.get("visibility") == "private"
                return self._say(200, {"url": f"{hub.url}/{name}"})
            if path.endswith("/preupload/main"):
                modes = [
                    {"path": f["path"], "shouldIgnore": False, "uploadMode": self._mode(f["path"])}
                    for f in data["files"]
                ]
                return self._say(200, {"files": modes})
            if path.endswith(".git/info/lfs/objects/batch"):
                actions = {"upload": {"href": f"{hub.url}/put"}, "verify": {"href": f"{hub.url}/verify"}}
                found = [{"oid": o["oid"], "size": o["size"], "actions": actions} for o in data["objects"]]
                return self._say(200, {"transfer": "basic", "objects": found})
            if path == "/verify":
                stored = hub.objects.get(data["oid"])
                return self._say(200 if stored is not None and len(stored) == data["size"] else 404, {})
            self._say(200 if path == "/api/validate-yaml" else 404, {})

        def _mode(self, path: str) -> str:
            return "lfs" if hub.lfs and path.endswith((".safetensors", ".png")) else "regular"

        def _commit(self, body: bytes) -> None:
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "header":
                    hub.commits.append(value["summary"])
                elif entry["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.objects[value["oid"]]
            oid = "1" * 40
            self._say(200, {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/me/x/commit/{oid}"})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _say(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
            text = json.dumps(data).encode()
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler


@contextmanager
def serving(token: str = "hf_test", lfs: bool = True) -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub(token, lfs)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
