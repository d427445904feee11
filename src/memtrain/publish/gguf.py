"""GGUF by llama.cpp's own converter, where it is installed: ``convert_hf_to_gguf.py`` of a checkout of llama.cpp."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from memtrain.errors import UserError

SCRIPTS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf.py", "convert-hf-to-gguf")
TYPES = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")
"""What the converter writes by itself; smaller ones are made of these by llama.cpp's ``llama-quantize``."""
DEFAULT_TYPE = "bf16"
VARIABLE = "LLAMA_CPP"


def check_type(kind: str) -> str:
    """The converter's name of a type. Raises :class:`UserError` where it has none."""
    if kind.lower() in TYPES:
        return kind.lower()
    raise UserError(
        f"--gguf {kind}: the converter writes {', '.join(TYPES)}; for smaller types export one of these and run "
        "llama.cpp's llama-quantize on the file"
    )


def find_converter(folder: Path | None) -> Path:
    """The converter: in ``folder`` (llama.cpp's), else in that of the variable LLAMA_CPP, else on the PATH.

    Raises :class:`UserError` where it is not there.
    """
    named = folder or (Path(os.environ[VARIABLE]).expanduser() if os.environ.get(VARIABLE) else None)
    if named is not None:
        for place in [named, *(named / name for name in SCRIPTS)]:
            if place.is_file() and place.name in SCRIPTS:
                return place.resolve()
        how = "--llama-cpp" if folder else VARIABLE
        raise UserError(f"{how} is {named}, where there is no {SCRIPTS[0]}; give the folder of a checkout of llama.cpp")
    for name in SCRIPTS:
        found = shutil.which(name)
        if found:
            return Path(found).resolve()
    raise UserError(
        f"--gguf needs llama.cpp's converter {SCRIPTS[0]}, which is not on the PATH: git clone "
        f"https://github.com/ggml-org/llama.cpp, then add --llama-cpp FOLDER or set {VARIABLE} to it"
    )


def convert(converter: Path, model: Path, out: Path, kind: str, title: str) -> None:
    """Write the model folder as one GGUF file of a type of :data:`TYPES`, and read it back.

    The converter runs in a process of its own, with this Python, and without a network. Raises :class:`UserError`
    with the converter's own last words where it cannot convert the model.
    """
    command = [str(converter), str(model), "--outfile", str(out), "--outtype", kind, "--model-name", title]
    if converter.suffix == ".py":
        command.insert(0, sys.executable)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    if done.returncode or not out.is_file():
        words = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        said = next((line for line in reversed(words) if "rror" in line), words[-1] if words else "no message")
        lacking = re.search(r"No module named '([\w.]+)'", said)
        if lacking is not None:
            raise UserError(f"llama.cpp's converter needs the Python package {lacking[1]}: pip install {lacking[1]}")
        raise UserError(
            f"llama.cpp's converter failed on this model ({said.strip()}); leave out --gguf, or try a newer llama.cpp"
        )
    from gguf import GGUFReader

    if not GGUFReader(out).tensors:
        raise UserError(f"llama.cpp's converter wrote no weights into {out.name}; try a newer llama.cpp")
