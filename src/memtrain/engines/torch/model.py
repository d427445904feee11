"""Loading a policy: any transformers decoder, on CPU or CUDA, whole or with a LoRA adapter.

The only thing asked of a model is that its attention goes through transformers' attention interface; a numerical check
at load time makes sure that our attention over shared prefixes gives the model's own logits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from memtrain.engines.torch import attention
from memtrain.errors import UserError, first_line
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
    no_keys: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Layer -> keys and values of no tokens, (1, K, 0, D) each: their shapes and type, once ``prefill`` has asked."""

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
        factor, divisor = (getattr(config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
        return float(factor) / float(divisor)

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
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"key 'model.device' is {name!r}; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"key 'model.device' is {name!r} but torch sees no CUDA device; use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = f"cuda:{torch.cuda.device_count() - 1}"
        raise UserError(f"key 'model.device' is {name!r} but the last CUDA device is {last}; use that, cuda or auto")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where matrix products in it are native, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if supported else torch.float32


def load_model(folder: str | Path, settings: ModelSettings, seed: int = 0) -> LoadedModel:
    """Load model and tokenizer from a folder, a .gguf file or a hub id; attach LoRA if asked; check the attention.

    The folder may be an exported adapter: it is merged into its base. ``seed`` draws the start of a new adapter.
    Raises :class:`UserError` where the folder holds no model or not all of one, the hub cannot be reached, peft or an
    adapter's base is missing, or the model's attention does not go through transformers' interface.
    """
    from transformers.modeling_utils import AttentionInterface
    from transformers.utils import logging as hf_logging

    AttentionInterface.register(attention.NAME, attention.attention)
    hf_logging.disable_progress_bar()
    device = choose_device(settings.device)
    options: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    try:
        model, tokenizer = _read(Path(folder), choose_dtype(settings.dtype, device), options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(
            f"model {folder} cannot be loaded ({first_line(error)}); set key 'model.name' to a built-in name, a "
            "folder with config.json and .safetensors weights, or a hub id that this machine can reach"
        ) from None
    tie_pad_token(tokenizer)
    lora = settings.lora_rank > 0
    if lora:
        model = _with_lora(model, settings, seed)
    model.to(device)
    base = model.get_base_model() if lora else model
    loaded = LoadedModel(model, tokenizer, base.get_decoder(), device, _context(base), lora)
    check_attention(loaded)
    for parameter in base.parameters():
        if not lora:
            parameter.requires_grad_(True)
    model.eval()  # no dropout: ratios are between the same deterministic networks
    return loaded


def _read(path: Path, dtype: torch.dtype, options: dict[str, Any]) -> tuple[Any, Any]:
    """Model and tokenizer of a folder, a .gguf file or a hub id; an adapter comes merged into its base."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = str(path)
    if path.suffix == ".gguf" and path.is_file():
        name, options = str(path.parent), {**options, "gguf_file": path.name}
    elif path.is_dir():
        _check_folder(path)
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if (path / "adapter_config.json").is_file():
        return _merged(path, dtype, options), tokenizer
    auto: Any = AutoModelForCausalLM  # its stubs know nothing of output_loading_info
    model, report = auto.from_pretrained(name, dtype=dtype, use_safetensors=True, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:  # transformers fills them with random numbers
        raise ValueError(f"its weights lack {len(missing)} of the model's tensors, {missing[0]} among them")
    return model, tokenizer


def _merged(path: Path, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """The adapter that ``TorchEngine.export`` wrote, added to the weights it was trained on."""
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError(f'{path} is a LoRA adapter, which needs peft: pip install "memtrain[lora]"') from None
    base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base or (Path(base).is_absolute() and not Path(base).exists()):
        raise UserError(
            f"{path} is a LoRA adapter of the model {base}, which is not there; put that model back, or change "
            "base_model_name_or_path in adapter_config.json"
        )
    model = PeftModel.from_pretrained(_read(Path(base), dtype, options)[0], str(path)).merge_and_unload()
    model.name_or_path = str(path)  # what a further adapter is trained on
    return model


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise UserError(
            f"model folder {path} has no config.json; key 'model.name' must name a transformers model folder"
        )
    if not any(path.glob("*.safetensors")):
        raise UserError(
            f"model folder {path} has no .safetensors weights (pickled .bin files are not read); "
            "save the model with save_pretrained, or set key 'model.name' to another folder"
        )


def _with_lora(model: Any, settings: ModelSettings, seed: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError('key "model.lora_rank" needs peft: pip install "memtrain[lora]", or set it to 0') from None
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        torch.manual_seed(seed)
        return get_peft_model(model, config)  # adapter weights are float32 by peft's default


def _context(model: Any) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or 1_000_000)


def end_tokens(loaded: LoadedModel) -> list[int]:
    """Ids that end a completion: the tokenizer's and the generation config's."""
    configured = getattr(loaded.base.generation_config, "eos_token_id", None)
    ids = {loaded.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return sorted(token for token in ids if token is not None)


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
    tolerance = rounding_tolerance(wanted[0].dtype)
    for number, row in enumerate(rows):
        index = torch.tensor(tree.packed_indices(number, 0, len(row)), device=loaded.device)
        got = loaded.logits(hidden[index])
        gap = relative_gap(got, wanted[number])
        if not gap <= tolerance and wanted[number].dtype != torch.float32:
            tolerance = max(tolerance, min(0.3, 2 * _stock_gap(loaded, row, wanted[number])))
        if not gap <= tolerance:
            raise UserError(_unfit(loaded, f"logits differ by {gap:.1%} from the model's own"))


def _stock_gap(loaded: LoadedModel, row: list[int], eager: torch.Tensor) -> float:
    """How far two of transformers' own attentions are apart: rounding alone, which large activations multiply (8% in
    Qwen2.5-1.5B in bfloat16, on random tokens). 0 where the model has but one."""
    try:
        loaded.base.set_attn_implementation("sdpa")
        return relative_gap(loaded.base(input_ids=torch.tensor([row], device=loaded.device)).logits[0], eager)
    except (ValueError, TypeError, RuntimeError):
        return 0.0
    finally:
        loaded.base.set_attn_implementation(attention.NAME)


def packed_logits(loaded: LoadedModel, row: list[int]) -> torch.Tensor:
    """Logits (N, V) of a row by our own forward pass."""
    from memtrain.engines.torch.forward import packed_hidden

    return loaded.logits(packed_hidden(loaded, [row], min_shared=1)[0])


def relative_gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was wanted."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def rounding_tolerance(dtype: torch.dtype) -> float:
    """Relative gap that the rounding of a compute type explains, with a margin for the depth of a network."""
    return 2e-3 if dtype == torch.float32 else 0.08


def _unfit(loaded: LoadedModel, reason: str) -> str:
    kind = type(loaded.base).__name__
    return (
        f"model class {kind} does not fit the in-process engine ({reason}); choose a decoder whose attention goes "
        "through transformers' attention interface"
    )
