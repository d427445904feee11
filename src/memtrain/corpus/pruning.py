"""What a page's reader never sees goes out of the token list before mwparserfromhell builds its tree.

Building nodes is half of the time of reading a dump, and most nodes of a page lie in infoboxes, citations, tables and
file captions. Only the insides go: the template, table or link itself stays, so the tree is read as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mwparserfromhell.parser import tokens as t

Test = Callable[[str], bool]

_TABLE = "{|"


def prune(tokens: list[Any], is_silent: Test, is_dropped: Test) -> list[Any]:
    """The tokens of a page (of ``CTokenizer``) without the insides of what shows none of them.

    ``is_silent``: whether a template of this name shows none of its arguments; ``is_dropped``: whether a link with this
    title leaves no text behind. Both are asked only where the name is plain text. What is looked at as it is written,
    the arguments of other templates and the titles of links, stays whole.
    """
    kept: list[Any] = []
    index, count = 0, len(tokens)
    while index < count:
        token = tokens[index]
        kind = type(token)
        if kind is t.TemplateOpen:
            end = _closing(tokens, index, t.TemplateOpen, t.TemplateClose)
            if _is_named(tokens, index, t.TemplateParamSeparator, is_silent):
                kept += (token, tokens[index + 1], tokens[end])
            else:
                kept += tokens[index : end + 1]
            index = end + 1
        elif kind is t.WikilinkOpen:
            if _is_named(tokens, index, t.WikilinkSeparator, is_dropped):
                end = _closing(tokens, index, t.WikilinkOpen, t.WikilinkClose)
                kept += (token, tokens[index + 1], tokens[end])
            else:
                end = _closing(tokens, index, t.WikilinkOpen, t.WikilinkClose, t.WikilinkSeparator)
                kept += tokens[index : end + 1]
            index = end + 1
        elif kind is t.TagOpenOpen and token.wiki_markup == _TABLE and (end := _end_of_table(tokens, index)):
            kept += (token, tokens[index + 1], t.TagCloseOpen(padding=""), *tokens[end - 2 : end + 1])
            index = end + 1
        else:
            kept.append(token)
            index += 1
    return kept


def _is_named(tokens: list[Any], start: int, separator: type, test: Test) -> bool:
    """Whether the name is one plain text that passes ``test``, and more follows it."""
    name = tokens[start + 1]
    return type(name) is t.Text and type(tokens[start + 2]) is separator and test(name.text)


def _closing(tokens: list[Any], start: int, opening: type, closing: type, separator: type | None = None) -> int:
    """Index of the token that closes what ``tokens[start]`` opens, or of its own first ``separator`` before that."""
    depth = 1
    for index in range(start + 1, len(tokens)):
        kind = type(tokens[index])
        if kind is opening:
            depth += 1
        elif kind is closing:
            depth -= 1
            if not depth:
                return index
        elif kind is separator and depth == 1:
            return index
    return len(tokens) - 1


def _end_of_table(tokens: list[Any], start: int) -> int:
    """Index of the last token of a table; 0 where it is not as tables are."""
    depth = 1
    for index in range(start + 1, len(tokens)):
        kind = type(tokens[index])
        if kind is t.TagOpenOpen:
            depth += 1
        elif kind is t.TagCloseClose or kind is t.TagCloseSelfclose:
            depth -= 1
            if not depth:
                shape = (t.Text, t.TagOpenClose, t.Text, t.TagCloseClose)
                found = tuple(type(tokens[at]) for at in (start + 1, index - 2, index - 1, index))
                return index if found == shape and index - 2 > start + 1 else 0
    return 0
