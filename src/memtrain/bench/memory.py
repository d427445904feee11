"""Peak memory of a piece of work.

On a CPU it is the resident set of the process, read from the kernel's own high-water mark (``VmHWM``), which can be set
back to the present: exact, where a sampling thread would miss short peaks, and free of what a parent process used,
which ``ru_maxrss`` inherits. On a GPU it is what torch's allocator handed out.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GUARD_SHARE = 0.92
"""Share of the machine's memory at which :func:`give_up_when_full` ends the process, before the kernel ends another."""
GUARD_SECONDS = 0.02


def peak_memory(work: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Bytes before, at the peak, and their difference, of one call."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, how = torch.cuda.memory_allocated(device), "torch.cuda.max_memory_allocated"
        work()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        how = reset_high_water()
        before = resident()
        work()
        peak = high_water()
    return {"before_bytes": before, "peak_bytes": peak, "increase_bytes": max(0, peak - before), "how": how}


def give_up_when_full(last_words: Callable[[dict[str, Any]], None]) -> None:
    """End this process once it holds most of the machine's memory, after telling what it held: a lower bound.

    The kernel would kill it a moment later, and perhaps the one who waits for it.
    """
    before, limit = resident(), int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * GUARD_SHARE)

    def watch() -> None:
        pause = threading.Event()
        while (now := resident()) < limit:
            pause.wait(GUARD_SECONDS)
        last_words({"before_bytes": before, "exceeded_bytes": now, "increase_bytes": now - before, "how": "VmRSS"})
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def reset_high_water() -> str:
    """Set the mark back to the present size; says what :func:`high_water` will read."""
    try:
        _RESET.write_text("5")
        return "VmHWM"
    except OSError:
        return "ru_maxrss"


def resident() -> int:
    """Bytes of this process in memory now."""
    return _status("VmRSS")


def high_water() -> int:
    """Most bytes of this process in memory since the mark was set."""
    return _status("VmHWM")


def _status(key: str) -> int:
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    # Linux counts kilobytes here, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
