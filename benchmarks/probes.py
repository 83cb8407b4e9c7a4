"""Clocks and memory of this process, and how much of the machine others took meanwhile (Linux; elsewhere time alone).

Own (anonymous) memory is what the process allocated for itself; resident memory also counts the pages of mapped files,
which all processes share with the page cache.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

_PROC = Path("/proc/self")


class Probe:
    """Starts a clock; `stop` gives wall and CPU seconds, and the share of the machine that others had."""

    def __init__(self) -> None:
        self.machine, self.cpu, self.wall = _busy_seconds(), time.process_time(), time.perf_counter()

    def stop(self) -> dict[str, float]:
        """The figures since the start."""
        wall = time.perf_counter() - self.wall
        cpu = time.process_time() - self.cpu
        busy = _busy_seconds() - self.machine
        others = max(0.0, busy - cpu) / (wall * (os.cpu_count() or 1)) if busy and wall > 0.2 else 0.0
        return {"seconds": wall, "cpu_seconds": cpu, "others": min(1.0, others)}


def memory() -> dict[str, float]:
    """Megabytes of this process: resident, its highest value, and its own."""
    names = {"VmRSS": "resident_mb", "VmHWM": "peak_mb", "RssAnon": "own_mb"}
    found = dict.fromkeys(names.values(), 0.0)
    if (status := _PROC / "status").exists():
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in names:
                found[names[name]] = int(value.split()[0]) * 1024 / 1e6
    return found


def reset_peak() -> None:
    """Count the highest resident memory from now on."""
    if (switch := _PROC / "clear_refs").exists():
        switch.write_text("5")


def median(values: list[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def trim() -> None:
    """Give freed memory back to the system, so that loading does not count as what a task holds (glibc)."""
    import ctypes
    import gc

    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass


def _busy_seconds() -> float:
    """Seconds that all cores were busy since the start of the machine, those stolen by its host included."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, soft_irq, steal = map(int, stat.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
