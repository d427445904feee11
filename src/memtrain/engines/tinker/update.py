"""One optimiser step on the server: log-probs before it, passes forward and backward, the step, its saved state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memtrain.engines.base import LossConfig, OptimiserConfig, Weights
from memtrain.engines.tinker.datums import completion_values, fill_up, weighted_row
from memtrain.engines.tinker.losses import metric, passes, statistics
from memtrain.engines.tinker.served import ServedModel
from memtrain.errors import UserError
from memtrain.rl.loss import Normalisers, update_metrics
from memtrain.settings.tinker import TinkerSettings
from memtrain.types import Row

ScoreRequest = tuple[tuple[int, ...], tuple[int, ...], Weights]
"""Prompt, completion, and whose log-probs are asked for."""


def refuse(loss: LossConfig, optimiser: OptimiserConfig, reduction: str, url: str) -> None:
    """Raises :class:`UserError` for what the API, or this server, has no way to do."""
    if loss.temperature != 1:
        raise UserError(
            f"key 'train.temperature' is {loss.temperature:g}, but a Tinker server's losses take log-probs at "
            "temperature 1, not those of the distribution that was sampled; set it to 1"
        )
    if optimiser.grad_clip > 0 and reduction == "sequence-mean":
        raise UserError(
            f"key 'train.grad_clip' is {optimiser.grad_clip:g}, but the Tinker server at {url} (SkyRL under JAX) does "
            "not clip gradients; set it to 0"
        )


async def joint_step(
    model: ServedModel,
    rows: Sequence[Row],
    loss: LossConfig,
    optimiser: OptimiserConfig,
    z: Normalisers,
    settings: TinkerSettings,
    reduction: str,
) -> dict[str, float]:
    """One step on the rows (none empty) with the denominators of the whole update; its metrics.

    When this returns, the state after the step is saved; when it raises, the one before still is.
    """
    policy = [row for row in rows if row.loss == "policy"]
    known = [row for row in rows if row.loss == "cross_entropy"]
    now = reference = None
    if policy and (loss.old_logprobs == "recompute" or loss.kl_coef > 0 or loss.importance_sampling_cap > 0):
        now = await forward(model, [(r.prompt_ids, r.completion_ids, "policy") for r in policy], settings.rows_multiple)
    if policy and loss.kl_coef > 0:
        asked: list[ScoreRequest] = [(r.prompt_ids, r.completion_ids, "reference") for r in policy]
        reference = await forward(model, asked, settings.rows_multiple)
    calls = passes(rows, now, reference, loss, z, settings, reduction)
    passed, stepped = await _send(model, calls, optimiser)
    await model.commit()
    if reduction == "sequence-mean" and optimiser.weight_decay > 0:
        # SkyRL's JAX backend decays the adapters of all models in the optimiser step of one, the reference's too.
        await model.forget_reference()
    # Rows that only fill a request up come last in it.
    found = []
    for part, result in zip([part for part in (policy, known) if part], passed, strict=True):
        for row, output in zip(part, result.loss_fn_outputs[: len(part)], strict=True):
            found.append(completion_values(output["logprobs"].tolist(), len(row.completion_ids)))
    metrics = update_metrics(statistics([*policy, *known], found, reference, loss, z))
    norm = metric(stepped.metrics, "grad_norm")
    return metrics if norm is None else metrics | {"grad_norm": norm}


async def _send(model: ServedModel, calls: Sequence[Any], optimiser: OptimiserConfig) -> tuple[list[Any], Any]:
    from tinker import types

    client = await model.trainer()
    adam = types.AdamParams(
        learning_rate=optimiser.lr,
        beta1=optimiser.betas[0],
        beta2=optimiser.betas[1],
        eps=optimiser.eps,
        weight_decay=optimiser.weight_decay,
        grad_clip_norm=optimiser.grad_clip,
    )

    async def run() -> tuple[list[Any], Any]:
        # All passes are on their way before the first is waited for; their gradients add up.
        sent = [
            await client.forward_backward_async([row.datum() for row in made], name, config)
            for made, name, config in calls
        ]
        passed = [await future.result_async() for future in sent]
        return passed, await (await client.optim_step_async(adam)).result_async()

    return await model.connection.ask(run)


async def forward(model: ServedModel, requests: Sequence[ScoreRequest], multiple: int) -> list[list[float]]:
    """Log-probs of completions at temperature 1, all under the weights that the first request names."""
    client = await model.trainer(requests[0][2])
    rows = fill_up([weighted_row(prompt, completion, 1.0) for prompt, completion, _ in requests], multiple)

    async def run() -> Any:
        return await (await client.forward_async([row.datum() for row in rows], "cross_entropy")).result_async()

    outputs = (await model.connection.ask(run)).loss_fn_outputs[: len(requests)]
    return [
        completion_values(output["logprobs"].tolist(), len(completion))
        for (_, completion, _), output in zip(requests, outputs, strict=True)
    ]
