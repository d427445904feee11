"""The layout holds: imports run downwards only, the light rooms need no torch, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import memtrain

SOURCE = Path(memtrain.__file__).parent
ROOT = SOURCE.parents[1]

GROUND = ("types", "errors", "addresses", "settings", "recipe")
BELOW: dict[str, tuple[str, ...]] = {
    # Who may import whom: the longest name that fits a module decides. Imports inside functions count too.
    "types": (),
    "errors": (),
    "addresses": ("errors",),
    "settings": ("settings",),
    "recipe": ("errors", "settings"),
    "assets": ("assets", "errors"),
    "corpus": ("corpus", "assets", *GROUND),
    "qa": ("qa", "corpus", "assets", *GROUND),
    "engines.base": ("types", "errors"),
    "engines.prefix_tree": (),
    "engines.seeds": (),
    "engines.workers": ("errors",),
    "engines.torch": ("engines", "rl.loss", "assets.cache", *GROUND),
    "engines.vllm": ("engines", *GROUND),
    "engines.tinker": ("engines", "rl.loss", "assets", *GROUND),
    "engines": ("engines.base", *GROUND),
    "memory": ("memory", "engines.base", "search.base", *GROUND),
    "tasks": ("tasks", "memory", "qa", "corpus", "engines.base", "search.base", *GROUND),
    "evaluation": ("evaluation", "qa", "tasks", "memory", "corpus", "engines.base", "search.base", *GROUND),
    "rl.loss": ("engines.base", "types"),
    "rl": (
        *("rl", "evaluation", "tasks", "memory", "corpus"),
        *("engines.base", "engines.workers", "search.base"),
        *GROUND,
    ),
    "report": ("report", "evaluation", "tasks", "corpus", *GROUND),
    "stages": ("rl", "report", "evaluation", "corpus", "engines.workers", *GROUND),
    "pipeline": (
        *("pipeline", "stages", "dry_run", "rl", "report", "evaluation", "tasks", "memory", "corpus"),
        "engines",
        "assets",
        *GROUND,
    ),
    "launch": ("launch", "pipeline", "rl.checkpoint", "engines", "report", "assets", *GROUND),
    "long_qa": ("pipeline", "evaluation", "qa", "report", "corpus", *GROUND),
    "search.base": (),
    "search": ("search", "qa", "corpus", "assets", *GROUND),
    "search_qa": ("pipeline", "evaluation", "search", "tasks", "qa", "report", "corpus", *GROUND),
    "suites": ("pipeline", "evaluation", "qa", "report", "corpus", *GROUND),
    "lm_eval_model": ("pipeline", "evaluation", "report", "memory", "tasks", "engines.base", *GROUND),
    "lm_eval_run": ("lm_eval_model", "pipeline", "evaluation", "report", *GROUND),
    "planning": (
        "planning",
        "rl",
        "report",
        "evaluation",
        "tasks",
        "memory",
        "qa",
        "corpus",
        "engines",
        "assets",
        *GROUND,
    ),
    "plan": ("planning", "compare.rows", "task_training", "pipeline", "rl", "report", "corpus", *GROUND),
    "task_training": (
        "pipeline",
        "tasks",
        "long_qa",
        "search_qa",
        "search",
        "rl",
        "qa",
        "evaluation",
        "report",
        "corpus",
        *GROUND,
    ),
    "compare": ("compare", "task_training", "pipeline", "rl", "qa", "evaluation", "report", "corpus", *GROUND),
    "dry_run": ("pipeline", "rl", "report", "memory", "corpus", "engines", *GROUND),
    "bench": ("bench", "rl", "report", "evaluation", "tasks", "memory", "corpus", "engines", "assets", *GROUND),
    "serving": ("serving", "memory", "engines.base", "report.console", "", *GROUND),
    "serve": ("serve", "serving", "pipeline", "memory", "report", "engines", "assets", *GROUND),
    "ui": ("serve", "serving", "pipeline", "memory", "report", "assets", *GROUND),
    "client": ("client", "addresses", "errors"),
    "plugs": ("plugs", "client", "memory", *GROUND),
    "publish": ("publish", "report", "evaluation", "memory", "rl.checkpoint", "engines", "assets", *GROUND),
    "commands": (
        "commands",
        "client",
        "plugs",
        "publish",
        "report",
        "serve",
        "serving",
        "ui",
        "launch",
        "pipeline",
        "long_qa",
        "task_training",
        "compare",
        "plan",
        "search_qa",
        "suites",
        "lm_eval_run",
        "assets",
        "search",
        *GROUND,
    ),
    "cli": ("cli", "commands", "bench", "pipeline", "dry_run", "report", "assets", "", *GROUND),
    "__main__": ("cli",),
    "": (),
}
LONGEST = 350
NO_TORCH = (
    "corpus",
    "qa",
    "search",
    "memory",
    "tasks",
    "assets",
    "types",
    "errors",
    "addresses",
    "settings",
    "recipe",
    "engines.base",
    "engines.prefix_tree",
    "engines.seeds",
    "engines.workers",
    "serving",
    "client",
    "plugs",
    "cli",
)


def modules() -> dict[str, Path]:
    """Dotted names below ``memtrain`` -> files; the package itself is the empty name."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports anywhere in it, absolute names, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}".removeprefix("memtrain.")
                yield (f"memtrain.{whole}" if whole in MODULES else node.module), node.lineno


def fits(module: str, room: str) -> bool:
    return module == room or (room != "" and module.startswith(room + "."))


def allowed(module: str) -> tuple[str, ...]:
    return BELOW[max((room for room in BELOW if fits(module, room)), key=len)]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str) -> None:
    for name, line in imports(MODULES[module]):
        if name != "memtrain" and not name.startswith("memtrain."):
            continue
        target = name.removeprefix("memtrain").removeprefix(".")
        assert any(fits(target, room) for room in allowed(module)), (
            f"{MODULES[module].relative_to(ROOT)}:{line}: {module or 'memtrain'} must not import {name}"
        )


def test_the_engine_knows_one_file_of_the_trainer() -> None:
    wanted = {
        name
        for module, file in MODULES.items()
        if module.startswith("engines")
        for name, _ in imports(file)
        if name.startswith("memtrain.rl")
    }
    assert wanted == {"memtrain.rl.loss"}


def test_every_room_has_its_rule() -> None:
    """A new room gets a line in BELOW by a decision, not by default."""
    assert {m.split(".")[0] for m in MODULES} <= {rule.split(".")[0] for rule in BELOW}


@pytest.mark.parametrize("module", [m for m in MODULES if any(fits(m, room) for room in NO_TORCH)])
def test_light_rooms_import_no_torch(module: str) -> None:
    """At the top of a file; inside a function that needs it, the converter of models may."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in tree.body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not [n for n in names if n.split(".")[0] in ("torch", "transformers", "peft", "safetensors")]


def test_light_rooms_run_without_torch() -> None:
    """Not by way of another library either."""
    names = [f"memtrain.{m}" for m in MODULES if any(fits(m, room) for room in NO_TORCH)]
    names += ["memtrain.rl.advantages", "memtrain.rl.rewards", "memtrain.rl.experience", "memtrain.evaluation.proxy"]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "heavy = [m for m in ('torch', 'transformers', 'peft', 'spacy', 'matplotlib') if m in sys.modules]\n"
        "sys.exit(f'imported on the way: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_files_stay_small() -> None:
    long = {
        str(file.relative_to(SOURCE)): lines
        for file in MODULES.values()
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > LONGEST
    }
    assert not long, f"over {LONGEST} lines: {long}"


def texts() -> list[Path]:
    """What a reader of the repository sees, this file apart."""
    kinds = {".py", ".toml", ".md", ".txt", ".cfg", ".yml", ".yaml", ".json", ""}
    places = [SOURCE, ROOT / "tests", ROOT / "docs", ROOT / "benchmarks", ROOT / ".ci"]
    files = [f for place in places if place.is_dir() for f in place.rglob("*") if f.is_file() and f.suffix in kinds]
    files += [f for f in ROOT.iterdir() if f.is_file() and f.suffix in kinds]
    caches = {"__pycache__", ".hypothesis", ".pytest_cache", ".ruff_cache", ".mypy_cache"}
    return [f for f in files if f != Path(__file__) and not caches & set(f.parts)]


def test_no_registry_and_no_machine_is_named() -> None:
    """A mirror is as good as any: the package index is what pip is configured for."""
    hosts = ["pypi" + ".org", "python" + "hosted", "anaconda" + ".org"]
    paths = ["/" + "work/", "/" + "root/"]
    found = [
        f"{file.relative_to(ROOT)}: {word}"
        for file in texts()
        for word in (*hosts, *paths)
        if word in file.read_text(encoding="utf-8", errors="ignore")
    ]
    assert not found
