"""The report's figures: each a PNG beside the page and an SVG inside it, with the sentence a reader hears instead."""

import io
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from reid.errors import InputError
from reid.evaluation.features import Features
from reid.evaluation.results import Result
from reid.files import atomic_file, writing

# Okabe and Ito, Color Universal Design, 2008
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, INK, GREY = "#CC79A7", "#56B4E9", "#22262b", "#8a8f98"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK)
SIGNS = "os^DvP*X<>"
DASHES = ("-", "--", "-.", ":")
STYLE = {
    "figure.constrained_layout.use": True, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": GREY, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.grid": True, "grid.color": "#e6e7ea", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.6,
    "legend.frameon": False, "axes.titlesize": 9, "axes.titlelocation": "left", "svg.hashsalt": "report",
}  # fmt: skip


class Picture(NamedTuple):
    name: str
    alt: str
    svg: str


@contextmanager
def styled():
    """matplotlib in the report's style. Raises InputError where it is not installed."""
    try:
        import matplotlib
    except ImportError as e:
        raise InputError('the report\'s figures need matplotlib; run: pip install -e ".[report]"') from e
    with matplotlib.rc_context(STYLE):
        yield


def draw(folder: Path, name: str, alt: str, size: tuple[float, float], paint: Callable, grid=(1, 1)) -> Picture:
    """Calls paint(*axes) on a new figure, and writes folder/report-<name>.png."""
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=size)
        paint(*figure.subplots(*grid, squeeze=False).ravel())
        with atomic_file(folder / f"report-{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=160)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return Picture(name, alt, out.getvalue())


def summary(folder: Path, result: Result, cameras: list[dict] | None) -> list[Picture]:
    """CMC curve, histogram of the average precision, and mAP of every pair of cameras."""
    cmc, ap = 100 * result.cmc, result.ap[result.ranking.valid]

    def paint_cmc(axes):
        ranks = np.arange(1, len(cmc) + 1)
        axes.step(ranks, cmc, where="post", color=BLUE)
        marked = [k for k in (1, 5, 10, 20) if k <= len(cmc)]
        axes.plot(marked, cmc[np.array(marked) - 1], "o", color=BLUE, markersize=4)
        for k in marked:
            axes.annotate(f"{cmc[k - 1]:.1f}", (k, cmc[k - 1]), (3, -11), textcoords="offset points")
        axes.set(xlabel="rank", ylabel="queries found, %", ylim=(min(cmc[0] - 8, 90), 101), title="CMC")

    def paint_ap(axes):
        axes.hist(ap, np.linspace(0, 1, 21), color=SKY, edgecolor="white")
        axes.axvline(ap.mean(), color=INK, linestyle="--", linewidth=1)
        axes.annotate(f" mean {ap.mean():.3f} ", (ap.mean(), 1), (0, -8), ha="right" if ap.mean() > 0.5 else "left",
                      xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
        axes.set(xlabel="average precision of a query", ylabel="queries", title="Average precision")
        axes.grid(axis="x", visible=False)

    ranks = ", ".join(f"{cmc[k - 1]:.1f} % at rank {k}" for k in (1, 5, 10, 20) if k <= len(cmc))
    low = int((ap < 0.5).sum())
    alts = (f"CMC curve: {ranks}.", f"Histogram of the average precision: {low} of {len(ap)} queries are below 0.5.")
    pictures = [
        draw(folder, "cmc", alts[0], (3.75, 2.8), paint_cmc),
        draw(folder, "ap", alts[1], (3.75, 2.8), paint_ap),
    ]
    return pictures + ([camera_map(folder, cameras)] if cameras and len(cameras) > 1 else [])


def camera_map(folder: Path, cameras: list[dict]) -> Picture:
    queries, galleries = (sorted({row[k] for row in cameras}) for k in ("query_camid", "gallery_camid"))
    cells = np.full((len(queries), len(galleries)), np.nan)
    for row in cameras:
        cells[queries.index(row["query_camid"]), galleries.index(row["gallery_camid"])] = 100 * row["map"]

    def paint(axes):
        shade = axes.imshow(cells, "cividis", aspect="auto", vmin=np.nanmin(cells), vmax=np.nanmax(cells))
        middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
        for (i, j), value in np.ndenumerate(cells):
            empty = np.isnan(value)
            axes.text(j, i, "–" if empty else f"{value:.0f}", ha="center", va="center", fontsize=8,
                      color=GREY if empty else "white" if value < middle else INK)  # fmt: skip
        axes.set_xticks(range(len(galleries)), galleries)
        axes.set_yticks(range(len(queries)), queries)
        axes.set(xlabel="gallery camera", ylabel="query camera", title="mAP by pair of cameras, %")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.figure.colorbar(shade, ax=axes, pad=0.02).outline.set_visible(False)

    worst, best = min(cameras, key=lambda r: r["map"]), max(cameras, key=lambda r: r["map"])
    told = [f"camera {r['query_camid']} to {r['gallery_camid']}, {100 * r['map']:.0f} %" for r in (worst, best)]
    alt = f"Heat map of the mAP by query and gallery camera: lowest from {told[0]}, highest from {told[1]}."
    size = max(2.8, 0.28 * len(queries) + 1)
    return draw(folder, "cameras", alt, (max(3.75, 0.4 * len(galleries) + 1.2), size), paint)


def explained(folder: Path, data: dict[str, Any]) -> list[Picture]:
    """Mean distance in each slot, of right and of wrong listed answers."""
    parts, labels = data["explained"], [slot["name"] for slot in data["slots"]]

    def paint(axes):
        for (name, values), colour, sign in zip(parts.items(), (GREEN, VERMILION), "o^"):
            axes.plot(values, range(len(values)), sign, color=colour, label=f"{name} answers")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set(xlabel="mean squared distance in the band", xlim=(0, None))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2)

    told = "; ".join(f"{name} answers add up to {sum(values):.3g}" for name, values in parts.items())
    alt = f"Mean squared distance in each of {len(labels)} bands: {told}."
    return [draw(folder, "slots", alt, (6, max(2, 0.2 * len(labels) + 1)), paint)]


def open_set(folder: Path, found: dict[str, Any], metric: str) -> list[Picture]:
    """ROC with the recommended threshold; distances of same and different people on one axis."""
    threshold, fpr = found["threshold"], found["fpr"]
    tpr = found["tpr"][f"{fpr:g}"]

    def paint_roc(axes):
        axes.semilogx(*np.array(found["roc"]).T, color=BLUE)
        axes.plot(fpr, tpr, "D", color=VERMILION)
        told = f"threshold {threshold:.3g}\n{tpr:.1%} at {fpr:g}"
        axes.text(0.98, 0.06, told, transform=axes.transAxes, ha="right")
        axes.set(xlabel="false accepts / wrong pairs", ylabel="true accepts / same pairs", ylim=(0, 1.02), title="ROC")

    def paint_distances(axes):
        edges = np.array(found["distances"]["edges"])
        for key, colour, dash, label in (
            ("same", GREEN, "-", "same person"),
            ("different", VERMILION, "--", "different"),
        ):
            axes.stairs(found["distances"][key], edges, fill=True, facecolor=colour + "44", edgecolor=colour,
                        linestyle=dash, linewidth=1, label=label)  # fmt: skip
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1, label=f"threshold {threshold:.3g}")
        axes.set(xlabel=f"{metric} distance", ylabel="share of pairs", title="Distances")
        axes.legend()

    alt = f"ROC: {tpr:.1%} of the same pairs are accepted at a rate of {fpr:g} false accepts, distance {threshold:.3g}."
    return [
        draw(folder, "roc", alt, (3.75, 2.8), paint_roc),
        draw(folder, "distances", f"Distances of same and of different people, and the threshold {threshold:.3g} "
             "between them.", (3.75, 2.8), paint_distances),
    ]  # fmt: skip


def training(folder: Path, runs: dict[str, list[dict[str, float]]]) -> list[Picture]:
    """A panel for each recorded number over the steps; the runs lie over each other."""
    keys = list(dict.fromkeys(k for rows in runs.values() for row in rows for k in row))
    keys = [k for k in keys if k not in ("step", "epoch", "images_per_second")]
    if not keys:
        return []

    def paint(*panels):
        for axes, key in zip(panels, keys):
            for i, (name, rows) in enumerate(runs.items()):
                points = [(row["step"], row[key]) for row in rows if key in row]
                sign = SIGNS[i % len(SIGNS)] if len(points) < 30 else None
                axes.plot(*zip(*points), DASHES[i % 4], marker=sign, markersize=4, color=COLOURS[i % 7], label=name)
            axes.set(title=key.replace("_", " "), xlabel="step")
            if key == "lr":
                axes.set_yscale(
                    "log" if min(row["lr"] for r in runs.values() for row in r if "lr" in row) > 0 else "linear"
                )
        for axes in panels[len(keys) :]:
            axes.set_visible(False)
        if len(runs) > 1:
            panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

    first = [*next(iter(runs.values()))]
    ends = {k: row[k] for row in first for k in keys if k in row}
    last = [f"{k} ends at {v:.3g}" for k, v in ends.items()]
    rows = -(-len(keys) // 4)
    columns = min(4, len(keys))
    alt = f"Training curves of {', '.join(runs)} over the steps: {', '.join(last)}."
    return [draw(folder, "training", alt, (2.9 * columns, 2.3 * rows + 0.3 * (len(runs) > 1)), paint, (rows, columns))]


def covered(path: Path, lines: dict[str, dict[str, Any]]) -> None:
    """Writes mAP by covered band as PNG; `lines`: name -> "whole", "1" to "6": (mean, standard deviation or None)."""
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.4 + 0.2 * len(lines)))
        axes = figure.subplots()
        for i, (name, line) in enumerate(lines.items()):
            colour, bands = COLOURS[i % 7], [k for k in "123456" if line[k]]
            axes.plot([int(k) for k in bands], [100 * line[k][0] for k in bands], DASHES[i % 4],
                      marker=SIGNS[i % len(SIGNS)], markersize=4, color=colour, label=fill(name, 80))  # fmt: skip
            if line["whole"]:
                axes.axhline(100 * line["whole"][0], color=colour, linewidth=0.8, alpha=0.6, linestyle=DASHES[i % 4])
        parts = ("1\nhead", "2", "3", "4", "5", "6\nfeet")
        axes.set(xlabel="covered sixth of the query image", ylabel="mAP, %", title="Thin lines: nothing covered")
        axes.set_xticks(range(1, 7), parts)
        figure.legend(loc="outside lower center")
        with writing(path), atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=160)


def principal(folder: Path, features: Features, ap: np.ndarray, count: int = 10) -> list[Picture]:
    """Descriptors of `count` people, from the hardest to the easiest, on their first two principal components."""
    pids = np.unique(features.query.pids[~np.isnan(ap)])
    mean = [np.nanmean(ap[features.query.pids == pid]) for pid in pids]
    chosen = pids[np.argsort(mean)][np.linspace(0, len(pids) - 1, min(count, len(pids))).astype(int)]
    sides = [
        (side.features[np.isin(side.pids, chosen)], side.pids[np.isin(side.pids, chosen)])
        for side in (features.query, features.gallery)
    ]
    values, who = (np.concatenate(x) for x in zip(*sides))
    values = values.astype(np.float32) - values.mean(0, dtype=np.float32)
    if min(values.shape) < 2 or not values.any():
        return []
    left, size, _ = np.linalg.svd(values, full_matrices=False)
    points, share = left[:, :2] * size[:2], (size**2 / (size**2).sum())[:2]

    def paint(axes):
        for i, pid in enumerate(chosen):
            own = points[who == pid]
            axes.plot(*own.T, SIGNS[i % len(SIGNS)], color=COLOURS[i % 7], markersize=4, alpha=0.8)
            axes.annotate(str(pid), np.median(own, 0), fontsize=9, fontweight="bold", ha="center", va="bottom",
                          bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5})  # fmt: skip
        axes.set(xlabel=f"first component, {share[0]:.0%}", ylabel=f"second component, {share[1]:.0%} of the variance")

    alt = f"Descriptors of {len(chosen)} people ({', '.join(map(str, chosen))}) on two principal components."
    return [draw(folder, "people", alt, (5.6, 4), paint)]


def maps(folder: Path, shots: Sequence[tuple[str, np.ndarray, np.ndarray]], bands: np.ndarray) -> list[Picture]:
    """Images (H, W, 3) beside their map's energy (h, w), with the peak of each band of a granularity marked."""
    cut = [band for band in bands.tolist() if band != [0, 1]] or [[0, 1]]
    counts = sorted({round(1 / (bottom - top)) for top, bottom in cut}, reverse=True)

    def paint(*panels):
        for (name, pixels, energy), image, overlay in zip(shots, panels[::2], panels[1::2]):
            high, wide = energy.shape
            for axes in (image, overlay):
                axes.imshow(pixels, extent=(0, wide, high, 0), aspect=pixels.shape[0] / pixels.shape[1] * wide / high)
                axes.axis("off")
            image.set_title(name[-24:], fontsize=6)
            overlay.imshow(energy, "inferno", alpha=0.6, extent=(0, wide, high, 0), interpolation="bilinear",
                           aspect=pixels.shape[0] / pixels.shape[1] * wide / high)  # fmt: skip
            for top, bottom in cut:
                rows = slice(round(top * high), round(bottom * high))
                y, x = np.unravel_index(energy[rows].argmax(), energy[rows].shape)
                i = counts.index(round(1 / (bottom - top)))
                overlay.plot(x + 0.5, y + rows.start + 0.5, SIGNS[i], markersize=9 - 2 * i, markerfacecolor="none",
                             markeredgecolor=("white", SKY, ORANGE)[i % 3], markeredgewidth=1.2)  # fmt: skip
                overlay.axhline(bottom * high, color="white", linewidth=0.3)
        for axes in panels[2 * len(shots) :]:
            axes.set_visible(False)

    signs = {"o": "circles", "s": "squares", "^": "triangles", "D": "diamonds"}
    told = ", ".join(f"{signs.get(SIGNS[i], SIGNS[i])} the peaks of {n} stripes" for i, n in enumerate(counts))
    alt = f"Energy of the backbone's map over {len(shots)} images, bright where it is high: {told}."
    columns = min(4, len(shots))
    rows = -(-len(shots) // columns)
    return [draw(folder, "maps", alt, (2.3 * columns, 3 * rows), paint, (rows, 2 * columns))]
