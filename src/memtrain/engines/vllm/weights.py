"""The learner's weights as vLLM reads a checkpoint: names of the hub's format, tied tensors once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from memtrain.engines.torch.rollout_model import is_lora, merged_weight


@torch.no_grad()
def checkpoint_tensors(loaded: Any, merge: bool) -> list[tuple[str, torch.Tensor]]:
    """Name and tensor of every weight of the policy, or of its base where a LoRA adapter is not to be merged.

    The tensors are the learner's own where nothing is merged: read them before the next update.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in loaded.base.state_dict().items():
        if ".lora_" in name:
            continue
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:  # an output head tied to the embedding is not stored twice
            seen.add(key)
            tensors[name.replace(".base_layer.", ".")] = tensor
    if merge and loaded.lora:
        for name, module in loaded.base.named_modules():
            if is_lora(module):
                tensors[f"{name}.weight"] = merged_weight(module)
    return list(_as_stored(loaded.base, tensors).items())


def adapter_rank(model: Any) -> int:
    """Largest rank of a peft model's adapters."""
    return max(int(config.r) for config in model.peft_config.values())


def lay_out_anew(model: nn.Module) -> int:
    """For ``apply_model`` after a reload: lay tied output heads out again; returns how many.

    On a CPU vLLM 0.32 computes with copies of the weights in the kernels' own layout, and a reload renews only those
    of layers that loaded a tensor themselves: a head tied to the embedding would go on with the old one.
    """
    found = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.numel():
            module.quant_method.process_weights_after_loading(module)  # type: ignore[operator, union-attr]
            found += 1
    return found


def _as_stored(base: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo what transformers renames and fuses when it loads a checkpoint (experts, for example)."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(base, tensors))
