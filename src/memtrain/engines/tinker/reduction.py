"""How a server adds up the losses of tokens: measured, because servers of one API differ in it.

The Tinker API sums over tokens. SkyRL 0.4.0 does so on its GPU backends; under JAX it divides a sequence's loss by the
sum of its weights and the gradient by the number of sequences. Sums double with the weights and with the rows, such
means do not change. Three gradients of a new adapter tell the two apart; their learning rate is zero.
"""

from __future__ import annotations

from typing import Any

from memtrain.engines.tinker.datums import weighted_row
from memtrain.engines.tinker.losses import metric
from memtrain.engines.tinker.served import Adapter, ServedModel
from memtrain.errors import UserError

TOLERANCE = 0.1
"""Rounding in bfloat16 stays far below; the two cases are 1 apart."""


async def measure(model: ServedModel, multiple: int) -> str:
    """``sum`` or ``sequence-mean``; ``sum`` where the server reports no gradient norm, as the documentation says.

    Raises :class:`UserError` where it does neither.
    """
    adapter = model.adapter
    scratch = ServedModel(model.connection, Adapter(adapter.base_model, adapter.rank, adapter.seed))
    client = await scratch.trainer()
    try:
        plain = await _norm(scratch, client, 1.0, multiple)
        heavier, more = await _norm(scratch, client, 2.0, multiple), await _norm(scratch, client, 1.0, 2 * multiple)
    finally:
        await scratch.unload(client)
    if plain is None or heavier is None or more is None:
        return "sum"
    found = (heavier / plain, more / plain) if plain > 0 else (0.0, 0.0)
    for name, wanted in (("sum", 2.0), ("sequence-mean", 1.0)):
        if all(abs(ratio - wanted) < TOLERANCE for ratio in found):
            return name
    raise UserError(
        f"the Tinker server at {model.connection.url} neither sums token losses nor averages them by sequence (twice "
        f"the weights give {found[0]:.2f}, twice the rows {found[1]:.2f} times the gradient); set key "
        "'tinker.reduction' if you know what it does"
    )


async def _norm(scratch: ServedModel, client: Any, weight: float, rows: int) -> float | None:
    from tinker import types

    row = weighted_row((1, 2, 3, 4), (5, 6, 7), weight).datum()
    still = types.AdamParams(learning_rate=0.0, weight_decay=0.0)

    async def run() -> Any:
        await (await client.forward_backward_async([row] * rows, "cross_entropy")).result_async()
        return await (await client.optim_step_async(still)).result_async()

    return metric((await scratch.connection.ask(run)).metrics, "grad_norm")
