"""Shared by the benchmarks: time and peak memory of several variants, and random features."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np

from reid.errors import CheckFailed
from reid.evaluation.features import Features, Part
from reid.evaluation.store import ROWS


class Measured(NamedTuple):
    seconds: float  # median
    peak: int | None  # bytes beyond the memory held before; None if the system does not report it
    result: Any


def side_by_side(
    forms: Mapping[str, Callable[[], Any]], repeat: int = 1, wait: Callable[[], Any] = lambda: None
) -> dict[str, Measured]:
    """Runs each variant `repeat` times. Variants alternate, so that other load affects all equally.

    wait: called after each run, to wait for the device.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    first: dict[str, Measured] = {}
    for _ in range(repeat):
        for name, form in forms.items():
            before = restart_peak()
            started = time.perf_counter()
            result = form()
            wait()
            seconds[name].append(time.perf_counter() - started)
            if name not in first:
                peak = None if before is None else resident("VmHWM") - before
                first[name] = Measured(0.0, peak, result)
            del result
    return {name: m._replace(seconds=median(seconds[name])) for name, m in first.items()}


def restart_peak() -> int | None:
    """Resets the peak memory. Returns the bytes in use now, None outside Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return None
    return resident("VmRSS")


def resident(field: str) -> int:
    """Bytes of a memory field of this process, on Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def table(title: str, rows: dict[str, Measured], plain: str = "") -> str:
    """Seconds, speed relative to the variant `plain` (if it was run), and peak memory."""
    has_memory = any(row.peak is not None for row in rows.values())
    head = f"{'':<30}{'seconds':>10}{'speed':>9}"
    lines = [title, head + f"{'peak memory':>14}" * has_memory]
    for name, (seconds, peak, _) in rows.items():
        speed = f"{rows[plain].seconds / seconds:.1f}x" if plain in rows else "-"
        memory = "-" if peak is None else f"{peak / 2**20:,.0f} MiB"
        lines.append(f"{name:<30}{seconds:>10.3f}{speed:>9}" + f"{memory:>14}" * has_memory)
    if not has_memory:
        lines.append("peak memory: not available on this system")
    return "\n".join(lines)


def check_close(rows: dict[str, Measured], names: Iterable[str], tolerance: float) -> float:
    """The largest difference of the results of the named variants from the first one's.

    Raises CheckFailed if it is larger than `tolerance` times the first one's largest value.
    """
    plain, *others = names
    expected = np.asarray(rows[plain].result)
    largest = 0.0
    for name in others:
        difference = float(np.abs(np.asarray(rows[name].result) - expected).max())
        if not difference <= tolerance * np.abs(expected).max():
            raise CheckFailed(f"{name!r} and {plain!r} differ by {difference:.3g}")
        largest = max(largest, difference)
    return largest


def random_features(
    queries: int, gallery: int, identities: int, cameras: int, width: int, dtype: str = "float32"
) -> Features:
    """Features of random people: an identity is a direction, its images are noisy copies.

    Gallery images beyond 25 per identity are distractors.
    """
    rng = np.random.default_rng(1501)
    centres = rng.standard_normal((identities, width), dtype=np.float32)

    def part(count: int) -> Part:
        pids = rng.integers(0, identities, count)
        pids[25 * identities :] = -2
        features = rng.standard_normal((count, width), dtype=np.float32)
        for i in range(0, count, ROWS):
            rows = slice(i, min(i + ROWS, 25 * identities))
            features[rows] += centres[pids[rows]] / 2
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        camids = rng.integers(0, cameras, count)
        names = cast(Sequence[str], range(count))  # a large list of strings would take memory
        return Part(features.astype(dtype), pids, camids, names)

    return Features(part(queries), part(gallery), {})
