"""Decoder layers through torch.compile, each by itself: all of them are the same code, which is compiled once and then
serves every layer. Norms, rotary embedding and activations become a few kernels; linear layers in oneDNN's layout and
attention stay operators of their own (``rollout_model.py``, ``attention.py``).
"""

from __future__ import annotations

import importlib
import os
import warnings

import torch

from memtrain.engines.torch.model import LoadedModel, packed_logits, relative_gap, rounding_tolerance

PROBE_TOKENS = 40
"""Random tokens whose logits are compared before and after; the first ids are often special ones, on which small
models are chaotic."""


@torch.no_grad()
def compile_layers(loaded: LoadedModel) -> bool:
    """Compile the layers of a model that only samples, and check what they compute; False leaves them as they were.

    A machine without a compiler, or a model that cannot be traced, ends in a warning: the layers then run uncompiled.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer  # what all decoder layers are

    _settle_distutils()
    layers = [module for module in loaded.base.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in loaded.base.modules():
        number = getattr(module, "layer_idx", None)
        if isinstance(number, int):
            module.layer_number = torch.tensor(number)  # as an int it would be a graph a layer
    size = loaded.base.config.get_text_config().vocab_size
    probe = torch.randint(0, size, (PROBE_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    wanted = packed_logits(loaded, probe)
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        gap = relative_gap(packed_logits(loaded, probe), wanted)
        if layers and gap <= rounding_tolerance(wanted.dtype):
            return True
        reason = f"its logits differ by {gap:.1%}" if layers else "no decoder layers found"
    except Exception as error:  # the tracer, the compiler and the code they make raise whatever they like
        reason = f"{type(error).__name__}: {' '.join(str(error).split()[:40])}"
    for layer in layers:
        layer._compiled_call_impl = None
    warnings.warn(f"sampling without torch.compile ({reason}); set sampler.compile = false to skip it", stacklevel=2)
    return False


def _settle_distutils() -> None:
    """The compiler imports setuptools, which puts its own distutils in the place of the standard library's and fails
    where something else has loaded that one: then it is told to do with it."""
    try:
        importlib.import_module("setuptools")
    except (ImportError, AssertionError):
        os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")
