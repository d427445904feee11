"""``memtrain search-qa`` and ``memtrain search-server``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from memtrain.commands.options import Model, Overrides, RecipeName, flat
from memtrain.recipe import load_recipe, parse_recipe


def search_qa(
    recipe: RecipeName,
    questions: Annotated[
        Positional[Path],
        arg(metavar="QUESTIONS", help="HotpotQA, 2WikiMultihopQA, MuSiQue, SQuAD, XQuAD or NQ file, as published."),
    ],
    passages: Annotated[
        tuple[Path, ...],
        arg(metavar="FILE [FILE ...]", help="What is searched, by BM25. Default: the question file's own paragraphs."),
    ] = (),
    url: Annotated[
        str, arg(metavar="URL", help="Search there instead: a server of the Search-R1 contract (see search-server).")
    ] = "",
    number: Annotated[int, arg(metavar="N", help="Questions, drawn by the recipe's seed.")] = 32,
    model: Model = None,
    out: Annotated[Path, arg(metavar="FOLDER", help="Where search_qa.json and search_qa.md go.")] = Path(
        "runs/search-qa"
    ),
    overrides: Overrides = (),
) -> None:
    """Search QA: answer questions with a search engine and bounded memory, beside one search and none.

    Example: memtrain search-qa demo-cpu hotpot_dev.json --number 64 --model runs/demo/model

    Example: memtrain search-qa demo-cpu nq.jsonl --url http://127.0.0.1:8000 --set search.questions_at_once=1
    """
    given = [f"search.url={url}"] if url else []
    settings = load_recipe(recipe, [*flat(overrides), *given])
    from memtrain import search_qa as command

    command.run(settings.with_model(name=model or settings.model.name), questions, passages, number, out)


def search_server(
    passages: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="PASSAGES", help="Lists of objects with title and text (.json, .jsonl, .parquet), question files."),
    ] = (),
    host: Annotated[str, arg(metavar="HOST", help="Who may ask: 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, arg(metavar="PORT", help="0 takes any that is free.")] = 8000,
    index: Annotated[
        Path | None,
        arg(
            metavar="FOLDER", help="Keep the index there, and open it again next time (then PASSAGES may be left out)."
        ),
    ] = None,
    kind: Annotated[
        str, arg(metavar="KIND", help="bm25, or dense:MODEL (a sentence-transformers name or folder; extra dense).")
    ] = "bm25",
) -> None:
    """Serve passages by the contract of Search-R1's retrieval servers: POST /retrieve, GET /health.

    Example: memtrain search-server wiki-passages.jsonl --index runs/wiki-index

    Example: memtrain search-server --index runs/wiki-index --port 8010
    """
    checked = parse_recipe({"search": {"index": kind}}, "of --kind")
    from memtrain import search_qa as command

    command.serve(checked.search.index, passages, index, host, port)
