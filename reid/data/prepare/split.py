"""Training and test sets of a user's own images: the given split, or a drawn one."""

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from reid.data.messages import indented, shortened
from reid.data.prepare.labelled import Labelled, labelled
from reid.data.prepare.plan import JUNK, ImageRow, Plan, Row, Split
from reid.data.prepare.subsets import KINDS
from reid.data.records import TEST_ONLY, WITHOUT_CAMERAS
from reid.errors import InputError

ByCamera = dict[int, list[int]]  # {camera: positions of the images of one identity}
TEST_SHARE = 0.5
NO_CAMERAS = f"{WITHOUT_CAMERAS}: each query counts as camera 0 and the gallery as camera 1"
SEQUENCES = "sequences take the place of cameras"
NOTES = {"cameras": "", "sequences": SEQUENCES, "files": NO_CAMERAS}  # by what matches differ in


@dataclass(frozen=True)
class Drawing:
    """How a split is made. test_share: None if the user gave none (TEST_SHARE).

    test_only: leave training images out.
    """

    test_share: float | None = None
    seed: int = 0
    test_only: bool = False


def plan_own(rows: list[Row], how: Drawing) -> tuple[Plan, str]:
    """The plan, and how the labels were understood, with three examples."""
    kept = [row for row in rows if row.pid != JUNK]
    used = [row for row in kept if not (how.test_only and row.subset in ("train", "val"))]
    if not used:
        raise InputError(f"none of the {len(rows):,} images can be used: all are junk (identity {JUNK}) or training")
    data = labelled(used)
    split, notes, remarks = draw_split(data, how) if "" in data.subsets else given_split(data, how)
    images = data.images
    if not data.with_cameras:
        if both := shortened([images[i][0] for i in sorted({*split.query} & {*split.gallery})]):
            raise InputError(f"images in both query and gallery: {both}; without cameras they would match themselves")
        gallery = set(split.gallery)
        images = [(name, pid, int(i in gallery)) for i, (name, pid, _) in enumerate(images)]
    assert_matches(split, images, data)
    plan = Plan(images, [split], len(data.labels.cameras), labels=data.labels)
    plan.note = "; ".join(filter(None, [*notes, NOTES[data.differ]]))
    dropped = {f"junk (identity {JUNK})": len(rows) - len(kept), "training images (--test_only)": len(kept) - len(used)}
    plan.dropped.update({reason: count for reason, count in dropped.items() if count})
    return plan, "\n".join([understood(used, data), *remarks])


def given_split(data: Labelled, how: Drawing) -> tuple[Split, list[str], list[str]]:
    """(the user's split, notes for the protocol, remarks). A missing query list is drawn."""
    given = {kind: data.subsets[kind] for kind in KINDS if kind in data.subsets}
    seen = ", ".join(f"{kind} ({len(rows):,} images)" for kind, rows in given.items())
    train = [*given.get("train", ()), *given.get("val", ())]
    if how.test_share is not None:
        raise InputError(f"the images have a split of their own: {seen}; leave out --test_share")
    if not train and not how.test_only:
        raise InputError(f"the split has no training images: {seen}; add train, or make a test set with --test_only")
    tests = sorted({"query", "gallery", "test"} & given.keys())
    notes, remarks = [*[TEST_ONLY] * how.test_only, "split as given"], []
    if tests in (["gallery", "query"], ["query", "test"]):
        split = Split(train, given["query"], given[next(kind for kind in tests if kind != "query")])
    elif tests in (["gallery"], ["test"]):
        query, gallery = draw_test(data, given[tests[0]], random.Random(how.seed))
        split = Split(train, query, gallery)
        notes.append(f"{len(query):,} queries drawn from {tests[0]} with seed {how.seed}")
        remarks.append(f"no query images were given: {notes[-1]}; the other {len(gallery):,} are the gallery")
    else:
        raise InputError(
            f"the split cannot be used: {seen}. A test needs query and gallery (or query and test), or one of gallery "
            "and test, from which queries are drawn; rename the subsets. To draw a test from the training images, "
            "give only their folder as --source"
        )
    if data.held_out:
        remarks.append(
            f"val joins the training set; its {data.held_out:,} identities are the last ones: --train_set train "
            f"--num_val {data.held_out} holds them out"
        )
    elif "val" in given:
        remarks.append("val joins the training set; its identities are those of train")
    return split, notes, remarks


def draw_split(data: Labelled, how: Drawing) -> tuple[Split, list[str], list[str]]:
    """(a drawn split, notes for the protocol, remarks).

    The test gets test_share of the identities with a possible match, and training the others.
    Identities without a match go to training if they have several images of one camera; those
    with one image join the gallery as distractors.
    """
    rng = random.Random(how.seed)
    everything = data.subsets[""]
    if len(data.subsets) > 1:
        raise InputError(f"{len(everything):,} images have no subset, but others have; give all of them one, or none")
    if how.test_only:
        query, gallery = draw_test(data, everything, rng)
        return Split([], query, gallery), [f"{TEST_ONLY}; queries drawn with seed {how.seed}"], []
    places = by_identity(data, everything)
    able = [pid for pid, by_camera in places.items() if matchable(by_camera, data)]
    single = [pid for pid, by_camera in places.items() if sum(map(len, by_camera.values())) == 1]
    share = TEST_SHARE if how.test_share is None else how.test_share
    count = min(max(round(share * len(able)), 1), len(able) - 1, len(places) - len(single) - 2)
    if count < 1:
        hint = "; without cameras (no camid, no {cam}) two images are a match" if data.with_cameras else ""
        raise InputError(
            f"{len(places)} identities, {len(able)} of them with images from two {data.differ}: too few for training "
            f"and test, which need 3 identities with two images, two of them with a match{hint}"
        )
    test = set(rng.sample(able, count))
    split = Split()
    for pid, by_camera in places.items():
        queries = draw_queries(by_camera, rng) if pid in test else []
        split.query += queries
        rows = split.gallery if pid in test or pid in single else split.trainval
        rows += [i for i in sorted(flat(by_camera)) if i not in queries]
    remarks = [
        f"drawn with seed {how.seed}: {count:,} of {len(able):,} identities with images from two {data.differ} are "
        "the test, the others are for training"
    ]
    if single:
        remarks.append(f"{len(single):,} identities with one image join the gallery as distractors")
    if alone := len(places) - len(able) - len(single):
        remarks.append(f"{alone:,} identities with images from one {data.differ[:-1]} are for training only")
    return split, [f"split drawn with seed {how.seed}"], remarks


def draw_test(data: Labelled, rows: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
    """(query, gallery) from the rows of a test. Identities without a match are distractors."""
    query: set[int] = set()
    for by_camera in by_identity(data, rows).values():
        if matchable(by_camera, data):
            query.update(draw_queries(by_camera, rng))
    if not query:
        raise InputError(
            f"no identity of the test has images from two {data.differ}, so no query can be drawn from "
            f"{len(rows):,} images"
        )
    return [i for i in rows if i in query], [i for i in rows if i not in query]


def draw_queries(by_camera: ByCamera, rng: random.Random) -> list[int]:
    """One row of each camera that has two; if no camera has two, one row of one camera."""
    several = [rows for rows in by_camera.values() if len(rows) > 1]
    return [rng.choice(rows) for rows in several or [rng.choice(list(by_camera.values()))]]


def by_identity(data: Labelled, rows: Iterable[int]) -> dict[int, ByCamera]:
    """{pid: {camera: rows}}, sorted by pid."""
    places: dict[int, ByCamera] = defaultdict(lambda: defaultdict(list))
    for i in sorted(rows):
        _, pid, camid = data.images[i]
        places[pid][camid].append(i)
    return dict(sorted(places.items()))


def matchable(by_camera: ByCamera, data: Labelled) -> bool:
    """Whether an identity has images of two cameras; without cameras, two images."""
    return len(by_camera if data.with_cameras else flat(by_camera)) > 1


def flat(by_camera: ByCamera) -> list[int]:
    return [i for rows in by_camera.values() for i in rows]


def assert_matches(split: Split, images: list[ImageRow], data: Labelled) -> None:
    """Raises InputError if no query has a gallery image of its identity from another camera."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for i in split.gallery:
        cameras[images[i][1]].add(images[i][2])
    if any(cameras[images[i][1]] - {images[i][2]} for i in split.query):
        return
    some = [f"{images[i][0]}: identity {data.labels.identity(images[i][1])!r}" for i in split.query]
    others = shortened([repr(data.labels.identity(pid)) for pid in sorted(cameras)], 8)
    raise InputError(
        f"none of the {len(some):,} queries has a gallery image of its identity"
        f"{f' ({data.differ} must differ)' if data.with_cameras else ''}; the gallery has {others}. "
        f"Were identities and cameras read correctly?{indented(some, 3)}"
    )


def understood(rows: list[Row], data: Labelled) -> str:
    labels = data.labels
    pids = {pid: None for _, pid, _ in data.images}
    what = NOTES[data.differ]
    if data.differ == "cameras":
        what = f"{len(labels.cameras)} cameras ({shortened(labels.cameras, 8)})"
    lines = [f"understood: {len(data.images):,} images of {len(pids):,} identities; {what}"]
    numbers = {name: (pid, camid) for name, pid, camid in data.images}
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        pid, camid = numbers[row.name]
        seen = f", camera {labels.camera(camid)!r} = {camid}" if data.with_cameras else ""
        subset = f", {row.subset}" if row.subset else ""
        lines.append(f"  {row.name} -> identity {row.pid!r} = pid {pid}{seen}{subset}")
    return "\n".join(lines)
