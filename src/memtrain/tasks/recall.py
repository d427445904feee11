"""Task B, intermediate memory recall: what does an early memory still know of what was read? (MemTrain section 3.2)

A probe takes the memory m[k] and one chunk l that it has read, hides an entity of that chunk as ``[TARGET]`` and asks
for it in one call. Probes are drawn from the document alone, so all trajectories of a group share them: the masked chunk is
one common prefix, and the group mean cancels the probe's difficulty. Nothing here imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from memtrain.corpus.masking import count_occurrences, mask, survives
from memtrain.engines.base import Engine, Weights
from memtrain.memory.prompts import Prompts
from memtrain.memory.reader import turn_of
from memtrain.tasks.likelihood import Likelihood, likelihood
from memtrain.tasks.verifier import boxable, normalise_exact
from memtrain.types import MASK_TOKEN, TARGET_TOKEN, Group, Mention, Probe, SamplingParams, TrainingDocument, Turn

RecallScore = Likelihood
"""logprob, baseline_logprob, gain, n_tokens, turn of one memory on one probe."""

_TRIES_PER_PROBE = 64


def draw_probes(
    document: TrainingDocument,
    chunks: Sequence[str],
    n: int,
    rng: random.Random,
    *,
    spread: bool = False,
) -> list[Probe]:
    """Draw up to ``n`` different probes of a document that was read in these chunks.

    Step k is uniform over 1..T, chunk l over the chunks 0..k-1 that m[k] has read, the entity over the candidates of
    that chunk (see :func:`candidates`); a chunk without any is drawn again. ``spread`` (for evaluation) takes the
    distances k-1-l in turn, in random order, and k uniformly given the distance. Fewer come back where the document
    holds fewer; none where it holds none. The draw depends on the document, the chunks and ``rng`` only.
    """
    found: dict[int, list[tuple[Mention, str]]] = {}
    total = len(chunks)
    distances: list[int] = []
    probes: list[Probe] = []
    seen: set[tuple[int, int, str]] = set()
    for _ in range(n * _TRIES_PER_PROBE):
        if len(probes) == n or total == 0 or (len(found) == total and not any(found.values())):
            break
        if spread:
            if not distances:
                distances = rng.sample(range(total), total)
            distance = distances[-1]
            step = rng.randint(distance + 1, total)
            place = step - 1 - distance
        else:
            step = rng.randint(1, total)
            place = rng.randrange(step)
        if place not in found:
            found[place] = candidates(document, chunks[place])
        if spread and (not found[place] or rng.random() < 1 / _TRIES_PER_PROBE):
            distances.pop()  # nothing here (or perhaps nothing new): let the next distance try
        if not found[place]:
            continue
        mention, masked = rng.choice(found[place])
        key = (step, place, mention.text)
        if key in seen:
            continue
        seen.add(key)
        if spread and distances and distances[-1] == distance:
            distances.pop()
        probes.append(
            Probe(
                document_id=document.id,
                step=step,
                chunk=place,
                masked_chunk=masked,
                answer=mention.text,
                kind=mention.kind,
            )
        )
    return probes


def candidates(document: TrainingDocument, chunk: str) -> list[tuple[Mention, str]]:
    """Entities of this chunk that a probe may hide, each with the masked chunk, in the document's order.

    Out stay: the document's answer and its aliases, anything that holds a mask token, what a box cannot hold, what is
    still readable in the chunk after masking, and what would mask the number of a "Document i:" heading.
    """
    forbidden = {normalise_exact(text) for text in (document.answer, *document.aliases)}
    kept: list[tuple[Mention, str]] = []
    taken: set[str] = set()
    for mention in document.mentions:
        text = mention.text
        if text in taken or normalise_exact(text) in forbidden or not boxable(text):
            continue
        if MASK_TOKEN in text or TARGET_TOKEN in text or text in MASK_TOKEN or not count_occurrences(chunk, text):
            continue
        taken.add(text)
        masked, count = mask(chunk, [text], TARGET_TOKEN)
        if count and f"Document {TARGET_TOKEN}:" not in masked and not survives(masked, text):
            kept.append((mention, masked))
    return kept


async def recall_scores(
    engine: Engine,
    prompts: Prompts,
    memory: str,
    probe: Probe,
    weights: Weights = "policy",
    baseline_logprob: float | None = None,
) -> RecallScore:
    """log p(entity | memory, masked chunk) minus the same without memory, ``\\boxed{`` given.

    ``baseline_logprob`` (from an earlier score of the same probe with the same weights) saves the pass without memory.
    """
    return await likelihood(
        engine,
        prompts.recall(memory, probe.masked_chunk),
        prompts.recall_without_memory(probe.masked_chunk),
        prompts.target(probe.answer),
        kind="recall",
        step=probe.step,
        text=f"\\boxed{{{probe.answer}}}",
        weights=weights,
        baseline_logprob=baseline_logprob,
    )


async def recall_answers(
    engine: Engine, prompts: Prompts, memory: str, probe: Probe, params: SamplingParams, n: int
) -> list[Turn]:
    """Sample G2 = ``n`` answers to one recall prompt."""
    prompt_ids = prompts.recall(memory, probe.masked_chunk)
    completions = await engine.sample(prompt_ids, params, n)
    return [turn_of(prompts, "recall", probe.step, prompt_ids, completion) for completion in completions]


def recall_group(
    document_id: str, trajectory: int, probe: int, turns: Sequence[Turn], rewards: Sequence[float]
) -> Group:
    """The G2 answers to one recall prompt, compared with each other only."""
    return Group(
        id=f"{document_id}/{trajectory}/{probe}",
        kind="recall",
        rewards=tuple(rewards),
        members=tuple((turn,) for turn in turns),
        member_ids=tuple(f"{document_id}/{trajectory}" for _ in turns),
    )
