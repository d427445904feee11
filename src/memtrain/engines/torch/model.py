"""Loading a policy: any transformers decoder, on CPU or CUDA, whole or with a LoRA adapter.

The only thing asked of a model is that its attention goes through transformers' attention interface; a numerical check
at load time makes sure that our attention over shared prefixes gives the model's own logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memtrain.engines.torch import attention
from memtrain.errors import UserError
from memtrain.recipe import ModelSettings

@dataclass
class LoadedModel:
    """A causal language model split where training needs it: decoder -> hidden states, head -> logits."""

    model: Any
    """transformers or peft model."""
    tokenizer: Any
    """Its tokenizer."""
    decoder: nn.Module
    """Gives last hidden states (1, N, hidden)."""
    device: torch.device
    context_tokens: int
    """Longest sequence the model takes."""
    lora: bool
    """Whether only an adapter trains."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, hidden) -> (…, vocabulary), with the scalings and caps that some families apply."""
        logits = self.base.get_output_embeddings()(hidden)
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        return logits if self.logit_cap is None else torch.tanh(logits / self.logit_cap) * self.logit_cap

    @property
    def logit_scale(self) -> float:
        """Factor on the logits (Cohere's ``logit_scale``, Granite's divisor ``logits_scaling``)."""
        config = self.base.config.get_text_config()
        return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)

    @property
    def logit_cap(self) -> float | None:
        """Soft cap of the logits (Gemma 2)."""
        return getattr(self.base.config.get_text_config(), "final_logit_softcapping", None)

    @property
    def base(self) -> Any:
        """The transformers model below an adapter, or the model itself."""
        return self.model.get_base_model() if self.lora else self.model


def choose_device(name: str) -> torch.device:
    """auto: CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"key 'model.device' is {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"key 'model.device' is {name!r} but torch sees no CUDA device; use cpu or auto")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where matrix products in it are native, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if supported else torch.float32


def load_model(folder: str | Path, settings: ModelSettings) -> LoadedModel:
    """Load model and tokenizer from a folder, a .gguf file or a hub id; attach LoRA if asked; check the attention.

    Raises :class:`UserError` where the folder holds no model, the hub cannot be reached, peft is missing, or the
    model's attention does not go through transformers' interface.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_utils import AttentionInterface
    from transformers.utils import logging as hf_logging

    AttentionInterface.register(attention.NAME, attention.attention)
    hf_logging.disable_progress_bar()
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    options: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    path = Path(folder)
    if path.suffix == ".gguf" and path.is_file():
        options["gguf_file"], folder = path.name, path.parent
    elif path.is_dir():
        _check_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {folder} cannot be loaded ({first}); set key 'model.name' to a built-in name, a folder with "
            "config.json and .safetensors weights, or a hub id that this machine can reach"
        ) from None
    tie_pad_token(tokenizer)
    lora = settings.lora_rank > 0
    if lora:
        model = _with_lora(model, settings)
    model.to(device)
    model.config.use_cache = False
    base = model.get_base_model() if lora else model
    loaded = LoadedModel(model, tokenizer, base.get_decoder(), device, _context(base), lora)
    check_attention(loaded)
    for parameter in base.parameters():
        if not lora:
            parameter.requires_grad_(True)
    model.eval()  # no dropout: ratios are between the same deterministic networks
    return loaded


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise UserError(f"model folder {path} has no config.json; key 'model.name' must name a transformers model folder")
    if not any(path.glob("*.safetensors")):
        raise UserError(
            f"model folder {path} has no .safetensors weights (pickled .bin files are not read); "
            "save the model with save_pretrained, or set key 'model.name' to another folder"
        )


def _with_lora(model: Any, settings: ModelSettings) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError('key "model.lora_rank" needs peft: pip install "memtrain[lora]", or set it to 0') from None
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)  # adapter weights are float32 by peft's default


def _context(model: Any) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or 1_000_000)


def tie_pad_token(tokenizer: Any) -> None:
    """Padding is never seen by a model here, but savers and peers want one."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


@torch.no_grad()
def check_attention(loaded: LoadedModel) -> None:
    """Compare our packed attention with the model's stock attention on two rows that share a prefix.

    Raises :class:`UserError` where they differ: a wrong gradient is worse than no run.
    """
    from memtrain.engines.torch.forward import packed_hidden

    base, size = loaded.base, loaded.base.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    stem, left, right = (torch.randint(0, size, (n,), generator=draw).tolist() for n in (24, 8, 5))
    rows = [stem + left, stem + right]
    base.set_attn_implementation("eager")
    wanted = [base(input_ids=torch.tensor([row], device=loaded.device), use_cache=False).logits[0] for row in rows]
    try:
        base.set_attn_implementation(attention.NAME)
        hidden, tree = packed_hidden(loaded, rows, min_shared=8)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise UserError(_unfit(loaded, f"{type(error).__name__}: {error}")) from None
    # Rounding of the compute type, times a margin for the depth of the network.
    tolerance = 2e-3 if wanted[0].dtype == torch.float32 else 0.08
    for number, row in enumerate(rows):
        index = torch.tensor(tree.packed_indices(number, 0, len(row)), device=loaded.device)
        got = loaded.logits(hidden[index])
        error = (got.float() - wanted[number].float()).norm() / wanted[number].float().norm()
        if not error <= tolerance:
            raise UserError(_unfit(loaded, f"logits differ by {float(error):.1%} from the model's own"))


def _unfit(loaded: LoadedModel, reason: str) -> str:
    kind = type(loaded.base).__name__
    return (
        f"model class {kind} does not fit the in-process engine ({reason}); choose a decoder whose attention goes "
        "through transformers' attention interface"
    )
