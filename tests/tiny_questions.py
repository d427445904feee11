"""A question file of made-up people and places, in SQuAD's form, for runs of the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = ("Arda", "Bello", "Cuno", "Dara", "Elva", "Fenn", "Gora", "Hild", "Ivo", "Juna", "Karl", "Lena")
PLACES = ("Olmo", "Pella", "Quint", "Rova", "Selby", "Torin", "Ulm", "Varna", "Wick", "Xanten", "Yport", "Zell")


def articles() -> list[dict[str, Any]]:
    """One article a person, with one paragraph and two questions."""
    found = []
    for number, (name, place) in enumerate(zip(NAMES, PLACES, strict=True)):
        text = f"{name} was a miller of the hills. In the year {1200 + number} {name} left home and lived in {place}."
        asked = [
            {"id": f"{name}-where", "question": f"Where did {name} live?", "answers": [{"text": place}]},
            {"id": f"{name}-when", "question": f"When did {name} leave?", "answers": [{"text": str(1200 + number)}]},
        ]
        found.append({"title": name, "paragraphs": [{"context": text, "qas": asked}]})
    return found


def write_questions(file: Path) -> Path:
    """24 questions, 12 paragraphs."""
    file.write_text(json.dumps({"version": "1.1", "data": articles()}))
    return file
