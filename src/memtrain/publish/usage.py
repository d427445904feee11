"""How to use an exported model: the commands, the prompts it was trained with, and a short program for transformers."""

from __future__ import annotations

from typing import Any

from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.settings import MemorySettings

QUESTION, SECTION, MEMORY = "{question}", "{section}", "{memory}"
SIZES = ("chunk_tokens", "memory_tokens", "answer_tokens", "style", "layout", "chunking")

PROGRAM = '''import re
import torch
{load_import}

NAME = "{name}"
tokenizer = AutoTokenizer.from_pretrained(NAME)
model = {load_class}.from_pretrained(NAME, dtype="auto")
WRITE = r"""{write}"""
ANSWER = r"""{answer}"""


def say(prompt, max_new_tokens, **parts):
    text = re.sub(r"\\{{(question|section|memory)\\}}", lambda match: parts[match[1]].strip(), prompt)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def read(text, question):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    memory = "{no_memory}"
    for start in range(0, len(ids), {chunk_tokens}):
        section = tokenizer.decode(ids[start : start + {chunk_tokens}])
        memory = say(WRITE, {memory_tokens}, question=question, section=section, memory=memory)
    return memory, say(ANSWER, {answer_tokens}, question=question, memory=memory)


print(read(open("book.txt", encoding="utf-8").read(), "Who wrote the letter?"))
'''


def prompt_texts(tokenizer: Any, settings: MemorySettings) -> tuple[str, str]:
    """The prompts of a memory update and of an answer as text, chat template and all, with names in braces."""
    prompts = Prompts(tokenizer, settings)
    ids = prompts.write(QUESTION, SECTION, MEMORY), prompts.answer(QUESTION, MEMORY)
    write, answer = (tokenizer.decode(one, clean_up_tokenization_spaces=False) for one in ids)
    return write, answer


def commands(name: str, settings: MemorySettings) -> str:
    """The shell lines for memtrain; sizes are spelt out, so that they need nothing but this folder."""
    pairs = [f"memory.{key}={getattr(settings, key)}" for key in SIZES]
    sizes = f"{' '.join(pairs[:3])} \\\n    {' '.join(pairs[3:])}"
    return (
        "```sh\n"
        f"memtrain serve {name}        # an OpenAI-compatible server; sizes come from memtrain.json\n"
        f'memtrain read book.txt --ask "Who wrote the letter?" --model {name} \\\n    --set {sizes}\n'
        "```"
    )


def program(name: str, tokenizer: Any, settings: MemorySettings, adapter: bool) -> str | None:
    """A program for transformers (an adapter: peft) that reads a text; None where its prompts would be tokenised
    otherwise than in training, as with tokenizers whose decoding loses something."""
    texts = prompt_texts(tokenizer, settings)
    prompts = Prompts(tokenizer, settings)
    wanted = prompts.write(QUESTION, SECTION, MEMORY), prompts.answer(QUESTION, MEMORY)
    same = all(tokenizer.encode(text, add_special_tokens=False) == ids for text, ids in zip(texts, wanted, strict=True))
    if not same or any('"""' in text for text in texts) or prompts.stop or prompts.format.opens_think:
        return None
    auto = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        if adapter
        else "from transformers import AutoModelForCausalLM, AutoTokenizer"
    )
    return PROGRAM.format(
        load_import=imports,
        load_class=auto,
        name=name,
        write=texts[0],
        answer=texts[1],
        no_memory=NO_MEMORY,
        chunk_tokens=settings.chunk_tokens,
        memory_tokens=settings.memory_tokens,
        answer_tokens=settings.answer_tokens,
    )
