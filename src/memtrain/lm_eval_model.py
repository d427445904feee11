"""The agent as a model of lm-eval (EleutherAI's lm-evaluation-harness): read in chunks, then answer from the memory.

lm-eval hands a model one flat prompt. It is cut into a long text and a question by a rule that looks at nothing but the
prompt (``evaluation/flat_prompt.py``); the reader (MemAgent, arXiv 2507.02259) reads the text with bounded memory, and
the reply comes from its last memory alone. ``docs/lm-eval.md`` says which tasks exist, and where their data comes from.

lm-eval 0.4.13 has no plug-in mechanism, so ``memtrain lm-eval`` calls its ``simple_evaluate``; its own command line
with this model is ``python -m memtrain.lm_eval_model run --model memtrain --model_args recipe=NAME,pretrained=MODEL``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any

from memtrain.engines.base import Engine
from memtrain.errors import UserError, first_line
from memtrain.evaluation.flat_prompt import SplitRule, split_prompt
from memtrain.memory.prompts import QUESTION, Prompts
from memtrain.memory.reader import answer, read, split_chunks
from memtrain.recipe import Recipe, load_recipe
from memtrain.report.console import Screen
from memtrain.tasks.likelihood import answer_logprobs
from memtrain.tasks.verifier import last_boxed
from memtrain.types import SamplingParams, Trajectory

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise UserError(f'lm-eval 0.4.13 or later is needed ({error}): pip install "memtrain[lm-eval]"') from error

NAME = "memtrain"
IMPOSSIBLE = -1e9
"""Log-likelihood (nats) of a continuation whose request failed: below any other, and still a number in JSON."""
_LOG = logging.getLogger(__name__)


def final_answer(reply: str, until: Sequence[str], max_tokens: int, tokenizer: Any) -> str:
    """What lm-eval gets: the boxed answer, or the reply where there is no box, cut at ``until`` and ``max_tokens``."""
    boxed = last_boxed(reply)
    text = (reply if boxed is None else boxed).strip()
    for stop in filter(None, until):
        text = text.partition(stop)[0]
    ids = tokenizer.encode(text, add_special_tokens=False)
    return (
        text if len(ids) <= max_tokens else str(tokenizer.decode(ids[:max_tokens])).rstrip("\ufffd")
    )  # a cut inside a character


@register_model(NAME)
class MemTrainLM(LM):
    """The reader agent on one engine, as lm-eval calls a model.

    A request that fails counts as wrong (an empty reply, a log-likelihood of -1e9), is logged and kept in
    ``failures``, and ends nothing. ``told`` has the question, the number of chunks and the last memory of each request.
    Both go by ``(task, number of the document)``. Raises :class:`UserError` where a question, a chunk and two memories
    do not fit the model's window.
    """

    def __init__(
        self, engine: Engine, recipe: Recipe, rule: SplitRule | None = None, screen: Screen | None = None
    ) -> None:
        """``screen`` shows the progress; without one, every kind of request opens its own."""
        super().__init__()
        self.engine, self.recipe, self.rule, self.screen = engine, recipe, rule or SplitRule(), screen
        self.memory = recipe.memory.model_copy(update={"max_chunks": 1 << 30})  # the task says how long a text is
        self.prompts = Prompts(engine.tokenizer, recipe.memory)
        self.write = SamplingParams(recipe.memory.memory_tokens, recipe.eval.temperature, stop=self.prompts.stop)
        self.failures: dict[tuple[str, int], str] = {}
        self.told: dict[tuple[str, int], dict[str, Any]] = {}
        self.asked = 0
        self._check_window()

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> MemTrainLM:
        """From ``--model_args``: recipe, pretrained, the fields of :class:`SplitRule`, any key of the recipe.

        For example ``recipe=demo-cpu,pretrained=runs/demo/model,question_tokens=256,memory.chunk_tokens=512``.
        lm-eval's own ``--device`` and ``--batch_size`` (in ``additional_config``) do not count: the first is ``cuda:0``
        where nobody gave it, ``model.device`` says it here; batches are the engine's business.
        """
        from memtrain.pipeline import load_engine

        given = dict(arg_dict)
        name, model = given.pop("recipe", "demo-cpu"), given.pop("pretrained", None)
        rule = SplitRule(**{key: given.pop(key) for key in SplitRule.__dataclass_fields__ if key in given})
        given.pop("tokenizer", None)  # for the makers of RULER's data
        settings = {**given, **({"model.name": model} if model else {})}
        recipe = load_recipe(str(name), [f"{key}={value}" for key, value in settings.items()])
        with Screen(f"memtrain {recipe.model.name}") as screen:
            engine = load_engine(recipe, screen)
        return cls(engine, recipe, rule)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> MemTrainLM:
        """The same from ``key=value,key=value``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Read, then reply; ``until``, ``max_gen_toks``, ``temperature``, ``do_sample``, ``top_p`` rule the reply.

        Memories are written at the recipe's ``eval.temperature``. The reply may take ``memory.answer_tokens`` tokens,
        for the box and what a model thinks before it; the answer in it is cut at ``until`` and ``max_gen_toks``.
        """
        return self._all("generate_until", requests, [[place] for place in range(len(requests))], self._reply, "")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations as boxed answers after the last memory; requests with one context share a reading.

        The log-likelihood (nats) is that of the continuation, white space at its ends aside, and the ``}`` after it,
        given the answer prompt and ``\\boxed{``. Greedy means that greedy decoding from there writes the same tokens.
        """
        places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(request.args[0], []).append(place)
        return self._all("loglikelihood", requests, list(places.values()), self._score, (IMPOSSIBLE, False))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Not what a memory agent can do: raises :class:`UserError`."""
        raise UserError(
            "perplexity tasks (loglikelihood_rolling) have no question that an agent could answer from a memory; "
            "choose tasks of the kinds generate_until, multiple_choice or loglikelihood"
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as plain paragraphs: the agent puts its own prompts into the model's template."""
        return "\n\n".join(message["content"] for message in chat_history)

    @property
    def tokenizer_name(self) -> str:
        """Tells request caches of lm-eval apart."""
        return f"{NAME}-{self.recipe.fingerprint()}"

    def _all(
        self,
        kind: str,
        requests: list[Any],
        groups: list[list[int]],
        work: Callable[[list[Any]], Awaitable[list[Any]]],
        failed: Any,
    ) -> list[Any]:
        """Results in the requests' order; every group of requests is one coroutine, and all run at once."""
        results: list[Any] = [failed] * len(requests)
        self.asked += len(requests)

        async def one(places: list[int], screen: Screen) -> None:
            members = [requests[place] for place in places]
            try:
                found = await work(members)
            except Exception as error:  # whatever it is, the other requests go on
                for request in members:
                    self.failures[request.task_name, request.doc_id] = first_line(error)
                _LOG.warning("%s, document %s: %s", members[0].task_name, members[0].doc_id, first_line(error))
            else:
                for place, request, result in zip(places, members, found, strict=True):
                    results[place] = result
                    self.cache_hook.add_partial(kind, request.args, result)
            screen.advance(len(places))

        async def every(screen: Screen) -> None:
            await self.engine.reseed(f"{self.recipe.seed}/lm-eval/{kind}")
            await asyncio.gather(*(one(places, screen) for places in groups))

        with nullcontext(self.screen) if self.screen is not None else Screen(f"lm-eval {NAME}") as screen:
            screen.stage(kind, len(requests))
            asyncio.run(every(screen))
        return results

    async def _read(self, request: Any) -> tuple[str, Trajectory]:
        """The request's question, and what reading its text left."""
        split = split_prompt(request.args[0], self._count, self.rule)
        chunks = split_chunks(split.text, self.engine.tokenizer, self.memory)
        place = (request.task_name, request.doc_id)
        name = f"{place[0]}/{place[1]}"
        trajectory = await read(
            self.engine, self.prompts, split.question, chunks, self.write, document_id=name, index=0
        )
        self.told[place] = {"question": split.question, "chunks": len(chunks), "memory": trajectory.memories[-1]}
        return split.question, trajectory

    async def _reply(self, requests: list[Any]) -> list[str]:
        [request] = requests
        wanted: Any = normalize_gen_kwargs(request.args[1])
        question, trajectory = await self._read(request)
        room = self.engine.context_tokens - len(self.prompts.answer(question, trajectory.memories[-1]))
        box = self._count("\\boxed{}") + 1  # and the end token
        length = max(wanted["max_gen_toks"] + box, self.recipe.memory.answer_tokens)
        temperature = float(wanted["temperature"]) if wanted["do_sample"] else 0.0
        params = SamplingParams(
            min(room, length), temperature, top_p=float(wanted.get("top_p", 1.0)), stop=self.prompts.stop
        )
        turn = await answer(self.engine, self.prompts, question, trajectory, params)
        return [final_answer(turn.text, wanted["until"], wanted["max_gen_toks"], self.engine.tokenizer)]

    async def _score(self, requests: list[Any]) -> list[tuple[float, bool]]:
        question, trajectory = await self._read(requests[0])
        prompt = self.prompts.answer(question, trajectory.memories[-1])
        targets = [self.prompts.target(request.args[1].strip()) for request in requests]
        scored = [target.ids[target.scored] for target in targets]
        greedy = SamplingParams(max(map(len, scored)), temperature=0.0)
        [said], scores = await asyncio.gather(
            self.engine.sample([*prompt, *targets[0].prefix_ids], greedy),
            asyncio.gather(*(answer_logprobs(self.engine, prompt, target) for target in targets)),
        )
        return [(total, said.token_ids[: len(ids)] == ids) for (total, _), ids in zip(scores, scored, strict=True)]

    def _count(self, text: str) -> int:
        return len(self.engine.tokenizer.encode(text, add_special_tokens=False))

    def _check_window(self) -> None:
        """No request may come whose chunks do not fit."""
        context, rule = self.engine.context_tokens, self.rule
        needs = self.prompts.budget(context)
        longest = max(needs["write"], needs["answer"]) - self.prompts.count(QUESTION)
        if longest + rule.question_tokens + rule.head_tokens > context:
            raise UserError(
                f"a chunk, the memory and a question of {rule.question_tokens} + {rule.head_tokens} tokens take "
                f"{longest + rule.question_tokens + rule.head_tokens} tokens but the model's window is {context}; "
                f"lower question_tokens, head_tokens or memory.chunk_tokens (now {self.memory.chunk_tokens})"
            )


if __name__ == "__main__":  # lm-eval's own command line, with this model known to it
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
