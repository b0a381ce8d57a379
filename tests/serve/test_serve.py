"""The server: equal answers, batches, changes, bad input, faults; a real one in a thread or a process."""

import os
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import make_weights, run_reid
from serve.client import Client, form, picture, serving, wait_for

from reid.__main__ import main
from reid.errors import InputError, StoreUnavailable
from reid.evaluation.pooling import POOLS, pool
from reid.files import locked
from reid.gallery.address import create_gallery
from reid.gallery.hdf5 import Gallery
from reid.gallery.store import Entries, Fingerprint, Only
from reid.inference.extractor import Extractor
from reid.serve import guard
from reid.serve.service import Limits, Refused, Setup, is_safe, one_query

SEARCH, ENTRIES = "/v1/search", "/v1/entries"
TOKEN = "a token of some length"


@pytest.fixture(scope="module")
def extractor(weights):
    return Extractor(weights, num_workers=1)


@pytest.fixture()
def gallery(extractor, images, tmp_path) -> Path:
    """A gallery of the first 12 images: 3 identities in 2 cameras."""
    return make_gallery(tmp_path / "g.h5", extractor, images[:12])


def make_gallery(path: Path, extractor, images) -> Path:
    labels = [Path(image).name.split("_") for image in images]
    pids, camids = (np.array([int(row[i]) for row in labels]) for i in (0, 1))
    names = [Path(os.path.relpath(image, path.parent)).as_posix() for image in images]
    size = "x".join(map(str, extractor.size))
    Gallery.create(path, Fingerprint(extractor.sha256, size, True), Entries(extractor(images), names, pids, camids))
    return path


class Gate:
    """An engine that waits until it is opened, and notes the sizes of its batches."""

    def __init__(self, engine):
        self.engine, self.sizes, self.opened, self.entered = engine, [], threading.Event(), threading.Event()
        self.name, self.device = engine.name, engine.device

    def __call__(self, batch):
        self.sizes.append(len(batch))
        self.entered.set()
        assert self.opened.wait(20)
        return self.engine(batch)


@contextmanager
def gated(extractor, gallery, setup=None):
    """A server whose model is busy with one image until the gate is opened."""
    with serving(extractor, gallery, setup) as client:
        gate = extractor.engine = Gate(extractor.engine)
        try:
            busy = in_threads(lambda: client.ask("POST", SEARCH, [("busy.png", picture(0))]), 1)
            assert gate.entered.wait(20)
            yield client, gate
        finally:
            gate.opened.set()
            [thread.join(20) for thread in busy]
            extractor.engine = gate.engine


def in_threads(work, count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=work) for _ in range(count)]
    [thread.start() for thread in threads]
    return threads


def limited(**limits) -> Setup:
    return Setup(replace(Limits(), **limits))


# the interface


def test_answers_equal_those_of_the_command(extractor, gallery, images, weights, script, tmp_path):
    query = images[2]
    flags = ["--weights", weights, "--images", query, "--csv", tmp_path / "a.csv", "--top", 5]
    done = run_reid(script, "gallery", "search", gallery, *flags)
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()[1:]]
    with serving(extractor, gallery) as client:
        answers = client.search(query, top=5)["answers"]
    assert [a["name"] for a in answers] == [row[2] for row in rows]
    assert [(a["pid"], a["camid"]) for a in answers] == [(row[4], row[5]) for row in rows]
    np.testing.assert_allclose([a["distance"] for a in answers], [float(row[3]) for row in rows], atol=1e-5)


def test_searches_of_every_kind(extractor, gallery, images):
    stored = Gallery(gallery)
    descriptors = extractor(images[10:14])
    with serving(extractor, gallery) as client:
        found = client.search(*images[10:14], top=12)["queries"]
        for answers, expected in zip(found, stored.search(descriptors, 12)):
            assert [a["name"] for a in answers["answers"]] == expected.names
        _, described, _ = client.ask("POST", "/v1/describe", images[10:14])
        np.testing.assert_allclose(described["descriptors"], descriptors, atol=1e-5)
        assert described["weights"] == extractor.sha256
        [only] = stored.search(descriptors[:1], 9, only=Only(("1", "2"), ("1",)))
        assert client.names(images[10], pid=["1", "2"], camid="1", top=9) == only.names
        near = float(stored.search(descriptors[:1], 4)[0].distances[3])
        assert len(client.names(images[10], threshold=near + 1e-4, top=9)) == 4
        assert client.names(images[10], pid="nobody") == []
        status, info, _ = client.ask("GET", "/v1/gallery")
        assert status == 200 and info["entries"] == 12 and info["weights"] == extractor.sha256


@pytest.mark.parametrize("how", [*POOLS])
def test_several_images_are_one_query(how, extractor, gallery, images):
    query = pool(extractor(images[12:15]), how)
    [expected] = Gallery(gallery).search(query[None], 5, only=Only((), ("1",)))
    with serving(extractor, gallery) as client:
        answers = client.search(*images[12:15], multi_query=how, top=5, camid="1", explain=True)["answers"]
        assert "'mean' or 'max'" in client.refused(422, "POST", SEARCH + "?multi_query=median", images[:1])
    assert [a["name"] for a in answers] == expected.names
    np.testing.assert_allclose([a["distance"] for a in answers], expected.distances, atol=1e-5)
    assert all(abs(sum(a["parts"]) - a["distance"]) < 1e-4 for a in answers)


def test_nothing_that_is_given_is_ignored(extractor, gallery, images):
    with serving(extractor, gallery) as client:
        assert "'topp'" in client.refused(422, "POST", SEARCH + "?topp=3", images[:1])
        assert "known are image" in client.refused(422, "POST", SEARCH, images[:1], top="3")
        assert "'pid'" in client.refused(422, "POST", ENTRIES + "?pid=anna", [("a.png", picture(0))])
        assert "2 times" in client.refused(422, "POST", ENTRIES, [("a.png", picture(0))], pid=["anna", "bob"])
        assert "2 times" in client.refused(422, "POST", SEARCH + "?top=1&top=2", images[:1])
        assert "'camid'" in client.refused(422, "DELETE", ENTRIES + "?pid=1&camid=1")
        assert "known are none" in client.refused(422, "GET", "/v1/gallery?top=1")
        assert client.ask("GET", "/v1/gallery")[1]["entries"] == 12


def test_a_pooled_query_of_length_zero_is_refused():
    with pytest.raises(Refused, match="is zero"):
        one_query(np.array([[1, 0], [-1, 0]]), "mean")


def test_explained_answers_have_parts_that_sum_to_the_distance(extractor, gallery, images):
    with serving(extractor, gallery, Setup(root=gallery.parent)) as client:
        plain = client.search(images[0])["answers"]
        answers = client.search(images[0], explain=True)["answers"]
        slots = client.ask("GET", "/v1/gallery")[1]["slots"]
    assert [s["name"] for s in slots] == ["1 of 2", "2 of 2", "whole"]
    assert "parts" not in plain[0] and "thumbnail" not in plain[0]
    for answer in answers:
        assert len(answer["parts"]) == len(slots) and answer["thumbnail"].startswith("data:image/webp;base64,")
        assert abs(sum(answer["parts"]) - answer["distance"]) < 1e-4


def test_requests_that_arrive_together_are_one_forward(extractor, gallery, images):
    alone = Gallery(gallery).search(extractor(images[:8]), 3)
    with gated(extractor, gallery) as (client, gate):
        found: dict[int, list[str]] = {}
        numbers = iter(range(8))
        threads = in_threads(lambda: found.update({(i := next(numbers)): client.names(images[i], top=3)}), 8)
        wait_for(lambda: len(client.service.images.waiting) == 8)
        gate.opened.set()
        [thread.join(20) for thread in threads]
        assert gate.sizes == [1, 8]
        assert [found[i] for i in range(8)] == [answers.names for answers in alone]
        assert 'reid_batch_images_bucket{le="8.0"} 3.0' in client.ask("GET", "/metrics")[1]


def test_a_full_queue_refuses_and_recovers(extractor, gallery, images):
    with gated(extractor, gallery, limited(queue=2, images=2)) as (client, gate):
        threads = in_threads(lambda: client.search(*images[:2]), 1)
        wait_for(lambda: len(client.service.images.waiting) == 2)
        assert "waiting" in client.refused(503, "POST", SEARCH, images[:1])
        gate.opened.set()
        threads[0].join(20)
        assert client.names(images[0])


def test_too_many_requests_at_once_are_refused(extractor, gallery, images):
    with gated(extractor, gallery, limited(requests=2)) as (client, gate):
        threads = in_threads(lambda: client.search(images[0]), 1)
        wait_for(lambda: len(client.service.images.waiting) == 1)
        assert "too many" in client.refused(503, "GET", "/v1/gallery")
        assert client.ask("GET", "/health")[0] == 200
        gate.opened.set()
        threads[0].join(20)
        assert client.ask("GET", "/v1/gallery")[0] == 200


# changes


def test_add_and_remove(extractor, gallery, tmp_path):
    keep = tmp_path / "kept"
    content = picture(1, "JPEG")
    with serving(extractor, gallery, Setup(keep=keep)) as client:
        new = [("a.jpg", content), ("b.png", picture(2))]
        status, added, _ = client.ask("POST", ENTRIES, new, name=["new/a.jpg", "b.png"], pid="anna 李", camid="gate")
        assert (status, added) == (201, {"added": 2, "entries": 14})
        [first, *_] = client.search(("x", content))["answers"]
        assert (first["name"], first["pid"], first["camid"]) == ("new/a.jpg", "anna 李", "gate")
        shown = client.search(("x", content), explain=True)["answers"][0]["thumbnail"]
        assert shown.startswith("data:image/webp")
        assert (keep / "new/a.jpg").read_bytes() == content and (keep / "b.png").is_file()
        assert "used already" in client.refused(409, "POST", ENTRIES, new, name=["c.jpg", "b.png"])
        client.refused(404, "DELETE", ENTRIES + "?name=b.png&name=absent")
        assert len(Gallery(gallery)) == 14
        before = gallery.read_bytes()
        descriptor = extractor([np.asarray(client.service.decode(content, "x"))])[0].tobytes()
        assert b"anna" in before and b"new/a.jpg" in before
        assert client.ask("DELETE", ENTRIES + "?pid=anna%20%E6%9D%8E")[1] == {"removed": 2}
        assert "new/a.jpg" not in client.names(("x", content))
    after = gallery.read_bytes()
    assert b"anna" not in after and b"new/a.jpg" not in after and b"gate" not in after
    assert descriptor[:64] not in after
    assert [p for p in keep.rglob("*") if p.is_file()] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.h5", "kept"]


def test_a_removed_descriptor_was_in_the_file(extractor, gallery, images):
    """The bytes that a removal deletes: a row that is found before is not found after it."""
    row = extractor(images[:1])[0]
    stored = Gallery(gallery)
    [answers] = stored.search(row[None], 1)
    exact = stored.features_of(answers)[0].tobytes()
    assert exact in gallery.read_bytes()
    with serving(extractor, gallery) as client:
        client.ask("DELETE", f"{ENTRIES}?pid={answers.identities[0]}")
    assert exact not in gallery.read_bytes() and len(Gallery(gallery)) == 8


def test_nothing_is_kept_without_being_asked(extractor, gallery, images, tmp_path):
    with serving(extractor, gallery) as client:
        client.ask("POST", ENTRIES, [("new.png", picture(1))])
        client.search(images[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.h5"]


@pytest.mark.parametrize("name", ["../x.png", "/etc/x", "a/../b", "a\\b", "C:x", "", ".", "a//b", "x\n", "n" * 201,
                                  "nul", "a/CON.png", "a./b", "a.png "])  # fmt: skip
def test_names_that_leave_the_folder_are_refused(name, extractor, gallery, tmp_path):
    assert not is_safe(name) and is_safe("folder/a b-1.png")


def test_entries_that_cannot_be_added(extractor, gallery, images, tmp_path):
    (tmp_path / "private.png").write_bytes(picture(5))
    setup = Setup(root=tmp_path, keep=tmp_path / "kept")
    with serving(extractor, gallery, setup) as client:
        one = [("a.png", picture(1))]
        assert "relative path" in client.refused(422, "POST", ENTRIES, one, name="../a.png")
        assert "names for 1 images" in client.refused(422, "POST", ENTRIES, one, name=["a", "b"])
        assert "its own" in client.refused(422, "POST", ENTRIES, one * 2)
        assert "label" in client.refused(422, "POST", ENTRIES, one, pid="a\tb")
        assert "used already" in client.refused(409, "POST", ENTRIES, one, name="private.png")  # would be shown
        client.ask("POST", ENTRIES, one)  # without identity
        for everything in ("", "?pid=", "?pid=-1", "?pid=1&pid="):
            assert "only names" in client.refused(422, "DELETE", ENTRIES + everything)
        assert client.ask("DELETE", ENTRIES + "?name=a.png")[1] == {"removed": 1}
        assert len(Gallery(gallery)) == 12 and not list((tmp_path / "kept").glob("*"))


@pytest.mark.skipif(os.name == "nt", reason="Windows makes links for administrators only")
def test_links_do_not_lead_out_of_the_kept_images(extractor, gallery, tmp_path):
    keep, outside = tmp_path / "kept", tmp_path / "outside"
    [folder.mkdir() for folder in (keep, outside)]
    (keep / "link").symlink_to(outside)
    (keep / "absent.png").symlink_to(outside / "new.png")
    with serving(extractor, gallery, Setup(keep=keep)) as client:
        assert "kept images" in client.refused(422, "POST", ENTRIES, [("a.png", picture(1))], name="link/a.png")
        assert "used already" in client.refused(409, "POST", ENTRIES, [("a.png", picture(1))], name="absent.png")
        assert not [*outside.iterdir()] and len(Gallery(gallery)) == 12
        (keep / "link").unlink()
        (keep / "link").mkdir()
        assert client.ask("POST", ENTRIES, [("a.png", picture(1))], name="link/a.png")[0] == 201
        os.rename(keep / "link", outside / "link")
        (keep / "link").symlink_to(outside / "link")
        assert client.ask("DELETE", ENTRIES + "?name=link/a.png")[1] == {"removed": 1}
    assert (outside / "link/a.png").is_file()


def test_two_servers_on_one_gallery(extractor, gallery, images):
    with serving(extractor, gallery) as one, serving(extractor, gallery) as two:
        new = ("new.png", picture(9))
        one.ask("POST", ENTRIES, [new])
        assert two.names(new)[0] == "new.png"
        assert two.ask("DELETE", ENTRIES + "?name=new.png")[1] == {"removed": 1}
        assert "new.png" not in one.names(new, top=20)
        both = [threading.Thread(target=c.ask, args=("POST", ENTRIES, [(f"{i}.png", picture(i))]))
                for i, c in enumerate([one, two] * 3)]  # fmt: skip
        [thread.start() for thread in both]
        [thread.join(20) for thread in both]
        assert one.ask("GET", "/v1/gallery")[1]["entries"] == 18


# bad input


def header_of(width: int, height: int) -> bytes:
    """A PNG that claims to have this size, of a few bytes."""
    chunk = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    parts = b""
    for kind, data in ((b"IHDR", chunk), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        parts += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.fixture(scope="module")
def standing(extractor, images, tmp_path_factory):
    """A server that all requests with bad input share."""
    path = make_gallery(tmp_path_factory.mktemp("standing") / "g.h5", extractor, images[:12])
    with serving(extractor, path, limited(body=1 << 20, images=3, pixels=1_000_000)) as client:
        yield client


@pytest.mark.parametrize("content, words", [
    (b"hello, world", "is not an image"),
    (b"", "is empty"),
    (header_of(10_000, 8_000), "has 10000 x 8000 pixels"),
    (header_of(20_000, 20_000), "pixels"),
    (picture(1, "JPEG", (256, 256))[:600], "is damaged"),
    (picture(1, "TIFF"), "is not an image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
])  # fmt: skip
@pytest.mark.parametrize("path", [SEARCH, ENTRIES])
def test_bad_images(content, words, path, standing, images):
    sentence = standing.refused(422, "POST", path, [("my.png", content)])
    assert "my.png" in sentence and words in sentence
    assert standing.names(images[0])


@pytest.mark.parametrize("status, method, path, count, words", [
    (422, "POST", SEARCH, 0, "field `image`"),
    (413, "POST", SEARCH, 4, "expected 1 to 3"),
    (422, "POST", SEARCH + "?top=0", 1, "top"),
    (422, "POST", SEARCH + "?top=101", 1, "top"),
    (422, "POST", SEARCH + "?threshold=nan", 1, "threshold"),
    (422, "POST", SEARCH + "?threshold=-1", 1, "threshold"),
    (404, "GET", "/v1/nothing", 0, "Not Found"),
    (405, "PUT", SEARCH, 0, "Method Not Allowed"),
])  # fmt: skip
def test_bad_requests(status, method, path, count, words, standing):
    assert words in standing.refused(status, method, path, [("a.png", picture(1))] * count)


def test_a_body_beyond_the_limit_is_not_read(standing, images):
    assert "large" in standing.refused(413, "POST", SEARCH, [("a.png", bytes(1 << 20))]).lower()
    with socket.create_connection(("127.0.0.1", standing.port), 20) as client:  # a length is not needed to refuse
        head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=limit\r\n"
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        start = form([("a.png", b"")], {})[:-13]
        for block in (start, *[bytes(0x20000)] * 9):
            client.sendall(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        assert b" 413 " in client.recv(100)
    assert standing.names(images[0])


def test_a_fault_of_the_model_is_one_answer(extractor, gallery, images, monkeypatch):
    with serving(extractor, gallery) as client:
        with monkeypatch.context() as m:
            m.setattr(extractor, "engine", lambda batch: 1 / 0)
            assert client.ask("POST", SEARCH, images[:1])[0] == 500
        assert client.names(images[0])


# faults


def test_a_gallery_of_other_weights(extractor, gallery, images, weights, tmp_path):
    other = Extractor(make_weights(tmp_path / "other.pth", seed=1), num_workers=0)
    theirs = make_gallery(tmp_path / "theirs.h5", other, images[:4])
    with pytest.raises(InputError, match="another model"), serving(extractor, theirs):
        pass
    ours = gallery.read_bytes()
    with serving(extractor, gallery) as client:
        os.replace(theirs, gallery)
        for method, path, sent in (("POST", SEARCH, images[:1]), ("POST", ENTRIES, [("n.png", picture(1))])):
            assert "cannot be used" in client.refused(503, method, path, sent)
        gallery.unlink()
        client.refused(503, "GET", "/health")
        gallery.write_bytes(b"not a gallery")
        client.refused(503, "POST", SEARCH, images[:1])
        gallery.write_bytes(ours)
        assert client.names(images[0])
        assert client.ask("GET", "/health")[:2] == (200, {"status": "ok"})
    assert gallery.read_bytes() == ours


def test_disk_full_on_add(extractor, gallery, images, full_disk, tmp_path):
    before = gallery.read_bytes()
    with serving(extractor, gallery, Setup(keep=tmp_path / "kept")) as client:
        with full_disk():
            assert "disk" in client.refused(507, "POST", ENTRIES, [("n.png", picture(1))])
        assert gallery.read_bytes() == before and client.names(images[0])
        assert client.ask("POST", ENTRIES, [("n.png", picture(1))])[0] == 201
        client.service.setup = Setup(keep=tmp_path / "g.h5")  # a file is there: images cannot be kept
        client.refused(503, "POST", ENTRIES, [("m.png", picture(2))])
        assert len(Gallery(gallery)) == 13


def test_a_store_that_does_not_answer(extractor, gallery, images, monkeypatch):
    def silent(*arguments, **settings):
        raise StoreUnavailable("milvus:http://store:19530 does not answer")

    with serving(extractor, gallery) as client:
        client.forbidden = (*client.forbidden, "19530")
        with monkeypatch.context() as m:
            for name in ("search", "add", "present", "remove", "__len__"):
                m.setattr(Gallery, name, silent)
            for request in (("POST", SEARCH, images[:1]), ("POST", ENTRIES, [("n.png", picture(1))]),
                            ("DELETE", ENTRIES + "?pid=1"), ("GET", "/health")):  # fmt: skip
                assert "does not answer" in client.refused(503, *request)
        assert client.names(images[0])


def test_a_store_that_goes_and_returns(extractor, images, tmp_path, monkeypatch):
    """A real server of Milvus, which is stopped and started again; the search server is not."""
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    from gallery.test_milvus import serving as milvus

    from reid.gallery import milvus as module

    monkeypatch.setattr(module, "TIMEOUT", 2.0)
    with milvus(tmp_path / "store.db") as port:
        address = f"milvus:http://127.0.0.1:{port}#people"
        mark = Fingerprint(extractor.sha256, "64x32", True)
        places = np.zeros(4, np.int64)
        create_gallery(address, mark, Entries(extractor(images[:4]), [*"abcd"], places, places))
        running = serving(extractor, address)
        client = running.__enter__()
    try:
        for request in (("POST", SEARCH, images[2:3]), ("GET", "/health")):
            assert "does not answer" in client.refused(503, *request)
        with milvus(tmp_path / "store.db", port):
            wait_for(lambda: client.ask("GET", "/health")[0] == 200, 40)
            assert client.names(images[2])[0] == "c"
    finally:
        running.__exit__(None, None, None)


def test_a_slow_client_is_refused_and_delays_nobody(extractor, gallery, images):
    body = form([("a.png", picture(1))], {})
    head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=limit\r\n"
    with (
        serving(extractor, gallery, limited(seconds=0.6)) as client,
        socket.create_connection(("127.0.0.1", client.port), 20) as slow,
    ):
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:100])
        assert client.names(images[0])
        assert b" 408 " in slow.recv(100)


def test_a_silent_connection_is_closed(extractor, gallery, monkeypatch):
    monkeypatch.setattr(guard, "FIRST_BYTES", 0.2)
    with serving(extractor, gallery) as client, socket.create_connection(("127.0.0.1", client.port), 20) as silent:
        silent.sendall(b"GET /heal")
        assert silent.recv(100) == b""
        connection = client.connect()
        assert client.ask("GET", "/health", connection=connection)[0] == 200
        threading.Event().wait(0.4)
        assert client.ask("GET", "/health", connection=connection)[0] == 200  # a used one stays open
        connection.close()


def test_the_images_of_a_client_that_left_are_not_computed(extractor, gallery, images):
    with gated(extractor, gallery) as (client, gate):
        leaving = client.connect()
        body = form(images[:3], {})
        leaving.request("POST", SEARCH, body, {"Content-Type": "multipart/form-data; boundary=limit"})
        wait_for(lambda: len(client.service.images.waiting) == 3)
        leaving.close()
        wait_for(lambda: all(future.cancelled() for _, future in client.service.images.waiting))
        gate.opened.set()
        assert client.names(images[0])
        assert gate.sizes == [1, 1]
        assert 'path="/v1/search",status="499"} 1.0' in client.ask("GET", "/metrics")[1]


def test_a_model_that_takes_too_long(extractor, gallery, images):
    with gated(extractor, gallery, limited(seconds=0.3)) as (client, _):
        assert "longer than 0.3 s" in client.refused(503, "POST", SEARCH, images[:1])


# who may ask


def test_a_token_is_needed_for_all_data(extractor, gallery, images):
    with serving(extractor, gallery, token=TOKEN) as client:
        stranger = Client(client.port)
        for method, path in (("POST", SEARCH), ("POST", "/v1/describe"), ("POST", ENTRIES), ("DELETE", ENTRIES),
                             ("GET", "/v1/gallery"), ("GET", "/metrics")):  # fmt: skip
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN},
                            {"Authorization": "Bearer é"}):  # fmt: skip
                status, content, _ = stranger.ask(method, path, headers=headers)
                assert status == 401 and "token" in content["detail"]
        for path in ("/", "/page.js", "/bands.js", "/report.css", "/health", "/docs", "/openapi.json"):
            assert stranger.ask("GET", path)[0] == 200
        assert client.names(images[0])


def test_without_token_only_this_machine_and_its_own_page(extractor, gallery):
    with serving(extractor, gallery) as client:
        here = f"localhost:{client.port}"
        assert client.ask("GET", "/v1/gallery", headers={"Host": here, "Origin": f"http://{here}"})[0] == 200
        assert client.ask("GET", "/v1/gallery", headers={"Host": "LocalHost"})[0] == 200
        for headers in ({"Host": "evil.example"}, {"Host": "[::1].evil"}, {"Host": "localhost:1:2"},
                        {"Host": "localhost.evil.example"}, {"Host": ""},
                        {"Host": here, "Origin": "http://evil.example"}, {"Origin": "null"}):  # fmt: skip
            assert client.ask("GET", "/v1/gallery", headers=headers)[0] == 403


def test_every_answer_has_a_strict_policy(standing):
    for path in ("/", "/v1/gallery", "/v1/nothing", "/page.js"):
        headers = standing.ask("GET", path)[2]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"] and headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Server"] is None


def test_the_description_names_every_address(standing):
    described = standing.ask("GET", "/openapi.json")[1]
    assert {*described["paths"]} == {
        *("/v1/search", "/v1/describe", "/v1/entries", "/v1/gallery", "/health", "/metrics")
    }


# the command


@pytest.mark.parametrize("flags, words", [
    (["--host", "0.0.0.0"], "a token is needed"),
    (["--host", "example.org"], "a token is needed"),
    (["--token_file", "absent"], "cannot be read"),
    (["--token_file", "short"], "at least 16"),
    (["--queue", "0"], "minimum is 1"),
    (["--queue", "3"], "smaller than --max_images"),
    (["--port", "70000"], "0 to 65535"),
    (["--threshold", "5"], "0 to 4"),
    (["--root", "absent"], "no such folder"),
    (["--store", "there"], "milvus:URI"),
])  # fmt: skip
def test_flags_that_cannot_be_used(flags, words, gallery, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RRID_TOKEN", raising=False)
    Path("short").write_text("secret\n", encoding="utf-8")
    assert main(["serve", str(gallery), "--weights", str(weights), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and "secret" not in error


def test_a_port_in_use_and_a_missing_package(gallery, weights, capsys, monkeypatch):
    command = ["serve", str(gallery), "--weights", str(weights), "--engine", "torch"]
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main([*command, "--port", str(other.getsockname()[1])]) == 2
    assert "give another" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "reid.serve.app")
    assert main(command) == 2
    assert '".[serve]"' in capsys.readouterr().err


@contextmanager
def process(gallery, weights):
    """A server in a process of its own: (process, Client)."""
    command = [sys.executable, "-m", "reid", "serve", gallery, "--weights", weights, "--engine", "torch", "--port", "0"]
    environment = {**os.environ, "RRID_TOKEN": TOKEN}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "encoding": "utf-8"}
    started = subprocess.Popen([str(part) for part in command], env=environment, **pipes)
    try:
        line = next((line for line in started.stdout if "served at" in line), "the server did not start")
        assert "served at" in line and TOKEN not in line
        yield started, Client(int(line.partition("127.0.0.1:")[2].partition(";")[0]), TOKEN)
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


@pytest.mark.slow
def test_killed_during_an_add(extractor, gallery, weights):
    reported: list[str] = []

    def add_until_refused(client):
        for i in range(1000):
            try:
                assert client.ask("POST", ENTRIES, [(f"{i}.png", picture(i))])[0] == 201
            except OSError:
                return
            reported.append(f"{i}.png")

    with process(gallery, weights) as (started, client):
        threads = in_threads(lambda: add_until_refused(client), 1)
        wait_for(lambda: len(reported) > 5)
        started.kill()
        threads[0].join(20)
    stored = Gallery(gallery)
    with stored.entries() as found:
        assert {*reported} <= {*found.names} and len(found.names) - 12 - len(reported) in (0, 1)
        np.testing.assert_allclose(np.linalg.norm(found.features[:], axis=1), 1, atol=1e-4)
    with serving(extractor, gallery) as client:  # it can be served and changed
        assert client.ask("POST", ENTRIES, [("new.png", picture(1))])[0] == 201
    assert [p.name for p in gallery.parent.iterdir()] == ["g.h5"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_ten_thousand_requests_then_sigterm(gallery, weights):
    """The memory stays, and the signal finishes what runs and refuses the rest."""
    with process(gallery, weights) as (started, client):
        memory = psutil.Process(started.pid).memory_info
        flood(client, 1000)
        before = memory().rss
        answered = flood(client, 9000)
        assert answered == {b"401": 8550, b"200": 450} and memory().rss - before < 20 << 20
        answers = []
        with locked(gallery):  # so the addition is under way when the signal comes
            add = lambda: answers.append(client.ask("POST", ENTRIES, [("n.png", picture(1))])[0])  # noqa: E731
            [thread] = in_threads(add, 1)
            wait_for(lambda: "reid_running_requests 2.0" in client.ask("GET", "/metrics")[1])
            started.send_signal(signal.SIGTERM)
            wait_for(lambda: refuses_connections(client))
            assert started.poll() is None and not answers
        thread.join(20)
        assert answers == [201] and started.wait(20) == 0
    assert len(Gallery(gallery)) == 13


def flood(client: Client, count: int) -> Counter:
    """The statuses of requests on one connection. 100 are sent before answers are read; every 20th needs no token."""
    statuses: Counter = Counter()
    request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n"
    requests = [request.format("wrong")] * 19 + ["GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    with socket.create_connection(("127.0.0.1", client.port), 60) as connection, connection.makefile("rb") as answers:
        for _ in range(count // 100):
            connection.sendall("".join(requests * 5).encode())
            for _ in range(100):
                statuses[answers.readline().split()[1]] += 1
                length = 0
                while (line := answers.readline()) != b"\r\n":
                    name, _, value = line.partition(b":")
                    length = int(value) if name == b"content-length" else length
                answers.read(length)
    return statuses


def refuses_connections(client: Client) -> bool:
    try:
        socket.create_connection(("127.0.0.1", client.port), 5).close()
    except ConnectionRefusedError:
        return True
    return False
