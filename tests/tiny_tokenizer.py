"""Small real tokenizers for tests, built in memory: byte-level BPE, with or without template, start token, thinking."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Question: Which entity does [MASK] stand for? Text: Document 1: Notes: No memory yet. Answer in \\boxed{Paris}.",
    "The quick brown fox jumps over the lazy dog. Rewrite the notes: old and new facts. ### Instruction ### Response",
    "Pierre Proudhon was the first anarchist in 1840; Mikhail Bakunin met him in Paris and Geneva. [TARGET]",
]
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<bos>"]

PLAIN_CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN_CHAT
LONG_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|system|>You are a very helpful assistant, made by a long "
    "committee that wants to be named in every prompt.<|end|>' }}{% endif %}" + PLAIN_CHAT
)
OPEN_THINK = PLAIN_CHAT.replace("'<|assistant|>' }}", "'<|assistant|><think>\n' }}")
SWITCHED_THINK = (
    PLAIN_CHAT.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|>' }}")
    + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)


def make_tokenizer(template: str | None = PLAIN_CHAT, bos: bool = False) -> Any:
    """A trained tokenizer; ``bos`` puts ``<bos>`` before every plain text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", core.token_to_id("<bos>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        bos_token="<bos>",
        additional_special_tokens=SPECIAL[1:4],
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer
