"""python -m reid gallery: every action, and what it refuses."""

import csv
import os
import shutil

import numpy as np
import pytest
from conftest import make_weights, plain
from PIL import Image as PILImage

from reid.data import images as data_images


@pytest.mark.slow
def test_the_commands(weights, tiny, tmp_path, script, monkeypatch):
    folder = tiny / "tiny" / "images"
    images = sorted(folder.iterdir())

    def run(*arguments):
        return script("reid/__main__.py", "gallery", *arguments)

    g = tmp_path / "g.h5"
    done = run("create", g, "--weights", weights, "--images", *images[:10])
    assert done.returncode == 0 and "10 added" in done.stdout, done.stderr
    listed = tmp_path / "list.txt"
    listed.write_text(
        "".join(f"{p}\t{int(p.name[:8])}\t{int(p.name[9:13])}\n" for p in images[10:20]), encoding="utf-8"
    )
    assert run("add", g, "--weights", weights, "--images", listed).returncode == 0
    extracted = script("reid/__main__.py", "extract", "--weights", weights, "--images", *images[20:24], "--out",
                       tmp_path / "f.h5")  # fmt: skip
    assert extracted.returncode == 0 and run("add", g, "--features", tmp_path / "f.h5").returncode == 0
    for source in (["--weights", weights, "--images", listed], ["--features", tmp_path / "f.h5"]):
        again = run("add", g, *source)
        assert again.returncode == 2 and "already" in again.stderr
    asked = data_images.read  # existing names are reported before any image is read
    monkeypatch.setattr(data_images, "read", None)
    assert "already" in run("add", g, "--weights", weights, "--images", listed).stderr
    monkeypatch.setattr(data_images, "read", asked)
    said = run("info", g).stdout
    assert "24" in said and "64x32" in said

    picture = tmp_path / "answers.png"
    done = run("search", g, "--weights", weights, "--images", images[12], images[0], "--top", 3, "--picture", picture)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    features = plain(weights, [str(p) for p in images[:24]])
    names = [os.path.relpath(p, tmp_path) for p in images[:24]]
    for start, query in ((3, 12), (8, 0)):
        distances = 2 - 2 * features @ features[query]
        for line, i in zip(lines[start : start + 3], distances.argsort(kind="stable")):
            _, distance, pid, camid, name = line.split()
            assert abs(float(distance) - distances[i]) < 2e-4 and name == names[i]
            assert (pid, camid) == (("-", "-") if not 10 <= i < 20 else (str(i // 4), str(i // 2 % 2)))
    with PILImage.open(picture) as drawn:
        assert drawn.size[0] > drawn.size[1] / 2
        shown = np.asarray(drawn)
    assert np.ptp(shown.reshape(-1, 3), axis=0).min() > 100

    several = [str(p) for p in images[:3]]
    table = tmp_path / "pooled.csv"
    pooled = ["--images", *several, "--multi_query", "mean", "--top", 1, "--csv", table]
    done = run("search", g, "--weights", weights, *pooled)
    title = f"mean of 3 images: {', '.join(several)}"
    assert done.stdout.splitlines()[1] == title and len(done.stdout.splitlines()) == 4
    with open(table, newline="", encoding="utf-8") as f:
        assert [row["query"] for row in csv.DictReader(f)] == [title]

    none = run("search", g, "--weights", weights, "--images", images[30], "--threshold", "0")
    assert none.returncode == 0 and "no entry within 0" in none.stdout
    other = make_weights(tmp_path / "other.pth", seed=1)
    for command in (["search", g, "--weights", other, "--images", images[0]],
                    ["search", g, "--weights", weights, "--images", images[0], "--no_flip"],
                    ["add", g, "--weights", other, "--images", images[30]]):  # fmt: skip
        refused = run(*command)
        assert refused.returncode == 2 and "another model" in refused.stderr
    assert run("remove", g, "--names", names[0], "nobody.jpg").returncode == 2
    done = run("remove", g, "--names", names[0], "--pids", 3, 4)
    assert "9 removed" in done.stdout and "has 15 entries" in done.stdout

    (tmp_path / "many").mkdir()
    for i in range(80):
        shutil.copy(images[0], tmp_path / "many" / f"{i}.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"")
    done = run("search", g, "--weights", weights, "--images", tmp_path / "bad.jpg", images[12], "--skip_bad")
    assert done.returncode == 0 and "bad.jpg is empty" in done.stderr and str(images[12]) in done.stdout
    for command, said in [
        (["search", g, "--weights", weights, "--images", tmp_path / "bad.jpg"], "bad.jpg"),
        (["search", g, "--weights", weights, "--images", images[0], "--picture", tmp_path / "x.txt"], ".png"),
        (["search", g, "--weights", weights, "--images", images[0], "--top", 0], "--top"),
        (
            ["search", g, "--weights", weights, "--images", tmp_path / "many", "--picture", tmp_path / "x.webp"],
            "use .png",
        ),
        (["search", g, "--weights", weights, "--images", images[0], "--threshold", "nan"], "--threshold nan"),
        (["search", g, "--weights", weights, "--images", images[0], "--threshold", "-1"], "--threshold -1"),
        (["search", g, "--weights", weights, "--images", images[0], "--gpus", "-3"], "--gpus"),
        (["remove", g, "--pids", "-1"], "--pids -1"),
        (["create", g, "--weights", weights, "--images", images[0]], "already exists"),
        (["create", tmp_path / "h.h5", "--weights", weights], "either"),
        (["add", g, "--features", weights], "not a features.h5"),
        (["info", tmp_path / "none.h5"], "does not exist"),
        (["remove", g], "--names"),
    ]:
        refused = run(*command)
        assert refused.returncode == 2 and said in refused.stderr and "Traceback" not in refused.stderr, refused
    assert "15" in run("info", g).stdout


def test_a_table_keeps_its_labels_in_a_gallery(weights, images, tmp_path, script):
    table = tmp_path / "list.csv"
    rows = [f"{path},{who},yard" for path, who in zip(images[::9], ("anna", "bert", "007"))]
    table.write_text("path,pid,camid\n" + "\n".join(rows) + "\n", encoding="utf-8")
    direct, by_file, features = tmp_path / "a.h5", tmp_path / "b.h5", tmp_path / "f.h5"

    def run(*arguments):
        done = script("reid/__main__.py", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("gallery", "create", direct, "--weights", weights, "--images", table)
    run("extract", "--weights", weights, "--images", table, "--out", features)
    run("gallery", "create", by_file, "--features", features)
    run("extract", "--weights", weights, "--images", table, "--out", tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as f:
        assert f["identities"][f["pids"]].tolist() == ["anna", "bert", "007"] and f["cameras"].tolist() == ["yard"]
    for gallery in (direct, by_file):
        out = run("gallery", "search", gallery, "--weights", weights, "--images", images[9], "--top", "1")
        assert out.splitlines()[-1].split()[2:4] == ["bert", "yard"], out
