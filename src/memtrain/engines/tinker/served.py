"""The model on the server: its saved states, and the clients that train and sample from them.

What is certain is a saved state: a path of the server's. The live model is a copy of it that a restart of the server
takes away, and an update that was broken off leaves in doubt; then it is loaded anew from the state before, and the
update is done again. So no update is applied twice and none is lost, as long as the server keeps its states.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

from memtrain.engines.base import Weights
from memtrain.engines.tinker.client import HOSTED, Connection, ServerError
from memtrain.errors import UserError

SAMPLER_SECONDS = 7 * 24 * 3600
"""How long a server keeps weights for sampling that nobody removed."""
GOODBYE_SECONDS = 5.0
"""How long a courtesy (removing, unloading) may take."""


@dataclass(frozen=True)
class Adapter:
    """What is trained."""

    base_model: str
    """The model's name on the server."""
    rank: int
    """LoRA rank."""
    seed: int
    """Draws the start of the adapter."""
    train_unembed: bool = False
    """Whether the output head has an adapter too."""


class ServedModel:
    """Policy, reference and sampler on one server; loaded when they are needed, forgotten when they are in doubt."""

    def __init__(self, connection: Connection, adapter: Adapter):
        self.connection, self.adapter = connection, adapter
        self.state: str | None = None
        """The policy as it is, with optimiser; None: a new adapter."""
        self.reference_state: str | None = None
        self.kept: set[str] = set()
        """States that checkpoints speak of: never removed."""
        self.generation = 0
        """Counts reloads: of many requests that a restart breaks, one reloads."""
        self._policy: Any = None
        self._reference: Any = None
        self._sampler: Any = None
        self._sampler_path = ""
        self._stray: list[Any] = []  # live on the server, of no use to us
        self._names = f"memtrain-{uuid.uuid4().hex[:10]}"
        self._count = 0

    # ---- clients ---------------------------------------------------------------------------------------------------

    async def trainer(self, weights: Weights = "policy") -> Any:
        """The TrainingClient of the policy or the reference. Without an anchor the policy is its own reference."""
        if weights == "reference" and self.reference_state is not None:
            if self._reference is None:
                self._reference = await self._load(self.reference_state, optimiser=False)
            return self._reference
        if self._policy is None:
            while self._stray:  # first: a server may have room for few
                await self.unload(self._stray.pop())
            self._policy = await (self._create() if self.state is None else self._load(self.state))
        return self._policy

    async def sampler(self) -> Any:
        """A SamplingClient of the policy as it is."""
        if self._sampler is None:
            policy = await self.trainer()
            path = await self._ask_future(
                lambda: policy.save_weights_for_sampler_async(self._name(), ttl_seconds=SAMPLER_SECONDS)
            )
            self._sampler = await self.connection.ask(
                lambda: self.connection.service.create_sampling_client_async(model_path=path)
            )
            old, self._sampler_path = self._sampler_path, path
            await self.remove(old)
        return self._sampler

    async def _create(self) -> Any:
        made = self.adapter
        return await self.connection.ask(
            lambda: self.connection.service.create_lora_training_client_async(
                base_model=made.base_model, rank=made.rank, seed=made.seed, train_unembed=made.train_unembed
            )
        )

    async def _load(self, path: str, optimiser: bool = True) -> Any:
        service = self.connection.service
        load = service.create_training_client_from_state_async
        if optimiser:
            load = service.create_training_client_from_state_with_optimizer_async
        try:
            return await self.connection.ask(lambda: load(path))
        except ServerError as error:
            if "not found" in error.message.lower():
                raise UserError(
                    f"the Tinker server at {self.connection.url} no longer has the state {path}; start it with the "
                    "database and checkpoint folder that it had, or resume from another checkpoint"
                ) from None
            raise

    # ---- states ----------------------------------------------------------------------------------------------------

    async def save(self) -> str:
        """A path that holds the policy as it is, with its optimiser."""
        if self.state is None:
            self.state = await self._save(await self.trainer())
        return self.state

    async def commit(self) -> None:
        """Save the policy after an update: what came before is no longer needed."""
        before, self.state = self.state, await self._save(await self.trainer())
        self._sampler = None
        if before is not None and before not in self.kept | {self.reference_state}:
            await self.remove(before)

    async def _save(self, client: Any) -> str:
        return await self._ask_future(lambda: client.save_state_async(self._name()))

    async def _ask_future(self, start: Any) -> str:
        async def run() -> Any:
            return await (await start()).result_async()

        return str((await self.connection.ask(run)).path)

    def _name(self) -> str:
        self._count += 1
        return f"{self._names}-{self._count}"

    async def export(self) -> tuple[str, str]:
        """Save the policy's adapter; its path and an address it can be fetched from for a while."""
        policy = await self.trainer()
        path = await self._ask_future(
            lambda: policy.save_weights_for_sampler_async(self._name(), ttl_seconds=SAMPLER_SECONDS)
        )
        run, name = _parts(path)
        # Some servers want the kind in the name, some do not know it there.
        names = [f"sampler_weights/{name}", name] if "/sampler_weights/" in path else [name]
        rest = self.connection.service.create_rest_client()
        for place, candidate in enumerate(names):
            try:
                found = await self.connection.ask(partial(rest.get_checkpoint_archive_url_async, run, candidate))
                return path, str(found.url)
            except ServerError:
                if place == len(names) - 1:
                    raise
        raise AssertionError("unreachable")

    # ---- starting anew ---------------------------------------------------------------------------------------------

    def doubt(self) -> None:
        """Never use the live policy again: nobody knows what an update that was broken off has left in it."""
        self._stray += [self._policy] if self._policy is not None else []
        self._policy = self._sampler = None

    async def reload(self, seen: int) -> None:
        """Let go of everything live, once for all that saw generation ``seen``; it is loaded again when needed."""
        if seen != self.generation:
            return
        self.generation += 1
        clients = [self._policy, self._reference]
        self._policy = self._reference = self._sampler = None
        await self.connection.wait()
        for client in clients:
            await self.unload(client)
        self.connection.renew()

    async def reset_optimiser(self) -> None:
        """Go on from the saved weights with an optimiser that remembers nothing."""
        path = await self.save()
        await self.unload(self._policy)  # first: a server may have room for one
        self._policy = None
        self._policy = await self._load(path, optimiser=False)
        self.state = await self._save(self._policy)
        self._sampler = None

    async def restore(self, state: str, reference: str | None) -> None:
        """Become a saved state."""
        for client in (self._policy, self._reference):
            await self.unload(client)
        self._policy = self._reference = self._sampler = None
        self.state, self.reference_state = state, reference
        self.kept |= {path for path in (state, reference) if path}
        await self.trainer()

    async def anchor(self) -> None:
        """The policy's state as it is becomes the reference."""
        before, self.reference_state = self.reference_state, await self.save()
        if before != self.reference_state:
            await self.forget_reference()

    async def forget_reference(self) -> None:
        """Load the reference anew from its state when it is needed again."""
        client, self._reference = self._reference, None
        await self.unload(client)

    async def unload(self, client: Any) -> None:
        """Give a model's place back, if the server will have it. The hosted service ends the session with it: no."""
        if client is None or self.connection.url == HOSTED:
            return

        async def run() -> None:
            from tinker import types
            from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

            async def send() -> None:
                with client.holder.aclient(ClientConnectionPoolType.TRAIN) as http:
                    await http.models.unload(request=types.UnloadModelRequest(model_id=client.model_id), max_retries=0)

            await client.holder.run_coroutine_threadsafe(send())

        await self._courtesy(run)

    async def remove(self, path: str) -> None:
        """Delete a saved state, if the server will."""
        if not path:
            return
        run, name = _parts(path)
        kind = "weights" if "/weights/" in path else "sampler_weights"
        await self._courtesy(
            lambda: self.connection.service.create_rest_client().delete_checkpoint_async(run, f"{kind}/{name}")
        )

    async def _courtesy(self, start: Any) -> None:
        with contextlib.suppress(ServerError, UserError, TimeoutError):
            await asyncio.wait_for(self.connection.ask(start), GOODBYE_SECONDS)

    async def close(self) -> None:
        """Free what is live; saved states stay."""
        for client in (self._policy, self._reference):
            await self.unload(client)
        self._policy = self._reference = self._sampler = None
        self.connection.renew()


def _parts(path: str) -> tuple[str, str]:
    """Training run and name of ``tinker://RUN/.../NAME``."""
    parts = path.removeprefix("tinker://").split("/")
    return parts[0], parts[-1]
