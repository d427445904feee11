"""``memtrain export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from memtrain.errors import UserError


def export(
    source: Annotated[
        Positional[Path],
        arg(metavar="CHECKPOINT_OR_RUN", help="A run's folder, one of its checkpoints, or a model folder."),
    ],
    out: Annotated[
        Path | None, arg(metavar="FOLDER", help="Where it goes; new or empty. Default: export in the run's folder.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        arg(metavar="NAME", help="Of a run: a checkpoint such as grpo-000100, or latest. Default: the run's model."),
    ] = None,
    format: Annotated[
        Literal["merged", "adapter"],
        arg(help="merged: whole weights, a LoRA adapter added to its base. adapter: the LoRA adapter alone, for peft."),
    ] = "merged",
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        arg(help="Type of the weights. auto: as they are; an adapter stays float32."),
    ] = "auto",
    base: Annotated[
        str | None,
        arg(metavar="OWNER/NAME", help="The base model's name on the hub, for the card and an adapter's config."),
    ] = None,
    licence: Annotated[
        str | None,
        arg(metavar="NAME", help="Licence for the card, in the hub's spelling. Default: the base's."),
    ] = None,
    gguf: Annotated[
        tuple[str, ...] | None,
        arg(metavar="[TYPE]", help="Also a GGUF file: f32, f16, bf16 (default), q8_0. Needs llama.cpp's converter."),
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        arg(metavar="FOLDER", help="Where convert_hf_to_gguf.py is. Default: the variable LLAMA_CPP, else the PATH."),
    ] = None,
    push_to_hub: Annotated[
        str | None, arg(metavar="REPO", help="Then upload it: OWNER/NAME. Token: hf auth login, or HF_TOKEN.")
    ] = None,
    private: Annotated[FlagCreatePairsOff[bool], arg(help="Make the repository private.")] = False,
    overwrite: Annotated[FlagCreatePairsOff[bool], arg(help="Replace an earlier export.")] = False,
) -> None:
    """Write a trained model as a plain Hugging Face folder, with model card, recipe and checksums; GGUF; upload.

    Example: memtrain export runs/demo --out exports/demo

    Example: memtrain export runs/mine/checkpoints/grpo-000100 --format adapter --push-to-hub me/mine-lora --private

    Example: memtrain export runs/demo --out exports/demo-gguf --gguf q8_0 --llama-cpp ~/llama.cpp
    """
    if gguf is not None and len(gguf) > 1:
        raise UserError(f"--gguf takes one type, not {len(gguf)}; export once for each")
    from memtrain.publish import export as publishing
    from memtrain.publish.gguf import DEFAULT_TYPE, check_type

    wishes = publishing.Wishes(
        checkpoint=checkpoint,
        format=format,
        dtype=dtype,
        base=base,
        licence=licence,
        gguf=check_type(gguf[0] if gguf else DEFAULT_TYPE) if gguf is not None else None,
        llama_cpp=llama_cpp,
        push_to_hub=push_to_hub,
        private=private,
        overwrite=overwrite,
    )
    folder = publishing.export(source, out, wishes)
    print(f"export: {folder}")
    if push_to_hub is not None:
        print(f"hub: {publishing.push(folder, wishes)}")
