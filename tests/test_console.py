"""The screen of a run: on a terminal, in a log, and when it breaks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from memtrain.report.console import Clock, Screen, columns_of, duration, number


def drawn(live: bool) -> tuple[str, Screen]:
    out = io.StringIO()
    screen = Screen(console=Console(file=out, force_terminal=live, width=110), live=live)
    with screen:
        screen.stage("grpo", 2)
        screen.inner("rollout", 3, 64)
        screen.metrics(1, {"reward": 0.25, "grad_norm": 1.0, "unknown": 3})
        screen.sample("Anna met [MASK] [bold]", 0.5)
        screen.advance()
        screen.note("saved [checkpoint]")
        screen.advance()
    return out.getvalue(), screen


def test_screen_on_a_terminal() -> None:
    text, screen = drawn(live=True)
    assert screen.broken == 0
    for piece in ("grpo", "2/2", "3/64", "0.25", "newest memory, reward 0.5", "[bold]", "saved [checkpoint]", "left"):
        assert piece in text


def test_screen_in_a_log_has_plain_lines_only() -> None:
    text, screen = drawn(live=False)
    assert screen.broken == 0
    assert "\x1b" not in text
    assert "grpo step 1" in text
    assert "reward 0.25" in text
    assert "saved [checkpoint]" in text
    assert text.splitlines()[-1].startswith("grpo 2/2")


@pytest.mark.parametrize("live", [True, False])
def test_a_broken_screen_stops_nothing(live: bool) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("no terminal any more")

    with Screen(console=Console(file=Gone(), force_terminal=live, width=80), live=live) as screen:
        screen.stage("grpo", 2)
        screen.inner("rollout", 1, 2)
        screen.metrics(1, {"reward": object()})
        screen.sample(None)  # type: ignore[arg-type]
        screen.advance()
        screen.note("x")
    assert screen.broken > 0


def test_calls_outside_of_the_context_are_harmless() -> None:
    screen = Screen(console=Console(file=io.StringIO()), live=False)
    screen.advance()
    screen.metrics(1, {})
    screen.inner("rollout", 1, 0)
    assert screen.broken == 0


@pytest.mark.parametrize("live", [True, False])
def test_work_of_unknown_size(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memtrain.report.console.QUIET_SECONDS", 0)
    out = io.StringIO()
    with Screen(console=Console(file=out, force_terminal=live, width=110), live=live) as screen:
        screen.stage("documents", 0)
        screen.inner("reading", 300, 0)
        screen.inner("reading", 600, 0)
        screen.inner("masking", 1, 2)
        screen.stage("evaluation", 4)
        screen.inner("reading", 1, 2)
    assert screen.broken == 0
    assert "/0" not in out.getvalue()
    assert live or "documents: reading 600, " in out.getvalue()


def test_metrics_stay_in_sight_during_an_evaluation() -> None:
    out = io.StringIO()
    with Screen(console=Console(file=out, force_terminal=True, width=110), live=True) as screen:
        screen.stage("grpo", 2)
        screen.metrics(1, {"reward": 0.625})
        screen.stage("evaluation step-1", 4)
    last = out.getvalue().rsplit("memtrain", 1)[1]
    assert "grpo 1" in last
    assert "0.625" in last


def test_time_left_is_the_mean_pace() -> None:
    now = [100.0]
    clock = Clock(10, lambda: now[0])
    assert clock.eta() is None
    now[0], clock.done = 120.0, 4
    assert clock.eta() == 30.0
    clock.done = 10
    assert clock.eta() == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (75, "1:15"), (3725, "1:02:05"), (None, "-"), (-1, "-"), (float("inf"), "-")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (12345.6, "12,346"), (3, "3"), (1e-5, "1e-05"), (float("nan"), "nan")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_columns_take_what_a_step_reports() -> None:
    assert columns_of({"reward": 1.0, "kl": None}) == {"reward": "1"}
