"""``memtrain serve``."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from memtrain.commands.options import MODELS_TEXT, RECIPES_TEXT, flat
from memtrain.errors import UserError

DEFAULT_STORE = "runs/serve/sessions.db"
"""The same as ``memtrain keys`` takes (``serving/database.py``)."""

Targets = Annotated[
    Positional[tuple[str, ...]],
    arg(
        metavar="MODEL_OR_RUN",
        help=f"What speaks: a run's folder, a checkpoint or adapter, a model; several as NAME=PATH. "
        f"Models {MODELS_TEXT}.",
    ),
]
ServeOverrides = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(
        name="set",
        metavar="KEY=VALUE [KEY=VALUE ...]",
        help="Change settings, for example --set chat.context_tokens=4096 memory.memory_tokens=512 "
        "serve.requests_per_minute=60.",
    ),
]
ServeRecipe = Annotated[
    str | None,
    arg(
        metavar="RECIPE",
        help=f"Gives chunk and memory sizes and the prompts. Default: the run's own. Recipes {RECIPES_TEXT}.",
    ),
]
StoreUrl = Annotated[
    str, arg(metavar="STORE", help="Where sessions are kept: a file, or postgresql://USER:PASSWORD@HOST/DATABASE.")
]


def serve(
    targets: Targets = (),
    recipe: ServeRecipe = None,
    upstream: Annotated[
        str, arg(metavar="URL", help="Stand in front of this OpenAI-compatible server: vLLM, Ollama, llama.cpp, ...")
    ] = "",
    upstream_model: Annotated[str, arg(metavar="NAME", help="Its model. Default: the only one it has.")] = "",
    upstream_key_env: Annotated[
        str, arg(metavar="VARIABLE", help="Environment variable that holds the key for it, for example OPENAI_API_KEY.")
    ] = "",
    tokenizer: Annotated[
        str, arg(metavar="NAME", help="Count its tokens with this transformers tokenizer. Default: estimated.")
    ] = "",
    host: Annotated[
        str, arg(metavar="HOST", help="Who may ask: 127.0.0.1 is this machine alone; others need keys (memtrain keys).")
    ] = "127.0.0.1",
    port: Annotated[int, arg(metavar="PORT", help="0 takes any that is free.")] = 8080,
    allow_host: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="NAME", help="A further name by which this server may be called (behind a proxy)."),
    ] = (),
    store: StoreUrl = DEFAULT_STORE,
    overrides: ServeOverrides = (),
) -> None:
    """Serve a model with a memory behind the OpenAI API: chat completions, sessions that last, metrics.

    Example: memtrain serve runs/demo

    Example: memtrain serve base=smollm2-135m trained=runs/demo --port 9000 --set serve.expire_days=30

    Example: memtrain serve --upstream http://127.0.0.1:11434/v1 --upstream-model qwen3:4b
    """
    given = {"--upstream-model": upstream_model, "--upstream-key-env": upstream_key_env, "--tokenizer": tokenizer}
    if not upstream and any(given.values()):
        raise UserError(f"{next(key for key, value in given.items() if value)} says something of --upstream: give that")
    from memtrain import serve as command

    front = command.Upstream(upstream, upstream_model, upstream_key_env, tokenizer) if upstream else None
    command.serve(
        targets,
        front,
        recipe,
        flat(overrides),
        store=store,
        host=host,
        port=port,
        allow_hosts=allow_host,
    )
