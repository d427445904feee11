"""From settings to an engine: which server, which model on it, and whether it can do what the recipe asks."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
from pathlib import Path, PurePosixPath
from typing import Any

from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.engines.tinker.client import Connection, ServerError
from memtrain.engines.tinker.engine import TinkerEngine
from memtrain.engines.tinker.served import Adapter, ServedModel
from memtrain.errors import UserError, first_line
from memtrain.settings.tinker import TinkerSettings
from memtrain.settings.training import ModelSettings, TrainSettings

ALPHA = 32.0
"""The API has no LoRA alpha: servers use this one."""


def connect(
    folder: str | Path,
    model: ModelSettings,
    settings: TinkerSettings,
    seed: int = 0,
    train: TrainSettings | None = None,
) -> TinkerEngine:
    """An engine on the server that the settings or the environment name; not from inside a running event loop.

    ``folder`` is the model as transformers knows it (folder or hub id): tokenizer and window come from there. With
    ``train`` it is checked, before any work is done, that the server can do such updates. Raises :class:`UserError`
    where no server answers, it does not serve the model, or it cannot do what is asked.
    """
    if train is not None and model.lora_rank == 0:
        raise UserError(
            "key 'model.lora_rank' is 0 but a Tinker server trains LoRA adapters only; set it (32, for example), or "
            'engine = "torch" to train all weights'
        )
    if train is not None and model.lora_alpha != ALPHA:
        raise UserError(f"key 'model.lora_alpha' is {model.lora_alpha:g} but a Tinker server's is {ALPHA:g}; set it so")
    connection = Connection(settings)
    connection.check()
    tokenizer, window, end_ids = _local(str(folder), model)
    try:
        served = asyncio.run(connection.ask(lambda: connection.service.get_server_capabilities_async()))
    except ServerError as error:
        raise UserError(
            f"what answers at {connection.url} is no Tinker server ({error.message}); set TINKER_BASE_URL or key "
            "'tinker.base_url' to the address of one"
        ) from None
    windows = {found.model_name: getattr(found, "max_context_length", None) for found in served.supported_models}
    base = choose_base(settings.base_model, model.name, str(folder), list(windows), connection.url)
    adapter = Adapter(base, max(1, model.lora_rank), seed, settings.train_unembed)
    engine = TinkerEngine(
        ServedModel(connection, adapter),
        tokenizer,
        settings,
        folder=str(folder),
        context=settings.context_tokens or windows.get(base) or window,
        end_ids=end_ids,
        seed=seed,
    )
    atexit.register(engine.close)
    if train is not None:
        kind = LossConfig(kl_coef=0.0, temperature=train.temperature)
        asyncio.run(engine.prepare(kind, OptimiserConfig(grad_clip=train.grad_clip)))
    return engine


def choose_base(wanted: str, name: str, folder: str, served: list[str], url: str) -> str:
    """The model's name on the server: what the recipe says, else the one that is called like ``model.name``.

    Raises :class:`UserError` where the server does not have it, naming what it has.
    """
    if wanted:
        if served and wanted not in served:
            raise UserError(
                f"key 'tinker.base_model' is {wanted!r}, but the server at {url} serves {', '.join(served)}"
            )
        return wanted
    for candidate in (name, folder):
        if candidate in served:
            return candidate
    last = {PurePosixPath(candidate).name for candidate in (name, folder)}
    alike = [candidate for candidate in served if PurePosixPath(candidate).name in last]
    if len(alike) == 1:
        return alike[0]
    if not served:
        return name
    raise UserError(
        f"the Tinker server at {url} serves {', '.join(served)}, nothing called {name!r}; set key 'tinker.base_model' "
        "to the name under which it serves the model of key 'model.name'"
    )


def _local(folder: str, model: ModelSettings) -> tuple[Any, int, list[int]]:
    """Tokenizer, window and end tokens of a transformers folder or hub id; no weights are read."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        config = AutoConfig.from_pretrained(folder, **options).get_text_config()
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"the tokenizer of {folder} cannot be loaded ({first_line(error)}); set key 'model.name' to a built-in "
            "name, a transformers folder, or a hub id that this machine can reach"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    ends: Any = None
    with contextlib.suppress(OSError, ValueError):
        ends = GenerationConfig.from_pretrained(folder, **{k: v for k, v in options.items() if v}).eos_token_id
    ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    window = int(getattr(config, "max_position_embeddings", 0) or 1_000_000)
    return tokenizer, window, sorted(token for token in ids if token is not None)
