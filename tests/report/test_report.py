"""The report: its page in a real browser, its command on good and bad input."""

import base64
import json
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import make_dataset
from PIL import Image as PILImage

from reid.__main__ import main
from reid.bench.measure import random_features
from reid.data.read import read_dataset
from reid.evaluation.features import Features, Part
from reid.evaluation.record import Record, Scoring
from reid.evaluation.results import evaluate
from reid.report import lists, slots
from reid.report.page import write_report
from reid.report.sources import Content, FoundImages, Source, find_images, run_of

BANDS = [(0, 0.5), (0.5, 1), (0, 1)]


@pytest.fixture(scope="module")
def features() -> Features:
    """40 queries of 10 people on 3 cameras among 200 images, in 3 slots of 8."""
    made = random_features(40, 200, 10, 3, 24)
    return Features(made.query, made.gallery, {"slots": [3, 8], "bands": BANDS})


def write_h5(path, features, **attrs) -> None:
    sides = (features.query, features.gallery)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        for key in ("features", "pids", "camids"):
            f[key] = np.concatenate([getattr(side, key) for side in sides])
        names = [f"{title}</script>{i}.jpg" for title, side in zip("qg", sides) for i in range(len(side))]
        f["names"] = names  # such a name must not end the script
        f["subset"] = ["query"] * len(sides[0]) + ["gallery"] * len(sides[1])
        f.attrs.update(attrs)


@pytest.fixture(scope="module")
def evaluated(features, tmp_path_factory):
    """A folder with features.h5 and the report made from it, without images."""
    folder = tmp_path_factory.mktemp("report") / "eval"
    write_h5(folder / "features.h5", features, **features.attrs)
    assert main(["report", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    "attrs, reason",
    [
        ({}, "no attribute slots and bands"),
        ({"slots": [3, 8]}, "no attribute bands"),
        ({"slots": [3, 7], "bands": BANDS}, "do not fit"),
        ({"slots": [3, 8], "bands": BANDS[:2]}, "do not fit"),
        ({"slots": [3, 8], "bands": [(0.5, 0), *BANDS[1:]]}, "do not fit"),
    ],
)
def test_invalid_bands_are_explained(attrs, reason):
    bands, found = slots.layout(attrs, 24)
    assert bands is None and reason in found


@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize("metric, device", [("euclidean", None), ("cosine", None), ("euclidean", "cpu")])
def test_rank_lists_are_the_sorted_rows(features, metric, rerank, device):
    result = evaluate(features, Scoring(metric=metric, rerank=rerank))
    answers, matches, cameras = lists.rank_lists(result, 4, device)
    q, g = features.query, features.gallery
    distance = (2 if metric == "euclidean" else 1) * (1 - q.features @ g.features.T)
    for i in range(len(q)):
        own = answers.query == i
        rows, found = answers.gallery[own], answers.distance[own]
        assert (np.diff(found) >= 0).all()
        same = g.pids == q.pids[i]
        junk = same & (g.camids == q.camids[i])
        kinds = [2 if junk[j] else 0 if same[j] else 1 for j in rows]
        assert answers.kind[own].tolist() == kinds
        assert sum(kind != 2 for kind in kinds) == 4 and kinds[-1] != 2
        if not rerank:
            order = np.argsort(distance[i])
            wanted = order[: np.flatnonzero(np.cumsum(~junk[order]) == 4)[0] + 1]
            assert rows.tolist() == wanted.tolist()
            np.testing.assert_allclose(found, distance[i, rows], atol=1e-5)
    assert (matches.query == result.ranking.query).all()
    assert (matches.gallery == result.ranking.gallery).all() and (matches.kind == 0).all()
    if not rerank:
        np.testing.assert_allclose(matches.distance, distance[matches.query, matches.gallery], atol=1e-5)
        assert cameras == evaluate(features, Scoring(metric=metric), camera_pairs=True).cameras


def test_rank_lists_with_more_junk_than_answers():
    """Two junk images before the first kept one, and one answer asked for: one of the two, and the answer."""
    gallery = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]], np.float32)
    query = Part(gallery[:1], np.array([7]), np.array([0]), ["q"])
    pids, camids = np.array([7, 7, 7, 8]), np.array([0, 0, 1, 1])
    result = evaluate(Features(query, Part(gallery, pids, camids, ["a", "b", "c", "d"]), {}))
    answers, _, _ = lists.rank_lists(result, 1)
    assert answers.gallery.tolist() == [0, 2] and answers.kind.tolist() == [2, 0]


def read_data(page) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def unpacked(data: dict, name: str) -> np.ndarray:
    entry = data["entries"][name]
    return np.frombuffer(base64.b64decode(entry["text"]), entry["type"].removesuffix("Array").lower())


def test_page_data_is_the_result(features, evaluated):
    data, result = read_data(evaluated / "report.html"), evaluate(features)
    np.testing.assert_allclose([np.nan if v is None else v for v in data["ap"]], result.ap, atol=1e-4)
    assert data["match_ends"][-1] == len(result.ranking.query)
    assert (unpacked(data, "rank") == result.ranking.right + result.ranking.wrong).all()
    parts = unpacked(data, "parts").reshape(-1, 3).astype(float)
    shares = parts / parts.sum(1, keepdims=True)
    image = unpacked(data, "image")
    ends = [0, *data["answer_ends"]]
    names = [*(f"q</script>{i}.jpg" for i in range(40)), *(f"g</script>{i}.jpg" for i in range(200))]
    for query in range(40):
        for entry in range(ends[query], ends[query + 1]):
            g = names.index(data["names"][image[entry]]) - 40
            difference = features.query.features[query].astype(float) - features.gallery.features[g]
            exact = np.square(difference).reshape(3, 8).sum(1)
            assert unpacked(data, "squared")[entry] == pytest.approx(exact.sum(), rel=1e-6)
            np.testing.assert_allclose(shares[entry], exact / exact.sum(), atol=3 / 255)
    assert (evaluated / "report-cmc.png").read_bytes()[:4] == b"\x89PNG"


def test_of_many_queries_evenly_spaced_ones_are_shown(features, monkeypatch):
    monkeypatch.setattr(lists, "MOST_QUERIES", 15)
    result = evaluate(features)
    answers, matches, _ = lists.rank_lists(result)
    data, _ = lists.page_data(result, answers, matches, {})
    np.testing.assert_allclose([np.nan if v is None else v for v in data["ap"]], result.ap[::3], atol=1e-4)
    assert data["step"] == 3 and data["match_ends"][-1] == int((result.ranking.query % 3 == 0).sum())


def shown(browser) -> list[int]:
    return browser.run("[...document.querySelectorAll('.query')].map(q => +q.dataset.query)")


def test_browser_sorts_filters_and_pages(browser, evaluated):
    page = evaluated / "report.html"
    browser.open(page)
    data = read_data(page)
    ap, pids, camids = (np.array(data[k][:40], float) for k in ("ap", "pids", "camids"))
    order = np.lexsort((np.arange(40), ap))
    assert shown(browser) == order[:12].tolist()
    browser.open(page, "#sort=-ap&page=2")
    assert ap[shown(browser)].tolist() == sorted(ap, reverse=True)[12:24]
    browser.open(page, "#sort=file&camera=2")
    assert shown(browser) == np.flatnonzero(camids == 2)[:12].tolist()

    def choose(name: str, value: str):
        control = f"document.querySelector('[name={name}]')"
        browser.run(f"{control}.value = '{value}'; {control}.dispatchEvent(new Event('change', {{bubbles: true}}))")

    choose("id", str(int(pids[0])))
    assert shown(browser) == np.flatnonzero((camids == 2) & (pids == pids[0]))[:12].tolist()
    browser.run("history.back(); new Promise(r => setTimeout(r, 200))")
    assert shown(browser) == np.flatnonzero(camids == 2)[:12].tolist()
    browser.run("document.querySelector('[type=reset]').click()")
    first = np.array(data["first"], float)
    for value, wanted in (("right", first == 1), ("wrong", first > 1)):
        choose("first", value)
        assert f"of {wanted.sum()}" in browser.run("document.getElementById('count').textContent")
        assert set(shown(browser)) <= set(np.flatnonzero(wanted).tolist())
    choose("id", "no such person")
    assert shown(browser) == [] and not browser.errors
    assert browser.requests == [page.resolve().as_uri()]


def test_browser_explains_an_answer_by_keyboard(browser, evaluated):
    browser.open(evaluated / "report.html")
    browser.run("document.querySelector('.card').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement === document.querySelectorAll('.card')[1]")
    browser.press("Enter", text="\r", windowsVirtualKeyCode=13)
    assert browser.run("document.querySelectorAll('.card')[1].getAttribute('aria-expanded')") == "true"
    cells = browser.run("[...document.querySelectorAll('.why tbody tr')].map(r => r.cells[1].textContent)")
    caption = browser.run("document.querySelector('.why caption').textContent")
    distance = float(caption.split("distance ")[1].split(",")[0])
    assert sum(map(float, cells)) == pytest.approx(distance, abs=3e-4)
    bands = "document.querySelector('.why .bands').children"
    assert browser.run(f"[...{bands}].map(c => c.children.length)") == [2, 1]
    browser.press("Enter", text="\r", windowsVirtualKeyCode=13)
    assert browser.run("document.querySelector('.why')") is None and not browser.errors


class Images(HTMLParser):
    def __init__(self):
        super().__init__()
        self.alts = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.alts.append(dict(attrs).get("alt"))


@pytest.mark.slow
def test_trained_run_has_everything(browser, trained, capsys):
    assert main(["report", str(trained), "--maps", "00000008_0000_00000000.jpg"]) == 0
    page = trained / "eval-small" / "report.html"
    assert f"report in {page}" in capsys.readouterr().out
    browser.open(page)
    sections = browser.run("[...document.querySelectorAll('section')].map(s => s.id)")
    assert sections == ["summary", "lists", "why", "open", "identities", "maps", "training", "made"]
    parser = Images()
    parser.feed(page.read_text(encoding="utf-8"))
    assert len(parser.alts) >= 9 and all(parser.alts)
    images = "[...document.images]"
    browser.run(f"Promise.all({images}.map(i => i.decode()))")  # raises for one that cannot be shown
    assert browser.run(f"{images}.every(i => i.naturalWidth > 0 && i.alt)")
    assert browser.run("document.querySelectorAll('.card img').length") > 20
    assert "seed" in page.read_text(encoding="utf-8") and not browser.errors and len(browser.requests) == 1
    browser.size(390, 800, phone=True)
    browser.open(page)
    browser.run("document.querySelector('.card').click()")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.size(1280, 900)
    for picture in ("cmc", "ap", "cameras", "slots", "roc", "distances", "identities", "training", "maps"):
        assert (page.parent / f"report-{picture}.png").stat().st_size > 1000


def test_a_result_is_reported_with_its_own_scoring(trained, tmp_path, capsys):
    root = trained.parent.parent.parent
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    flags = ["--dataset_type", "small", "--dataset_path", str(root / "data"), "--weights", str(run / "weights.pth")]
    assert main(["evaluate", *flags, "--rerank", "--report"]) == 0
    folder = run / "eval-small_rerank"
    page = folder / "report.html"
    assert "before re-ranking" in page.read_text(encoding="utf-8")
    expected = read_data(page)
    page.unlink()
    assert main(["report", str(folder)]) == 0
    assert read_data(page) == expected != read_data(run / "eval-small" / "report.html")
    assert "before re-ranking" in page.read_text(encoding="utf-8")

    assert main(["evaluate", *flags, "--occlude", "2"]) == 0  # the covered queries' features are not kept
    capsys.readouterr()
    for name in ("eval-small", "eval-small_rerank"):
        (run / name / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    out, err = capsys.readouterr()
    assert out.count("report in") == 2 and page.is_file() and (run / "eval-small" / "report.html").is_file()
    assert f"warning: no report of {run / 'eval-small_occlude-2'}" in err
    (run / "eval-small" / "features.h5").unlink()
    assert main(["report", str(folder)]) == 2
    assert "no features.h5" in capsys.readouterr().err


def test_a_result_without_a_record_is_refused_in_one_line(evaluated, tmp_path, capsys):
    folder = tmp_path / "eval-old"
    shutil.copytree(evaluated, folder)
    (folder / "result.json").write_bytes(b'{"map": 0.5}')
    assert main(["report", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "older version" in err and "evaluate again" in err and len(err.splitlines()) == 1


def test_images_are_those_of_the_recorded_split(tmp_path):
    folder = make_dataset(tmp_path / "small")
    splits = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    (folder / "test.json").unlink()  # it has lists of one split only
    test = splits[0]["query"]
    splits.append(splits[0] | {"query": test[:2], "gallery": test[:2]})
    (folder / "splits.json").write_text(json.dumps(splits), encoding="utf-8")
    dataset = read_dataset(folder, 1)
    query, gallery = (
        Part(np.zeros((len(side), 2)), np.array([i.pid for i in side]), None, [Path(i.path).name for i in side])
        for side in (dataset.query, dataset.gallery)
    )
    record = Record(dataset="small", split=1, fingerprint=dataset.fingerprint)
    content = Content(dataset_path=str(tmp_path))
    paths, missing, _ = find_images(Features(query, gallery, {}, record), content)
    assert missing == "" and set(paths) == {*query.names, *gallery.names}
    paths, missing, _ = find_images(Features(query, gallery, {}, replace(record, split=0)), content)
    assert not paths and "fingerprint" in missing


def test_run_of_an_evaluation_that_is_the_current_folder(tmp_path, monkeypatch):
    folder = tmp_path / "run" / "eval-x"
    folder.mkdir(parents=True)
    assert run_of(folder) is None
    (tmp_path / "run" / "config.json").write_bytes(b"{}")
    monkeypatch.chdir(folder)
    for path in (folder, Path("."), Path("..", "eval-x")):
        assert run_of(path).resolve() == folder.parent.resolve()


def test_training_curves_of_several_runs(trained, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((trained / "config.json").read_bytes())
    line = {"step": 1, "loss": 5.0, "val_map": 0.5}
    cut = json.dumps(line) + '\n{"step": 2, "lo'  # while the second line was written
    (other / "metrics.jsonl").write_text(cut, encoding="utf-8")
    assert main(["report", str(other), str(trained)]) == 0
    text = (other / "report.html").read_text(encoding="utf-8")
    assert "Training curves of" in text and f"loss ends at {line['loss']:.3g}" in text


@pytest.mark.slow
def test_missing_images_are_reported(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    folder = run / "eval-small"
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["data"]["dataset_path"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["report", str(folder)]) == 0  # nothing typed: a warning
    assert "warning: The images are not in" in capsys.readouterr().err
    assert "numbers and curves only" in (folder / "report.html").read_text(encoding="utf-8")
    copy = make_dataset(tmp_path / "small", cameras=3)
    (copy / "images" / "00000008_0000_00000000.jpg").unlink()
    assert main(["report", str(folder), "--dataset_path", str(tmp_path)]) == 0
    assert "1 of the 24 images" in (folder / "report.html").read_text(encoding="utf-8")
    make_dataset(tmp_path / "else" / "small", cameras=3, test_ids=5)
    assert main(["report", str(folder), "--dataset_path", str(tmp_path / "else")]) == 2  # typed: an error
    assert "its fingerprint differs" in capsys.readouterr().err
    assert "1 of the 24 images" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_foreign_features_give_numbers_and_curves(features, tmp_path, browser, script):
    write_npz(tmp_path / "theirs.npz", features.query, features.gallery)
    assert main(["report", str(tmp_path / "theirs.npz")]) == 0
    page = tmp_path / "theirs-report" / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "<h1>theirs</h1>" in text and "no attribute slots and bands" in text and "--dataset_type" in text
    browser.open(page)
    browser.run("document.querySelector('.card').click()")
    assert len(shown(browser)) == 12 and not browser.errors
    done = script("evaluate.py", "--features", tmp_path / "theirs.npz", "--report", "--exp_dir", tmp_path / "logs")
    assert done.returncode == 0 and (tmp_path / "logs" / "features" / "theirs" / "report.html").is_file()


@pytest.mark.slow
def test_market_sized_page_loads(browser, tmp_path, monkeypatch):
    made = random_features(3368, 15913, 750, 6, 24)
    parts = []
    for letter, part in (("q", made.query), ("g", made.gallery)):
        names = [f"{letter}{i:08d}_0000_00000000.jpg" for i in range(len(part))]
        parts.append(Part(part.features, part.pids, part.camids, names))
    features = Features(*parts, {"slots": [3, 8], "bands": BANDS})
    pixels = np.random.default_rng(0).integers(0, 255, (14, 7, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).resize((64, 128)).save(tmp_path / "one.jpg")
    one = lists.thumbnails([str(tmp_path / "one.jpg")])[0]
    assert 600 < len(one) < 1300
    monkeypatch.setattr(lists, "thumbnails", lambda paths: [one] * len(paths))
    names = [name for part in parts for name in part.names]
    paths = {name: name for name in names}
    monkeypatch.setattr("reid.report.page.find_images", lambda *_: FoundImages(paths))
    write_report(Source(tmp_path / "out"), evaluate(features, fpr=1e-3), Content())
    page = tmp_path / "out" / "report.html"
    assert page.stat().st_size < 40e6
    browser.open(page)
    assert "of 3,368" in browser.run("document.getElementById('count').textContent")
    browser.run("[...document.querySelectorAll('.pages button')].at(-1).click()")
    assert "13 to 24" in browser.run("document.getElementById('count').textContent") and not browser.errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "is not a run folder"),
        (["{e}", "--top", "0"], "--top 0 is too small"),
        (["{e}", "--maps", "a.jpg"], "--maps needs the weights"),
        (["{e}", "{e}"], "has no run folder"),
    ],
)
def test_wrong_arguments(evaluated, capsys, arguments, message):
    assert main(["report", *(a.format(e=evaluated) for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def write_npz(path, query, gallery, pid_offset: int = 0) -> None:
    """Foreign features without cameras; pid_offset is added to the query pids."""
    np.savez(
        path,
        query_features=query.features,
        query_pids=query.pids + pid_offset,
        gallery_features=gallery.features,
        gallery_pids=gallery.pids,
    )


def test_unwritable_folders_and_unusable_input(features, tmp_path, capsys, monkeypatch, trained):
    write_npz(tmp_path / "x.npz", features.query, features.gallery, pid_offset=1000)
    assert main(["report", str(tmp_path / "x.npz")]) == 2
    assert "has a match" in capsys.readouterr().err and not (tmp_path / "x-report").exists()
    write_h5(tmp_path / "y.h5", features)
    (tmp_path / "y-report").write_bytes(b"a file in place of the folder")
    assert main(["report", str(tmp_path / "y.h5")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["report", str(trained), "--maps", "nobody.jpg"]) == 2
    assert "neither a query or gallery image nor a file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(trained)]) == 2
    assert 'pip install -e ".[report]"' in capsys.readouterr().err


def test_images_that_are_asked_for_and_missing(evaluated, capsys, tmp_path):
    """With a typed flag an error, and the existing page stays; without flags a warning."""
    assert main(["report", str(evaluated)]) == 0
    page = evaluated / "report.html"
    before = page.read_bytes()
    text = capsys.readouterr().err
    assert "warning: The features do not name" in text and "numbers and curves only" in text
    for flags, words in (
        (["--split", "7"], "error: The features do not name their dataset"),
        (["--dataset_path", str(tmp_path)], "error: The features do not name their dataset"),
        (["--dataset_type", "market1501"], "market1501 (no meta.json)"),
    ):
        assert main(["report", str(evaluated), *flags]) == 2
        text = capsys.readouterr().err
        assert words in text and "curves" not in text and page.read_bytes() == before


@pytest.mark.slow
def test_features_that_are_all_equal(features, tmp_path):
    sides = (replace(side, features=np.ones_like(side.features)) for side in (features.query, features.gallery))
    write_npz(tmp_path / "x.npz", *sides)
    assert main(["report", str(tmp_path / "x.npz")]) == 0
    data = read_data(tmp_path / "x-report" / "report.html")
    share = [(features.gallery.pids == pid).mean() for pid in features.query.pids]  # of matches, as all are tied
    np.testing.assert_allclose(data["ap"], share, atol=1e-4)
