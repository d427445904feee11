"""From result files to the table: every number in it is read from the JSON beside it.

Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtrain.bench.settings import BENCHMARKS
from memtrain.errors import UserError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
ROLLOUT_TARGETS = {"transformers generate": 6.0, "transformers generate_batch": 3.0, "vllm": 1.5}
UPDATE_TARGET, STEP_TARGET, DECODE_TARGET, MEMORY_TARGET = 4.0, 5.0, 0.6, 2.0
LENGTH_TIME_TARGET, LENGTH_MEMORY_TARGET = 8.3, 1.05
GIB = 2**30


@dataclass(frozen=True)
class Line:
    """One comparison."""

    work: str
    against: str
    value: float
    low: float
    high: float
    target: float
    unit: str = "x"
    """``x``: a ratio in our favour; ``%``: a share; ``<=``: a ratio that must stay below its target."""
    detail: str = ""
    """Both sides in absolute numbers."""

    @classmethod
    def ratio(
        cls, work: str, against: str, ratio: dict[str, Any], target: float, unit: str = "x", *, detail: str
    ) -> Line:
        """Of a ratio's spread over the rounds."""
        return cls(work, against, ratio["median"], ratio["min"], ratio["max"], target, unit, detail)

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.unit == "<=" else self.value >= self.target


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """``{benchmark: file's content}``. Raises :class:`UserError` where there is none, or one of them is damaged."""
    found = {}
    for name in (*BENCHMARKS, "tune"):
        path = folder / f"{name}.json"
        if not path.is_file():
            continue
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
            found[name]["result"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path} is not a result of memtrain bench; delete it and run memtrain bench {name}"
            ) from None
    if not found:
        raise UserError(f"{folder} holds no results; run memtrain bench --out {folder}")
    return found


def lines_of(results: dict[str, dict[str, Any]]) -> list[Line]:
    """The comparisons that the results have."""
    makers = {
        "rollouts": _rollouts,
        "update": _update,
        "step": _step,
        "decode": _decode,
        "length": _length,
    }
    return [line for name, maker in makers.items() if name in results for line in maker(results[name]["result"])]


def render(folder: Path) -> tuple[str, list[Line]]:
    """The table in Markdown with what stands around it, and its lines."""
    results = read_results(folder)
    lines = lines_of(results)
    parts = [
        "| work | against | target | reached | range | in numbers | |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {line.work} | {line.against} | {_target(line)} | **{_value(line.value, line.unit)}** "
            f"| {_value(line.low, line.unit)} – {_value(line.high, line.unit)} | {line.detail} "
            f"| {'met' if line.met else 'missed'} |"
            for line in lines
        ),
    ]
    notes = [*_limit_notes(results), *_skipped(results), *_machine(results)]
    return "\n".join([*parts, "", *(f"- {note}" for note in notes)]) + "\n", lines


def write_readme(readme: Path, text: str) -> None:
    """Put the table between the two marks. Raises :class:`UserError` where the file lacks them."""
    try:
        before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
    except (OSError, ValueError):
        raise UserError(f"{readme} has no place for results; it needs one line {BEGIN} and one line {END}") from None
    readme.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def _medians(contest: dict[str, Any], peer: str, unit: str) -> tuple[float, float]:
    """Ours and the peer's."""
    ours, theirs = (contest["contestants"][who][unit]["median"] for who in ("memtrain", peer))
    return ours, theirs


def _rollouts(result: dict[str, Any]) -> Iterator[Line]:
    for name, batch in result["batches"].items():
        work = batch["work"]
        for peer, ratio in batch["ratios"].items():
            ours, theirs = _medians(batch, peer, "per_second")
            yield Line.ratio(
                f"rollouts, {work['sequences']} sequences ({name})",
                peer,
                ratio,
                ROLLOUT_TARGETS[peer],
                detail=f"{ours:,.0f} / {theirs:,.0f} new tokens/s",
            )


def _update(result: dict[str, Any]) -> Iterator[Line]:
    [(peer, ratio)] = result["ratios"].items()
    ours, theirs = _medians(result, peer, "per_second")
    yield Line.ratio(
        "joint update",
        peer,
        ratio,
        UPDATE_TARGET,
        detail=f"{ours:,.0f} / {theirs:,.0f} trained tokens/s",
    )
    memory = [result["memory"][who] for who in ("memtrain", peer)]
    if any("failed" in entry for entry in memory):
        return
    mine, other = (entry["increase_bytes"] for entry in memory)
    value = other / max(mine, 1)
    more = "over " if "exceeded_bytes" in memory[1] else ""  # ended before it had all it wanted
    yield Line(
        f"peak memory of the update, {result['memory']['memtrain']['rows']} rows",
        peer,
        value,
        value,
        value,
        MEMORY_TARGET,
        detail=f"{mine / GIB:.2f} / {more}{other / GIB:.2f} GiB above what stood before"
        + (", then the machine was full" if more else ""),
    )


def _step(result: dict[str, Any]) -> Iterator[Line]:
    for peer, ratio in result["ratios"].items():
        ours, theirs = _medians(result, peer, "seconds")
        yield Line.ratio(
            "whole GRPO step",
            peer,
            ratio,
            STEP_TARGET,
            detail=f"{ours:.1f} / {theirs:.1f} s",
        )


def _decode(result: dict[str, Any]) -> Iterator[Line]:
    profile, step = result["profile"], result["ms_per_step"]
    yield Line(
        f"decoding step, {result['work']['sequences']} sequences: share in matrix products",
        "-",
        profile["share_products"],
        profile["share_products"],
        profile["share_products"],
        DECODE_TARGET,
        "%",
        f"{step['median']:.1f} ms a step; linear layers {profile['linear_ms']:.1f}, attention's "
        f"{profile['attention_products_ms']:.1f} ms of {profile['profiled_ms_per_step']:.1f} profiled",
    )


def _length(result: dict[str, Any]) -> Iterator[Line]:
    short, long = (str(chunks) for chunks in result["work"]["chunks"])
    seconds, peak = result["seconds"], result["peak_bytes"]
    ratio = result["time_ratio"]
    yield Line.ratio(
        f"reading {long} chunks by reading {short}: time",
        "-",
        ratio,
        LENGTH_TIME_TARGET,
        "<=",
        detail=f"{seconds[long]['median']:.1f} / {seconds[short]['median']:.1f} s",
    )
    ratio = result["memory_ratio"]
    yield Line.ratio(
        f"reading {long} chunks by reading {short}: peak memory",
        "-",
        ratio,
        LENGTH_MEMORY_TARGET,
        "<=",
        detail=f"{peak[long]['median'] / GIB:.2f} / {peak[short]['median'] / GIB:.2f} GiB",
    )


def _limit_notes(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    if "rollouts" in results:
        for name, batch in results["rollouts"]["result"]["batches"].items():
            limit = batch["limit"]
            yield (
                f"rollouts {name}: {limit['share']:.0%} of the limit; our time is {1 / limit['share']:.2f} times that "
                f"of the matrix products alone at the rates measured in the same run ({limit['gflops']:,.0f} GFLOP/s)."
            )
    if "update" in results:
        limit = results["update"]["result"]["limit"]
        agreement = results["update"]["result"]["agreement"]
        yield (
            f"update: {limit['memtrain']['share']:.0%} of the limit for us (arithmetic of distinct tokens only), "
            f"{limit['per-row transformers']['share']:.0%} for the peer (of its separate rows); losses "
            f"{agreement['loss_memtrain']:.6f} and {agreement['loss_per_row']:.6f}, cosine of the gradients "
            f"{agreement['gradient_cosine']:.5f}."
        )
    if "limit" in results:
        rows = results["limit"]["result"]["rows"]
        rates = ", ".join(f"{entry['body_gflops']:,.0f} at {m} rows" for m, entry in rows.items())
        bandwidth = results["limit"]["result"]["bandwidth_gb_per_second"]
        yield f"limit: linear layers of the model, GFLOP/s: {rates}; memory {bandwidth:.0f} GB/s."


def _skipped(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, entry in results.items():
        for peer, reason in entry["result"].get("skipped", {}).items():
            yield f"{name}, {peer}: {reason}."


def _machine(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    seen = set()
    for entry in results.values():
        machine = entry["environment"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        gpu = f", {machine['gpu']['name']}" if "gpu" in machine else ""
        text = f"{machine['processor']}, {machine['cores']} cores{gpu}, {entry['date']}; {versions}."
        if text not in seen:
            seen.add(text)
            yield text


def _target(line: Line) -> str:
    return ("at most " if line.unit == "<=" else "at least ") + _value(line.target, line.unit)


def _value(value: float, unit: str) -> str:
    return f"{value:.0%}" if unit == "%" else f"{value:.2f}x"
