"""AdamW on float32 master weights below a bfloat16 model.

A step of 1e-6 vanishes in bfloat16 (8 bits of mantissa), so weights, gradients and moments are kept in float32 and the
model holds a rounded copy. Where the model is float32 already, or the weight is a float32 adapter, there is no copy.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from memtrain.engines.base import OptimiserConfig
from memtrain.engines.workers import ALONE, Workers


class MasterAdamW:
    """Optimiser of the trainable parameters of a model, by name."""

    def __init__(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], workers: Workers = ALONE):
        self.workers = workers
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.masters: dict[str, torch.nn.Parameter] = {}
        for name, parameter in self.parameters.items():
            if parameter.dtype == torch.float32:
                self.masters[name] = parameter
            else:
                master = torch.nn.Parameter(parameter.detach().float())
                self.masters[name] = master
                parameter.register_post_accumulate_grad_hook(_move_gradient(master))
        self.adamw = torch.optim.AdamW(list(self.masters.values()), fused=True)

    def step(self, config: OptimiserConfig) -> float:
        """Clip, step, round the masters into the model, clear gradients. Returns the norm before clipping.

        A norm that is not finite skips the step: one bad batch must not ruin a run. Gradients of several workers are
        added up first, so all clip by the same norm and step alike.
        """
        self.workers.add_gradients(self.masters.values())
        clip = config.grad_clip or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters.values(), clip))
        if norm == norm and norm != float("inf"):
            for group in self.adamw.param_groups:
                group.update(lr=config.lr, weight_decay=config.weight_decay, betas=config.betas, eps=config.eps)
            self.adamw.step()
            self.write_back()
        self.clear_gradients()
        return norm

    def clear_gradients(self) -> None:
        """Forget accumulated gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Forget moments and step counts; the masters stay."""
        self.adamw.state.clear()

    def write_back(self) -> None:
        """Copy masters into the model."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if parameter is not self.masters[name]:
                    parameter.copy_(self.masters[name])

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Everything a resumed run needs, as flat named tensors."""
        tensors = {f"master/{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            for key, value in self.adamw.state.get(master, {}).items():
                tensors[f"{key}/{name}"] = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value)
        return {key: tensor.contiguous() for key, tensor in tensors.items()}

    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore :meth:`state_tensors`. Raises KeyError where a weight is missing."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[f"master/{name}"])
                keys = ("step", "exp_avg", "exp_avg_sq")
                if f"exp_avg/{name}" in tensors:
                    self.adamw.state[master] = {
                        key: tensors[f"{key}/{name}"]
                        .to(master.device if key != "step" else tensors[f"{key}/{name}"].device)
                        .clone()
                        for key in keys
                    }
                else:
                    self.adamw.state.pop(master, None)
        self.write_back()


def _move_gradient(master: torch.nn.Parameter):
    """A hook that adds a finished bfloat16 gradient to the float32 one and frees it."""

    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return hook
