"""Milvus gives the answers of a gallery file, keeps nothing of removed entries, and may fail without harm."""

import errno
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import ROOT

pytest.importorskip("pymilvus")
server = pytest.importorskip("milvus_lite.adapter.grpc.server")

from gallery.test_hdf5 import MARK, entries  # noqa: E402

from reid.data.labels import Labels  # noqa: E402
from reid.errors import InputError, MissingInput, StoreUnavailable  # noqa: E402
from reid.gallery import milvus as module  # noqa: E402
from reid.gallery.address import create_gallery, open_gallery  # noqa: E402
from reid.gallery.hdf5 import Gallery  # noqa: E402
from reid.gallery.milvus import Milvus  # noqa: E402
from reid.gallery.recall import recall  # noqa: E402
from reid.gallery.store import Only  # noqa: E402


@pytest.fixture()
def address(tmp_path):
    return f"milvus:{tmp_path}/g.db#people"


def labelled(count=150):
    e = entries(count)
    e.features[50:100] = e.features[:50]  # equally near: the first added comes first
    labels = Labels([f'李 "{i}\\' for i in range(count)], ["gate", "hall"], {"3.jpg": "IMG 3.jpg"})
    return e._replace(labels=labels, pids=np.where(e.pids == 9, -1, e.pids))


def same(one, two):
    for a, b in zip(one, two, strict=True):
        assert a[2:] == b[2:]
        np.testing.assert_allclose(a.distances, b.distances, atol=1e-6)


def test_answers_are_those_of_a_file(tmp_path, address):
    e = labelled()
    file, store = create_gallery(str(tmp_path / "g.h5"), MARK, e), create_gallery(address, MARK, e)
    queries = np.concatenate([entries(7, seed=1).features, e.features[:3]])
    filters = (Only(), Only(['李 "3\\', "absent"]), Only([""]), Only((), ["hall"]), Only(e.labels.identities, ["gate"]))
    for only in filters:
        for top, threshold in ((1, np.inf), (10, 1.5), (200, np.inf), (5, -1)):
            same(file.search(queries, top, threshold, only), store.search(queries, top, threshold, only))
    assert store.listing() == file.listing() and len(store) == 150 == len(open_gallery(address))
    (found,) = store.search(queries[:1], 5)
    np.testing.assert_array_equal(store.features_of(found), e.features[[int(n[:-4]) for n in found.names]])
    for gallery in (file, store):
        gallery.add(MARK, entries(2, seed=5, first=900))
        assert gallery.remove(lambda known: np.array([i in ("", '李 "3\\') for i in known.identities])) == 4
    assert store.listing() == file.listing()
    same(file.search(queries, 10), store.search(queries, 10))


def test_more_ties_than_answers(address):
    """Milvus may return any of equally near entries; the first added are still the answers."""
    e = entries(300)
    e.features[:] = e.features[0]
    assert create_gallery(address, MARK, e).search(e.features[:1], 4)[0].names == e.names[:4]


def test_other_entries_are_refused(tmp_path, address, monkeypatch):
    store = create_gallery(address, MARK, entries(5))
    cases = [
        (MARK._replace(weights="1" * 64), entries(1, first=9), "weights 1{64} instead of 0{64}"),
        (MARK, entries(1, first=3), "3.jpg"),
        (MARK, entries(1, width=9, first=9), "width"),
        (MARK, entries(1)._replace(names=["n" * 5000]), "bytes"),
    ]
    for mark, added, said in cases:
        with pytest.raises(InputError, match=said):
            store.add(mark, added)
    assert len(store) == 5
    for wrong, said in [(address, "already exists"), (address + "-", "letters"), ("milvus:x.db", "COLLECTION")]:
        with pytest.raises(InputError, match=said):
            create_gallery(wrong, MARK, entries(1))
    with pytest.raises(MissingInput, match="gallery create"):
        open_gallery(address + "2")
    with pytest.raises(InputError, match="--dtype"):
        create_gallery(address + "2", MARK, entries(1), "float16")
    with pytest.raises(InputError, match="--index"):
        create_gallery(str(tmp_path / "g.h5"), MARK, entries(1), index="HNSW")
    with pytest.raises(InputError, match="16384"):
        store.search(entries(1).features, 20_000)
    store.client.drop_collection("people")
    create_gallery(address, MARK._replace(flip=False), entries(5))
    with pytest.raises(InputError, match="replaced"):
        store.search(entries(1).features, 1)
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(InputError, match=r"rrid\[milvus\]"):
        open_gallery(address)


def contents(folder):
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


@pytest.mark.parametrize("kind", ["file", "milvus"])
def test_removal_leaves_no_trace(kind, tmp_path):
    folder = tmp_path / kind
    folder.mkdir()
    place = f"milvus:{folder}/g.db#people" if kind == "milvus" else str(folder / "g.h5")
    e = entries(40, width=64)._replace(names=[f"person-{i}-" for i in range(40)])
    e = e._replace(labels=Labels([f"identity-{i}-" for i in range(20)], (), {"person-7-": "source-7-"}))
    gallery = create_gallery(place, MARK, e)
    traces = [b"person-7-", b"person-6-", b"identity-3-", b"source-7-", *(f.tobytes() for f in e.features[6:8])]
    kept = [b"person-8-", e.features[8].tobytes()]

    def found():  # Milvus compresses; its uncompressed index and log hold the features
        data = contents(folder)
        return [trace in data for trace in traces], [trace in data for trace in kept]

    if kind == "milvus":
        gallery.client.flush("people")
    assert found()[0][-2:] == [True, True] and found()[1][1]
    assert gallery.remove(lambda known: np.array([i == "identity-3-" for i in known.identities])) == 2
    if kind == "milvus":
        gallery.client.flush("people")
    assert found()[0] == [False] * 6 and found()[1][1]
    assert len(gallery) == 38


def test_an_interrupted_removal(address, monkeypatch):
    store = create_gallery(address, MARK, entries(10))

    def killed(old, new):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.client, "rename_collection", killed)
    with pytest.raises(KeyboardInterrupt):
        store.remove(lambda known: np.array([n == "3.jpg" for n in known.names]))
    assert len(open_gallery(address)) == 9  # the new collection takes the place of the old
    store = open_gallery(address)
    monkeypatch.setattr(store.client, "drop_collection", killed)
    monkeypatch.setattr(Milvus, "write", lambda *_: killed("", ""))
    with pytest.raises(KeyboardInterrupt):
        store.remove(lambda known: np.array([n == "4.jpg" for n in known.names]))
    assert len(open_gallery(address)) == 9  # the old one is complete, the new one is not


@contextmanager
def serving(folder, port=0):
    """A server, as a cluster is one."""
    served, database, port = server.start_server_in_thread(str(folder), port=port)
    try:
        yield port
    finally:
        served.stop(grace=None).wait()
        database.close()


def test_a_server_that_goes_and_returns(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 3.0)
    folder, query = tmp_path / "server.db", entries(1).features
    with serving(folder) as port:
        store = create_gallery(f"milvus:http://127.0.0.1:{port}#people", MARK, entries(20))
        assert not store.local and store.remove(lambda known: np.arange(20) == 3) == 1
        expected = store.search(query, 30)
        assert len(expected[0].names) == len(store) == 19
    for call in (lambda: store.search(query, 3), lambda: open_gallery(store.address)):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            call()
    with serving(folder, port):
        until = time.monotonic() + 30
        while True:  # gRPC waits between attempts
            try:
                same(store.search(query, 30), expected)
                break
            except StoreUnavailable:
                assert time.monotonic() < until, "the same object does not recover"
                time.sleep(0.2)


def test_full_disk(address, monkeypatch):
    from milvus_lite.storage.wal import WAL

    store = create_gallery(address, MARK, entries(5))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(WAL, "write_insert", full)
        with pytest.raises(StoreUnavailable, match="No space"):
            store.add(MARK, entries(3, first=10))
    assert len(store) == 5
    store.add(MARK, entries(3, first=10))
    assert len(store) == 8


ADDING = """
import sys
import numpy as np
from gallery.test_hdf5 import MARK, entries
from reid.gallery.address import create_gallery
gallery = create_gallery(sys.argv[1], MARK, entries(1))
for step in range(100000):
    gallery.add(MARK, entries(20, seed=step, first=100 * step + 100))
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_while_adding(address):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}){ADDING}"
    with subprocess.Popen([sys.executable, "-c", code, address], cwd=ROOT, stdout=subprocess.PIPE, text=True) as added:
        steps = [added.stdout.readline() for _ in range(3)]
        added.kill()
    assert steps == ["0\n", "1\n", "2\n"]
    store = open_gallery(address)
    names = store.listing().names
    assert len(names) % 20 == 1 and {f"{100 * s + 100 + i}.jpg" for s in range(3) for i in range(20)} <= set(names)
    found = store.search(entries(20, seed=2).features, 1)
    assert [a.names[0] for a in found] == [f"{300 + i}.jpg" for i in range(20)]
    store.add(MARK, entries(2, seed=9, first=5))


@pytest.mark.parametrize("index", ["FLAT", "HNSW", "IVF_FLAT"])
def test_recall(index, address):
    store = create_gallery(address, MARK, entries(200), index=index)
    assert store.info()["index"] == index
    with store.entries() as e:
        assert recall(store, e, 20) >= (1.0 if index == "FLAT" else 0.8)


def test_recall_of_a_wrong_search(tmp_path, monkeypatch):
    file = Gallery.create(tmp_path / "g.h5", MARK, entries(200))
    with file.entries() as e:
        assert recall(file, e, 20) == 1
        search = file.search
        monkeypatch.setattr(
            file, "search", lambda q, top: [a._replace(distances=a.distances[:5]) for a in search(q, top)]
        )
        assert recall(file, e, 20) == 0.5
