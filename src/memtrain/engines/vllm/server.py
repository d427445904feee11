"""A running vLLM server as sampler: its OpenAI-compatible API, and its endpoints for LoRA adapters.

Only the standard library: the machine that trains needs no vLLM of its own. Start the server with

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank 16 \\
        --logprobs-mode processed_logprobs
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from memtrain.engines.vllm.requests import completion_of_answer, sampling_options, top_two_gap
from memtrain.errors import UserError
from memtrain.settings import SamplerSettings
from memtrain.types import Completion, SamplingParams

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between tries of a request that found no server or a busy one."""
BUSY = (429, 502, 503, 504)
TIMEOUT = 1800.0
"""Seconds without an answer after which a request counts as lost."""
AT_ONCE = 256
"""Requests that are under way at the same time; the server queues what it cannot decode together."""


class Refused(Exception):
    """The server answered with an error of its own."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Exchange:
    """One request under way, which another thread may break off."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.connection: http.client.HTTPConnection | None = None

    def stop(self) -> None:
        """Hang up: the server drops the request."""
        self.stopped.set()
        if self.connection is not None and self.connection.sock is not None:
            self.connection.sock.shutdown(2)


class ServerSampler:
    """Samples over HTTP; takes weights as LoRA adapters, each under a name of its own."""

    full_weights = False

    def __init__(self, settings: SamplerSettings, end_ids: Sequence[int], pauses: Sequence[float] = PAUSES):
        """Ask the server what it serves. Raises :class:`UserError` where there is none or it is no vLLM server."""
        self.url, self.end_ids, self.pauses = settings.url.rstrip("/"), tuple(end_ids), tuple(pauses)
        self.where = f"the vLLM server {self.url} (key 'sampler.url')"
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="vllm-server")
        try:
            models = json.loads(self.call("/v1/models"))["data"]
            base = next(entry for entry in models if entry.get("parent") is None)
            self.context_tokens = int(base["max_model_len"])
        except (ValueError, KeyError, TypeError, StopIteration, Refused) as error:
            raise UserError(
                f"{self.where} does not answer as vLLM does ({type(error).__name__}: {error}); give the address "
                "of a vLLM server, without /v1"
            ) from None
        self.model = self.base = str(base["id"])
        self._folder = Path(settings.adapter_folder) if settings.adapter_folder else None
        self._adapter: Path | None = None
        self._run, self._version = uuid.uuid4().hex[:8], 0
        self._tempered: bool | None = None

    # ---- the sampler's protocol ------------------------------------------------------------------------------------

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams, seed: int) -> Completion:
        """One completion."""
        if (params.temperature not in (0, 1) or params.top_p < 1) and not await self._reports_sampling_distribution():
            raise UserError(
                f"{self.where} reports log-probs of another distribution than it samples from; start it with "
                "--logprobs-mode processed_logprobs, or set temperature and top_p to 1"
            )
        body = {"prompt": list(prompt_ids), "return_token_ids": True, **sampling_options(params, seed, self.end_ids)}
        try:
            try:
                answer = await self.ask("/v1/completions", {"model": self.model, **body})
            except Refused as error:
                if error.status != 404 or self._adapter is None:
                    raise
                await self._hand_over(self._adapter)  # a server that was started anew knows no adapters
                answer = await self.ask("/v1/completions", {"model": self.model, **body})
        except Refused as error:
            raise UserError(f"{self.where} refused to sample ({error.message})") from None
        return completion_of_answer(answer, self.where)

    async def take(self, learner: Any) -> None:
        """Hand the learner's adapter over; without LoRA the server keeps the weights it has."""
        if not learner.loaded.lora:
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="memtrain-adapters-"))
        self._version += 1
        old_name, old_folder = self.model, self._adapter
        name = f"memtrain-{self._run}-{self._version}"
        folder = self._folder.absolute() / name
        folder.mkdir(parents=True)
        await learner.export(folder)
        # A name of its own for every version: vLLM keeps keys and values by the adapter's name.
        self.model, self._adapter = name, folder
        await self._hand_over(folder)
        if old_folder is not None:
            await self._unload(old_name)
            shutil.rmtree(old_folder, ignore_errors=True)

    def close(self) -> None:
        """Leave the server as it was found."""
        if self._adapter is not None:
            self.pauses = ()
            with contextlib.suppress(Refused, UserError):  # a server that is gone holds no adapter
                self.call("/v1/unload_lora_adapter", {"lora_name": self.model})
            shutil.rmtree(self._adapter, ignore_errors=True)
            self.model, self._adapter = self.base, None
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ---- HTTP ------------------------------------------------------------------------------------------------------

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST from a coroutine; cancelling it breaks the request off."""
        exchange = Exchange()
        try:
            text = await asyncio.get_running_loop().run_in_executor(self._pool, self.call, path, body, exchange)
        except asyncio.CancelledError:
            exchange.stop()
            raise
        answer = json.loads(text)
        assert isinstance(answer, dict)
        return answer

    def call(self, path: str, body: dict[str, Any] | None = None, exchange: Exchange | None = None) -> str:
        """GET, or POST with a body. Raises :class:`Refused` for the server's own errors, and :class:`UserError` where
        it cannot be reached after several tries."""
        exchange = exchange or Exchange()
        reason = ""
        for pause in (*self.pauses, None):
            try:
                status, text = self._once(path, body, exchange)
                if status == 200:
                    return text
                if status not in BUSY:
                    raise Refused(status, _message(text) or f"status {status}")
                reason = f"status {status}"
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            if pause is None or exchange.stopped.wait(pause):
                break
        raise UserError(
            f"{self.where} does not answer ({reason}; {len(self.pauses) + 1} tries in {sum(self.pauses):.0f} s); "
            "start it, or correct the address"
        )

    def _once(self, path: str, body: dict[str, Any] | None, exchange: Exchange) -> tuple[int, str]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        exchange.connection = connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT)
        headers = {"Content-Type": "application/json"}
        if os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {os.environ['VLLM_API_KEY']}"
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", parts.path + path, data, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    async def _hand_over(self, folder: Path) -> None:
        body = {"lora_name": self.model, "lora_path": str(folder)}
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self.call, "/v1/load_lora_adapter", body)
        except Refused as error:
            if "already been loaded" in error.message:
                return  # another request was quicker
            raise UserError(
                f"{self.where} does not take a LoRA adapter ({error.message}); start it with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and --max-lora-rank of at least model.lora_rank, "
                f"and let it read {folder.parent} (key 'sampler.adapter_folder')"
            ) from None

    async def _unload(self, name: str) -> None:
        body = {"lora_name": name}
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self.call, "/v1/unload_lora_adapter", body)
        except Refused as error:
            if error.status != 404:
                raise UserError(f"{self.where} keeps the adapter {name} ({error.message})") from None

    async def _reports_sampling_distribution(self) -> bool:
        """Whether temperature is in the log-probs: half of it doubles the gap between two tokens."""
        if self._tempered is None:
            once = SamplingParams(1)
            body = {"model": self.base, "prompt": list(range(10, 18)), **sampling_options(once, 0, ()), "logprobs": 2}
            whole = top_two_gap(await self.ask("/v1/completions", body))
            half = top_two_gap(await self.ask("/v1/completions", {**body, "temperature": 0.5}))
            self._tempered = abs(half - 2 * whole) < abs(half - whole)
        return self._tempered


def _message(text: str) -> str:
    """The sentence in an error of the OpenAI API."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200]
