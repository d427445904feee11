"""The vocabulary: every noun that crosses a module border, as a frozen dataclass.

No behaviour beyond validation lives here, and nothing here imports torch. Token ids are plain ``int`` in the ids of
the policy's tokenizer, log-probabilities are natural logarithms (nats), lengths are tokens unless a name says
``chars``. Names follow MemTrain (arXiv 2606.03197) and MemAgent (arXiv 2507.02259).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TurnKind = Literal["write", "answer", "recall", "search", "prime"]
StopReason = Literal["stop", "length"]
RowLoss = Literal["policy", "cross_entropy"]

MASK_TOKEN = "[MASK]"
"""Stands for the hidden entity of a training document (end-to-end task)."""
TARGET_TOKEN = "[TARGET]"
"""Stands for the hidden entity of a recall probe."""
RECONSTRUCTION_QUESTION = f"Which entity does {MASK_TOKEN} stand for, judging by the whole text?"
"""The one question of the reconstruction task (MemTrain section 3.1)."""


@dataclass(frozen=True)
class Entity:
    """One entity of one passage, with every place it was seen in."""

    text: str
    """Surface form, exactly as it stands in the passage."""
    spans: tuple[tuple[int, int], ...]
    """Half-open ``[start, end)`` character offsets into the passage's text, ascending, all spelling ``text``."""
    kind: str = "entity"
    """What it is, as far as the finder can tell: ``link``, ``name``, ``date``, ``number``, ``PERSON``..."""
    source: str = "rules"
    """The finder that saw it: ``links``, ``rules`` or ``spacy:PIPELINE``."""
    aliases: tuple[str, ...] = ()
    """Other surface forms of the same thing (redirects, other link texts), without ``text`` itself."""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("an entity needs a surface form that is not blank")


@dataclass(frozen=True)
class Passage:
    """One paragraph of the corpus."""

    id: str
    """Unique in its corpus: ``<page>#<paragraph number>``."""
    title: str
    """Title of the page it comes from; empty where the corpus has none."""
    text: str
    """Plain text, markup removed."""
    entities: tuple[Entity, ...] = ()
    """Entities the reader already knows (wiki links); finders add others."""


@dataclass(frozen=True)
class Mention:
    """An entity of a training document that a recall probe may ask for."""

    text: str
    """Surface form; stands somewhere in the document at word boundaries."""
    kind: str = "entity"
    """As in :class:`Entity`."""


@dataclass(frozen=True)
class TrainingDocument:
    """A long text with one entity hidden everywhere (MemTrain section 3; method "training documents")."""

    id: str
    """``<split>-<number>``; with the seed it names the document for good."""
    text: str
    """The passages under "Document i:" headings, every occurrence of the answer replaced by ``[MASK]``."""
    answer: str
    """The hidden entity. Stands nowhere in ``text``."""
    answer_kind: str
    """Its kind, as in :class:`Entity`."""
    aliases: tuple[str, ...]
    """Other accepted spellings of the answer; masked too where the recipe says so."""
    pivot_id: str
    """Id of the passage the answer was drawn from."""
    passage_ids: tuple[str, ...]
    """Ids of all passages in the order they stand in the text."""
    seed: int
    """The seed that draws exactly this document again from the same corpus."""
    n_masks: int
    """How many occurrences were replaced; at least 1."""
    n_tokens: int
    """Length of ``text`` in tokens of the counting tokenizer, summed over passages and headings."""
    mentions: tuple[Mention, ...] = ()
    """Entities that recall probes may ask for: never the answer or a part or a superstring of it."""

    def __post_init__(self) -> None:
        if self.n_masks < 1:
            raise ValueError(f"document {self.id} hides nothing: n_masks is {self.n_masks}")

    @property
    def question(self) -> str:
        """What is asked about the text."""
        return RECONSTRUCTION_QUESTION


@dataclass(frozen=True)
class QuestionDocument:
    """A long text with a question of its own: what task training reads (MemAgent section 3)."""

    id: str
    """The question's id and the length."""
    text: str
    """Gold paragraphs between distractors, under "Document i:" headings."""
    question: str
    """What is asked about the text; known while reading."""
    answer: str
    """The first accepted answer: what likelihood rewards score."""
    aliases: tuple[str, ...] = ()
    """Other accepted answers."""
    mentions: tuple[Mention, ...] = ()
    """Empty: recall probes are MemTrain's."""


ReadingDocument = TrainingDocument | QuestionDocument
"""A text, a question, accepted answers: what a reader's episode is made of."""


@dataclass(frozen=True)
class Probe:
    """One intermediate-recall question, shared by every trajectory of a group (MemTrain section 3.2)."""

    document_id: str
    """The document it was drawn from."""
    step: int
    """k: the memory that is asked, m[k], in 1..T; it has read chunks 0..k-1."""
    chunk: int
    """l: index of the chunk the entity was hidden in, 0 <= l < k."""
    masked_chunk: str
    """Text of chunk l with every occurrence of the entity replaced by ``[TARGET]``."""
    answer: str
    """The hidden entity."""
    kind: str = "entity"
    """Its kind."""

    def __post_init__(self) -> None:
        if not 0 <= self.chunk < self.step:
            raise ValueError(f"probe asks memory {self.step} for chunk {self.chunk}, which it has not read")

    @property
    def distance(self) -> int:
        """Chunks read since the one asked for: ``step - 1 - chunk``, 0 for the chunk read last."""
        return self.step - 1 - self.chunk


@dataclass(frozen=True)
class SamplingParams:
    """What an engine is asked for."""

    max_tokens: int
    """Upper bound of new tokens, the stop token included."""
    temperature: float = 1.0
    """Softmax temperature; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass in (0, 1]."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion (besides the tokenizer's end tokens); kept in the token ids, cut from the text."""
    ignore_eos: bool = False
    """Go on past end tokens, to measure speed on completions of one length."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} or top_p {self.top_p} is out of range")


@dataclass(frozen=True)
class Completion:
    """What an engine gives back for one prompt."""

    token_ids: tuple[int, ...]
    """Sampled ids, the end token included where one was sampled."""
    logprobs: tuple[float, ...]
    """Log-probability of each id under the sampling distribution (at temperature 1 where greedy); same length."""
    stop_reason: StopReason
    """``stop``: ended by itself; ``length``: cut at ``max_tokens``."""

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.token_ids)} token ids but {len(self.logprobs)} log-probs")


@dataclass(frozen=True)
class Turn:
    """One conversation: a prompt and its completion. Every memory update is a turn of its own."""

    kind: TurnKind
    """What the model was asked to do."""
    step: int
    """t, counted from 1, for ``write`` and ``search``; T + 1 for the last answer; the probe's step for ``recall``."""
    prompt_ids: tuple[int, ...]
    """The rendered prompt."""
    completion_ids: tuple[int, ...]
    """What the model wrote (or, in likelihood mode, the known answer)."""
    logprobs: tuple[float, ...]
    """Log-prob of every completion token, same length."""
    text: str
    """The completion as text: without special tokens, stop text and thinking block."""
    stop_reason: StopReason = "stop"
    """``length`` marks a memory that was cut."""


@dataclass(frozen=True)
class Trajectory:
    """The turns of one episode, in order, with its memories."""

    document_id: str
    """The document that was read."""
    index: int
    """Which of the group's G1 trajectories this is."""
    turns: tuple[Turn, ...]
    """T turns that write a memory (``write``, or ``search``), then the ``answer`` turn where one was asked for."""
    memories: tuple[str, ...]
    """m[0..T]; m[0] is the fixed "no memory yet" text."""
    answer: str = ""
    """Text of the last answer turn, box and all; empty where none was asked for."""

    def __post_init__(self) -> None:
        writes = sum(turn.kind in ("write", "search") for turn in self.turns)
        if len(self.memories) != writes + 1:
            raise ValueError(f"{writes} memory writes need {writes + 1} memories, not {len(self.memories)}")


@dataclass(frozen=True)
class Group:
    """What is compared with what: members with one reward each; advantages are taken inside a group only."""

    id: str
    """``<document>`` for trajectories, ``<document>/<trajectory>/<probe>`` for recall answers."""
    kind: Literal["e2e", "recall"]
    """Trajectories of a document, or answers to one recall prompt."""
    rewards: tuple[float, ...]
    """One reward a member."""
    members: tuple[tuple[Turn, ...], ...]
    """Turns of each member, same order as the rewards; all of them get the member's advantage."""
    member_ids: tuple[str, ...] = ()
    """Trajectory id of each member, for the logs."""

    def __post_init__(self) -> None:
        if len(self.rewards) != len(self.members):
            raise ValueError(f"group {self.id}: {len(self.rewards)} rewards for {len(self.members)} members")


@dataclass(frozen=True)
class Row:
    """One training sequence, engine-neutral: nothing below the rows knows what a memory is."""

    prompt_ids: tuple[int, ...]
    """Context; no loss on it."""
    completion_ids: tuple[int, ...]
    """Tokens the loss is on; may be empty (then the row counts as a conversation and adds nothing)."""
    logprobs: tuple[float, ...]
    """Log-probs under the policy that sampled them, same length; empty for ``cross_entropy`` rows."""
    advantage: float
    """The same for every completion token (outcome reward); unused by ``cross_entropy`` rows."""
    weight: float = 1.0
    """Factor on this row's loss."""
    group_id: str = ""
    """As in :class:`Group`."""
    trajectory_id: str = ""
    """Which member it came from."""
    step: int = 0
    """As in :class:`Turn`."""
    kind: TurnKind = "write"
    """As in :class:`Turn`."""
    loss: RowLoss = "policy"
    """``policy``: clipped ratio and KL; ``cross_entropy``: the completion is a known target."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Free text for the logs."""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("a row needs at least one prompt token")
        if self.loss == "policy" and len(self.logprobs) != len(self.completion_ids):
            raise ValueError(f"{len(self.completion_ids)} completion ids but {len(self.logprobs)} log-probs")
