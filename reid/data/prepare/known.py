"""The known datasets: how each is read, how its raw data are recognised, where to get it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reid.data.prepare import cuhk03, listed, market
from reid.data.prepare.archive import ARCHIVES, Source, open_source
from reid.data.prepare.plan import Plan, assert_sound
from reid.errors import InputError


@dataclass(frozen=True)
class Known:
    read: Callable[[Source], Plan]
    word: str  # in the lower-case names of its raw folders and archives
    markers: tuple[str, ...]  # folders or files at most two levels below the raw folder
    origin: str
    without: str = "/"  # not in those names


MARKERS = (market.FOLDERS["trainval"],)
MAT_OR_NP = (cuhk03.MAT, "labeled", "detected")
MARKET = "Market-1501-v15.09.15.zip, linked from https://zheng-lab-anu.github.io/Project/project_reid.html"
DUKE = "DukeMTMC-reID.zip (withdrawn by its authors; there is no official source any more)"
OCCLUDED = (
    "Occluded-DukeMTMC, made by the instructions of lightas/Occluded-DukeMTMC-Dataset on GitHub "
    "from DukeMTMC-reID, which was withdrawn"
)
CUHK = (
    "cuhk03_release.zip from the CUHK Person Re-identification page, with the protocol file of "
    "zhunzhong07/person-re-ranking on GitHub (CUHK03-NP)"
)
VERI = "VeRi-776, on request from its authors (github.com/JDAI-CV/VeRidataset)"
VEHICLEID = "VehicleID (PKU VehicleID), on request from its authors (pkuml.org)"
MSMT = "MSMT17, on request from its authors (pkuvmc.com)"

VEHICLE_ID = {
    f"vehicleid_{size}": Known(partial(listed.plan_vehicleid, size=size), "vehicleid", (listed.VEHICLEID,), VEHICLEID)
    for size in listed.SIZES
}
DATASETS = {
    "market1501": Known(partial(market.plan, num_cameras=6, distractors=True), "market", MARKERS, MARKET),
    "dukemtmc": Known(partial(market.plan, num_cameras=8), "duke", MARKERS, DUKE, without="occlu"),
    "occluded_duke": Known(partial(market.plan, num_cameras=8), "occluded", MARKERS, OCCLUDED),
    "cuhk03": Known(partial(cuhk03.plan, kind="labeled"), "cuhk", MAT_OR_NP, CUHK),
    "cuhk03_detected": Known(partial(cuhk03.plan, kind="detected"), "cuhk", MAT_OR_NP, CUHK),
    "cuhk03_classic": Known(partial(cuhk03.plan_classic, kind="labeled"), "cuhk", MAT_OR_NP[:1], CUHK),
    "cuhk03_classic_detected": Known(partial(cuhk03.plan_classic, kind="detected"), "cuhk", MAT_OR_NP[:1], CUHK),
    "msmt17_v1": Known(partial(listed.plan_msmt17, version="v1"), "msmt17", ("train",), MSMT, without="v2"),
    "msmt17_v2": Known(partial(listed.plan_msmt17, version="v2"), "msmt17", ("mask_train_v2",), MSMT, without="v1"),
    "veri776": Known(market.plan_veri, "veri", (market.VERI["trainval"],), VERI),
    **VEHICLE_ID,
}
ALIASES = {"cuhk03_labeled": "cuhk03", "cuhk03_classic_labeled": "cuhk03_classic"}


def find_raw(name: str, dataset_path: Path) -> Path | None:
    """Raw data of a known dataset under dataset_path, or None.

    In this order: the folder of that name, a folder or an archive named after the dataset,
    and for market1501, whose layout others share, any folder of that layout. People lay out
    their own images like Market-1501, so a folder that the name alone does not settle must have
    the published counts.
    """
    if name not in DATASETS or not dataset_path.is_dir():
        return None
    known = DATASETS[name]
    patterns = [deep + marker for deep in ("", "*/", "*/*/") for marker in known.markers]
    entries = sorted(dataset_path.iterdir())
    entries = [p for p in entries if not p.name.startswith(".") and not (p / "meta.json").exists()]
    folders = [p for p in entries if p.is_dir() and any(next(p.glob(pattern), None) for pattern in patterns)]
    named = [p for p in entries if known.word in p.name.lower() and known.without not in p.name.lower()]
    archives = [p for p in named if p.is_file() and p.name.lower().endswith(ARCHIVES)]
    exact = [p for p in folders if p.name == name]
    others = folders if name == "market1501" else []
    settled = [*exact, *(p for p in folders if p in named), *archives]
    if len(settled) == 1:
        return settled[0]
    fitting = (p for p in [*settled, *others] if p in archives or has_published_counts(name, p))
    return next(fitting, settled[0] if settled else None)


def has_published_counts(name: str, folder: Path) -> bool:
    """Whether a folder can be read as the known dataset, with its counts."""
    try:
        with open_source(folder) as source:
            assert_sound(name, DATASETS[name].read(source), folder)
    except InputError:
        return False
    return True
