"""Figures of the report: each is a PNG file beside the page and an SVG inside it, described by its alt text.

All are drawn inside `with styled():`.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from reid.data.labels import Labels
from reid.errors import InputError
from reid.evaluation.features import Features
from reid.files import atomic_file, writing
from reid.report.fonts import Fonts

# Okabe and Ito, Color Universal Design, 2008
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, INK, GREY = "#CC79A7", "#56B4E9", "#22262b", "#8a8f98"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK)
DASHES = ("-", "--", "-.", ":")
MARKERS = "os^DvP*X<>"
MARKER_NAMES = ("circles", "squares", "triangles", "diamonds")
SMALL = (3.75, 2.8)  # width and height in inches
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": "#e6e7ea",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.hashsalt": "report",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Picture(NamedTuple):
    name: str
    alt: str
    svg: str


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib in the report's style. Raises InputError where it is not installed."""
    try:
        import matplotlib
    except ImportError as e:
        raise InputError('the report needs matplotlib for its figures; run: pip install -e ".[report]"') from e
    with matplotlib.rc_context(STYLE):
        yield


def new_axes(width: float, height: float, rows: int = 1, columns: int = 1) -> np.ndarray:
    """The axes of a new figure, (rows x columns,); its size is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure.subplots(rows, columns, squeeze=False).ravel()


def finish(axes, folder: Path, name: str, alt: str) -> Picture:
    """Writes the figure of `axes` as folder/report-<name>.png and returns it for the page."""
    save_png(axes.figure, folder / f"report-{name}.png")
    svg = io.StringIO()
    axes.figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
    return Picture(name, alt, svg.getvalue())


def save_png(figure, path: Path) -> None:
    with writing(path), atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160)


def line_style(i: int) -> dict[str, Any]:
    """Of line i. Dashes and markers distinguish lines without colour."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
    }


def cmc_curve(folder: Path, cmc: np.ndarray) -> Picture:
    """cmc (K,): matching rates in 0..1."""
    percent = 100 * cmc
    marked = [k for k in (1, 5, 10, 20) if k <= len(cmc)]
    [axes] = new_axes(*SMALL)
    axes.step(np.arange(1, len(cmc) + 1), percent, where="post", color=BLUE)
    axes.plot(marked, [percent[k - 1] for k in marked], "o", color=BLUE)
    for k in marked:
        value = percent[k - 1]
        axes.annotate(f"{value:.1f}", (k, value), (3, -11), textcoords="offset points")
    axes.set(xlabel="rank", ylabel="matching rate, %", title="CMC")
    axes.set_ylim(min(percent[0] - 8, 90), 101)
    values = ", ".join(f"{percent[k - 1]:.1f} % at rank {k}" for k in marked)
    return finish(axes, folder, "cmc", f"CMC curve: {values}.")


def ap_histogram(folder: Path, ap: np.ndarray) -> Picture:
    """ap (Q,): average precision of the queries with a match, in 0..1."""
    mean, low = ap.mean(), int((ap < 0.5).sum())
    [axes] = new_axes(*SMALL)
    axes.hist(ap, np.linspace(0, 1, 21), color=SKY, edgecolor="white")
    axes.axvline(mean, color=INK, linestyle="--", linewidth=1)
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    side = "right" if mean > 0.5 else "left"
    axes.annotate(f" mean {mean:.3f} ", (mean, 1), (0, -8), ha=side, **place)
    axes.set(xlabel="average precision of a query", ylabel="queries", title="Average precision")
    axes.grid(axis="x", visible=False)
    alt = f"Histogram of the average precision: {low} of {len(ap)} queries are below 0.5."
    return finish(axes, folder, "ap", alt)


def camera_map(folder: Path, cameras: list[dict], labels: Labels, fonts: Fonts) -> Picture:
    """cameras: the rows of CameraPairs.table."""
    queries = sorted({row["query_camid"] for row in cameras})
    galleries = sorted({row["gallery_camid"] for row in cameras})
    cells = np.full((len(queries), len(galleries)), np.nan)
    for row in cameras:
        i, j = queries.index(row["query_camid"]), galleries.index(row["gallery_camid"])
        cells[i, j] = 100 * row["map"]
    low, high = np.nanmin(cells), np.nanmax(cells)
    columns, lines = ([fonts.in_figure(labels.camera(c)) for c in side] for side in (galleries, queries))
    longest = max(map(len, [*columns, *lines]))
    width = max(SMALL[0], 0.4 * len(galleries) + 1.2 + 0.06 * longest)
    [axes] = new_axes(width, max(SMALL[1], 0.28 * len(queries) + 1))
    image = axes.imshow(cells, "cividis", aspect="auto", vmin=low, vmax=high)
    for (i, j), value in np.ndenumerate(cells):
        text, colour = ("–", GREY) if np.isnan(value) else (f"{value:.0f}", INK)
        if value < (low + high) / 2:
            colour = "white"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(galleries)), columns, rotation=0 if longest < 4 else 90)
    axes.set_yticks(range(len(queries)), lines)
    axes.set(xlabel="gallery camera", ylabel="query camera", title="mAP by pair of cameras, %")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, pad=0.02).outline.set_visible(False)
    ordered = sorted(cameras, key=lambda row: row["map"])
    worst, best = (
        f"camera {labels.camera(row['query_camid'])} to {labels.camera(row['gallery_camid'])}, {100 * row['map']:.0f} %"
        for row in (ordered[0], ordered[-1])
    )
    alt = f"Heat map of the mAP by query and gallery camera: lowest from {worst}, highest from {best}."
    return finish(axes, folder, "cameras", alt)


def band_distances(folder: Path, means: dict[str, list[float]], names: list[str]) -> Picture:
    """Mean distance in each band. means: "right" and "wrong" -> (S,); names: of the bands."""
    [axes] = new_axes(6, max(2, 0.2 * len(names) + 1))
    style = {"right": ("o", GREEN), "wrong": ("^", VERMILION)}
    for kind, values in means.items():
        sign, colour = style[kind]
        label = f"{kind} answers"
        axes.plot(values, range(len(values)), sign, color=colour, markersize=6, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="mean squared distance in the band", xlim=(0, None))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2)
    sums = "; ".join(f"{kind} answers {sum(values):.3g} in total" for kind, values in means.items())
    alt = f"Mean squared distance in each of {len(names)} bands: {sums}."
    return finish(axes, folder, "slots", alt)


def roc_curve(folder: Path, found: dict[str, Any]) -> Picture:
    """found: as open_set.open_set returns it."""
    threshold, fpr = found["threshold"], found["fpr"]
    tpr = found["tpr"][f"{fpr:g}"]
    [axes] = new_axes(*SMALL)
    axes.semilogx(*np.array(found["roc"]).T, color=BLUE)
    axes.plot(fpr, tpr, "D", color=VERMILION, markersize=6)
    text = f"threshold {threshold:.3g}\n{tpr:.1%} at {fpr:g}"
    axes.text(0.98, 0.06, text, transform=axes.transAxes, ha="right")
    axes.set(xlabel="false accept rate", ylabel="true accept rate", title="ROC")
    axes.set_ylim(0, 1.02)
    alt = (
        f"ROC curve: a distance threshold of {threshold:.3g} accepts {tpr:.1%} of the pairs of one "
        f"identity and {fpr:g} of the pairs of two identities."
    )
    return finish(axes, folder, "roc", alt)


def distance_histograms(folder: Path, found: dict[str, Any], metric: str) -> Picture:
    """found: as open_set.open_set returns it."""
    distances, threshold = found["distances"], found["threshold"]
    label = f"threshold {threshold:.3g}"
    [axes] = new_axes(*SMALL)
    for kind, colour, dashes in (("same", GREEN, "-"), ("different", VERMILION, "--")):
        style = {"facecolor": colour + "44", "edgecolor": colour, "linestyle": dashes}
        name = f"{kind} identity"
        axes.stairs(distances[kind], distances["edges"], fill=True, linewidth=1, label=name, **style)
    axes.axvline(threshold, color=INK, linestyle="--", linewidth=1, label=label)
    axes.set(xlabel=f"{metric} distance", ylabel="share of pairs", title="Distances")
    axes.legend()
    alt = f"Histograms of the distances of pairs of one identity and of two identities, and the {label}."
    return finish(axes, folder, "distances", alt)


def training(folder: Path, runs: dict[str, list[dict[str, float]]]) -> list[Picture]:
    """One panel per recorded number, one line per run. runs: name -> rows of metrics.jsonl."""
    everything = [row for rows in runs.values() for row in rows]
    hidden = ("step", "epoch", "images_per_second")
    keys = list(dict.fromkeys(k for row in everything for k in row if k not in hidden))
    if not keys:
        return []
    columns, lines, several = min(4, len(keys)), -(-len(keys) // 4), len(runs) > 1
    panels = new_axes(2.9 * columns, 2.3 * lines + 0.3 * several, lines, columns)
    for axes, key in zip(panels, keys):
        for i, (name, rows) in enumerate(runs.items()):
            points = [(row["step"], row[key]) for row in rows if key in row]
            style = line_style(i) | ({"marker": None} if len(points) >= 30 else {})
            axes.plot(*zip(*points), label=name, **style)
        axes.set(title=key.replace("_", " "), xlabel="step")
        if key == "lr" and all(row.get("lr", 1) > 0 for row in everything):
            axes.set_yscale("log")
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    if several:
        handles = panels[0].get_legend_handles_labels()
        panels[0].figure.legend(*handles, loc="outside lower center", ncols=2)
    last = {k: row[k] for row in next(iter(runs.values())) for k in keys if k in row}
    ends = ", ".join(f"{k} ends at {v:.3g}" for k, v in last.items())
    alt = f"Training curves of {', '.join(runs)} over the steps: {ends}."
    return [finish(panels[0], folder, "training", alt)]


@styled()
def covered(path: Path, lines: dict[str, dict[str, Any]]) -> None:
    """Writes mAP by covered band as PNG. lines: name -> "whole", "1" to "6": (mean, deviation) or None."""
    [axes] = new_axes(6, 3.4 + 0.2 * len(lines))
    for i, (name, line) in enumerate(lines.items()):
        points = [(int(k), 100 * line[k][0]) for k in "123456" if line[k]]
        axes.plot(*zip(*points), label=fill(name, 80), **line_style(i))
        if line["whole"]:
            thin = line_style(i) | {"marker": None, "linewidth": 0.8, "alpha": 0.6}
            axes.axhline(100 * line["whole"][0], **thin)
    axes.set(xlabel="covered sixth of the query image", ylabel="mAP, %")
    axes.set_title("Thin lines: nothing covered")
    axes.set_xticks(range(1, 7), ("1\ntop", "2", "3", "4", "5", "6\nbottom"))
    axes.figure.legend(loc="outside lower center")
    save_png(axes.figure, path)


def identities(folder: Path, features: Features, ap: np.ndarray, fonts: Fonts, count: int = 10) -> list[Picture]:
    """Descriptors of `count` identities, evenly from the hardest to the easiest, on two principal components.

    ap: (Q,). Empty where the descriptors do not differ.
    """
    sides = (features.query, features.gallery)
    pids = np.unique(features.query.pids[~np.isnan(ap)])
    mean = [np.nanmean(ap[features.query.pids == pid]) for pid in pids]
    places = np.linspace(0, len(pids) - 1, min(count, len(pids))).astype(int)
    chosen = pids[np.argsort(mean)][places]
    rows = [np.isin(side.pids, chosen) for side in sides]
    who = np.concatenate([side.pids[kept] for side, kept in zip(sides, rows)])
    values = np.concatenate([side.features[kept] for side, kept in zip(sides, rows)])
    values = values.astype(np.float32) - values.mean(0, dtype=np.float32)
    if min(values.shape) < 2 or not values.any():
        return []
    left, size, _ = np.linalg.svd(values, full_matrices=False)
    points = left[:, :2] * size[:2]
    share = size**2 / (size**2).sum()
    [axes] = new_axes(5.6, 4)
    label: dict[str, Any] = {"fontsize": 9, "ha": "center", "va": "bottom"}
    label["fontweight"] = "bold" if len(fonts.files) == 1 else "normal"  # fonts of many scripts have no bold here
    label["bbox"] = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5}
    for i, pid in enumerate(chosen):
        own = points[who == pid]
        axes.plot(*own.T, alpha=0.8, **line_style(i) | {"linestyle": "none"})
        axes.annotate(fonts.in_figure(features.labels.identity(pid)), np.median(own, 0), **label)
    axes.set_xlabel(f"first component, {share[0]:.0%} of the variance")
    axes.set_ylabel(f"second component, {share[1]:.0%} of the variance")
    names = ", ".join(map(features.labels.identity, chosen))
    alt = f"Descriptors of {len(chosen)} identities ({names}) on two principal components."
    return [finish(axes, folder, "identities", alt)]


def activation_maps(
    folder: Path, shots: Sequence[tuple[str, np.ndarray, np.ndarray]], bands: np.ndarray, fonts: Fonts
) -> Picture:
    """shots: (name, image (H, W, 3), energy of its map (h, w)). bands (S, 2): the peak in each is marked.

    The map covers the whole image, whatever the shape in which the model gets it.
    """
    cut = [band for band in bands.tolist() if band != [0, 1]] or [[0, 1]]
    counts = sorted({stripes(band) for band in cut}, reverse=True)
    columns = min(4, len(shots))
    rows = -(-len(shots) // columns)
    panels = new_axes(2.3 * columns, 3 * rows, rows, 2 * columns)
    for (name, image, energy), left, right in zip(shots, panels[::2], panels[1::2]):
        height, width = energy.shape
        shape = {"aspect": image.shape[0] / image.shape[1] * width / height}
        shape["extent"] = (0, width, height, 0)
        left.imshow(image, **shape)
        left.set_title(fonts.in_figure(name[-24:]), fontsize=6)
        right.imshow(image, **shape)
        right.imshow(energy, "inferno", alpha=0.6, interpolation="bilinear", **shape)
        for band in cut:
            mark_peak(right, energy, band, counts.index(stripes(band)))
    for axes in panels:
        axes.axis("off")
    marks = ", ".join(f"{name} mark the peaks of {n} stripes" for name, n in zip(MARKER_NAMES, counts))
    alt = f"Energy of the backbone's map over {len(shots)} images, bright where it is high: {marks}."
    return finish(panels[0], folder, "maps", alt)


def stripes(band: Sequence[float]) -> int:
    """The number of bands of this height in an image."""
    return round(1 / (band[1] - band[0]))


def mark_peak(axes, energy: np.ndarray, band: Sequence[float], i: int) -> None:
    """Marks the maximum of the energy (h, w) in the band with marker i, and draws the band's lower edge."""
    top, bottom = (round(edge * len(energy)) for edge in band)
    y, x = np.unravel_index(energy[top:bottom].argmax(), energy[top:bottom].shape)
    style = {"markerfacecolor": "none", "markeredgewidth": 1.2, "markersize": 9 - 2 * i}
    colour = ("white", SKY, ORANGE)[i % 3]
    axes.plot(x + 0.5, y + top + 0.5, MARKERS[i], markeredgecolor=colour, **style)
    axes.axhline(band[1] * len(energy), color="white", linewidth=0.3)
