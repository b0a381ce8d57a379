"""The report of a result: report.html, with its figures as PNG files beside it."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reid.data.labels import Labels
from reid.errors import InputError
from reid.evaluation.open_set import CONFIDENCE
from reid.evaluation.results import Result, unreachable
from reid.files import atomic_file, writing
from reid.report import facts, figures, html, lists
from reid.report.fonts import Fonts
from reid.report.html import Section
from reid.report.ranks import write_ranks
from reid.report.sources import Content, FoundImages, Source, find_images
from reid.runs import read_config

logger = logging.getLogger(__name__)
SUBTITLE = "A re-identification result: which identities were confused, and why"
EXTREMES = """
<h3>Hardest identities (mean AP)</h3><ol class=identities id=worst></ol>
<h3>Easiest identities</h3><ol class=identities id=best></ol>
"""


def write_report(source: Source, result: Result | None, content: Content) -> None:
    """Writes report.html, its figures and the rank lists as files (ranks.py) into source.folder.

    Raises InputError where the folder cannot be written, matplotlib is missing, or there is nothing to report.
    """
    if result and result.scoring.tracks:
        raise InputError("a report lists single images; report the evaluation without --tracks")
    with figures.styled():  # raises before the long work
        images = FoundImages({})
        dataset = content.dataset or ""
        if result:
            dataset = dataset or result.record.dataset or ""
            images = find_images(result.features, content)
            if not result.features.labels.given:
                result = replace(result, features=replace(result.features, labels=images.labels))
        if images.missing:
            logger.warning(images.missing)
        with writing(source.folder):
            source.folder.mkdir(parents=True, exist_ok=True)
        sections = result_sections(source.folder, result, content, images) if result else []
        if content.maps and source.run:
            labels = result.features.labels if result else images.labels
            sections.append(maps_section(source.folder, source.run, content.maps, images.files, labels))
        sections += training_section(source, content.other_runs)
        if result:
            sections.append(facts_section(result, dataset, source.run))
        if not sections:
            raise InputError(f"{source.folder} has no features and no training steps yet; train or evaluate first")
        name = (source.run or source.folder).resolve().name.removesuffix("-report")
        title = f"{name} on {dataset}" if dataset else name
        path = source.folder / "report.html"
        with writing(path), atomic_file(path) as temporary:
            temporary.write_text(html.page(title, SUBTITLE, sections), encoding="utf-8")
    logger.info(f"report in {path}")


def result_sections(folder: Path, result: Result, content: Content, images: FoundImages) -> list[Section]:
    answers, matches, cameras = lists.rank_lists(result, content.top, content.device)
    data, thumbnails = lists.page_data(result, answers, matches, images.files)
    write_ranks(folder, result, answers)
    fonts = Fonts.for_figures(texts_of(result))
    sections = [
        summary_section(folder, result, cameras, fonts),
        Section("lists", "Rank lists", html.rank_lists(data, thumbnails)),
        bands_section(folder, result, data),
    ]
    if result.open_set:
        sections.append(open_set_section(folder, result.open_set, result.scoring.metric))
    chosen = figures.identities(folder, result.features, result.ap, fonts)
    sections.append(Section("identities", "Identities in feature space", html.figures(chosen, captions=True)))
    if images.missing:
        first = sections[0]
        sections[0] = first._replace(html=first.html + html.note(images.missing))
    return sections


def texts_of(result: Result) -> list[str]:
    """The labels that figures may show."""
    query, gallery, labels = result.features.query, result.features.gallery, result.features.labels
    texts = [labels.identity(int(pid)) for pid in np.unique(query.pids)]
    for side in (query, gallery):
        texts += [labels.camera(int(camid)) for camid in np.unique(side.camids if side.camids is not None else [])]
    return texts


def summary_section(folder: Path, result: Result, cameras: list[dict] | None, fonts: Fonts) -> Section:
    pictures = [figures.cmc_curve(folder, result.cmc), figures.ap_histogram(folder, result.ap[result.ranking.valid])]
    if cameras and len(cameras) > 1:
        pictures.append(figures.camera_map(folder, cameras, result.features.labels, fonts))
    body = html.tiles(result) + html.conventions(result) + html.figures(pictures) + EXTREMES
    return Section("summary", "Summary", body)


def bands_section(folder: Path, result: Result, data: dict[str, Any]) -> Section:
    if "slots" not in data:
        body = html.note(f"Not shown: {data['no_slots']}. Extract the features again with evaluate.py.")
        return Section("why", "Which part matched", body)
    names = [slot["name"] for slot in data["slots"]]
    picture = figures.band_distances(folder, data["means"], names)
    body = "<p>The mean squared distance in each band, over all answers of this page.</p>"
    if result.scoring.rerank or result.scoring.query_expansion:
        body += html.note("These are the distances before re-ranking and query expansion.")
    return Section("why", "Which part matched", body + html.figures([picture]))


def open_set_section(folder: Path, found: dict[str, Any], metric: str) -> Section:
    low, high = found["threshold_interval"]
    accepted = found["tpr"][f"{found['fpr']:g}"]
    metric = metric.replace("euclidean", "squared Euclidean")
    pictures = [figures.roc_curve(folder, found), figures.distance_histograms(folder, found, metric)]
    text = (
        f"<p>Accept two images as the same identity up to a distance of <b>{found['threshold']:.4g}</b> "
        f"({CONFIDENCE:.0%} interval: {low:.4g} to {high:.4g}). This threshold accepts {accepted:.1%} of the pairs "
        f"of one identity and {100 * found['fpr']:g}% of the pairs of two identities.</p>"
    )
    if "n_equal" in found:
        text = html.note(unreachable(found).capitalize() + ".")
    return Section("open", "Same or different", text + html.figures(pictures))


def maps_section(folder: Path, run: Path, names: Sequence[str], files: dict[str, str], labels: Labels) -> Section:
    """names: of the images' files, or the user's own names of them."""
    from reid.report.maps import energy_maps

    own = {labels.source(name): path for name, path in files.items()}
    shots, bands = energy_maps(run / "weights.pth", names, own | files)
    shots = [(labels.source(name), image, energy) for name, image, energy in shots]
    fonts = Fonts.for_figures([name for name, *_ in shots])
    picture = figures.activation_maps(folder, shots, bands, fonts)
    return Section("maps", "Where the network looks", html.figures([picture], captions=True))


def training_section(source: Source, others: Sequence[Path]) -> list[Section]:
    """Empty where no run has recorded a number."""
    runs = list(dict.fromkeys(run for run in (source.run, *others) if run))
    names = [run.resolve().name if len(runs) == 1 else str(run) for run in runs]
    rows = {name: facts.read_metrics(run) for name, run in zip(names, runs)}
    pictures = figures.training(source.folder, rows)
    return [Section("training", "Training", html.figures(pictures))] if pictures else []


def facts_section(result: Result, dataset: str, run: Path | None) -> Section:
    body = html.table(facts.facts(result, dataset, run))
    config = read_config(run) if run else None
    if config:
        sections = config.to_json().values()
        rows = [(name, str(value)) for section in sections for name, value in section.items()]
        body += html.details("The whole configuration", rows)
    return Section("made", "How it was made", body)
