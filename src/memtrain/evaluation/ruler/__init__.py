"""The RULER family over the corpus's own text: long texts that need no labels, at any length in tokens.

Hsieh et al., *RULER: What's the Real Context Size of Your Long-Context Language Models?* (arXiv 2404.06654): needles
(section 3.1), variable tracking (3.2), common and frequent words (3.3). Its question answering needs labelled data and
is ``memtrain qa``. Kept from RULER: the needles' wording, kinds and numbers of keys, values and queries, forty depths,
chains and hops, the word frequencies, the scoring. Different here, because a memory agent reads: the noise is passages
of the corpus under "Document i:" headings instead of essays, a length is that of the text alone (without question and
reply), the question is in our words with a boxed answer, and no solved example stands before it.
"""
