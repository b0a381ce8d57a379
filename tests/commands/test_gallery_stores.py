"""gallery --store, copy, check, filters; extraction continues and is shared among processes."""

import numpy as np
import pytest
from conftest import torchrun

from reid.commands import gallery as module
from reid.errors import InputError
from reid.gallery.address import open_gallery, work_file
from reid.inference import describe

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")


@pytest.fixture()
def run(script):
    return lambda *arguments: script("reid/__main__.py", "gallery", *arguments)


@pytest.fixture()
def listed(images, tmp_path):
    """A list of 6 images with labels."""
    rows = [f"{path},{who},{camera}\n" for path, who, camera in zip(images, "aabbcc", ["gate", "hall"] * 3)]
    (tmp_path / "list.csv").write_text("path,pid,camid\n" + "".join(rows), encoding="utf-8")
    return tmp_path / "list.csv"


def features(gallery):
    with gallery.entries() as e:
        return e.features[:]


@pytest.mark.slow
def test_both_stores_and_copies(run, weights, listed, images, tmp_path):
    file, store = tmp_path / "g.h5", ["people", "--store", f"milvus:{tmp_path}/g.db"]
    whole, made = f"milvus:{tmp_path}/g.db#people", ["--weights", weights, "--images", listed]
    for place in ([file], store):
        assert "6 added" in run("create", *place, *made).stdout
        refused = run("create", *place, *made)
        assert refused.returncode == 2 and "already exists" in refused.stderr
    query = ["--weights", weights, "--images", images[0], images[5], "--top", 4]
    for limit in ([], ["--pids", "b", "c"], ["--camids", "hall"], ["--threshold", "0.1"]):
        one, two = run("search", file, *query, *limit), run("search", *store, *query, *limit)
        assert one.returncode == 0 and one.stdout == two.stdout, two.stderr
    assert "FLAT" in run("info", *store).stdout

    copied, back = f"milvus:{tmp_path}/g.db#copied", tmp_path / "back.h5"
    assert "6 added" in run("copy", file, copied, "--index", "HNSW").stdout
    assert "1 removed" in run("remove", copied, "--names", open_gallery(str(file)).listing().names[2]).stdout
    assert "1 added, 5 were there already" in run("copy", file, copied).stdout
    assert "6 added" in run("copy", whole, back).stdout
    assert "0 added, 6 were there already" in run("copy", whole, back).stdout
    assert open_gallery(str(back)).listing() == open_gallery(str(file)).listing() == open_gallery(whole).listing()
    np.testing.assert_array_equal(features(open_gallery(str(back))), features(open_gallery(str(file))))
    for place, index in ((str(file), "none"), (whole, "FLAT"), (copied, "HNSW")):
        said = run("check", place, "--recall", 6).stdout
        assert "6 entries are sound" in said and index in said and "recall@10" in said and "1.0000" in said
    for command, said in [
        (["copy", file, back, "--index", "HNSW"], "exists already"),
        (["copy", file, tmp_path / "x.h5", "--index", "HNSW"], "--index"),
        (["info", "people", "--store", "x.db"], "milvus:URI"),
        (["check", file, "--recall", "-1"], "--recall"),
        (["search", "x", "--store", "milvus:http://127.0.0.1:9", *query], "does not answer"),
    ]:
        refused = run(*command)
        assert refused.returncode == 2 and said in refused.stderr and "Traceback" not in refused.stderr, refused


@pytest.mark.parametrize("milvus", [False, True])
def test_an_interrupted_addition_continues(run, weights, listed, tmp_path, monkeypatch, milvus):
    place = f"milvus:{tmp_path}/g.db#people" if milvus else str(tmp_path / "g.h5")
    made = ["create", place, "--weights", weights, "--images", listed]

    def full(*_):
        raise InputError("the store is full")

    with monkeypatch.context() as patched:  # the first half arrives
        create = module.create_gallery
        half = np.arange(6) < 3

        def partly(address, mark, entries, *kind):
            create(address, mark, entries.select(half), *kind)
            full()

        patched.setattr(module, "create_gallery", partly)
        assert "full" in run(*made).stderr
    assert work_file(place).exists() and len(open_gallery(place)) == 3

    def nothing(_, batches):  # is extracted again
        assert not [*batches]
        return iter(())

    monkeypatch.setattr(describe, "describe", nothing)
    done = run(*made)
    assert "3 added, 3 were there already" in done.stdout, done.stderr
    assert not work_file(place).exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes(run, weights, listed, tmp_path):
    one, two = str(tmp_path / "one.h5"), f"milvus:{tmp_path}/g.db#two"
    flags = ["--weights", str(weights), "--images", str(listed), "--batch_size", "5"]
    assert run("create", one, *flags).returncode == 0
    process = torchrun(2, "reid/__main__.py", "gallery", "create", two, *flags)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and said.count("6 added") == 1, said
    assert open_gallery(two).listing() == open_gallery(one).listing()
    np.testing.assert_allclose(features(open_gallery(two)), features(open_gallery(one)), atol=1e-6)
