"""Is a boxed answer right? The published verifier (MemTrain section 3, released code), and token F1.

The answer is the content of the last ``\\boxed{...}`` that opens within the last 300 characters of the reply, braces
balanced. Without such a box there is no answer: exact match and F1 are 0. Both are taken over the best of several
accepted spellings. Pure functions on text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from memtrain.memory.boxed import BOX, last_boxed


def normalise_exact(text: str) -> str:
    """Lower-case, all white space removed: what exact match compares."""
    return "".join(text.lower().split())


def normalise_words(text: str) -> list[str]:
    """Words as SQuAD compares them (Rajpurkar et al. 2016): lower-case, without punctuation and English articles.

    Punctuation is dropped where it stands (``U.S.`` is ``us``); letters and digits of every script stay. Text without
    any letter or digit keeps its signs, so that ``$`` can equal ``$``.
    """
    lowered = unicodedata.normalize("NFC", text).lower()
    # Marks (M*) are vowels in Indic scripts and points in Hebrew and Arabic: part of the word.
    kept = "".join(c for c in lowered if c.isalnum() or c.isspace() or unicodedata.category(c)[0] == "M")
    words = [word for word in kept.split() if not re.fullmatch("a|an|the", word)]
    return words or lowered.split()


def exact_match(text: str, golds: Iterable[str]) -> float:
    """1.0 where the boxed answer of a reply equals one of the accepted spellings, else 0.0."""
    boxed = last_boxed(text)
    if boxed is None:
        return 0.0
    said = normalise_exact(boxed)
    return float(any(said == normalise_exact(gold) for gold in golds))


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Best word overlap (F1 in [0, 1]) of the boxed answer with the accepted spellings; 0.0 without a box."""
    boxed = last_boxed(prediction)
    if boxed is None:
        return 0.0
    return max((word_f1(boxed, gold) for gold in golds), default=0.0)


def word_f1(said: str, gold: str) -> float:
    """Harmonic mean of precision and recall of words, as multisets."""
    left, right = normalise_words(said), normalise_words(gold)
    common = sum((Counter(left) & Counter(right)).values())
    if not common:
        return 0.0
    return 2 * common / (len(left) + len(right))


def boxable(answer: str) -> bool:
    """Whether a box can hold this answer: something in it, its braces balanced."""
    return last_boxed(f"{BOX}{answer}}}") == answer and bool(answer.strip())
