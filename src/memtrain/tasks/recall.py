"""Task B, intermediate memory recall: what does an early memory still know of what was read? (MemTrain section 3.2)

A probe takes the memory m[k] and one chunk l that it has read, hides an entity of that chunk as ``[TARGET]`` and asks
for it in one call. Probes are drawn from the document alone, so all trajectories of a group share them: the masked
chunk is one common prefix, and the group mean cancels the probe's difficulty. Nothing here imports torch.
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


def draw_probes(
    document: TrainingDocument,
    chunks: Sequence[str],
    n: int,
    rng: random.Random,
    *,
    spread: bool = False,
    last: bool = False,
) -> list[Probe]:
    """Draw up to ``n`` different probes of a document that was read in these chunks.

    Step k is uniform over 1..T, chunk l over the chunks 0..k-1 that m[k] has read, the entity over those of that chunk
    that may be hidden (see :func:`hide`) and were not asked of m[k] yet; a chunk without any is drawn again. ``spread``
    (for evaluation) takes the distances k-1-l in turn, in random order, and k uniformly given the distance. ``last``
    asks m[T] only (k = T): each chunk counts alike, however early it was read. Fewer come back where the document
    holds fewer; none where it holds none. The draw depends on the document, the chunks and ``rng`` only.
    """
    total = len(chunks)
    mentions = askable(document)
    pools: dict[tuple[int, int], list[Mention]] = {}
    open_pairs = total if last else total * (total + 1) // 2
    distances: list[int] = []
    probes: list[Probe] = []
    while len(probes) < n and open_pairs:
        if spread:
            distances = distances or rng.sample(range(total), total)
            distance = distances.pop()
            step = rng.randint(distance + 1, total)
            place = step - 1 - distance
        else:
            step = total if last else rng.randint(1, total)
            place = rng.randrange(step)
        pair = (step, place)
        if pair not in pools:
            pools[pair] = [mention for mention in mentions if stands_in(chunks[place], mention.text)]
            open_pairs -= not pools[pair]
        while pools[pair]:
            mention = pools[pair].pop(rng.randrange(len(pools[pair])))
            open_pairs -= not pools[pair]
            masked_chunk = hide(chunks[place], mention.text)
            if masked_chunk is not None:
                probes.append(Probe(document.id, step, place, masked_chunk, mention.text, mention.kind))
                break
    return probes


def hide(chunk: str, entity: str) -> str | None:
    """The chunk with every occurrence of the entity as ``[TARGET]``.

    None where it does not occur, is still readable afterwards (in capitals, say), or would hide the number of a
    "Document i:" heading.
    """
    masked, count = mask(chunk, [entity], TARGET_TOKEN)
    if not count or f"Document {TARGET_TOKEN}:" in masked or survives(masked, entity):
        return None
    return masked


def askable(document: TrainingDocument) -> list[Mention]:
    """Mentions without repeats, the hidden answer, its aliases, mask tokens, and what a box cannot hold."""
    forbidden = {normalise_exact(text) for text in (document.answer, *document.aliases)}
    kept: dict[str, Mention] = {}
    for mention in document.mentions:
        holds_mask = any(token in mention.text or mention.text in token for token in (MASK_TOKEN, TARGET_TOKEN))
        if normalise_exact(mention.text) not in forbidden and not holds_mask and boxable(mention.text):
            kept.setdefault(mention.text, mention)
    return list(kept.values())


def stands_in(chunk: str, entity: str) -> bool:
    # The plain test first: a document has a thousand mentions, and most stand in other chunks.
    return entity.split()[0] in chunk and count_occurrences(chunk, entity) > 0


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
