"""The cluster examples hold: scripts run with recorders in place of what is not here, and every command they end in is
one that memtrain, torchrun and Ray take."""

from __future__ import annotations

import functools
import inspect
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from memtrain import cli
from memtrain.recipe import load_recipe

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "examples" / "cluster"
SCRIPTS = sorted([*CLUSTER.glob("*.sbatch"), *CLUSTER.glob("*.sh")])
RECORDER = """#!/bin/bash
for word in "$@"; do printf '%s\\0' "$word"; done > "$RECORDS/$(basename "$0").$RANDOM$RANDOM"
"""
NODES = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then printf 'node-1\\nnode-2\\n'; else exit 1; fi
"""


def called(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command of a command line would be called with; SystemExit where the line is wrong."""
    found: list[dict[str, Any]] = []

    def recorded(command: Any) -> Any:
        @functools.wraps(command)
        def record(*positional: Any, **named: Any) -> None:
            found.append(dict(inspect.signature(command).bind(*positional, **named).arguments))

        return record

    commands = {name: recorded(command) for name, command in cli.COMMANDS.items()}
    monkeypatch.setattr("sys.argv", ["memtrain"])
    tyro.extras.subcommand_cli_from_dict(commands, prog="memtrain", args=list(arguments))
    (only,) = found
    return only


def run(script: Path, arguments: Sequence[str], folder: Path, **environment: str) -> dict[str, list[list[str]]]:
    """Run a script with recorders for what is not here; returns the arguments each was called with."""
    programs, records = folder / "bin", folder / "records"
    programs.mkdir()
    records.mkdir()
    for name, text in {"srun": RECORDER, "memtrain": RECORDER, "uv": RECORDER, "curl": RECORDER}.items():
        (programs / name).write_text(text)
    (programs / "scontrol").write_text(NODES)
    for program in programs.iterdir():
        program.chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "32",
    }
    path = {"PATH": f"{programs}:/usr/bin:/bin", "RECORDS": str(records), "HOME": str(folder)}
    done = subprocess.run(
        ["bash", str(script), *arguments],
        env=path | slurm | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[list[str]]] = {}
    for file in sorted(records.iterdir()):
        found.setdefault(file.name.split(".")[0], []).append(file.read_text().split("\0")[:-1])
    return found


def after(words: Sequence[str], word: str) -> list[str]:
    return list(words[words.index(word) + 1 :])


# ---- scripts ------------------------------------------------------------------------------------------------------


def test_the_examples_are_those_that_the_page_names() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    names = {file.name for file in CLUSTER.iterdir()}
    assert names == set(re.findall(r"examples/cluster/([\w.-]+)", text))
    assert len(SCRIPTS) == 4


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_bash_and_says_what_it_needs(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    if checker := shutil.which("shellcheck"):
        assert subprocess.run([checker, str(script)], capture_output=True).stdout == b""
    bare = subprocess.run(["bash", str(script)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert bare.returncode != 0
    assert "usage: " in bare.stderr
    text = script.read_text()
    assert "set -euo pipefail" in text
    if script.suffix == ".sbatch":
        options = re.findall(r"^#SBATCH (--[a-z-]+)(?:=\S+)?$", text, re.MULTILINE)
        assert len(options) == text.count("#SBATCH")
        assert {"--nodes", "--ntasks-per-node", "--requeue", "--open-mode"} <= set(options)
        # Slurm reads no option after the first command.
        assert text.rindex("#SBATCH") < text.index("set -euo pipefail")


def test_slurm_starts_one_torchrun_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = run(CLUSTER / "slurm.sbatch", ["my.toml", "/shared/my run"], tmp_path)["srun"]
    assert words[: words.index("torchrun")] == ["--cpus-per-task", "32", "--kill-on-bad-exit=1"]
    torchrun = pytest.importorskip("torch.distributed.run")
    started = torchrun.get_args_parser().parse_args(after(words, "torchrun"))
    assert (started.nnodes, started.nproc_per_node, started.rdzv_backend) == ("2", "gpu", "c10d")
    assert started.rdzv_endpoint == f"node-1:{20000 + 123456 % 20000}"
    assert started.rdzv_id == "123456-0"
    assert (started.module, started.training_script, started.max_restarts) == (True, "memtrain", 3)
    train = called(started.training_script_args, monkeypatch)
    assert (train["recipe"], str(train["out"]), train["resume"]) == ("my.toml", "/shared/my run", True)
    assert train.get("workers") is None  # torchrun starts them


def test_slurm_starts_one_ray_on_all_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = run(CLUSTER / "slurm-ray.sbatch", ["my.toml", "/shared/mine"], tmp_path)["srun"]
    started = after(words, "ray")
    symmetric = pytest.importorskip("ray.scripts.symmetric_run")
    monkeypatch.setattr("sys.argv", ["ray", *started])
    ours, entry = started[1 : started.index("--")], after(started, "--")
    context = symmetric.symmetric_run.make_context("symmetric-run", list(ours), resilient_parsing=True)
    assert context.params["address"] == "node-1:6379"
    assert context.params["min_nodes"] == 2
    rest = symmetric.curate_and_validate_ray_start_args(ours)
    scripts = pytest.importorskip("ray.scripts.scripts")
    head = scripts.start.make_context("start", ["--head", *rest])
    assert (head.params["num_cpus"], head.params["num_gpus"]) == (32, 8)
    assert entry[0] == "memtrain"
    train = called(entry[1:], monkeypatch)
    assert (train["workers"], train["address"], train["restarts"]) == (16, "node-1:6379", 3)
    assert (str(train["out"]), train["resume"]) == ("/shared/mine", True)


def test_slurm_builds_on_all_processors_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = run(CLUSTER / "slurm-build.sbatch", ["my.toml", "/shared/documents"], tmp_path)["srun"]
    build = called(after(words, "memtrain"), monkeypatch)
    assert (build["recipe"], build["workers"], str(build["out"])) == ("my.toml", 32, "/shared/documents")


def test_a_requeued_job_meets_under_a_new_name(tmp_path: Path) -> None:
    (words,) = run(CLUSTER / "slurm.sbatch", ["r", "o"], tmp_path, SLURM_RESTART_COUNT="2")["srun"]
    assert "123456-2" in words


def test_a_tinker_server_is_waited_for_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    found = run(CLUSTER / "skyrl-server.sh", ["some/model", "my.toml", str(out)], tmp_path, PORT="8123", RANK="32")
    (server,) = found["uv"]
    assert server[:5] == ["run", "--active", "--no-project", "-m", "skyrl.tinker.api"]
    options = dict(zip(server[5::2], server[6::2], strict=True))
    assert (options["--base-model"], options["--backend"]) == ("some/model", "jax")
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "8123")
    config = yaml.safe_load(options["--backend-config"])
    assert (config["max_lora_rank"], config["tensor_parallel_size"], config["max_lora_adapters"]) == (32, 8, 3)
    (asked, *_) = found["curl"]
    assert asked[-1] == "http://127.0.0.1:8123/api/v1/healthz"
    (line,) = found["memtrain"]
    train = called(line, monkeypatch)
    ((*pairs,),) = train["overrides"]
    assert pairs == ["engine=tinker", "model.lora_rank=32", "train.grad_clip=0.0", "tinker.rows_multiple=4"]
    recipe = load_recipe("demo-cpu", pairs)
    assert recipe.tinker.rows_multiple == config["train_micro_batch_size"]
    assert not out.exists()  # memtrain refuses a folder that holds anything but a run
    assert (train["recipe"], str(train["out"]), train["resume"]) == ("my.toml", str(out), True)


# ---- Kubernetes ---------------------------------------------------------------------------------------------------

JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
    *("rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
    *("submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
}
"""Fields of a RayJob's spec, by KubeRay's API reference (ray.io/v1)."""
WORKERS = {
    *("groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas"),
    *("scaleStrategy", "suspend", "template"),
}
"""Fields of a worker group, by the same."""


def test_the_ray_job_is_one_that_kuberay_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, job = yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text())
    assert (claim["kind"], claim["spec"]["accessModes"]) == ("PersistentVolumeClaim", ["ReadWriteMany"])
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) <= JOB
    cluster = spec["rayClusterSpec"]
    assert set(cluster) <= {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    (group,) = cluster["workerGroupSpecs"]
    assert set(group) <= WORKERS
    started = [cluster["headGroupSpec"]["rayStartParams"], group["rayStartParams"]]
    assert all(isinstance(value, str) for params in started for value in params.values())
    for pod in (cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]):
        (container,) = pod["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        assert mounted["shared"] == "/shared"
        shared = next(volume for volume in pod["volumes"] if volume["name"] == "shared")
        assert shared["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
    command, *line = shlex.split(spec["entrypoint"])
    assert command == "memtrain"
    gpus = group["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    train = called(line, monkeypatch)
    assert (train["workers"], train["address"], train["resume"]) == (gpus, "auto", True)
    assert str(train["out"]).startswith("/shared/")


def test_the_ray_of_the_example_is_the_one_that_is_tested() -> None:
    _, job = yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text())
    ray = pytest.importorskip("ray")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__


# ---- the page -----------------------------------------------------------------------------------------------------


def documented() -> list[str]:
    """Command lines of the page's blocks that run memtrain."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.search(r"(?:^|\s)memtrain (?:train|build|plan)\b", line)]


@pytest.mark.parametrize("line", documented())
def test_a_documented_command_is_one_that_memtrain_takes(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = after(shlex.split(line, comments=True), "memtrain")
    assert called(words, monkeypatch)["recipe"]


def test_there_are_documented_commands() -> None:
    assert len(documented()) >= 8
