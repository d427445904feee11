"""A whole GRPO step by TRL: its trainer, loss and loop; our episodes in place of its single-turn rollout.

``GRPOTrainer`` generates one completion for each prompt of a dataset and scores that. A memory agent writes over
several turns and is probed afterwards, so the one method that makes a batch is replaced: it runs the same episode code
as ours (``rl.experience``) over transformers ``generate`` on the trainer's own model, and hands the rows over in TRL's
layout.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from memtrain.bench.peers.generate import GenerateSettings, best_generate, generate
from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.engines.torch.batching import Batcher, together
from memtrain.report.summary import version_of
from memtrain.types import Completion, Row, SamplingParams

Rollout = Callable[[Any], Sequence[Row]]
"""Engine -> rows: the episodes of one step."""


def missing() -> str | None:
    """Why TRL cannot take part; None where it can."""
    absent = [name for name in ("trl", "datasets") if version_of(name) is None]
    return f'{" and ".join(absent)} not installed, so TRL is left out (pip install "trl>=1.16")' if absent else None


class GenerateEngine:
    """The part of the engine protocol that episodes need, over ``generate``: batches what waits, as ours does."""

    def __init__(self, model: Any, tokenizer: Any, settings: GenerateSettings) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self._queue: Batcher[tuple[tuple[int, ...], int], Completion] = Batcher(together(self._run))

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """``params.max_tokens`` tokens each; end tokens are ignored."""
        request = (tuple(prompt_ids), params.max_tokens)
        return list(await asyncio.gather(*(self._queue.ask(request) for _ in range(n))))

    def _run(self, requests: list[tuple[tuple[int, ...], int]]) -> list[Completion]:
        answers: dict[int, Completion] = {}
        # One length of completion a call, and neighbours of like length, so that little is padded.
        for length in sorted({new_tokens for _, new_tokens in requests}):
            order = [number for number, (_, new_tokens) in enumerate(requests) if new_tokens == length]
            order.sort(key=lambda number: len(requests[number][0]))
            prompts = [requests[number][0] for number in order]
            rows = generate(self.model, self.tokenizer, prompts, length, self.settings)
            answers |= {
                number: Completion(row, (0.0,) * length, "length") for number, row in zip(order, rows, strict=True)
            }
        return [answers[number] for number in range(len(requests))]


def make_trainer(
    model: Any,
    tokenizer: Any,
    rollout: Rollout,
    n_rows: int,
    micro_batch_rows: int,
    group_size: int,
    loss: LossConfig,
    optimiser: OptimiserConfig,
    folder: Path,
    longest_completion: int,
    sampling: GenerateSettings | None = None,
) -> Any:
    """A ``GRPOTrainer`` whose every step trains the rows of ``rollout(engine)`` once, in micro-batches.

    Loss: PPO clipping, KL to the start model without importance correction, Dr. GRPO's normaliser (conversations, up
    to the constant ``longest_completion``). No gradient checkpointing, no autocast: the model's own type throughout.
    Raises ValueError where the rows do not fill whole micro-batches and groups.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    if n_rows % micro_batch_rows or n_rows % group_size:
        raise ValueError(
            f"{n_rows} rows do not split into micro-batches of {micro_batch_rows} and groups of {group_size}"
        )
    steps = n_rows // micro_batch_rows
    arguments = GRPOConfig(
        output_dir=str(folder),
        loss_type="dr_grpo",
        beta=loss.kl_coef,
        use_bias_correction_kl=False,
        epsilon=loss.clip_low,
        epsilon_high=loss.clip_high,
        temperature=loss.temperature,
        num_iterations=1,
        num_generations=group_size,
        per_device_train_batch_size=micro_batch_rows,
        gradient_accumulation_steps=steps,
        max_completion_length=longest_completion,
        max_steps=1,
        learning_rate=optimiser.lr,
        lr_scheduler_type="constant",
        weight_decay=optimiser.weight_decay,
        adam_beta1=optimiser.betas[0],
        adam_beta2=optimiser.betas[1],
        adam_epsilon=optimiser.eps,
        max_grad_norm=optimiser.grad_clip,
        use_cpu=model.device.type == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )

    class EpisodeTrainer(GRPOTrainer):
        """TRL with our episodes."""

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
            engine = GenerateEngine(self.model, tokenizer, sampling or best_generate(self.accelerator.device))
            batch = padded(rollout(engine), tokenizer.pad_token_id, self.accelerator.device)
            if self.beta != 0.0:
                ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
                mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
                with torch.no_grad():
                    batch["ref_per_token_logps"], _, _ = self._get_per_token_logps_and_entropies(
                        self.ref_model, ids, mask, batch["completion_ids"].shape[1], batch_size=micro_batch_rows
                    )
            return batch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = EpisodeTrainer(
            model,
            reward_funcs=_never_asked,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "-"}] * n_rows),
            processing_class=tokenizer,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _never_asked(completions: Any, **rest: Any) -> list[float | None]:
    raise AssertionError("rewards are the episodes' business")


def padded(rows: Sequence[Row], fill: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Rows as TRL lays them out: prompts padded at the left, completions at the right."""
    wide, long = max(len(row.prompt_ids) for row in rows), max(len(row.completion_ids) for row in rows)

    def left(values: Sequence[int], value: int) -> list[int]:
        return [value] * (wide - len(values)) + list(values)

    def right(values: Sequence[int], value: int) -> list[int]:
        return list(values) + [value] * (long - len(values))

    batch = {
        "prompt_ids": [left(row.prompt_ids, fill) for row in rows],
        "prompt_mask": [left([1] * len(row.prompt_ids), 0) for row in rows],
        "completion_ids": [right(row.completion_ids, fill) for row in rows],
        "completion_mask": [right([1] * len(row.completion_ids), 0) for row in rows],
        "advantages": [row.advantage for row in rows],
    }
    tensors = {key: torch.tensor(value, device=device) for key, value in batch.items()}
    tensors["num_items_in_batch"] = tensors["completion_mask"].sum()
    return tensors


def step_seconds(trainer: Any) -> float:
    """Run one step; seconds from its beginning to its end, without what ``train()`` does around it."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        began = ended = 0.0

        def on_step_begin(self, *arguments: Any, **rest: Any) -> None:
            _wait(trainer.model)
            self.began = time.perf_counter()

        def on_step_end(self, *arguments: Any, **rest: Any) -> None:
            _wait(trainer.model)
            self.ended = time.perf_counter()

    clock = Clock()
    trainer.add_callback(clock)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train()
    finally:
        trainer.remove_callback(clock)
    return clock.ended - clock.began


def warm_up(trainer: Any, tokenizer: Any, rows: Sequence[Row], sampling: GenerateSettings) -> None:
    """A few tokens and the gradient of two rows, which is then forgotten."""
    few = list(rows[:2])
    generate(trainer.model, tokenizer, [row.prompt_ids for row in few], 2, sampling)
    batch = padded(few, tokenizer.pad_token_id, trainer.accelerator.device)
    batch["ref_per_token_logps"] = torch.zeros(batch["completion_ids"].shape, device=trainer.accelerator.device)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    trainer.model.zero_grad(set_to_none=True)
    trainer._metrics["train"].clear()


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
