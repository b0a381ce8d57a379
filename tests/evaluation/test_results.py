"""From features to results: blocks, protocols, files, and evaluate.py on features of every kind."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from reid.__main__ import main
from reid.bench.measure import random_features, side_by_side
from reid.errors import InputError
from reid.evaluation.features import Features
from reid.evaluation.ranking import rank
from reid.evaluation.record import Record, Scoring, read_record
from reid.evaluation.results import evaluate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def features():
    return random_features(60, 500, 20, 4, 16)


def labels(features):
    q, g = features.query, features.gallery
    return q.pids, g.pids, q.camids, g.camids


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_blocks_give_what_one_matrix_gives(features, device, metric):
    whole = rank(-features.query.features @ features.gallery.features.T, *labels(features))
    result = evaluate(
        features, Scoring(metric=metric, cmc="cuhk03"), camera_pairs=True, device=device, limit=7 * 4 * 500
    )
    np.testing.assert_allclose(result.ap, whole.ap, atol=1e-3)  # products of other shapes round otherwise
    assert result.mean_ap == pytest.approx(whole.mean_ap, abs=1e-4)
    np.testing.assert_allclose(result.ranking.cmc, whole.cmc, atol=0.02)
    one_block = evaluate(features, Scoring(metric=metric, cmc="cuhk03"), camera_pairs=True)
    np.testing.assert_allclose(result.cmc, one_block.cmc, atol=1e-3)
    assert [row["queries"] for row in result.cameras] == [row["queries"] for row in one_block.cameras]


def test_memory_stays_bounded():
    features = random_features(400, 100_000, 20, 4, 8)
    rows = side_by_side({"tiles": lambda: evaluate(features, limit=1 << 22)})
    if rows["tiles"].peak is None:
        pytest.skip("peak memory is only measured on Linux")
    assert rows["tiles"].peak < 64 << 20  # all distances would be 153 MiB


def test_without_cameras_nothing_is_junk(features):
    q, g = features.query, features.gallery
    whole = rank(-q.features @ g.features.T, q.pids, g.pids)
    bare = Features(replace(q, camids=None), replace(g, camids=None), {})
    for result in (evaluate(features, Scoring(cameras=False)), evaluate(bare)):
        assert result.mean_ap == pytest.approx(whole.mean_ap, abs=1e-4)
        assert result.conventions["junk"] == "none: no cameras"
    with pytest.raises(InputError, match="--camera_pairs needs camids"):
        evaluate(bare, camera_pairs=True)


def test_camera_pairs(features):
    rows = evaluate(features, camera_pairs=True).cameras
    q, g = features.query, features.gallery
    assert {(r["query_camid"], r["gallery_camid"]) for r in rows} == {
        (a, b) for a in range(4) for b in range(4) if a != b
    }
    for row in rows[::5]:
        mine, theirs = q.camids == row["query_camid"], g.camids == row["gallery_camid"]
        alone = rank(-q.features[mine] @ g.features[theirs].T, q.pids[mine], g.pids[theirs])
        assert (row["queries"], row["map"]) == (alone.n_valid, pytest.approx(alone.mean_ap, abs=1e-3))
        assert row["rank1"] == pytest.approx(alone.cmc[0], abs=0.1)


def test_files_of_a_result(features, tmp_path):
    record = Record(
        dataset="market1501", split=2, fingerprint="d", weights="w", h=384, w=128, flip=True, precision="bf16"
    )
    result = evaluate(replace(features, record=record), Scoring(ap="trapezoid"), fpr=1e-3)
    result.save(tmp_path)
    content = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert content["map"] == pytest.approx(np.nanmean(result.ranking.ap_trapezoid))
    assert (
        content["map"] == content["other_conventions"]["map"]["trapezoid"] < content["other_conventions"]["map"]["step"]
    )
    assert len(content["cmc"]) == 50 and content["minp"] == result.ranking.mean_inp
    assert (content["n_query"], content["n_valid"], content["n_gallery"]) == (60, 60, 500)
    assert content["conventions"]["ap"] == "trapezoid" and content["width"] == 16
    assert read_record(tmp_path / "result.json") == result.record == replace(record, scoring=Scoring(ap="trapezoid"))
    assert content["time"] >= 0 and content["open_set"]["fpr"] == 1e-3
    low, high = content["intervals"]["map"]
    assert low < content["map"] < high
    with open(tmp_path / "queries.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [int(r["pid"]) for r in rows] == features.query.pids.tolist()
    np.testing.assert_allclose([float(r["ap"]) for r in rows], result.ap)
    np.testing.assert_allclose([float(r["first_match"]) for r in rows], result.ranking.first_match)
    text = str(result)
    for word in (
        "mAP",
        "Rank-1",
        "Rank-20",
        "mINP",
        "ap trapezoid",
        "counted as wrong",
        "60 queries",
        "threshold for 0.001",
    ):
        assert word in text


def test_unmatched_queries_are_said_and_left_empty(features, tmp_path):
    pids = features.query.pids.copy()
    pids[:5] = 1000
    result = evaluate(Features(replace(features.query, pids=pids), features.gallery, {}))
    assert "60 queries, 5 of them without a match left out" in str(result)
    result.save(tmp_path)
    with open(tmp_path / "queries.csv", newline="", encoding="utf-8") as f:
        row = next(csv.DictReader(f))
    assert (row["matches"], row["ap"], row["first_match"], row["inp"]) == ("0", "", "", "")


def test_bad_input(features):
    q, g = features.query, features.gallery
    nobody = np.zeros(len(q), bool)
    for broken, settings, message in (
        (Features(q.where(nobody), g, {}), {}, "there are no query pids: the set is empty"),
        (Features(q, g.where(np.zeros(500, bool)), {}), {}, "there are no gallery pids"),
        (Features(replace(q, pids=q.pids + 1000), g, {}), {}, "none of the 60 queries has a match"),
        (Features(replace(q, pids=q.pids[1:]), g, {}), {}, "59 query pids but 60 query camids"),
        (features, {"ap": "11 points"}, "--ap 11 points is unknown; choose from step, trapezoid"),
        (features, {"cmc": "x"}, "--cmc x is unknown"),
        (features, {"metric": "x"}, "--metric x is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(broken, Scoring(**settings))


def scripted(*arguments, cwd):
    command = [sys.executable, "-W", "error", str(ROOT / "evaluate.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_evaluate_script_scores_features(features, tmp_path, script):
    q, g = features.query, features.gallery
    sides = {"query": q, "gallery": g}
    np.savez(
        tmp_path / "f.npz",
        **{f"{s}_{k}": getattr(p, k) for s, p in sides.items() for k in ("features", "pids", "camids")},
    )
    keys = {"f": "features", "label": "pids", "cam": "camids"}
    savemat(tmp_path / "f.mat", {f"{s}_{k}": getattr(p, v) for s, p in sides.items() for k, v in keys.items()})
    expected = evaluate(features).to_json()
    run = scripted("--features", "f.npz", "--gpus", 0, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    got = json.loads((tmp_path / "logs/features/f/result.json").read_text(encoding="utf-8"))
    assert (got["map"], got["cmc"]) == (
        pytest.approx(expected["map"], abs=1e-4),
        pytest.approx(expected["cmc"], abs=0.02),
    )
    assert f"mAP {got['map']:.2%}" in run.stdout and "threshold for 0.001" in run.stdout

    settings = ["--ap", "trapezoid", "--cmc", "cuhk03", "--metric", "cosine", "--query_expansion", 3, "--camera_pairs"]
    run = script("evaluate.py", "--features", "f.mat", *settings, "--rerank", "--no_cameras", cwd=tmp_path)
    assert run.returncode == 2 and "error: --camera_pairs needs camids" in run.stderr and "Traceback" not in run.stderr
    run = script("evaluate.py", "--features", "f.mat", *settings, "--rerank", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    folder = "f_ap-trapezoid_cmc-cuhk03_metric-cosine_rerank_query_expansion-3"
    got = json.loads((tmp_path / "logs/features" / folder / "result.json").read_text(encoding="utf-8"))
    expected = evaluate(
        features,
        Scoring(ap="trapezoid", cmc="cuhk03", metric="cosine", rerank=True, query_expansion=3),
        camera_pairs=True,
    ).to_json()
    assert got["map"] == pytest.approx(expected["map"], abs=1e-4) and len(got["cameras"]) == 12
    assert got["conventions"] == expected["conventions"]


@pytest.mark.parametrize("subject", ["ranking", "rerank"])
def test_bench(subject, capsys):
    sizes = ["--queries", "20", "--gallery", "200", "--identities", "10", "--width", "8", "--repeat", "1"]
    assert main(["bench", subject, *sizes]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("20 x 200 x 8") and any(line.split("  ")[0] in ("published", "dense") for line in lines)
    assert main(["bench", subject, *sizes, "--alone"]) == 0
    assert "published" not in (out := capsys.readouterr().out) and "dense" not in out


def test_lengths_and_euclidean_distance(features, caplog):
    """Features of other lengths than 1, scored by Euclidean distance: one line names cosine, which is usual."""
    evaluate(features)
    long = [replace(side, features=3 * side.features) for side in (features.query, features.gallery)]
    evaluate(Features(*long, {}), Scoring(metric="cosine"))
    assert not caplog.text
    evaluate(Features(*long, {}))
    assert caplog.text.count("--metric cosine") == 1 and "not of unit length" in caplog.text
