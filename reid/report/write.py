"""The report of a result: report.html, with its figures as PNG beside it."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reid.data.prepare import folder_of
from reid.data.read import read_dataset
from reid.errors import InputError, MissingInput
from reid.evaluation.features import Features, short_names
from reid.evaluation.results import Result
from reid.files import atomic_file, writing
from reid.report import facts, figures, html, lists

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a report goes and what it can draw upon: a run folder and a features file, one of which may be absent."""

    folder: Path
    run: Path | None
    features: Path | None
    dataset: str


def places(path: Path) -> list[Place]:
    """The reports that an argument asks for: one for each evaluation of a run. Raises MissingInput, InputError."""
    if path.is_file():
        if path.name == "features.h5":
            return [evaluation(path.parent)]
        return [Place(path.with_name(f"{path.stem}-report"), None, path, "")]
    if (path / "features.h5").is_file():
        return [evaluation(path)]
    if (path / "config.json").is_file():
        found = sorted(p.parent for p in path.glob("eval-*/features.h5"))
        return [evaluation(p) for p in found] or [Place(path, path, None, "")]
    if (path / "result.json").is_file():
        raise InputError(f"{path} has a result but no features.h5; report the evaluation it was made from, or score "
                         "again with evaluate.py --report and the same flags")  # fmt: skip
    raise MissingInput(f"{path} is no run folder (config.json), evaluation's folder (features.h5) or features file")


def evaluation(folder: Path) -> Place:
    """An evaluation's folder: eval-<dataset> in a run, or <dataset>/eval-<weights>."""
    parent = folder.resolve().parent
    run = folder.parent if (parent / "config.json").is_file() else None
    name = folder.resolve().name
    dataset = "" if not name.startswith("eval-") else name.removeprefix("eval-") if run else parent.name
    dataset = re.sub(r"(_(h|w|precision)-[a-z0-9]+)+$", "", dataset)  # as runs.evaluation_folder adds them
    return Place(folder, run, folder / "features.h5", dataset)


def image_paths(features: Features, dataset: str, dataset_path: str, split: int) -> tuple[dict[str, str], str]:
    """(image name -> file, what is missing in a sentence or "")."""
    if not dataset:
        return {}, "The features do not say which images they are of: name them with --dataset_type."
    folder, problems = folder_of(dataset, dataset_path), []
    if not (folder / "meta.json").is_file():
        return {}, f"The images are not at {folder} (no meta.json): say where they are with --dataset_path."
    try:
        found = read_dataset(folder, split, problems.append)
    except InputError as e:
        return {}, f"The images cannot be listed: {e}"
    if not problems and features.attrs.get("dataset", found.fingerprint) != found.fingerprint:
        return {}, f"{folder} is not the dataset of these features (another fingerprint)."
    files = [image.path for image in (*found.query, *found.gallery)]
    paths = dict(zip(short_names(files), files))
    missing = sum(name not in paths for side in (features.query, features.gallery) for name in side.names)
    if not missing:
        return paths, ""
    total = len(features.query) + len(features.gallery)
    return paths, f"{missing:,} of the {total:,} images are not in {folder}, and stand as empty boxes."


def write_report(
    place: Place,
    result: Result | None,
    dataset_path: str,
    split: int = 0,
    runs: Sequence[Path] = (),
    k: int = 10,
    rerank: bool = False,
    query_expansion: int = 0,
    maps: Sequence[str] = (),
    need_images: bool = False,
) -> None:
    """Writes report.html and its figures into place.folder, and says so. rerank and query_expansion: how the Result's
    distances were made. Raises InputError where the folder cannot be written, matplotlib is missing, or no image is
    found although they are needed."""
    with figures.styled():  # before the long work
        pass
    with writing(place.folder):
        place.folder.mkdir(parents=True, exist_ok=True)
        paths, missing = {}, ""
        if result is not None:
            paths, missing = image_paths(result.features, place.dataset, dataset_path, split)
        if missing and need_images and not paths:
            raise InputError(missing)
        if missing and not paths:
            missing += " So numbers and curves only."
        if missing:
            logger.warning(missing)
        sections, data, thumbs = content(place, result, paths, missing, runs, k, rerank, query_expansion, maps)
        name = (place.run or place.folder).resolve().name.removesuffix("-report")
        title = f"{name} on {place.dataset}" if place.dataset else name
        subtitle = "A person re-identification result: who was confused with whom, and why"
        with atomic_file(place.folder / "report.html") as temporary:
            temporary.write_text(html.page(title, subtitle, sections, data, thumbs), encoding="utf-8")
    logger.info(f"report in {place.folder / 'report.html'}")


def content(place: Place, result, paths, missing, runs, k, rerank, query_expansion, maps):
    """(sections, data, thumbnails) of the page."""
    sections: list[tuple[str, str, str]] = []
    data: dict[str, Any] | None = None
    thumbs, folder = "", place.folder
    if result is not None:
        device = "cuda" if torch.cuda.is_available() else None
        found, cameras = lists.rank_lists(result, k, rerank, query_expansion, device)
        data, thumbs = lists.page_data(result, found, paths)
        people = "<h3>Hardest people (mean AP)</h3><ol class=people id=worst></ol>" \
                 "<h3>Easiest people</h3><ol class=people id=best></ol>"  # fmt: skip
        summary = html.tiles(result) + html.figures(figures.summary(folder, result, cameras)) + people
        sections.append(("summary", "Summary", summary + (html.note(missing) if missing else "")))
        sections.append(("lists", "Rank lists", html.rank_lists(data)))
        if "slots" not in data:
            why = html.note(f"Not shown: {data['no_slots']}. Extract the features again with evaluate.py.")
        else:
            text = "<p>What every band adds to the distance, averaged over all listed answers.</p>"
            why = text + html.figures(figures.explained(folder, data))
            if rerank or query_expansion:
                why = html.note("The bands explain the descriptors' own distances, before re-ranking.") + why
        sections.append(("why", "Which part matched", why))
        if result.open_set:
            o = result.open_set
            low, high = o["threshold_interval"]
            accepted = o["tpr"][f"{o['fpr']:g}"]
            text = f"<p>Accept a pair as the same person up to a distance of <b>{o['threshold']:.4g}</b> (95 %: "
            text += f"{low:.4g} to {high:.4g}): {o['fpr']:g} of the wrong pairs are accepted then, "
            text += f"{accepted:.1%} of the same.</p>"
            metric = result.conventions["metric"].replace("euclidean", "squared Euclidean")
            sections.append(("open", "Same or different", text + html.figures(figures.open_set(folder, o, metric))))
        pictures = figures.principal(folder, result.features, result.ap)
        sections.append(("people", "People in feature space", html.figures(pictures, captions=True)))
    if maps:
        from reid.report.maps import activation_maps

        shown = figures.maps(folder, *activation_maps(place.run / "weights.pth", maps, paths))
        sections.append(("maps", "Where the network looks", html.figures(shown, captions=True)))
    curves = {run.resolve().name if len(runs) == 1 else str(run): facts.read_metrics(run) for run in runs}
    if any(curves.values()):
        sections.append(("training", "Training", html.figures(figures.training(folder, curves))))
    if result is not None:
        rows = facts.facts(result.to_json(), result.features.attrs, place.dataset, place.run)
        made = html.table(rows)
        if place.run:
            made += html.details("The whole configuration", facts.read_run(place.run)[0])
        sections.append(("made", "How it was made", made))
    elif not sections:
        raise InputError(
            f"{place.folder} has neither features nor recorded training steps yet; train or evaluate first"
        )
    return sections, data, thumbs
