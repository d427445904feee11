"""How a user text becomes prompt ids and completion ids become text, whatever the model's chat template.

Three kinds of model are served alike:

* a chat template: rendered once around a placeholder, so that what stands in a user text cannot steer the template;
* a template whose generation prompt opens a ``<think>`` block, or a model that writes one itself:
  :meth:`ChatFormat.text_of` drops everything through the last ``</think>``, and known completions close the block;
* no template: ``### Instruction`` / ``### Response`` sections, with a stop string.

Nothing here imports torch or transformers: the tokenizer is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from memtrain.errors import UserError
from memtrain.types import MASK_TOKEN, TARGET_TOKEN

SYSTEM = "Notes."
"""Sent only where the template would otherwise put a longer system message of its own."""
PLAIN_HEAD, PLAIN_TAIL = "### Instruction\n", "\n\n### Response\n"
PLAIN_STOP = ("\n###",)
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_PLACEHOLDER = "MEMTRAIN-USER-TEXT"


class ChatFormat:
    """Encodes one user message as a prompt, and decodes its completion.

    Raises :class:`UserError` where the model's chat template cannot render one user message.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        self._special = _special_texts(tokenizer)
        self._special_pattern = _any_of(self._special)
        self._control_pattern = _any_of([*self._special, THINK_OPEN, THINK_CLOSE])
        if self.has_template:
            self.head, self.tail = self._split_template()
            self.stop: tuple[str, ...] = ()
            self.bos_ids: list[int] = []  # the template spells the start token itself, where the model has one
        else:
            self.head, self.tail = PLAIN_HEAD, PLAIN_TAIL
            self.stop = PLAIN_STOP
            self.bos_ids = _bos_ids(tokenizer)
        self.opens_think = self.tail.rfind(THINK_OPEN) > self.tail.rfind(THINK_CLOSE)
        """The generation prompt ends inside a thinking block."""
        self.close_think = f"\n{THINK_CLOSE}\n\n" if self.opens_think else ""
        """What a known completion begins with, so that it stands outside the block."""
        self.end_ids = self._find_end_ids()
        """The token that ends a turn (one id; empty where the tokenizer knows none)."""

    def prompt(self, user_text: str) -> list[int]:
        """Ids of the whole prompt: head, the (already neutral) user text, tail. Encoded in one go."""
        return [*self.bos_ids, *self.encode(self.head + user_text.strip() + self.tail)]

    def conversation(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a conversation, (role, text) in order, that the model is to go on with.

        Roles are ``system``, ``user`` and ``assistant``; texts are made harmless here. A template that knows no system
        message shows it at the head of the first user message; one that renders no conversation gets it as one user
        message.
        """
        turns = in_turns([(role, self.neutral(text.strip())) for role, text in messages])
        if [role for role, _ in turns] == ["user"]:
            return self.prompt(turns[0][1])
        if not self.has_template:
            heads = {"assistant": "### Response\n"}
            parts = [heads.get(role, PLAIN_HEAD) + text for role, text in turns]
            return [*self.bos_ids, *self.encode("\n\n".join(parts) + PLAIN_TAIL)]
        for shape in (turns, _without_system(turns)):
            rendered = self._filled(shape)
            if rendered is not None:
                return [*self.bos_ids, *self.encode(rendered)]
        return self.prompt("\n\n".join(text if role == "system" else f"{role}: {text}" for role, text in turns))

    def _filled(self, turns: Sequence[tuple[str, str]]) -> str | None:
        """The template's text with every message in its place; None where it refuses, drops or repeats one."""
        signs = [f"{_PLACEHOLDER}-{number}." for number in range(len(turns))]
        text = self._render([{"role": role, "content": sign} for (role, _), sign in zip(turns, signs, strict=True)])
        if text is None or any(text.count(sign) != 1 for sign in signs):
            return None
        pieces: list[str] = []
        for sign, (_, said) in zip(signs, turns, strict=True):
            before, found, text = text.partition(sign)
            if not found:
                return None  # in another order
            pieces += [before, said]
        return "".join([*pieces, text])

    def encode(self, text: str) -> list[int]:
        """Ids of a text without start or end tokens; special tokens in it are recognised."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def continue_ids(self, before: str, text: str) -> list[int]:
        """Ids of ``text`` as it is written right after ``before``, tokenised apart from it.

        Taken from the joint encoding where that splits at the border; this keeps SentencePiece tokenizers from putting
        a space in front of a piece encoded alone.
        """
        if not text:
            return []
        left = self.encode(before)
        joint = self.encode(before + text)
        return joint[len(left) :] if joint[: len(left)] == left else self.encode(text)

    def neutral(self, text: str) -> str:
        """The text with everything that would act as a special token or a thinking tag made harmless.

        A space goes in after the first character (``<|im_end|>`` becomes ``< |im_end|>``): the text stays readable and
        no tokenizer reads it as control. ``[MASK]`` and ``[TARGET]`` stay as they are. Without a template, lines that
        begin with ``###`` keep two signs: a third would look like a section of the plain format, and stop the reply.
        """
        for _ in range(len(self._special) + 2):  # once is enough unless control texts overlap
            text, count = self._control_pattern.subn(lambda match: f"{match[0][0]} {match[0][1:]}", text)
            if not count:
                break
        if not self.has_template:
            text = re.sub(r"(?m)^#{3,}", "##", text)
        return text

    def text_of(self, completion_ids: Sequence[int]) -> str:
        """The completion as text: end token, stop text, special tokens and thinking block removed, stripped.

        An unclosed thinking block gives ``""``: nothing outside it was said.
        """
        ids = list(completion_ids)
        ends = {*self.end_ids, getattr(self.tokenizer, "eos_token_id", None)}
        ids = ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if self.opens_think and THINK_CLOSE not in text:
            return ""
        text = text.rpartition(THINK_CLOSE)[2]
        if THINK_OPEN in text:
            return ""
        for stop in self.stop:
            text = text.partition(stop)[0]
        text = self._special_pattern.sub("", text)
        return text.strip().rstrip("\ufffd").rstrip()  # a cut inside a character leaves a replacement sign

    def _split_template(self) -> tuple[str, str]:
        bare = self._render([{"role": "user", "content": _PLACEHOLDER}])
        system = self._render([{"role": "system", "content": SYSTEM}, {"role": "user", "content": _PLACEHOLDER}])
        choices = [text for text in (bare, system) if text is not None and text.count(_PLACEHOLDER) == 1]
        if not choices:
            name = getattr(self.tokenizer, "name_or_path", "") or "this model"
            raise UserError(
                f"the chat template of {name} does not render one user message followed by a generation prompt; "
                "mend its chat_template file, or remove it to use the plain instruction format"
            )
        head, _, tail = min(choices, key=lambda text: len(self.encode(text))).partition(_PLACEHOLDER)
        return head, tail

    def _render(self, messages: list[dict[str, str]], generate: bool = True) -> str | None:
        """The template's text, or None where it refuses these messages (it may raise anything)."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=generate, enable_thinking=False
                )
            )
        except Exception:
            return None

    def _find_end_ids(self) -> tuple[int, ...]:
        """The first special token that the template writes after an assistant's message, else the end token."""
        eos = getattr(self.tokenizer, "eos_token_id", None)
        fallback = () if eos is None else (int(eos),)
        if not self.has_template:
            return fallback
        chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PLACEHOLDER}]
        rendered = self._render(chat, generate=False)
        if rendered is None or _PLACEHOLDER not in rendered:
            return fallback
        special = {token for text in self._special for token in self.encode(text) if len(self.encode(text)) == 1}
        after = self.encode(rendered.rpartition(_PLACEHOLDER)[2])
        return next(((token,) for token in after if token in special), fallback)


def in_turns(messages: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(role, text) as many templates insist on them: neighbours of one role are one message, and a conversation that
    begins with the assistant gets a user's "..." before it."""
    turns: list[tuple[str, str]] = []
    for role, text in messages:
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{text}")
            continue
        if role == "assistant" and all(before == "system" for before, _ in turns):
            turns.append(("user", "..."))
        turns.append((role, text))
    return turns


def _without_system(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """System messages at the head of the first user message."""
    told = [text for role, text in turns if role == "system"]
    rest = [(role, text) for role, text in turns if role != "system"]
    return [("user", "\n\n".join([*told, rest[0][1]])), *rest[1:]] if rest else [("user", "\n\n".join(told))]


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the texts; nothing at all where there is none."""
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def _special_texts(tokenizer: Any) -> list[str]:
    """Every text that the tokenizer reads as a control token, longest first."""
    texts = {str(text) for text in getattr(tokenizer, "all_special_tokens", [])}
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        if getattr(token, "special", False):
            texts.add(str(token.content))
    return sorted(
        (text for text in texts if len(text) > 1 and text not in (MASK_TOKEN, TARGET_TOKEN)),
        key=lambda text: (-len(text), text),
    )


def _bos_ids(tokenizer: Any) -> list[int]:
    """The start token, for tokenizers that put one before a plain text."""
    bos = getattr(tokenizer, "bos_token_id", None)
    encoded = list(tokenizer.encode("x", add_special_tokens=True))
    return [int(bos)] if bos is not None and encoded[:1] == [bos] else []
