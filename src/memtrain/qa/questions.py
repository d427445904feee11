"""Questions with accepted answers and, where the data has them, gold paragraphs and distractors.

Read by what is in a record, not by a file's name: HotpotQA and 2WikiMultihopQA (their files, and as the hub lays them
out), MuSiQue, SQuAD 1.1 and 2.0, XQuAD, Natural Questions with passages (``ctxs`` as in the DPR and Lost-in-the-Middle
releases) and without (NQ-open). JSON, JSON Lines and Parquet; ``.gz`` of the first two.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtrain.errors import UserError
from memtrain.qa import hub
from memtrain.types import Passage

Record = Mapping[str, Any]
NO_ANSWER, NO_QUESTION = "no accepted answer", "no question"
UNKNOWN = "no format that is known"


@dataclass(frozen=True)
class Question:
    """One question."""

    id: str
    """The data's own, else a hash of the question."""
    text: str
    answers: tuple[str, ...]
    """Accepted spellings, at least one."""
    gold: tuple[Passage, ...] = ()
    """Paragraphs that hold the answer or a step to it; empty where the data has none."""
    distractors: tuple[Passage, ...] = ()
    """Paragraphs that the data sets beside them, in its order."""
    complete: bool = True
    """Whether every paragraph that the data calls supporting was there."""


@dataclass
class QuestionSet:
    """What a source holds."""

    questions: list[Question] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> records left out."""

    def passages(self) -> list[Passage]:
        """All distinct paragraphs, gold or not, in order: a pool of distractors."""
        return list({p.text: p for q in self.questions for p in (*q.gold, *q.distractors)}.values())


def read_questions(path: Path) -> QuestionSet:
    """All questions of a file, or of ``hf:dataset[:config[:split]]``.

    Records without question or answer are counted and left out.
    Raises :class:`UserError` where the file cannot be read or no question is left.
    """
    found = QuestionSet()
    for record in _flattened(_records(path)):
        question = _question(record)
        if isinstance(question, Question):
            found.questions.append(question)
        else:
            found.skipped[question] += 1
    if not found.questions:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in found.skipped.items()) or "it is empty"
        raise UserError(
            f"question file {path} holds no question with an answer ({reasons}); give HotpotQA, 2WikiMultihopQA, "
            "MuSiQue, SQuAD, XQuAD or Natural Questions records"
        )
    return found


def read_passages(path: Path) -> list[Passage]:
    """Paragraphs of a file: a list of ``{title, text}``, a mapping from titles to sentences, or a question file's own.

    Raises :class:`UserError` where there are none.
    """
    content = list(_records(path))
    if len(content) == 1 and "data" not in content[0] and all(isinstance(v, list) for v in content[0].values()):
        return [_passage(str(title), sentences) for title, sentences in content[0].items()]
    if content and all("title" in record and ("text" in record or "contents" in record) for record in content):
        return [_passage(str(r["title"]), r.get("text") or r.get("contents") or "") for r in content]
    if content and all("contents" in record and "title" not in record for record in content):  # Search-R1's corpora
        parts = [str(record["contents"]).partition("\n") for record in content]
        return [_passage(title.strip().strip('"'), text) for title, _, text in parts]
    found = read_questions(path).passages()
    if not found:
        raise UserError(f"passage file {path} holds no paragraphs; give a list of objects with title and text")
    return found


def _records(path: Path) -> Iterator[Record]:
    if str(path).startswith(hub.PREFIX):
        yield from hub.records(str(path))
        return
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        try:
            yield from parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(f"question file {path} is not Parquet ({error}); fetch it again") from None
        return
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"question file {path} cannot be read ({error}); fetch it again") from None
    try:
        content = json.loads(text)
        yield from content if isinstance(content, list) else [content]
    except json.JSONDecodeError as whole:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    place = f"line {number}" if number > 1 else f"line {whole.lineno}"
                    raise UserError(
                        f"question file {path} is neither JSON nor JSON Lines ({place} cannot be read); fetch it again"
                    ) from None


def _flattened(records: Iterable[Record]) -> Iterator[Record]:
    """SQuAD nests its questions two levels deep: one record each, with its paragraph as the gold one."""
    for record in records:
        if not isinstance(record, Mapping):
            yield {}
            continue
        articles = record.get("data")
        if not isinstance(articles, list):
            yield record
            continue
        for article in articles:
            for paragraph in article.get("paragraphs", []):
                for asked in paragraph.get("qas", []):
                    yield {**asked, "title": article.get("title", ""), "context": paragraph["context"]}


def _question(record: Record) -> Question | str:
    """A question, or why the record gives none."""
    text = str(record.get("question") or "").strip()
    if not text:
        return NO_QUESTION if record else UNKNOWN
    answers = tuple(dict.fromkeys(answer for answer in map(str.strip, _answers(record)) if answer))
    if not answers or record.get("answerable") is False or record.get("is_impossible"):
        return NO_ANSWER
    gold, others, complete = _paragraphs(record)
    name = str(record.get("id") or record.get("_id") or hashlib.sha256(text.encode()).hexdigest()[:16])
    return Question(name, text, answers, tuple(gold), tuple(others), complete)


def _answers(record: Record) -> Iterator[str]:
    for key in ("answer", "answers", "golden_answers", "answer_aliases"):
        value = record.get(key)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            yield str(value)
        elif isinstance(value, Mapping):  # SQuAD on the hub: {"text": [...], "answer_start": [...]}
            yield from map(str, value.get("text", []))
        elif isinstance(value, Sequence):
            for item in value:
                yield str(item["text"] if isinstance(item, Mapping) else item)


def _paragraphs(record: Record) -> tuple[list[Passage], list[Passage], bool]:
    """Gold paragraphs, the others, and whether all gold ones were there."""
    context = record.get("context")
    if isinstance(record.get("paragraphs"), list):  # MuSiQue
        marked = [
            (bool(p.get("is_supporting")), _passage(p.get("title", ""), p["paragraph_text"]))
            for p in record["paragraphs"]
        ]
    elif isinstance(record.get("ctxs"), list):  # Natural Questions with passages
        sure = any("isgold" in p for p in record["ctxs"])
        marked = [
            (bool(p.get("isgold" if sure else "hasanswer")), _passage(p.get("title", ""), p["text"]))
            for p in record["ctxs"]
        ]
    elif isinstance(context, str):  # SQuAD
        marked = [(True, _passage(str(record.get("title", "")).replace("_", " "), context))]
    elif context:  # HotpotQA, 2WikiMultihopQA
        pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, Mapping) else context
        facts = record.get("supporting_facts") or []
        titles = set(facts["title"] if isinstance(facts, Mapping) else (fact[0] for fact in facts))
        marked = [(title in titles, _passage(title, sentences)) for title, sentences in pairs]
        found = {passage.title for gold, passage in marked if gold and passage.text}
        return *_split(marked), found == titles
    else:
        marked = []
    gold, others = _split(marked)
    return gold, others, bool(gold) or not marked


def _split(marked: Sequence[tuple[bool, Passage]]) -> tuple[list[Passage], list[Passage]]:
    """Gold ones and others; a paragraph without text is as good as missing."""
    told = [(gold, p) for gold, p in marked if p.text]
    return [p for gold, p in told if gold], [p for gold, p in told if not gold]


def _passage(title: Any, text: Any) -> Passage:
    """One paragraph of a string or of sentences, which some data ends with a space and some does not."""
    if not isinstance(text, str):
        join: Callable[[Iterable[str]], str] = "".join if any(s[:1].isspace() for s in text[1:]) else " ".join
        text = join(s if join == "".join else s.strip() for s in text)
    text = text.strip()
    return Passage(hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:16], str(title), text)
