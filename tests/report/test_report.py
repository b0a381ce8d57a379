"""The report: its numbers against plain forms, its page in a real browser, its commands on good and bad input."""

import base64
import json
import shutil
import sys
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
from browser import Browser
from conftest import make_dataset
from PIL import Image as PILImage

from reid.__main__ import main
from reid.bench.measure import random_features
from reid.errors import InputError
from reid.evaluation.features import Features, Part
from reid.evaluation.record import Scoring
from reid.evaluation.results import evaluate
from reid.models.rrid import RRID
from reid.report import facts, lists, slots
from reid.report import write as command
from reid.report.published import published

BANDS = [(0, 0.5), (0.5, 1), (0, 1)]


@pytest.fixture(scope="module")
def browser():
    try:
        browser = Browser()
    except FileNotFoundError:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    yield browser
    browser.close()


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
        f["names"] = names  # names that would end the script
        f["subset"] = ["query"] * len(sides[0]) + ["gallery"] * len(sides[1])
        f.attrs.update(attrs)


@pytest.fixture(scope="module")
def evaluated(features, tmp_path_factory):
    """A folder with features.h5 and the report made from it, without images."""
    folder = tmp_path_factory.mktemp("report") / "eval"
    write_h5(folder / "features.h5", features, **features.attrs)
    assert main(["report", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of two steps on a small dataset whose evaluation has a report."""
    root = tmp_path_factory.mktemp("trained")
    make_dataset(root / "data" / "small", cameras=3)
    flags = ["--dataset_type", "small", "--dataset_path", str(root / "data"), "--exp_dir", str(root / "logs")]
    size = ["--backbone", "resnet18", "--pretrained", "none", "--h", "64", "--w", "32", "--stripes", "2"]
    steps = ["--batch_size", "8", "--steps_per_log", "1", "--max_steps", "2", "--name", "first", "--seed", "3"]
    assert main(["train", *flags, *size, *steps]) == 0
    assert main(["evaluate", *flags, "--report"]) == 0
    return root / "logs" / "small" / "first"


def test_the_slots_add_up_to_the_distance():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(2, 5, 12)).astype(np.float32)
    q, g = np.divmod(np.arange(25), 5)
    found = slots.slot_distances(query, gallery, q, g, 3)
    for pair, (i, j) in enumerate(zip(q, g)):
        for s in range(3):
            at = slice(4 * s, 4 * s + 4)
            assert found[pair, s] == pytest.approx(
                sum((float(a) - float(b)) ** 2 for a, b in zip(query[i, at], gallery[j, at]))
            )
    whole = ((query[q].astype(float) - gallery[g]) ** 2).sum(1)
    np.testing.assert_allclose(found.sum(1), whole, rtol=1e-12)


@pytest.mark.parametrize("attrs, told", [
    ({}, "slots and bands"),
    ({"slots": [3, 8]}, "no attribute bands"),
    ({"slots": [3, 7], "bands": BANDS}, "do not fit"),
    ({"slots": [3, 8], "bands": BANDS[:2]}, "do not fit"),
    ({"slots": [3, 8], "bands": [(0.5, 0), *BANDS[1:]]}, "do not fit"),
])  # fmt: skip
def test_files_without_sound_bands_say_why(attrs, told):
    bands, reason = slots.layout(attrs, 24)
    assert bands is None and told in reason


def test_bands_of_the_model_follow_its_slots():
    model = RRID(0, (6, 4, 2), "resnet18")
    bands = np.array(model.bands)
    assert bands.shape == (model.slots, 2)
    names = [f"{i} of {n}" for n in (6, 4, 2) for i in range(1, n + 1)] + 3 * ["whole"]
    assert [name for _, name in slots.names(bands)] == names
    np.testing.assert_allclose(bands[6], (0, 0.25))
    assert len(RRID(0, (2,), "resnet18", pooling="none").bands) == 2


@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize("metric, device", [("euclidean", None), ("cosine", None), ("euclidean", "cpu")])
def test_rank_lists_are_the_sorted_rows(features, metric, rerank, device):
    result = evaluate(features, Scoring(metric=metric, rerank=rerank))
    found, cameras = lists.rank_lists(result, 4, rerank, device=device)
    q, g = features.query, features.gallery
    distance = (2 if metric == "euclidean" else 1) * (1 - q.features @ g.features.T)
    for i in range(len(q)):
        places = found.answers[i][found.answers[i] >= 0]
        assert (np.diff(found.distances[i][: len(places)]) >= 0).all()
        kinds = [
            2 if s and c else 0 if s else 1
            for s, c in zip(g.pids[places] == q.pids[i], g.camids[places] == q.camids[i])
        ]
        assert found.kinds[i][: len(places)].tolist() == kinds
        assert sum(kind != 2 for kind in kinds) == 4 and kinds[-1] != 2
        if not rerank:
            wanted, kept = [], 0
            for j in np.argsort(distance[i]):
                wanted.append(j)
                kept += not (g.pids[j] == q.pids[i] and g.camids[j] == q.camids[i])
                if kept == 4:
                    break
            assert places.tolist() == wanted
            np.testing.assert_allclose(found.distances[i][: len(places)], distance[i, places], atol=1e-5)
    if not rerank:
        at = (result.ranking.query, result.ranking.gallery)
        np.testing.assert_allclose(found.match_distances, distance[at], atol=1e-5)
        assert cameras == evaluate(features, Scoring(metric=metric), camera_pairs=True).cameras


def read_data(page) -> dict:
    text = page.read_text()
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


def test_many_queries_are_thinned_evenly(features, monkeypatch):
    monkeypatch.setattr(lists, "MOST_QUERIES", 15)
    result = evaluate(features)
    data, _ = lists.page_data(result, lists.rank_lists(result)[0], {})
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
    told = browser.run("document.querySelector('.why caption').textContent")
    assert sum(map(float, cells)) == pytest.approx(float(told.split("distance ")[1].split(",")[0]), abs=3e-4)
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


def test_trained_run_has_everything(browser, trained, capsys):
    assert main(["report", str(trained), "--maps", "00000008_0000_00000000.jpg"]) == 0
    page = trained / "eval-small" / "report.html"
    assert f"report in {page}" in capsys.readouterr().out
    browser.open(page)
    sections = browser.run("[...document.querySelectorAll('section')].map(s => s.id)")
    assert sections == ["summary", "lists", "why", "open", "people", "maps", "training", "made"]
    parser = Images()
    parser.feed(page.read_text())
    assert len(parser.alts) >= 9 and all(parser.alts)
    images = "[...document.images]"
    browser.run(f"Promise.all({images}.map(i => i.decode()))")  # raises for one that cannot be shown
    assert browser.run(f"{images}.every(i => i.naturalWidth > 0 && i.alt)")
    assert browser.run("document.querySelectorAll('.card img').length") > 20
    assert "seed" in page.read_text() and not browser.errors and len(browser.requests) == 1
    browser.size(390, 800, phone=True)
    browser.open(page)
    browser.run("document.querySelector('.card').click()")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.size(1280, 900)
    for picture in ("cmc", "ap", "cameras", "slots", "roc", "distances", "people", "training", "maps"):
        assert (page.parent / f"report-{picture}.png").stat().st_size > 1000


def test_reports_of_other_settings_and_several_runs(trained, script, capsys):
    root = trained.parent.parent.parent
    flags = ("--dataset_type", "small", "--dataset_path", root / "data", "--exp_dir", root / "logs")
    done = script("evaluate.py", *flags, "--rerank", "--report")
    assert done.returncode == 0, done.stderr
    assert "before re-ranking" in (trained / "eval-small_rerank" / "report.html").read_text()
    assert main(["report", str(trained / "eval-small_rerank")]) == 2
    assert "no features.h5" in capsys.readouterr().err
    other = trained.with_name("other")
    other.mkdir()
    (other / "config.json").write_text((trained / "config.json").read_text())
    line = {"step": 1, "loss": 5.0, "val_map": 0.5}
    (other / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 2, "lo')  # cut short while it is written
    assert main(["report", str(other), str(trained)]) == 0
    assert "Training curves of" in (other / "report.html").read_text()
    assert f"loss ends at {line['loss']:.3g}" in (other / "report.html").read_text()


def test_missing_images_are_said(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    folder = run / "eval-small"
    config = json.loads((run / "config.json").read_text())
    config["data"]["dataset_path"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    assert main(["report", str(folder)]) == 0  # nothing typed: a warning
    assert "warning: The images are not at" in capsys.readouterr().err
    assert "numbers and curves only" in (folder / "report.html").read_text()
    copy = make_dataset(tmp_path / "small", cameras=3)
    (copy / "images" / "00000008_0000_00000000.jpg").unlink()
    assert main(["report", str(folder), "--dataset_path", str(tmp_path)]) == 0
    assert "1 of the 24 images" in (folder / "report.html").read_text()
    make_dataset(tmp_path / "else" / "small", cameras=3, test_ids=5)
    assert main(["report", str(folder), "--dataset_path", str(tmp_path / "else")]) == 2  # typed: an error
    assert "another fingerprint" in capsys.readouterr().err
    assert "1 of the 24 images" in (folder / "report.html").read_text()


def test_foreign_features_give_numbers_and_curves(features, tmp_path, browser, script):
    sides = {"query": features.query, "gallery": features.gallery}
    arrays = {f"{side}_{key}": getattr(part, key) for side, part in sides.items() for key in ("features", "pids")}
    np.savez(tmp_path / "theirs.npz", **arrays)
    assert main(["report", str(tmp_path / "theirs.npz")]) == 0
    page = tmp_path / "theirs-report" / "report.html"
    text = page.read_text()
    assert "<h1>theirs</h1>" in text and "no attribute slots and bands" in text and "--dataset_type" in text
    browser.open(page)
    browser.run("document.querySelector('.card').click()")
    assert len(shown(browser)) == 12 and not browser.errors
    done = script("evaluate.py", "--features", tmp_path / "theirs.npz", "--report", "--exp_dir", tmp_path / "logs")
    assert done.returncode == 0 and (tmp_path / "logs" / "features" / "theirs" / "report.html").is_file()


def test_market_sized_page_loads(browser, tmp_path, monkeypatch):
    made = random_features(3368, 15913, 750, 6, 24)
    parts = [Part(p.features, p.pids, p.camids, [f"{t}{i:08d}_0000_00000000.jpg" for i in range(len(p))])
             for t, p in (("q", made.query), ("g", made.gallery))]  # fmt: skip
    features = Features(*parts, {"slots": [3, 8], "bands": BANDS})
    pixels = np.random.default_rng(0).integers(0, 255, (14, 7, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).resize((64, 128)).save(tmp_path / "one.jpg")
    one = lists.thumbnails([str(tmp_path / "one.jpg")])[0]
    assert 600 < len(one) < 1300
    monkeypatch.setattr(lists, "thumbnails", lambda paths: [one] * len(paths))
    names = [name for part in parts for name in part.names]
    monkeypatch.setattr(command, "image_paths", lambda *_: ({name: name for name in names}, ""))
    place = command.Place(tmp_path / "out", None, tmp_path / "features.h5", "")
    command.write_report(place, evaluate(features, fpr=1e-3), str(tmp_path))
    page = tmp_path / "out" / "report.html"
    assert page.stat().st_size < 40e6
    browser.open(page)
    assert "of 3,368" in browser.run("document.getElementById('count').textContent")
    browser.run("[...document.querySelectorAll('.pages button')].at(-1).click()")
    assert "13 to 24" in browser.run("document.getElementById('count').textContent") and not browser.errors


@pytest.mark.parametrize("arguments, told", [
    (["nowhere"], "is no run folder"),
    (["{e}", "--k", "0"], "--k 0 is too small"),
    (["{e}", "--maps", "a.jpg"], "--maps needs the weights"),
    (["{e}", "{e}"], "has no run folder"),
])  # fmt: skip
def test_wrong_arguments(evaluated, capsys, arguments, told):
    assert main(["report", *(a.format(e=evaluated) for a in arguments)]) == 2
    assert told in capsys.readouterr().err


def test_unwritable_and_hopeless_input(features, tmp_path, capsys, monkeypatch, trained):
    np.savez(tmp_path / "x.npz", query_features=features.query.features, query_pids=features.query.pids + 1000,
             gallery_features=features.gallery.features, gallery_pids=features.gallery.pids)  # fmt: skip
    assert main(["report", str(tmp_path / "x.npz")]) == 2
    assert "has a match" in capsys.readouterr().err and not (tmp_path / "x-report").exists()
    write_h5(tmp_path / "y.h5", features)
    (tmp_path / "y-report").write_text("a file where the folder should be")
    assert main(["report", str(tmp_path / "y.h5")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["report", str(trained), "--maps", "nobody.jpg"]) == 2
    assert "neither a query or gallery image nor a file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(trained)]) == 2
    assert 'pip install -e ".[report]"' in capsys.readouterr().err


def test_images_that_were_asked_for_and_are_not_there(evaluated, capsys, tmp_path):
    """A typed flag that cannot be met is an error, and the page that is there stays; without flags it is a warning."""
    assert main(["report", str(evaluated)]) == 0
    page = evaluated / "report.html"
    before = page.read_bytes()
    assert "warning: The features do not say" in (said := capsys.readouterr().err) and "numbers and curves only" in said
    for flags, words in (
        (["--split", "7"], "error: The features do not say which images"),
        (["--dataset_path", str(tmp_path)], "error: The features do not say which images"),
        (["--dataset_type", "market1501"], "market1501 (no meta.json)"),
    ):
        assert main(["report", str(evaluated), *flags]) == 2
        said = capsys.readouterr().err
        assert words in said and "curves" not in said and page.read_bytes() == before


def test_features_that_are_all_equal(features, tmp_path):
    np.savez(tmp_path / "x.npz", query_features=np.ones_like(features.query.features), query_pids=features.query.pids,
             gallery_features=np.ones_like(features.gallery.features), gallery_pids=features.gallery.pids)  # fmt: skip
    assert main(["report", str(tmp_path / "x.npz")]) == 0


def test_facts_name_what_differs_and_what_was_expected():
    result = {"map": 0.9, "cmc": [0.95], "n_query": 3368, "n_gallery": 15913, "time": 1.0}
    rows = dict(facts.expected(result, "rrid", "market1501", ["market1501"]))
    assert "+1.1 and -0.2 points" in rows["Expected (Park and Ham, AAAI 2020)"]
    assert "trained on dukemtmc" in dict(facts.expected(result, "rrid", "market1501", ["dukemtmc"]))["Expected"]
    assert facts.changes({"profile": "paper", "stripes": [6], "seed": 0, "exp_dir": "x"}) == {"stripes": [6]}
    for name in ("rrid", "baseline", "strong_baseline", "pcb", "mgn"):
        assert all(0.5 < row.map < row.rank1 < 1 for row in published(name, "market1501"))
    assert [row.map for row in published("rrid", "cuhk03_detected")] == [0.696, 0.6763]


def test_damaged_run_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"run": ')
    with pytest.raises(InputError, match="not valid JSON"):
        facts.read_run(tmp_path)
