"""``memtrain mcp``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from memtrain.errors import UserError


def mcp(
    session: Annotated[str, arg(metavar="NAME", help="Whose memory: a session of the server, made when first used.")],
    url: Annotated[str, arg(metavar="URL", help="Where memtrain serve listens.")] = "http://127.0.0.1:8080",
    key_env: Annotated[
        str, arg(metavar="VAR", help="Environment variable that holds the server's key, where it wants one.")
    ] = "",
    root: Annotated[
        tuple[Path, ...], arg(metavar="FOLDER [FOLDER ...]", help="Text files below may be read. Default: none.")
    ] = (),
    http: Annotated[
        int | None,
        arg(metavar="PORT", help="Serve HTTP on 127.0.0.1 instead of standard input and output; 0: any port."),
    ] = None,
) -> None:
    """A memory for any agent that speaks the Model Context Protocol: remember, recall, read_document, forget.

    Needs a running `memtrain serve`. Agents start this command themselves and speak to it over standard input and
    output; name it in their settings as the command of a server.

    Example: memtrain mcp --session notes --root ~/Documents

    Example: memtrain mcp --session notes --url https://memory.example.com --key-env MEMTRAIN_KEY --http 8090
    """
    key = os.environ.get(key_env, "") if key_env else ""
    if key_env and not key:
        raise UserError(f"the environment variable {key_env} (--key-env) is not set; put the server's key there")
    from memtrain.plugs.mcp import make_server, serve_http, serve_stdio

    server = make_server(url, session, key, [folder.expanduser() for folder in root])
    if http is None:
        serve_stdio(server)
    else:
        # Standard output is left alone, as in the other way of serving.
        serve_http(server, http, lambda address: print(f"serving {session} at {address}", file=sys.stderr, flush=True))
