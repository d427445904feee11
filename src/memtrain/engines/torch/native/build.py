"""Compiles the kernels of this folder at first use, once a machine; without a compiler everything runs in torch ops.

Plain C++ over pointers, called through ctypes: no torch header is read, so that compiling takes two seconds and one
file serves every version of torch. ``MEMTRAIN_NATIVE=0`` keeps it out.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from memtrain.assets.cache import cache_home
from memtrain.errors import UserError

FLAGS = (
    *("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-w"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma"),
)
COMPILE_SECONDS = 120
KERNELS = ("decode_attention", "packed_attention", "draw")
POINTER, INT, WIDE, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The kernel ``name``.cpp compiled, None where this CPU, this machine's tools or the user cannot have it."""
    if os.environ.get("MEMTRAIN_NATIVE", "1") == "0":
        return None
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return None
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    files = [source, *sorted(source.parent.glob("*.h"))]
    told = "\0".join([compiler, *FLAGS]).encode() + b"".join(file.read_bytes() for file in files)
    try:
        folder = cache_home() / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = folder / f"{name}-{hashlib.sha256(told).hexdigest()[:16]}.so"
        if not target.is_file():
            _compile(compiler, source, target)
        # Code that somebody else could have put there is not run.
        return ctypes.CDLL(str(target)) if _ours(folder) and _ours(target) else None
    except (OSError, subprocess.SubprocessError, UserError):  # no room, no right to write, a compiler that is too old
        return None


@functools.cache
def function(name: str, *arguments: Any) -> Any:
    """``memtrain_NAME`` of a kernel file, which takes arguments of these ctypes. None where there is none."""
    made = library(name)
    if made is None:
        return None
    found = made[f"memtrain_{name}"]
    found.argtypes, found.restype = arguments, None
    return found


def available() -> list[str]:
    """The kernels that this machine has, compiled by now."""
    return [name for name in KERNELS if library(name) is not None]


def fits(keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether the kernels take keys and values of this device, type and head size, (.., D) each."""
    size = keys.shape[-1]
    return (
        keys.device.type == "cpu"
        and keys.dtype == values.dtype == torch.bfloat16
        and size % 32 == 0
        and values.shape[-1] == size
    )


def _compile(compiler: str, source: Path, target: Path) -> None:
    """Under a name of its own first: another process may compile the same."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        subprocess.run(
            [compiler, *FLAGS, str(source), "-o", str(made)], check=True, capture_output=True, timeout=COMPILE_SECONDS
        )
        made.chmod(0o700)
        made.replace(target)


def _ours(path: Path) -> bool:
    """Whether only this user (or root) may write there."""
    info = path.stat()
    return info.st_uid in (os.getuid(), 0) and not info.st_mode & 0o022
