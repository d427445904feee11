"""The proxy tasks on held-out documents: reconstruction and recall, with a closed-book and a full-context control.

What the published evaluation lacks is part of every result: the loop of the untrained model (evaluate before training),
the question without the text, n, and intervals. Probes depend on the recipe's seed and the document only, so two
evaluations of one recipe ask the same and are compared pairwise.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtrain.engines.base import Engine, ProgressCallback
from memtrain.errors import UserError
from memtrain.evaluation import metrics
from memtrain.evaluation.statistics import Estimate, clustered, paired_difference
from memtrain.memory.prompts import NO_MEMORY, QUESTION, Prompts
from memtrain.memory.reader import answer, read, split_chunks
from memtrain.recipe import Recipe
from memtrain.tasks.likelihood import answer_logprobs
from memtrain.tasks.recall import draw_probes, recall_answers, recall_scores
from memtrain.tasks.reconstruction import answer_scores
from memtrain.tasks.verifier import exact_match, token_f1
from memtrain.types import Probe, SamplingParams, TrainingDocument, Trajectory

FORMAT = 1
CONTROL_PROBES = 2
"""Probes of a document that are also answered without memory. (Their likelihood without memory is always scored.)"""


@dataclass(frozen=True)
class EvalResult:
    """Everything one evaluation measured, row by row, so that two can be paired by document."""

    label: str
    """``before``, ``after_priming``, ``after``, ``step-50``..."""
    records: list[dict[str, Any]]
    """Rows of kind ``reading`` (one a trajectory), ``recall`` (one a probe and trajectory), ``control`` and
    ``recall control`` (without memory). Each names its ``document`` and ``sample`` and has the metrics it knows."""
    bootstrap: int = 2000
    """Resamples of the intervals."""
    seed: int = 0
    """Seed of the resampling."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else a reader should know: documents asked for and found, chunks."""

    def metric_names(self) -> list[str]:
        """Every metric that at least one record has, in the order of the report."""
        known = {name for record in self.records for name, value in record.items() if value is not None}
        return metrics.ordered({name for name in known if metrics.split_name(name)[0] in metrics.METRICS})

    def summary(self) -> dict[str, Estimate]:
        """``{metric: {"mean", "ci95": [low, high], "n": documents}}``, intervals by bootstrap over documents."""
        return {name: clustered(self.records, name, self.bootstrap, self.seed) for name in self.metric_names()}

    def difference(self, before: EvalResult) -> dict[str, Estimate]:
        """``self - before`` for every metric of both, paired by document."""
        shared = [name for name in self.metric_names() if name in set(before.metric_names())]
        return {
            name: paired_difference(before.records, self.records, name, self.bootstrap, self.seed) for name in shared
        }

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        data = {"format": FORMAT, **{key: getattr(self, key) for key in ("label", "bootstrap", "seed", "notes")}}
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps({**data, "records": self.records}, ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> EvalResult:
        """Read what :meth:`save` wrote. Raises UserError where the file is missing or something else."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT:
                raise KeyError("format")
            return cls(**data)
        except FileNotFoundError:
            raise UserError(f"no evaluation at {path}; run memtrain eval or memtrain train first") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is not an evaluation of this version; delete it and evaluate again") from None


async def evaluate(
    engine: Engine,
    documents: Sequence[TrainingDocument],
    recipe: Recipe,
    label: str,
    progress: ProgressCallback | None = None,
) -> EvalResult:
    """Read the first ``recipe.eval.documents`` documents ``recipe.eval.samples`` times each, and ask.

    All episodes run at once: batching is the engine's business. ``progress`` is called with
    ``("evaluation", finished readings, all readings)``. Raises UserError when there is no document; what an engine
    raises goes through.
    """
    chosen = list(documents)[: recipe.eval.documents]
    if not chosen:
        raise UserError("nothing to evaluate: the corpus gave no held-out document; raise corpus.held_out or add text")
    run = _Evaluation(engine, recipe, len(chosen) * recipe.eval.samples, progress)
    rows = await asyncio.gather(*(run.document(document) for document in chosen))
    notes = {"documents": len(chosen), "documents_asked_for": recipe.eval.documents, "samples": recipe.eval.samples}
    records = [record for document in rows for record in document]
    return EvalResult(label, records, recipe.eval.bootstrap, recipe.seed, notes)


def eval_probes(document: TrainingDocument, chunks: Sequence[str], n: int, seed: int) -> list[Probe]:
    """The probes of one document: the same for the same seed, document and chunks; stratified over distances."""
    rng = random.Random(f"{seed}/{document.id}/evaluation")
    return draw_probes(document, chunks, n, rng, spread=True)


class _Evaluation:
    """One evaluation under way: what all its coroutines share."""

    def __init__(self, engine: Engine, recipe: Recipe, total: int, progress: ProgressCallback | None) -> None:
        self.engine = engine
        self.settings = recipe.eval
        self.memory = recipe.memory
        self.seed = recipe.seed
        self.prompts = Prompts(engine.tokenizer, recipe.memory)
        self.done, self.total, self.progress = 0, total, progress

    def params(self, max_tokens: int) -> SamplingParams:
        return SamplingParams(max_tokens, temperature=self.settings.temperature, stop=self.prompts.stop)

    async def document(self, document: TrainingDocument) -> list[dict[str, Any]]:
        chunks = split_chunks(document.text, self.engine.tokenizer, self.memory)
        probes = eval_probes(document, chunks, self.settings.probes, self.seed)
        surfaces = metrics.surfaces_by_chunk(chunks, document.mentions)
        closed, *baselines = await asyncio.gather(
            self.logprob(self.prompts.answer(QUESTION, NO_MEMORY), document.answer),
            *(self.logprob(self.prompts.recall_without_memory(p.masked_chunk), p.answer) for p in probes),
        )
        asked = list(zip(probes, baselines, strict=True))
        numbered = list(enumerate(asked))
        parts: Iterable[list[dict[str, Any]]] = await asyncio.gather(
            self.controls(document, closed),
            *(self.recall_controls(probe, baseline, number < CONTROL_PROBES) for number, (probe, baseline) in numbered),
            *(self.reading(document, chunks, surfaces, asked, closed, i) for i in range(self.settings.samples)),
        )
        return [record for part in parts for record in part]

    async def reading(
        self,
        document: TrainingDocument,
        chunks: Sequence[str],
        surfaces: Sequence[Sequence[str]],
        asked: Sequence[tuple[Probe, float]],
        closed: float,
        sample: int,
    ) -> list[dict[str, Any]]:
        """One trajectory: read, then answer and be probed, all at once.

        ``asked``: probes with their log-likelihood without memory; ``closed``: that of the document's answer.
        """
        trajectory = await read(
            self.engine,
            self.prompts,
            QUESTION,
            list(chunks),
            self.params(self.memory.memory_tokens),
            document_id=document.id,
            index=sample,
        )
        turn, score, *recalls = await asyncio.gather(
            answer(self.engine, self.prompts, QUESTION, trajectory, self.params(self.memory.answer_tokens)),
            answer_scores(self.engine, self.prompts, document, trajectory.memories[-1], baseline_logprob=closed),
            *(self.recall(trajectory, probe, baseline, sample) for probe, baseline in asked),
        )
        record = {
            "kind": "reading",
            "document": document.id,
            "sample": sample,
            "gold": document.answer,
            "answer": turn.text,
            "memory": trajectory.memories[-1],
            "memories": list(trajectory.memories[1:]),
            "cut": [turn.stop_reason == "length" for turn in trajectory.turns],
            "chunk_chars": [len(chunk) for chunk in chunks],
            **_scores("reconstruction", turn.text, _golds(document)),
            "reconstruction_logprob": score.logprob,
            "reconstruction_likelihood_gain": score.gain,
            **metrics.reading_metrics(trajectory, surfaces),
        }
        self.done += 1
        if self.progress:
            self.progress("evaluation", self.done, self.total)
        return [record, *recalls]

    async def recall(self, trajectory: Trajectory, probe: Probe, baseline: float, sample: int) -> dict[str, Any]:
        """One probe of one trajectory: the likelihood of the known answer, and one answer in the model's words."""
        memory = trajectory.memories[probe.step]
        params = self.params(self.memory.answer_tokens)
        score, turns = await asyncio.gather(
            recall_scores(self.engine, self.prompts, memory, probe, baseline_logprob=baseline),
            recall_answers(self.engine, self.prompts, memory, probe, params, 1),
        )
        values = {
            "recall_logprob": score.logprob,
            "recall_likelihood_gain": score.gain,
            **_scores("recall", turns[0].text, [probe.answer]),
        }
        by_distance = {f"{name}{metrics.DISTANCE}{probe.distance}": values[name] for name in metrics.BY_DISTANCE}
        return {**_about(probe, "recall", sample), "answer": turns[0].text, **values, **by_distance}

    async def controls(self, document: TrainingDocument, closed: float) -> list[dict[str, Any]]:
        """Reconstruction without the text, and from the whole text at once where it fits the model's window."""
        params = self.params(self.memory.answer_tokens)
        prompts = {"closed_book": self.prompts.answer(QUESTION, NO_MEMORY)}
        if self.settings.full_context:
            whole = self.prompts.full_context(QUESTION, document.text)
            if len(whole) + params.max_tokens <= self.engine.context_tokens:
                prompts["full_context"] = whole
        completions = await asyncio.gather(
            *(self.engine.sample(prompt, params, self.settings.samples) for prompt in prompts.values())
        )
        records = []
        for sample in range(self.settings.samples):
            record = {"kind": "control", "document": document.id, "sample": sample, "closed_book_logprob": closed}
            for name, drawn in zip(prompts, completions, strict=True):
                text = self.prompts.text_of(drawn[sample].token_ids)
                record |= _scores(name, text, _golds(document))
            records.append(record)
        return records

    async def recall_controls(self, probe: Probe, baseline: float, answered: bool) -> list[dict[str, Any]]:
        """The probe without a memory: what the masked chunk and the weights give away."""
        drawn = []
        if answered:
            prompt = self.prompts.recall_without_memory(probe.masked_chunk)
            drawn = await self.engine.sample(prompt, self.params(self.memory.answer_tokens), self.settings.samples)
        texts = [self.prompts.text_of(completion.token_ids) for completion in drawn]
        return [
            {
                **_about(probe, "recall control", sample),
                "closed_book_recall_logprob": baseline,
                **(_scores("closed_book_recall", texts[sample], [probe.answer]) if answered else {}),
            }
            for sample in range(self.settings.samples)
        ]

    async def logprob(self, prompt: Sequence[int], gold: str) -> float:
        """Log-likelihood in nats of the answer and the brace that closes its box."""
        total, _ = await answer_logprobs(self.engine, prompt, self.prompts.target(gold))
        return total


def _golds(document: TrainingDocument) -> list[str]:
    return [document.answer, *document.aliases]


def _scores(name: str, text: str, golds: Sequence[str]) -> dict[str, Any]:
    return {f"{name}_em": exact_match(text, golds), f"{name}_f1": token_f1(text, golds)}


def _about(probe: Probe, kind: str, sample: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "document": probe.document_id,
        "sample": sample,
        "step": probe.step,
        "chunk": probe.chunk,
        "distance": probe.distance,
        "gold": probe.answer,
    }
