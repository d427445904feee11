"""Flat prompts of benchmarks: what is read, and what is asked. One short example of every format in lm-eval 0.4.13.

What needs lm-eval itself is in ``test_lm_eval.py``.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.errors import UserError
from memtrain.evaluation.flat_prompt import SplitRule, split_prompt

FILLER = "The grass is green. The sky is blue. Here we go. There and back again.\n"
STORY = "Mary moved to the office. It was raining. " * 60
BOOK = "Chapter 1\n\nIt was a dark night.\n\n" + "She went on walking along the wall, and said nothing. " * 60
LINES = FILLER * 40


def words(text: str) -> int:
    return len(text.split())


RULER = "The special magic number for old-mill mentioned in the provided text is"
QA = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
PASSAGES = "Answer the question based on the given passages. Only give me the answer and do not output any other words."
BABI = (
    "I will give you context with the facts about positions of different persons hidden in some random text and a "
    "question.\nAlways return your answer in the following format:\nThe most recent location of 'person' is 'location'."
)
DEBUG = "Which funtion has deliberate error?\nA. one\nB. two\nC. three\nD. four\n\nYou should first find the functions."
CHOICE = "Question: Who came?\n\nOnly one of the following options is correct.\nA. Ann\nB. Bob\nC. Cid\nD. Dan"
ABSTRACT = "The following is an abstract.\n\nA bridge in Epirus.\n\nPlease enter the number.\n\nThe answer is:"
KV = 'Key: "b7-11"\nThe value associated with the specified key is:'
FORMATS = {
    # name: (head, text, end); the prompt is head + text + end, and the question has to be head and end.
    "niah_single_1": (
        "A special magic number is hidden within the following text. Make sure to memorize it.\n",
        LINES,
        f"What is the special magic number for old-mill mentioned in the provided text? {RULER}",
    ),
    "ruler_vt": (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
        "VAR DAY = 55891 " + LINES,
        "Question: Find all variables that are assigned the value 55891 in the text above. Answer: According to the "
        "chain(s) of variable assignment in the text above, 5 variables are assgined the value 55891, they are:",
    ),
    "ruler_cwe": (
        "Below is a numbered list of words. In these words, some appear more often than others.\n",
        " ".join(f"{i}. word{i % 7}" for i in range(300)) + "\n",
        "Question: What are the 10 most common words in the above list?\n\nAnswer: The top 10 words are:",
    ),
    "ruler_fwe": (
        "",  # instructions and text share a line: they are read as text
        "Read the following coded text. " + "motwmi ... zdkrwm " * 200 + "\n",
        "Question: Do not provide any explanation. What are the three most frequently appeared words in the above "
        "coded text? Answer: According to the coded text above, the three most frequently appeared words are:",
    ),
    "ruler_qa_squad": (
        f"{QA}\n\n",
        f"The following are given documents.\n\nDocument 1:\n{LINES}\nDocument 2:\n{LINES}\n{QA}\n\n",
        "Question: Who built the mill?\nAnswer:",
    ),
    "babilong_qa1": (
        f"{BABI}\n\n",
        f"Charlie went to the hall.\nWhere is Charlie? The most recent location of Charlie is hall.\n\n{STORY}\n",
        "Where is Mary?",
    ),
    "longbench_hotpotqa": (
        f"{PASSAGES}\n\n",
        f"The following are given passages.\n{LINES}\n\n{PASSAGES}\n\n",
        "Question: Which river?\nAnswer:",
    ),
    "longbench_narrativeqa": (
        "You are given a story, and a question. Answer the question asconcisely as you can.\n\n",
        f"Story: {BOOK}\n\nNow, answer the question based on the story.\n\n",
        "Question: Who went on?\n\nAnswer:",
    ),
    "longbench_gov_report": (
        "You are given a report by a government agency. Write a one-page summary of the report.\n\n",
        f"Report:\n{BOOK}\n\n",
        "Now, write a one-page summary of the report.\n\nSummary:",
    ),
    "longbench_passage_retrieval_en": (
        "Here are 30 paragraphs from Wikipedia, along with an abstract.\n\n",
        f"Paragraph 1: {BOOK}\n\n",
        ABSTRACT,
    ),
    "longbench_passage_count": (
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates.\n\n",
        f"Paragraph 1: {BOOK}\n\n",
        "Please enter the final count of unique paragraphs after removing duplicates.\n\nThe final answer is:",
    ),
    "longbench_trec": (
        "Please determine the type of the question below. Here are some examples of questions.\n\n",
        "Question: Who was Lacan ?\nType: Individual\n" * 40 + "\n",
        "Question: How far is it from Denver to Aspen ?\nType:",
    ),
    "longbench_dureader": (
        "请基于给定的文章回答下述问题。\n\n",
        f"文章：{BOOK}\n\n请基于上述文章回答下面的问题。\n\n",
        "问题：谁来了？\n回答：",
    ),
    "longbench2_table": (
        "Please read the following text and answer the question below.\n\n",
        f"<text>\n{BOOK}\n</text>\n\n",
        "What is the correct answer to this question: Who?\nChoices:\n(A) Ann\n(B) Bob\n(C) Cid\n(D) Dan\n\nAnswer:",
    ),
    "infinitebench_kv_retrieval": (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n",
        'JSON data:\n{"b7-11": "c9", ' + '"a": "b", ' * 200 + "}\n\n",
        KV,
    ),
    "infinitebench_passkey": (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them.\n\n",
        LINES + "\n\n",
        "What is the pass key? The pass key is",
    ),
    "infinitebench_longbook_qa_en": (
        "Read the book below and answer a question.\n\n",
        BOOK + "\n\n",
        "Question: Who went on?\n\nBe very concise.",
    ),
    "infinitebench_longbook_choice_en": ("Read the book and answer the question.\n\n", BOOK + "\n\n", CHOICE),
    "infinitebench_code_debug": (
        "There is ONLY ONE function in the large project that is deliberately made to include an obvious error.\n\n",
        "def f():\n    return 1\n\n" * 60,
        DEBUG,
    ),
    "infinitebench_code_run": (
        "Following is a set of Python functions. There is a function called named func_7.\n\n",
        "def func_7(x):\n    return x + 1\n\n" * 60,
        "Please give me the exact number of the return value of func_7(3). Be concise.",
    ),
    "infinitebench_longdialogue_qa_en": (
        'Below is a dialogue script where one random occurrence of a character name is replaced with "$$MASK$$".\n\n',
        f"The dialogue:\n\n---\n\n{LINES}\n---\n\nEnd of dialogue.\n\n",
        'Which character is most likely "$$MASK$$"? Just say the name.',
    ),
    "infinitebench_math_find": (
        "What is the largest number in the following list?\n\n",
        f"[{', '.join(map(str, range(400)))}]\n\n",
        "You should answer with only one number, no other words. The largest number of the list is:",
    ),
    "multiple choice without a mark": ("", STORY + "\n\n", "Where is Mary now?\nA. office\nB. hall\nC. shop\nAnswer:"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_known_format_is_cut_where_its_template_joins(name: str) -> None:
    head, text, end = FORMATS[name]
    split = split_prompt(head + text + end, words, SplitRule())
    assert split.text == text.strip()
    assert split.question == (f"{head.strip()}\n\n{end}" if head else end)


def test_a_question_that_stands_only_at_the_beginning_is_kept() -> None:
    split = split_prompt(f"Summarize the following book.\n\n{BOOK}\nThe end.", words, SplitRule())
    assert split.question == "Summarize the following book.\n\nThe end."
    assert split.text == BOOK.strip()


def test_numbered_paragraphs_are_no_options() -> None:
    text = "\n\n".join(f"({n}) She went on walking." for n in range(50))
    split = split_prompt(f"{text}\n\nSummary:", words, SplitRule(head_tokens=0))
    assert split.question == "(49) She went on walking.\n\nSummary:"


def test_a_prompt_that_is_all_question_has_no_text() -> None:
    assert split_prompt("Question: What is 2 + 2?\nAnswer:", words, SplitRule()).text == ""
    assert split_prompt("", words, SplitRule()) == split_prompt(" \n", words, SplitRule())


def test_the_first_line_of_a_short_story_is_read_not_asked() -> None:
    split = split_prompt("Anna lives in Oslo.\nWhere does Anna live?", words, SplitRule())
    assert (split.text, split.question) == ("Anna lives in Oslo.", "Where does Anna live?")


def test_the_settings_rule() -> None:
    prompt = f"Head.\n\n{STORY}\n\nASK me this.\nAnd that."
    assert split_prompt(prompt, words, SplitRule(question_pattern="ASK")).question == "Head.\n\nASK me this.\nAnd that."
    assert split_prompt(prompt, words, SplitRule(head_tokens=0)).question == "And that."
    short = SplitRule(question_tokens=4, question_pattern="ASK")  # too long from the match on: the last line
    assert split_prompt(prompt, words, short).question == "Head.\n\nAnd that."
    one_line = " ".join(f"w{i}" for i in range(100))
    assert split_prompt(one_line, words, SplitRule(question_tokens=5)).question == "w95 w96 w97 w98 w99"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"question_tokens": 0}, "question_tokens"),
        ({"head_tokens": -1}, "head_tokens"),
        ({"question_pattern": "("}, "no"),
    ],
)
def test_a_rule_that_cannot_be_is_one_sentence(rule: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SplitRule(**rule)  # type: ignore[arg-type]


PIECES = st.sampled_from(
    [
        "Question: who?",
        "Answer:",
        "A. one",
        "(B) two",
        "\n",
        "\n\n",
        "word",
        "a long line of words.",
        "  ",
        "问题：谁",
        "x:",
    ]
)


@given(st.lists(PIECES, max_size=30).map(" ".join), st.integers(1, 12), st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost_and_nothing_is_said_twice(prompt: str, question_tokens: int, head_tokens: int) -> None:
    split = split_prompt(prompt, words, SplitRule(question_tokens, head_tokens))
    asked, whole = split.question.split(), prompt.split()
    fits = [n for n in range(len(asked) + 1) if asked[:n] + split.text.split() + asked[n:] == whole]
    assert any(n <= head_tokens and len(asked) - n <= question_tokens for n in fits)


def test_without_lm_eval_one_sentence_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from memtrain.commands.lm_eval import lm_eval\n"
        "from memtrain.errors import UserError\n"
        "try: lm_eval('demo-cpu', ('ruler_vt',))\n"
        "except UserError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert said.count("\n") == 1
    assert 'pip install "memtrain[lm-eval]"' in said
