"""What benchmarks share: times taken side by side in one process, and peak memory."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from reid.evaluation.features import Features, Part
from reid.evaluation.store import ROWS


class Measured(NamedTuple):
    seconds: float  # median
    peak: int | None  # bytes above what the process held before; None outside Linux
    result: Any


def side_by_side(forms: dict[str, Callable[[], Any]], repeat: int = 1) -> dict[str, Measured]:
    """Each form run `repeat` times; the forms take turns, so that a busy machine slows all alike."""
    runs: dict[str, list[Measured]] = {name: [] for name in forms}
    for _ in range(repeat):
        for name, form in forms.items():
            before = restart_peak()
            started = time.perf_counter()
            result = form()
            seconds = time.perf_counter() - started
            runs[name].append(Measured(seconds, before and resident("VmHWM") - before, result))
            del result
    return {name: Measured(median(m.seconds for m in ms), ms[0].peak, ms[0].result) for name, ms in runs.items()}


def restart_peak() -> int | None:
    """Bytes held now, from where the peak is counted."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return resident("VmRSS")


def resident(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def table(title: str, rows: dict[str, Measured], plain: str) -> str:
    """Seconds, speed against the form named `plain`, peak memory."""
    lines = [title, f"{'':<30}{'seconds':>10}{'speed':>9}{'peak memory':>14}"]
    for name, (seconds, peak, _) in rows.items():
        speed = f"{rows[plain].seconds / seconds:.1f}x" if plain in rows else "-"
        memory = "-" if peak is None else f"{peak / 2**20:,.0f} MiB"
        lines.append(f"{name:<30}{seconds:>10.3f}{speed:>9}{memory:>14}")
    return "\n".join(lines)


def size_flags(parser, **defaults: int) -> None:
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--alone", action="store_true", help="only our form, for sizes beyond memory")


def random_features(
    queries: int, gallery: int, identities: int, cameras: int, width: int, dtype: str = "float32"
) -> Features:
    """Features of random people: an identity is a direction, an image of it a noisy one. Gallery images beyond
    25 for each identity are distractors."""
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
        return Part(features.astype(dtype), pids, rng.integers(0, cameras, count), range(count))

    return Features(part(queries), part(gallery), {})
