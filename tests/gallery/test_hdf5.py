"""Galleries: search equals a full sort, changes are whole or not made, files survive kills and full disks."""

import errno
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc

import h5py
import numpy as np
import pytest
from conftest import ROOT

from reid.data.labels import Labels
from reid.errors import InputError, MissingInput
from reid.files import locked
from reid.gallery import hdf5 as module
from reid.gallery import store
from reid.gallery.hdf5 import Gallery
from reid.gallery.store import Entries, Fingerprint

MARK = Fingerprint("0" * 64, "64x32", True)


def entries(count, width=8, seed=0, first=0) -> Entries:
    features = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    numbers = np.arange(first, first + count)
    return Entries(features, [f"{i}.jpg" for i in numbers], numbers // 2, numbers % 2)


def content(gallery: Gallery):
    with gallery.open() as f:  # all of one state: another process may change the file between two openings
        identities = f["labels/identities"].asstr()[:].astype(int)  # of these tests: numbers as text
        return f["features"][:], f["names"].asstr()[:].tolist(), identities[f["pids"][:]], f["camids"][:]


@pytest.mark.parametrize("chunk", [1, 100, 1 << 24])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_search_equals_a_sort_of_all_distances(chunk, dtype, tmp_path, monkeypatch):
    for part in (module, store):
        monkeypatch.setattr(part, "CHUNK", chunk)
    e = entries(150)
    e.features[50:100] = e.features[:50]  # equally near: the first added comes first
    gallery = Gallery.create(tmp_path / "g.h5", MARK, e, dtype)
    queries = entries(7, seed=1).features
    stored = e.features.astype(dtype).astype(np.float32)
    distances = 2 - 2 * queries @ stored.T
    for top in (1, 10, 150, 999):
        order = distances.argsort(1, kind="stable")[:, :top]
        for row, answers in zip(range(7), gallery.search(queries, top)):
            near = distances[row, answers.rows]
            np.testing.assert_allclose(near, distances[row, order[row]], atol=1e-6)  # the same up to rounding
            np.testing.assert_allclose(answers.distances, near, atol=1e-6)
            assert answers.names == [e.names[i] for i in answers.rows]
            assert answers.identities == [str(pid) for pid in e.pids[answers.rows]]
            assert answers.cameras == [str(camid) for camid in e.camids[answers.rows]]
            assert answers.sources == answers.names
    for answers in gallery.search(e.features[:5].astype(dtype), 2):
        assert answers.rows[1] == answers.rows[0] + 50
    limit = float(np.median(distances[0]))
    assert len(gallery.search(queries[:1], 150, limit)[0].names) == (distances[0] <= limit).sum()
    assert gallery.search(queries[:1], 5, -1)[0].names == []


def test_add_and_remove_equal_lists(tmp_path):
    gallery, rng = Gallery.create(tmp_path / "g.h5", MARK, entries(5)), random.Random(0)
    rows = dict(zip(entries(5).names, entries(5).features))
    for step in range(1, 12):
        new = entries(rng.randrange(4), seed=step, first=10 * step)
        gallery.add(MARK, new)
        rows |= dict(zip(new.names, new.features))
        gone = set(rng.sample(sorted(rows), min(len(rows), rng.randrange(3))))
        assert gallery.remove(lambda known, gone=gone: np.array([n in gone for n in known.names], bool)) == len(gone)
        rows = {n: f for n, f in rows.items() if n not in gone}
        features, names, *_ = content(gallery)
        assert names == list(rows) and len(gallery) == len(rows)
        np.testing.assert_array_equal(features, np.array([*rows.values()]).reshape(-1, 8))
        numbers = [int(n[:-4]) for n in names]
        assert gallery.listing() == (names, [str(n // 2) for n in numbers], [str(n % 2) for n in numbers])
    gallery.remove(lambda known: np.ones(len(known.names), bool))
    assert len(gallery) == 0 and gallery.search(entries(2).features, 3)[0].names == []
    gallery.add(MARK, entries(3))
    assert len(gallery) == 3


def test_labels_are_text_and_join(tmp_path):
    """Pids are numbers of one source; the gallery goes by labels, which are kept as they are."""
    first = entries(4)._replace(labels=Labels(["anna", " anna", "7"], ["Camera 012", "gate"], {"0.jpg": "IMG 1.jpg"}))
    first = first._replace(pids=np.array([0, 1, 2, -1]))
    gallery = Gallery.create(tmp_path / "g.h5", MARK, first)
    second = entries(3, seed=1, first=10)._replace(pids=np.array([7, 0, 1]), labels=Labels(["李雷", "anna"]))
    gallery.add(MARK, second._replace(camids=np.array([-1, 5, 0])))
    names = [*first.names, *second.names]
    identities, cameras = ["anna", " anna", "7", "", "7", "李雷", "anna"], ["Camera 012", "gate"] * 2 + ["", "5", "0"]
    assert gallery.listing() == (names, identities, cameras)
    with gallery.open() as f:
        assert f.attrs["gallery"] == 2 and set(f["labels/identities"].asstr()[:]) == {"anna", " anna", "7", "李雷"}
    (found,) = gallery.search(first.features[:1], 7)
    assert [identities[i] for i in found.rows] == found.identities
    assert [cameras[i] for i in found.rows] == found.cameras
    assert dict(zip(found.names, found.sources)) == {name: name for name in names} | {"0.jpg": "IMG 1.jpg"}
    assert gallery.remove(lambda known: np.array([identity == "anna" for identity in known.identities])) == 2
    assert gallery.listing().identities == [" anna", "7", "", "7", "李雷"]
    assert "0.jpg" not in gallery.listing().names


def test_format_1_is_read_and_becomes_format_2(tmp_path):
    """Its numbers are the labels."""
    e = entries(6)
    with h5py.File(tmp_path / "g.h5", "w") as f:
        f.create_dataset("names", data=e.names, dtype=h5py.string_dtype())
        f["pids"], f["camids"], f["features"] = np.array([5, 5, 9, -1, 9, 2]), e.camids, e.features
        f.attrs.update({"gallery": 1, **MARK._asdict()})
    gallery = Gallery(tmp_path / "g.h5")
    assert gallery.listing().identities == ["5", "5", "9", "", "9", "2"]
    assert gallery.search(e.features[3:4], 1)[0].identities == [""]
    assert gallery.search(e.features[2:3], 1)[0].identities == ["9"]
    gallery.add(MARK, entries(1, seed=1, first=9)._replace(pids=np.array([0]), labels=Labels(["5"])))
    assert gallery.listing().identities == ["5", "5", "9", "", "9", "2", "5"]
    with gallery.open() as f:
        assert f.attrs["gallery"] == 2
    with h5py.File(gallery.path, "r+") as f:
        f.attrs["gallery"] = 3
    with pytest.raises(InputError, match="not a gallery"):
        Gallery(gallery.path)


def test_unsound_entries_are_refused_whole(tmp_path):
    gallery = Gallery.create(tmp_path / "g.h5", MARK, entries(5))
    before = gallery.path.read_bytes()
    e = entries(3, first=10)
    bad = e.features.copy()
    bad[1, 2] = np.nan
    cases = [
        (MARK, e._replace(names=["10.jpg", "11.jpg", "3.jpg"]), "3.jpg"),
        (MARK, e._replace(names=["10.jpg", "10.jpg", "11.jpg"]), "twice"),
        (MARK, e._replace(features=bad), "length"),
        (MARK, e._replace(features=2 * e.features), "length"),
        (MARK, entries(3, width=9, first=10), "width"),
        (MARK._replace(weights="1" * 64), e, "another model"),
        (MARK._replace(size="384x128"), e, "size 384x128 instead of 64x32"),
        (MARK._replace(flip=False), e, "flip False"),
    ]
    for mark, added, said in cases:
        with pytest.raises(InputError, match=said):
            gallery.add(mark, added)
        assert gallery.path.read_bytes() == before
    with pytest.raises(InputError, match="queries"):
        gallery.search(entries(2, width=9).features, 3)
    with pytest.raises(InputError, match="already exists"):
        Gallery.create(gallery.path, MARK, entries(2))


def test_files_that_are_no_gallery(tmp_path):
    path = tmp_path / "g.h5"
    with pytest.raises(MissingInput):
        Gallery(path)
    Gallery.create(path, MARK, entries(50))
    whole = path.read_bytes()
    for harmed in (b"", b"text", whole[: len(whole) // 2], whole[:3000]):
        path.write_bytes(harmed)
        with pytest.raises(InputError):
            Gallery(path)
    with h5py.File(path, "w") as f:
        f["features"] = np.zeros((2, 2))
    with pytest.raises(InputError, match="not a gallery"):
        Gallery(path)


def test_damaged_inside(tmp_path):
    """Numbers that are no descriptor any more are told, also where the file's structure is whole."""
    gallery = Gallery.create(tmp_path / "g.h5", MARK, entries(50))
    with h5py.File(gallery.path, "r+") as f:
        f["features"][33, 2] = np.nan
    with pytest.raises(InputError, match="damaged: the feature of entry 33"):
        gallery.search(entries(1).features, 3)


def test_lists_of_different_length_are_damage(tmp_path):
    gallery = Gallery.create(tmp_path / "g.h5", MARK, entries(5))
    with h5py.File(gallery.path, "r+") as f:
        f.pop("names")
        f.create_dataset("names", data=["a"], dtype=h5py.string_dtype())
    with pytest.raises(InputError, match="differ in length"):
        Gallery(gallery.path)


def test_full_disk_leaves_the_old_state(tmp_path, monkeypatch):
    gallery = Gallery.create(tmp_path / "g.h5", MARK, entries(5))
    before = gallery.path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space"):
        gallery.add(MARK, entries(3, first=10))
    assert gallery.path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.h5"]


def test_what_does_not_go_together(tmp_path):
    e = entries(5)
    for odd in (e._replace(camids=e.camids[:3]), e._replace(pids=e.pids[:3]), e._replace(names=e.names[:3]),
                e._replace(features=e.features[0])):  # fmt: skip
        with pytest.raises(InputError, match="features have shape"):
            Gallery.create(tmp_path / "g.h5", MARK, odd)
    assert not list(tmp_path.iterdir())
    gallery = Gallery.create(tmp_path / "g.h5", MARK, e)
    for odd in (np.full((1, 8), np.nan), np.full((1, 8), 2.0)):
        with pytest.raises(InputError, match="query 0 does not have length 1"):
            gallery.search(odd, 3)


def test_removal_needs_little_memory(tmp_path, monkeypatch):
    """Also when the two outermost entries are all that stays."""
    for part in (module, store):
        monkeypatch.setattr(part, "CHUNK", 1 << 14)
    gallery = Gallery.create(tmp_path / "g.h5", MARK, entries(40_000, width=64))
    tracemalloc.start()
    try:
        gallery.remove(lambda known: np.array([i not in ("0", "19999") for i in known.identities]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    e, (features, names, *_) = entries(40_000, width=64), content(gallery)
    assert names == [e.names[i] for i in (0, 1, 39_998, 39_999)] and peak < 40_000 * 64 * 4  # names take most of it
    np.testing.assert_array_equal(features, e.features[[0, 1, -2, -1]])


ADDING = """
import sys
import numpy as np
from pathlib import Path
from reid.gallery.hdf5 import Gallery
from reid.gallery.store import Entries, Fingerprint
gallery, run = Gallery(sys.argv[1]), sys.argv[2]
for step in range(100000):
    features = np.zeros((20, 64), np.float32)
    features[:, step % 64] = 1
    names = [f"{run}-{step}-{i}" for i in range(20)]
    gallery.add(gallery.fingerprint, Entries(features, names, np.full(20, step), np.zeros(20, int)))
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_while_adding(tmp_path):
    """Two processes add at once and are killed at random moments: only whole additions, and none that was reported is
    lost."""
    gallery, rng = Gallery.create(tmp_path / "g.h5", MARK, entries(1, width=64)), random.Random(0)
    reported, runs = set(), ["one", "two"]
    started = [
        subprocess.Popen([sys.executable, "-c", ADDING, str(gallery.path), run], cwd=ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True)
        for run in runs
    ]  # fmt: skip
    try:
        for process, run in zip(started, runs):
            reported |= {f"{run}-{process.stdout.readline().strip()}" for _ in range(3)}
        for process, run in zip(started, runs):
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            reported |= {f"{run}-{line}" for line in process.communicate()[0].split()}
            features, names, pids, _ = content(gallery)  # here the other one may go on
            steps = [n.rsplit("-", 1)[0] for n in names[1:]]
            assert all(steps.count(s) == 20 for s in set(steps)) and {s for s in reported if run in s} <= set(steps)
            assert len(features) == len(names) == len(pids) and (features[1:].max(1) == 1).all()
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()
    features, _, pids, _ = content(gallery)
    assert reported <= set(steps) and (features[1:].argmax(1) == pids[1:] % 64).all()
    gallery.add(MARK, entries(1, width=64, first=5))  # no lock is left, and what the killed left is cleaned away
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.h5"]


def test_a_second_change_waits(tmp_path, caplog):
    gallery = Gallery.create(tmp_path / "g.h5", MARK, entries(2))
    other = threading.Thread(target=gallery.add, args=(MARK, entries(2, first=10)))
    with locked(gallery.path):
        other.start()
        other.join(0.3)
        assert other.is_alive() and len(gallery) == 2  # readers are not kept waiting
    other.join(20)
    assert len(gallery) == 4 and "waiting for another process" in caplog.text


def test_search_needs_little_memory(tmp_path, monkeypatch):
    for part in (module, store):
        monkeypatch.setattr(part, "CHUNK", 1 << 14)
    gallery = Gallery.create(tmp_path / "g.h5", MARK, entries(40_000, width=64))
    queries = entries(3, width=64).features
    gallery.search(queries, 5)
    tracemalloc.start()
    try:
        gallery.search(queries, 5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40_000 * 64 * 4 / 8
