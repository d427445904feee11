"""Thirty turns of travel booking through the official client, the server restarted in the middle.

    python benchmarks/serving/booking.py --models base=smollm2-135m trained=runs/demo --number 8

Writes booking.json (every memory of every turn), booking.md and booking.png into --out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from conversations import HOTEL_TURNS, TURNS, Booking, booking
from server import Server

from memtrain.evaluation.statistics import estimate as interval

RESTART_AFTER = 15
SETTINGS = ["chat.context_tokens=288", "chat.reply_tokens=48", "chat.temperature=0"]


async def talk(server: Server, name: str, bookings: list[Booking], turns: range, rows: list[dict[str, Any]]) -> None:
    """All bookings at once, turns in order; appends one row a turn."""
    async with server.client() as client:

        async def one(number: int) -> None:
            for turn in turns:
                said, began = bookings[number].messages[turn - 1], time.perf_counter()
                answer = await client.chat.completions.create(
                    model=name,
                    messages=[{"role": "user", "content": said}],
                    extra_body={"session_id": f"booking-{number}"},
                )
                assert answer.usage is not None
                memory = answer.model_extra["memtrain"]
                assert memory["turn"] == turn, f"turn {turn} was counted as {memory['turn']}"
                rows.append(
                    {
                        "booking": number,
                        "turn": turn,
                        "said": said,
                        "reply": answer.choices[0].message.content,
                        "memory": memory["memory"],
                        "calls": memory["calls"],
                        "tokens": answer.usage.prompt_tokens + answer.usage.completion_tokens,
                        "seconds": time.perf_counter() - began,
                    }
                    | held(bookings[number], turn, memory["memory"])
                )

        await asyncio.gather(*map(one, range(len(bookings))))


def held(made: Booking, turn: int, memory: str) -> dict[str, Any]:
    """What of the facts that hold at this turn the memory has, and which hotels it names."""
    text = memory.lower()
    holding = [fact for fact in made.facts if fact.since <= turn <= fact.until]
    now, before = made.hotel(turn), [h for h, since in zip(made.hotels, HOTEL_TURNS, strict=True) if since <= turn][:-1]
    return {
        "facts": len(holding),
        "facts_held": sum(fact.value.lower() in text for fact in holding),
        "hotel": now is not None and now.lower() in text,
        "old_hotel": any(hotel.lower() in text for hotel in before),
    }


def whole_history(made: list[Booking], rows: list[dict[str, Any]]) -> list[float]:
    """Tokens of a turn if the whole history were sent again, by the tokens of what was really said (mean)."""
    from transformers import AutoTokenizer

    from memtrain.assets import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path("smollm2-135m"))
    sums = np.zeros((len(made), TURNS))
    for row in rows:
        said = len(tokenizer.encode(row["said"])) + len(tokenizer.encode(row["reply"])) + 10
        sums[row["booking"], row["turn"] - 1] = said
    return list(np.cumsum(sums, axis=1).mean(axis=0))


def summary(rows: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """Numbers of one model; intervals over bookings."""

    def by_booking(value: Any, chosen: Any) -> list[float]:
        return [
            float(np.mean([value(row) for row in rows if row["booking"] == n and chosen(row)])) for n in range(number)
        ]

    def estimate(value: Any, chosen: Any) -> dict[str, Any]:
        return dict(interval(by_booking(value, chosen)))

    context = np.array(
        [
            [next(c["prompt_tokens"] for c in r["calls"] if c["kind"] == "reply") for r in rows if r["booking"] == n]
            for n in range(number)
        ]
    )[:, 4:]
    off = context / context.mean(axis=1, keepdims=True) - 1
    late = [[r["tokens"] for r in rows if r["turn"] == turn] for turn in range(5, TURNS + 1)]
    means = np.array([np.mean(tokens) for tokens in late])
    slope = np.polyfit(np.arange(len(means)), means, 1)[0] * (len(means) - 1) / means.mean()
    return {
        "facts_held": estimate(lambda r: r["facts_held"] / r["facts"], lambda r: True),
        "facts_held_at_the_end": estimate(lambda r: r["facts_held"] / r["facts"], lambda r: r["turn"] == TURNS),
        "hotel_held": estimate(lambda r: r["hotel"], lambda r: r["turn"] >= HOTEL_TURNS[0]),
        "old_hotel_still_there": estimate(lambda r: r["old_hotel"], lambda r: r["turn"] >= HOTEL_TURNS[1]),
        "tokens_by_turn": [float(np.mean([r["tokens"] for r in rows if r["turn"] == t])) for t in range(1, TURNS + 1)],
        "context_5_to_30": {"mean": float(context.mean()), "lowest": float(off.min()), "highest": float(off.max())},
        "tokens_5_to_30": {
            "mean": float(means.mean()),
            "lowest": float(means.min() / means.mean() - 1),
            "highest": float(means.max() / means.mean() - 1),
            "trend": float(slope),
        },
        "seconds_a_turn": float(np.median([r["seconds"] for r in rows])),
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["base=smollm2-135m", "trained=runs/demo"], help="NAME=MODEL")
    parser.add_argument("--number", type=int, default=8, help="bookings, all at once")
    parser.add_argument("--out", type=Path, default=Path("docs/results/serving"))
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="settings of memtrain serve")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bookings = [booking(seed) for seed in range(options.number)]
    found: dict[str, Any] = {"turns": TURNS, "bookings": options.number, "restart_after": RESTART_AFTER, "models": {}}
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for target in options.models:
        name = target.partition("=")[0]
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            server = Server([target, "--set", *SETTINGS, *options.settings], Path(folder, "s.db"), Path(folder, "log"))
            for turns in (range(1, RESTART_AFTER + 1), range(RESTART_AFTER + 1, TURNS + 1)):
                server.start()
                asyncio.run(talk(server, name, bookings, turns, rows))
                server.stop()
        rows.sort(key=lambda row: (row["booking"], row["turn"]))
        rows_of[name] = rows
        found["models"][name] = summary(rows, options.number) | {"whole_history": whole_history(bookings, rows)}
        print(name, json.dumps({k: v for k, v in found["models"][name].items() if "by_turn" not in k}, indent=1))
    (options.out / "booking.json").write_text(json.dumps(found | {"rows": rows_of}, indent=1, ensure_ascii=False))
    (options.out / "booking.md").write_text(table(found, rows_of, bookings))
    plot(found, options.out / "booking.png")


def table(found: dict[str, Any], rows_of: dict[str, list[dict[str, Any]]], bookings: list[Booking]) -> str:
    """Markdown: the numbers, then what the memory held at each turn of the first booking, every model beside it."""
    lines = ["| model | " + " | ".join(found["models"]) + " |", "|---|" + "---|" * len(found["models"])]
    labels = {
        "facts_held": "facts said so far that the memory holds, mean of all turns",
        "facts_held_at_the_end": "the same after turn 30",
        "hotel_held": "memory names the hotel that is booked, turns 4 to 30",
        "old_hotel_still_there": "memory names a hotel that was cancelled, turns 13 to 30",
    }
    for key, label in labels.items():
        cells = [model[key] for model in found["models"].values()]
        shown = [f"{c['mean']:.2f} [{c['ci95'][0]:.2f}, {c['ci95'][1]:.2f}]" for c in cells]
        lines.append(f"| {label} (n = {found['bookings']} bookings) | " + " | ".join(shown) + " |")
    flat = [model["context_5_to_30"] for model in found["models"].values()]
    shown = [f"{f['mean']:,.0f}, {f['lowest']:+.1%} to {f['highest']:+.1%}" for f in flat]
    lines.append(
        "| tokens of the prompt of a reply, turns 5 to 30; furthest of any turn of any booking | "
        + " | ".join(shown)
        + " |"
    )
    flat = [model["tokens_5_to_30"] for model in found["models"].values()]
    lines.append(
        "| tokens of a turn, all calls, replies and memories included, mean of turns 5 to 30 | "
        + " | ".join(f"{f['mean']:,.0f}" for f in flat)
        + " |"
    )
    spread = [f"{f['lowest']:+.1%} to {f['highest']:+.1%}, trend {f['trend']:+.1%}" for f in flat]
    lines.append(
        "| lowest and highest of these turns against that mean (means of all bookings) | " + " | ".join(spread) + " |"
    )
    lines += ["", "Booking 1, turn by turn (the server was stopped and started again after turn 15):", ""]
    lines += [
        "| turn | user | " + " | ".join(f"memory of {name}" for name in rows_of) + " |",
        "|---|---|" + "---|" * len(rows_of),
    ]
    for turn in range(1, TURNS + 1):
        memories = [
            next(r["memory"] for r in rows if r["booking"] == 0 and r["turn"] == turn) for rows in rows_of.values()
        ]
        cells = [" ".join(text.split()).replace("|", "\\|") for text in memories]
        lines.append(f"| {turn} | {bookings[0].messages[turn - 1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: Path) -> None:
    """Tokens of each turn beside those of sending the whole history."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    turns = np.arange(1, TURNS + 1)
    for name, model in found["models"].items():
        axis.plot(turns, model["tokens_by_turn"], marker="o", markersize=3, label=f"{name}, with memory (all calls)")
    name, model = next(iter(found["models"].items()))
    axis.plot(turns, model["whole_history"], color="grey", linestyle="--", label=f"{name}, whole history sent again")
    axis.axvline(RESTART_AFTER + 0.5, color="grey", linewidth=0.8)
    axis.annotate("server restarted", (RESTART_AFTER + 0.7, 20), color="grey", fontsize=8)
    axis.set(xlabel="turn", ylabel="tokens a turn", ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
