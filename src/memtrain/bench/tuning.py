"""What was tried to find the peers' best settings: each once, on the single-group batch, after a short warm-up.

The winners are the defaults in ``peers/``. Run ``memtrain bench tune`` anew on another machine before believing them.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from memtrain.bench.episodes import configs, describe_rows
from memtrain.bench.harness import seconds_of
from memtrain.bench.models import Place, load_engine, load_tokenizer
from memtrain.bench.peers.generate import ContinuousSettings, GenerateSettings, generate, generate_batch, load_peer
from memtrain.bench.progress import Progress
from memtrain.bench.rollouts import SHORT, chosen_batch
from memtrain.bench.settings import BenchSettings
from memtrain.bench.update import load_trainer, recorded_rows
from memtrain.bench.workload import Turns, write_turns

GENERATE = (
    GenerateSettings(),
    GenerateSettings(cache="dynamic"),
    GenerateSettings(cache="dynamic", attention="eager"),
    GenerateSettings(attention="eager"),
    GenerateSettings(compile=True),
)
GENERATE_LARGE = tuple(GenerateSettings(batch=batch) for batch in (16, 32, 64))
"""On the large batch: how many sequences at once."""
CONTINUOUS = (
    ContinuousSettings(),
    *(ContinuousSettings(requests=requests) for requests in (1, 2, 8, 16)),
    *(ContinuousSettings(page=page) for page in (32, 256)),
    *(ContinuousSettings(batch_tokens=tokens) for tokens in (128, 256, 2048)),
    ContinuousSettings(attention="paged|eager"),
    ContinuousSettings(scheduler="prefill_first"),
    ContinuousSettings(sharing=False),
)
MICRO_BATCHES = (1024, 2048, 4096, 16_384)
"""Token budgets tried for plain training row by row."""


def bench_tune(settings: BenchSettings, progress: Progress) -> dict[str, Any]:
    """New tokens a second of every setting, trained tokens a second of every micro-batch."""
    place = Place.of(settings)
    tokenizer = load_tokenizer(place)
    model = load_peer(place.folder, place.device, place.dtype)
    small, large = (write_turns(tokenizer, settings, groups) for groups in (1, settings.documents))
    found: dict[str, Any] = {"rollouts": []}
    trials: list[tuple[str, Any, Any, Turns]] = [
        *(("transformers generate", generate, chosen, small) for chosen in GENERATE),
        *(("transformers generate", generate, chosen, large) for chosen in GENERATE_LARGE),
        *(("transformers generate_batch", generate_batch, chosen, small) for chosen in CONTINUOUS),
    ]
    for name, call, chosen, turns in trials:
        progress(f"{name}: {asdict(chosen)}")
        entry = {"peer": name, "sequences": len(turns.prompts), "settings": asdict(chosen)}
        try:
            # A compiled step is bound to its shapes, so it is warmed up in full.
            full = getattr(chosen, "compile", False)
            warm = turns.prompts if full else turns.prompts[: chosen_batch(chosen)]
            call(model, tokenizer, warm, turns.new_tokens if full else SHORT, chosen)
            run = partial(call, model, tokenizer, turns.prompts, turns.new_tokens, chosen)
            entry["new_tokens_per_second"] = turns.total_new / seconds_of(run, place.device)
        except Exception as error:  # a setting that does not run here is a result too
            entry["failed"] = f"{type(error).__name__}: {str(error)[:200]}"
        found["rollouts"].append(entry)
    del model
    found["update"] = _micro_batches(place, settings, progress)
    return found


def _micro_batches(place: Place, settings: BenchSettings, progress: Progress) -> list[dict[str, Any]]:
    engine = load_engine(place, settings)
    rows = recorded_rows(engine, settings)[::4]  # every kind of row, at a quarter of the time
    del engine
    trainer = load_trainer(place, settings)
    tokens = describe_rows(rows)["tokens_separate"]
    loss, optimiser = configs(settings)
    found = []
    trainer.update(rows[:2], loss, optimiser)
    told: list[dict[str, float]] = []
    for budget in MICRO_BATCHES:
        progress(f"per-row training: micro-batches of {budget} tokens")
        trainer.micro_batch_tokens = budget
        rate = tokens / seconds_of(lambda: told.append(trainer.update(rows, loss, optimiser)), place.device)
        found.append(
            {
                "peer": "per-row transformers",
                "micro_batch_tokens": budget,
                "tokens_padded": told[-1]["tokens_padded"],
                "trained_tokens_per_second": rate,
            }
        )
    return found
