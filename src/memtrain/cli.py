"""The command line: one short function a command, no logic. Everything heavy is imported when a command runs."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from memtrain import __version__
from memtrain.assets import cache_home
from memtrain.commands.build import build
from memtrain.commands.compare import compare
from memtrain.commands.export import export
from memtrain.commands.keys import keys
from memtrain.commands.lm_eval import lm_eval
from memtrain.commands.mcp import mcp
from memtrain.commands.options import RECIPES_TEXT, Model, Overrides, flat
from memtrain.commands.plan import plan
from memtrain.commands.qa import qa
from memtrain.commands.report import report
from memtrain.commands.search import search_qa, search_server
from memtrain.commands.serve import serve
from memtrain.commands.suite import suite
from memtrain.commands.task import task
from memtrain.commands.train import train
from memtrain.commands.ui import ui
from memtrain.commands.watch import watch
from memtrain.errors import UserError
from memtrain.recipe import load_recipe

EXIT_USER, EXIT_DISK, EXIT_INTERRUPTED = 2, 3, 130
DEMO = "demo-cpu"


def demo(out: Annotated[Path, arg(metavar="FOLDER", help="The run's folder.")] = Path("runs/demo")) -> None:
    """The whole main job at small scale: raw Wikipedia in, a trained memory out, before and after measured.

    Downloads a small model and a small dump once, then runs the recipe demo-cpu. Writes summary.json and plots.

    Example: memtrain demo --out runs/demo
    """
    from memtrain import pipeline

    pipeline.demo(out)


def evaluate(
    target: Annotated[
        Positional[str], arg(metavar="RUN_OR_RECIPE", help=f"Folder of a run, or a recipe. Recipes {RECIPES_TEXT}.")
    ],
    model: Model = None,
    overrides: Overrides = (),
) -> None:
    """Measure a model on held-out documents: reconstruction, recall by distance, entities kept, with controls.

    Example: memtrain eval runs/demo --set eval.samples=4

    Example: memtrain eval demo-cpu --model runs/demo/model
    """
    from memtrain import pipeline

    pipeline.evaluate(target, model, flat(overrides))


def read(
    files: Annotated[
        Positional[list[Path]], arg(metavar="FILE [FILE ...]", help="UTF-8 text files (.txt, .md, ...), in order.")
    ],
    ask: Annotated[str, arg(metavar="QUESTION", help="What to find out.")],
    model: Model = None,
    recipe: Annotated[
        str, arg(metavar="RECIPE", help=f"Gives chunk and memory sizes and the prompts. Recipes {RECIPES_TEXT}.")
    ] = DEMO,
    overrides: Overrides = (),
) -> None:
    """Read text files of any length with bounded memory; print the memory as it changes, then the answer.

    Example: memtrain read book.txt notes.md --ask "Who wrote the letter?" --model runs/demo/model
    """
    if not files:
        raise UserError('nothing to read: name a file, for example memtrain read book.txt --ask "Who wrote it?"')
    settings = load_recipe(recipe, flat(overrides))
    from memtrain import pipeline

    pipeline.read(files, ask, model or settings.model.name, settings)


def show(
    folder: Annotated[Positional[Path], arg(metavar="RUN_OR_FOLDER", help="A run, or a folder of built documents.")],
    what: Annotated[Positional[Literal["documents", "probes", "rollouts"]], arg(help="What to print.")] = "documents",
    n: Annotated[int, arg(metavar="N", help="How many.")] = 2,
    step: Annotated[int | None, arg(metavar="STEP", help="Rollouts of this step. Default: the last one kept.")] = None,
    split: Annotated[
        Literal["train", "held_out"], arg(help="Which documents to show or to draw probes from.")
    ] = "train",
) -> None:
    """Print documents, recall probes or rollouts for a person to read.

    Example: memtrain show runs/demo documents --n 1

    Example: memtrain show runs/demo rollouts --step 5
    """
    from memtrain.report.show import show as print_for_a_person

    print_for_a_person(folder, what, n, step, split)


def bench(
    names: Annotated[
        Positional[tuple[str, ...]],
        arg(
            metavar="NAME",
            help="limit, decode, rollouts, update, step, length, tune, all, or report.",
        ),
    ] = ("all",),
    out: Annotated[Path, arg(metavar="FOLDER", help="Where results are written, and read by report.")] = Path(
        "runs/bench"
    ),
    quick: Annotated[FlagCreatePairsOff[bool], arg(help="A tenth of the work, one round: shows that it runs.")] = False,
    readme: Annotated[Path | None, arg(metavar="FILE", help="report: fill this file's marked place, too.")] = None,
    settings: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(name="set", metavar="KEY=VALUE [KEY=VALUE ...]", help="Change the work, e.g. rounds=5 recall_samples=8."),
    ] = (),
) -> None:
    """Measure this machine's speed against transformers, TRL and vLLM at the same work; writes JSON and a plot.

    Peers that are not installed are left out. Everything takes long on a CPU: name single benchmarks to run them alone.

    Example: memtrain bench --out runs/bench

    Example: memtrain bench rollouts update --set rounds=5

    Example: memtrain bench report --out benchmarks/results --readme benchmarks/README.md
    """
    from memtrain.bench.run import command

    command(names, out, quick, readme, list(chain.from_iterable(settings)))


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "build": build,
    "train": train,
    "eval": evaluate,
    "qa": qa,
    "task": task,
    "plan": plan,
    "compare": compare,
    "suite": suite,
    "search-qa": search_qa,
    "search-server": search_server,
    "lm-eval": lm_eval,
    "read": read,
    "show": show,
    "watch": watch,
    "report": report,
    "serve": serve,
    "ui": ui,
    "keys": keys,
    "mcp": mcp,
    "export": export,
    "bench": bench,
}
DESCRIPTION = f"""Train language models to keep a bounded text memory, from unlabelled text alone.

Start with `memtrain demo`; `memtrain COMMAND --help` explains a command.

A recipe is a TOML file of settings; {RECIPES_TEXT}.

MEMTRAIN_HOME sets the cache folder, MEMTRAIN_DEBUG=1 shows tracebacks. Version {__version__}."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 2 a user's mistake, 3 disk full, 130 interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(arguments)
    except UserError as error:
        return _fail(str(error), EXIT_USER)
    except KeyboardInterrupt:
        return _fail(_interrupted(arguments), EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if not _disk_full(error):
            raise
        place = getattr(error, "filename", None) or _fullest(arguments)
        return _fail(f"the disk of {place} is full; free some space there and run the same command again", EXIT_DISK)
    return 0


def _dispatch(arguments: list[str]) -> None:
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="memtrain", description=DESCRIPTION, args=arguments or ["--help"]
        )
    finally:
        # Here, not at the interpreter's exit, a reader that has gone is noticed while it can still be handled.
        sys.stdout.flush()


def _disk_full(error: BaseException) -> bool:
    # safetensors raises an error of its own, which carries the system's text alone.
    code = getattr(error, "errno", None)
    return code in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)


def _fullest(arguments: Sequence[str]) -> Path:
    """Of the folders a command writes to, the one on the disk with the least space left."""
    places = [Path.cwd(), cache_home(), Path(tempfile.gettempdir())]
    places += [Path(value) for flag, value in pairwise(arguments) if flag == "--out"]

    def free(place: Path) -> int:
        standing = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
        return shutil.disk_usage(standing).free

    return min(reversed(places), key=free)


def _fail(sentence: str, status: int) -> int:
    if os.environ.get("MEMTRAIN_DEBUG") == "1":
        raise
    print(f"memtrain: {' '.join(sentence.split())}", file=sys.stderr)
    return status


def _interrupted(arguments: Sequence[str]) -> str:
    if arguments[:1] in (["train"], ["task"]) and "--dry-run" not in arguments:
        again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
        kept = "finished stages and the last checkpoint are kept"
        return f"interrupted; {kept}, go on with: memtrain {shlex.join(again)}"
    return "interrupted; what was finished is kept, run the same command again to go on"
