"""The user's names and the shape of the images, from a dataset to report, rank lists, pictures and gallery."""

import csv
import json
import re
from urllib.parse import quote

import h5py
import matplotlib
import numpy as np
import pytest
from conftest import make_dataset, make_weights
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image as PILImage

from reid.__main__ import main
from reid.evaluation.features import read_features
from reid.evaluation.results import evaluate
from reid.report import figures, fonts, lists
from reid.report.fonts import Fonts

NAMES = ["anna", "李雷", "cow $7$, $8$", "Ünal"]  # of the test identities 8 to 11
CAMERAS = ["Camera 012", "gate"]


def label(folder, size=(96, 48)):
    """Gives a dataset of make_dataset labels, sources and images that are twice as wide as high."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    files = [file for cameras in meta["identities"] for files in cameras for file in files]
    meta["labels"] = {"identities": [*(f"train {i}" for i in range(8)), *NAMES], "cameras": CAMERAS}
    meta["sources"] = {file: f"photos/IMG {i}.jpg" for i, file in enumerate(files)}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    for file in files:
        PILImage.open(folder / "images" / file).resize(size).save(folder / "images" / file)
    return meta["sources"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """(folder of everything, folder of the evaluation, {file: original name}) of a labelled set, in square input."""
    root = tmp_path_factory.mktemp("zoo")
    sources = label(make_dataset(root / "data" / "zoo"))
    weights = make_weights(root / "weights.pth", h=64, w=64)
    flags = ["--dataset_type", "zoo", "--dataset_path", str(root / "data"), "--exp_dir", str(root / "logs")]
    assert main(["evaluate", "--weights", str(weights), *flags, "--camera_pairs", "--report"]) == 0
    return root, root / "logs" / "zoo" / "eval-weights", sources


def rows_of(path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def test_features_and_results_have_labels(zoo):
    _, folder, sources = zoo
    features = read_features(folder / "features.h5")
    assert features.labels.identities[8:] == NAMES and features.labels.cameras == CAMERAS
    rows = rows_of(folder / "queries.csv")
    assert len(rows) == 8
    for row in rows:
        assert row["identity"] == NAMES[int(row["pid"]) - 8] and row["camera"] == CAMERAS[int(row["camid"])]
        assert row["source"] == sources[row["name"]]
    cameras = json.loads((folder / "result.json").read_text(encoding="utf-8"))["cameras"]
    assert {(row["query_camera"], row["gallery_camera"]) for row in cameras} == {tuple(CAMERAS), tuple(CAMERAS[::-1])}
    assert "Camera 012" in str(evaluate(features, camera_pairs=True))
    assert main(["compare", str(folder), str(folder / "queries.csv")]) == 0  # reads a queries.csv with labels


def test_rank_lists_are_files(zoo):
    """Each line is an answer; the answers without junk are the sorted distances."""
    _, folder, sources = zoo
    features = read_features(folder / "features.h5")
    q, g = features.query, features.gallery
    rows = rows_of(folder / "ranks.csv")
    queries = json.loads((folder / "ranks.json").read_text(encoding="utf-8"))
    assert [query["query"] for query in queries] == [sources[name] for name in q.names]
    for i, query in enumerate(queries):
        own = [row for row in rows if row["query"] == query["query"]]
        asked = (NAMES[q.pids[i] - 8], CAMERAS[q.camids[i]])
        assert {(row["query_identity"], row["query_camera"]) for row in own} == {asked}
        distances = 2 - 2 * q.features[i] @ g.features.T
        junk = (g.pids == q.pids[i]) & (g.camids == q.camids[i])
        order = distances.argsort()
        wanted = [sources[g.names[j]] for j in order if not junk[j]]
        kept = [row for row in own if row["answer"] != "junk"]
        assert [row["gallery"] for row in kept] == wanted
        assert [int(row["rank"]) for row in kept] == [*range(1, len(wanted) + 1)]
        assert [row["answer"] == "right" for row in kept] == [row["gallery_identity"] == asked[0] for row in kept]
        np.testing.assert_allclose([float(row["distance"]) for row in own], np.sort(distances), atol=1e-5)
        assert sum(row["answer"] == "junk" and row["rank"] == "" for row in own) == junk.sum() == 1
        assert [a["gallery"] for a in query["answers"]] == [row["gallery"] for row in own]
        assert query["ap"] == pytest.approx(evaluate(features).ap[i], abs=1e-6)


def test_the_page_shows_labels_and_no_people(zoo):
    _, folder, sources = zoo
    text = (folder / "report.html").read_text(encoding="utf-8")
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["identities"] == dict(zip(["8", "9", "10", "11"], NAMES))
    assert data["cameras"] == dict(zip("01", CAMERAS)) and set(data["names"]) <= set(sources.values())
    shown = re.sub(r"data:[^\"]*|<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(person|people|pedestrian|body(?!>))", shown, re.IGNORECASE)
    assert "李雷" in shown and "camera Camera 012 to gate" in shown


def test_browser_filters_by_label(browser, zoo):
    _, folder, _ = zoo
    browser.open(folder / "report.html", "#id=" + quote("李雷"))
    titles = browser.run("[...document.querySelectorAll('.query h3')].map(h => h.textContent)")
    assert len(titles) == 2 and all(title.startswith("identity 李雷, camera ") for title in titles)
    assert any("IMG 36.jpg" in title for title in titles)
    options = browser.run("[...document.querySelectorAll('[name=camera] option')].map(o => o.textContent)")
    assert options == ["all", *CAMERAS] and not browser.errors
    image = "document.querySelector('.card img')"
    assert browser.run(f"{image}.decode().then(() => {image}.clientWidth / {image}.clientHeight)") == 2


def test_pictures_keep_the_shape(zoo):
    root, _, _ = zoo
    image = next((root / "data" / "zoo" / "images").iterdir())
    (thumbnail,) = lists.thumbnails([str(image)])
    (root / "thumbnail.webp").write_bytes(thumbnail)
    with PILImage.open(root / "thumbnail.webp") as drawn:
        assert drawn.size == (192, 96)  # twice as wide as high, as the image


@pytest.mark.slow
def test_square_input_in_maps(zoo, tmp_path, small_run):
    """A run in square input: report with maps and bands, named by the user's own names."""
    root, _, _ = zoo
    at = ["--dataset_type", "zoo", "--dataset_path", str(root / "data"), "--exp_dir", str(tmp_path)]
    assert main(["train", *small_run, *at, "--w", "64", "--max_steps", "1", "--name", "run"]) == 0
    assert main(["evaluate", *at]) == 0
    assert main(["report", str(tmp_path / "zoo" / "run"), "--maps", "photos/IMG 32.jpg"]) == 0
    folder = tmp_path / "zoo" / "run" / "eval-zoo"
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "1 of 2" in text and "Where the network looks" in text
    with PILImage.open(folder / "report-maps.png") as drawn:
        dark = np.asarray(drawn.convert("L")) < 128
    rows, columns = (np.flatnonzero(dark.any(axis)) for axis in (1, 0))
    assert np.ptp(columns) > 3 * np.ptp(rows)  # two pictures beside each other, each twice as wide as high


def test_evaluation_far_from_the_shape_warns_once(zoo, tmp_path, capsys):
    root, _, _ = zoo
    weights = make_weights(tmp_path / "w.pth")  # 64x32, and the images are twice as wide as high
    flags = ["--dataset_type", "zoo", "--dataset_path", str(root / "data"), "--exp_dir", str(tmp_path / "logs")]
    assert main(["evaluate", "--weights", str(weights), *flags]) == 0
    err = capsys.readouterr().err
    assert err.count("the input is 64 high and 32 wide") == 1 and "2 times as wide as high" in err
    assert main(["evaluate", "--weights", str(root / "weights.pth"), *flags]) == 0
    assert "times as wide" not in capsys.readouterr().err


def small_font(path, characters):
    """A font whose characters are filled squares."""
    names = [f"u{ord(c):04X}" for c in characters]
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, 700), (900, 700), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap(dict(zip(map(ord, characters), names)))
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(names, square)})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *names), (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Small Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def test_fonts_for_labels(tmp_path, monkeypatch, caplog):
    """A font that has the characters is used; without one a single warning, and codes instead of boxes."""
    file = small_font(tmp_path / "squares.ttf", "李雷")
    monkeypatch.setattr(fonts, "candidates", lambda: [file])
    with figures.styled():
        found = Fonts.for_figures(["anna", "李雷"])
        assert found.files[1:] == (file,) and matplotlib.rcParams["font.family"] == ["DejaVu Sans", "Small Squares"]
        assert found.in_figure("李雷") == "李雷" and found.in_figure("$1$") == r"\$1\$"
        axes = figures.new_axes(2, 2)[0]
        axes.set_title(found.in_figure("anna 李雷"))
        figures.save_png(axes.figure, tmp_path / "x.png")  # matplotlib warns where a glyph is missing
    assert found.for_pillow("李雷")[1] == "李雷" and not caplog.text
    missing = Fonts.of(["anna", "李雷", "王"])
    assert caplog.text.count("no font here has 1 characters of the labels, as in 王") == 1
    assert missing.readable("王 anna") == r"\u738b anna"
    assert Fonts.of(["anna", "Ünal"]).files == (None,)  # Pillow's own


def test_labels_of_the_dataset_for_features_without_them(zoo, tmp_path, capsys):
    """An older features.h5 has none; they are read from the dataset of its fingerprint."""
    root, folder, sources = zoo
    (tmp_path / "eval").mkdir()
    with h5py.File(folder / "features.h5") as old, h5py.File(tmp_path / "eval" / "features.h5", "w") as new:
        for part in ("names", "pids", "camids", "subset", "features"):
            old.copy(part, new)
        new.attrs.update(old.attrs)
    assert main(["report", str(tmp_path / "eval"), "--dataset_path", str(root / "data")]) == 0
    assert rows_of(tmp_path / "eval" / "ranks.csv") == rows_of(folder / "ranks.csv")
    assert main(["evaluate", "--features", str(folder / "features.h5"), "--exp_dir", str(tmp_path)]) == 0
    assert rows_of(folder / "queries.csv")[0]["source"] in sources.values()


def test_a_gallery_of_a_labelled_set(zoo, tmp_path, capsys):
    root, folder, _ = zoo
    gallery, images = tmp_path / "g.h5", root / "data" / "zoo" / "images"
    create = ["gallery", "create", str(gallery), "--features", str(folder / "features.h5")]
    assert main(create) == 0
    assert "search --picture cannot show them; add --root datasets/zoo/images" in capsys.readouterr().err
    query = str(images / "00000009_0000_00000000.jpg")
    search = ["gallery", "search", str(gallery), "--weights", str(root / "weights.pth"), "--images", query, "--top"]
    picture = tmp_path / "answers.png"
    assert main([*search, "2", "--picture", str(picture)]) == 2  # and no grey tiles
    assert "give their folder with --root" in capsys.readouterr().err and not picture.exists()
    gallery.unlink()
    assert main([*create, "--root", str(tmp_path)]) == 2
    assert f"--root {tmp_path}" in capsys.readouterr().err
    assert main([*create, "--root", str(images)]) == 0
    capsys.readouterr()
    assert main([*search, "1", "--picture", str(picture), "--csv", str(tmp_path / "answers.csv")]) == 0
    line = capsys.readouterr().out.splitlines()[-2]
    assert re.fullmatch(r" +1 +0\.\d+ +李雷 +Camera 012  .*/00000009_0000_00000001.jpg  \(photos/IMG 37.jpg\)", line)
    (row,) = rows_of(tmp_path / "answers.csv")
    assert (row["identity"], row["camera"], row["source"]) == ("李雷", "Camera 012", "photos/IMG 37.jpg")
    with PILImage.open(picture) as drawn:
        assert drawn.width == 2 * 384 + 3 * 6  # two tiles, 192 high and twice as wide
    assert main(["gallery", "remove", str(gallery), "--pids", "anna", "李雷"]) == 0
    assert "4 removed" in capsys.readouterr().out
    assert main(["gallery", "remove", str(gallery), "--pids", "9"]) == 2  # is no label
    assert "has no 9" in capsys.readouterr().err
