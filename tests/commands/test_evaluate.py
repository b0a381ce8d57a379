"""The real evaluate command: what it reuses, where it puts what, and several splits."""

import json
import os
import shutil
import signal
from statistics import mean, stdev

import h5py
import numpy as np
import pytest
import torch
from conftest import make_dataset, make_weights

from reid.evaluation.features import read_features
from reid.evaluation.record import USUAL, Scoring, read_record
from reid.inference import describe, testset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of datasets with `many`: three splits of 18 identities, whose tests have 6 each."""
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder / "many", train_ids=0, test_ids=18)
    (folder / "many" / "test.json").unlink()
    tests = [list(range(i, i + 6)) for i in (0, 6, 12)]
    splits = [{"trainval": [p for p in range(18) if p not in t], "query": t, "gallery": t} for t in tests]
    (folder / "many" / "splits.json").write_text(json.dumps(splits), encoding="utf-8")
    return folder


@pytest.fixture()
def run(tmp_path, weights):
    """A run folder with small weights, without evaluations."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(weights, folder / "weights.pth")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture()
def evaluated(script, data, run):
    """evaluated("--split", 1): the finished command, which must succeed."""

    def work(*flags, code=0):
        done = script("evaluate.py", "--dataset_type", "many", "--dataset_path", data, "--weights",
                      run / "weights.pth", *flags)  # fmt: skip
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        return done

    return work


def resolved(monkeypatch, precision):
    """auto means `precision`, as on another device."""

    def resolve(asked, device):
        return precision if asked == "auto" else asked

    monkeypatch.setattr("reid.device.resolve_precision", resolve)
    monkeypatch.setattr("reid.commands.scoring.resolve_precision", resolve)


def result(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_each_split_has_its_own_features_and_result(evaluated, run):
    evaluated()
    first, features = result(run / "eval-many"), (run / "eval-many" / "features.h5").read_bytes()
    done = evaluated("--split", 1)
    assert "trained on split 0" not in done.stderr  # these weights never saw the dataset
    second = result(run / "eval-many_split-1")
    assert (first["record"]["split"], second["record"]["split"]) == (0, 1)
    assert first["record"]["fingerprint"] != second["record"]["fingerprint"] and first["map"] != second["map"]
    assert (run / "eval-many" / "features.h5").read_bytes() == features and result(run / "eval-many") == first
    assert (
        read_features(run / "eval-many_split-1" / "features.h5").record
        == read_record(run / "eval-many_split-1" / "result.json").unscored
    )


@pytest.mark.parametrize("flags, word", [(["--split", "all"], "all"), (["--split", 2, 0, 1], "0-1-2")])
def test_several_splits_and_their_mean(evaluated, run, flags, word):
    done = evaluated(*flags)
    content = json.loads((run / f"eval-many_splits-{word}" / "splits.json").read_text(encoding="utf-8"))
    assert content["splits"] == [0, 1, 2]
    for i, name in enumerate(content["folders"]):
        one = result(run / name)
        scores = {"mAP": one["map"], "mINP": one["minp"], **{f"Rank-{k}": one["cmc"][k - 1] for k in (1, 5, 10)}}
        assert content["records"][i] == read_record(run / name / "result.json").digest
        assert {k: v["values"][i] for k, v in content["scores"].items()} == scores
    for values in content["scores"].values():
        assert values["mean"] == pytest.approx(mean(values["values"]))
        assert values["deviation"] == pytest.approx(stdev(values["values"]))
    maps = content["scores"]["mAP"]
    assert len(set(maps["values"])) == 3 and maps["deviation"] > 0
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("split ")] == [str(n) for n in content["splits"]]
    total = next(line for line in lines if line.startswith("mean ± standard deviation over 3 splits: "))
    assert f"mAP {100 * maps['mean']:.2f} ± {100 * maps['deviation']:.2f} %" in total and "Rank-10" in total
    before = {p: p.stat().st_mtime_ns for p in run.glob("*/features.h5")}
    assert len(before) == 3
    evaluated(*flags)
    assert {p: p.stat().st_mtime_ns for p in run.glob("*/features.h5")} == before  # reused


def test_summaries_of_other_settings_and_bands(evaluated, run):
    done = evaluated("--split", 0, 1, "--rerank", "--occlude", 0, 3)
    names = {p.parent.name for p in run.glob("*/splits.json")}
    assert names == {"eval-many_splits-0-1_rerank", "eval-many_splits-0-1_occlude-3_rerank"}
    assert done.stdout.count("over 2 splits") == 2
    path = run / "eval-many_splits-0-1_rerank" / "splits.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"records": ["a", "b"]}), encoding="utf-8")
    evaluated("--split", 0, 1, "--rerank")
    assert json.loads(path.read_text(encoding="utf-8"))["records"] == ["a", "b"]
    assert len(list(run.glob("eval-many_splits-0-1_rerank_*/splits.json"))) == 1


@pytest.mark.parametrize("flags, message", [
    (["--split", 3], "splits.json: --split 3 does not exist; use 0 to 2, or all"),
    (["--split", 0, 7], "splits.json: --split 7 does not exist"),
    (["--split", "all", 1], "--split all 1: give distinct numbers of entries of splits.json, or all"),
    (["--split", -1], "--split -1: give distinct numbers"),
    (["--split", 1, 1], "--split 1 1: give distinct numbers"),
    (["--split", "x"], "--split x: give distinct numbers"),
])  # fmt: skip
def test_splits_that_are_not_there(evaluated, run, flags, message):
    assert message in evaluated(*flags, code=2).stderr
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "weights.pth"]


@pytest.mark.parametrize("flags, message", [
    (["--tracks"], "many has no tracks; prepare veri776"),
    (["--cmc", "vehicleid"], "--cmc vehicleid needs a dataset whose test images are query and gallery"),
])  # fmt: skip
def test_protocols_of_other_datasets_are_refused_before_the_extraction(evaluated, run, flags, message):
    assert message in evaluated(*flags, code=2).stderr
    assert not [*run.rglob("features.h5*")]


def test_scores_on_another_split_of_the_training_set_are_questioned(script, data, tmp_path):
    path = make_weights(tmp_path / "w.pth", dataset_type=("many",), split=1)
    flags = ["evaluate.py", "--dataset_path", data, "--weights", path, "--exp_dir", tmp_path]
    done = script(*flags, "--split", 0, 1)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the weights were trained on split 1 of many; where test identities of split 0") == 1
    assert (tmp_path / "many" / "eval-w" / "result.json").is_file()  # the training's own split needs no word
    assert (tmp_path / "many" / "eval-w_split-0" / "result.json").is_file()


@pytest.mark.parametrize("first, second", [("fp32", "bf16"), ("tf32", "fp32")])
def test_auto_of_another_device_is_not_reused(evaluated, run, monkeypatch, first, second):
    for precision in (first, second):
        resolved(monkeypatch, precision)
        done = evaluated()
    assert f"this one, with precision {second} instead of {first}, is written to" in done.stdout
    places = [run / "eval-many", run / f"eval-many_precision-{second}"]
    assert [read_features(p / "features.h5").record.precision for p in places] == [first, second]
    assert [result(p)["record"]["precision"] for p in places] == [first, second]
    a, b = (read_features(p / "features.h5").query.features for p in places)
    if second == "bf16":
        assert 0 < np.abs(a - b).max() < 0.05
    before = (places[0] / "features.h5").stat().st_mtime_ns
    resolved(monkeypatch, first)
    evaluated("--precision", first)  # what auto means here: no word in the name
    assert (places[0] / "features.h5").stat().st_mtime_ns == before and len(list(run.glob("eval-*"))) == 2


def test_a_resumed_extraction_keeps_its_precision(evaluated, run, monkeypatch):
    original = testset.extract_file.__globals__["describe"]
    images = []

    def stopped(model, batches, *rest):
        for features in original(model, batches, *rest):
            images.append(len(features))
            if len(images) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield features

    monkeypatch.setattr(describe, "describe", stopped)
    resolved(monkeypatch, "fp32")
    assert "stopped after 16 of" in evaluated("--batch_size", 8, code=130).stderr
    partial = run / "eval-many" / "features.h5.partial"
    before = partial.read_bytes()
    monkeypatch.setattr(describe, "describe", original)
    resolved(monkeypatch, "tf32")
    done = evaluated("--batch_size", 8)
    assert "eval-many contains another evaluation; this one, with precision tf32 instead of fp32" in done.stdout
    assert read_features(run / "eval-many_precision-tf32" / "features.h5").record.precision == "tf32"
    assert partial.read_bytes() == before
    resolved(monkeypatch, "fp32")
    evaluated("--batch_size", 8)
    continued = read_features(run / "eval-many" / "features.h5")
    assert continued.record.precision == "fp32" and not partial.exists()
    shutil.rmtree(run / "eval-many")
    evaluated("--batch_size", 8)
    straight = read_features(run / "eval-many" / "features.h5")
    np.testing.assert_array_equal(continued.query.features, straight.query.features)
    np.testing.assert_array_equal(continued.gallery.features, straight.gallery.features)


def test_results_of_an_older_version_are_made_anew(evaluated, run):
    folder = run / "eval-many"
    folder.mkdir()
    with h5py.File(folder / "features.h5", "w") as f:
        f.attrs.update(weights="w", slots=(2, 2))
    (folder / "result.json").write_text('{"map": 0.5, "weights": "w"}', encoding="utf-8")
    done = evaluated()
    said = f"{folder / 'features.h5'} was made by an older version, which kept no record; evaluate again"
    assert said in done.stdout and result(folder)["record"]["scoring"] == USUAL.to_json()


def test_scored_features_keep_their_record(evaluated, run, script):
    evaluated("--split", 1)
    features = run / "eval-many_split-1" / "features.h5"
    for flags, name in (([], ""), (["--rerank"], "_rerank"), (["--metric", "cosine"], "_metric-cosine")):
        done = script("evaluate.py", "--features", features, *flags)
        place = run / f"eval-many_split-1{name}"
        assert done.returncode == 0 and f"result in {place}\n" in done.stdout
        record = read_record(place / "result.json")
        assert record.unscored == read_record(features)
        assert record.scoring == Scoring(rerank="--rerank" in flags, metric=flags[1] if len(flags) > 1 else "euclidean")


def test_features_of_others_are_told_apart_by_content(script, tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        sides = {f"{s}_features": rng.standard_normal((9, 4), np.float32) for s in ("query", "gallery")}
        pids = {f"{s}_pids": np.arange(9) % 3 for s in ("query", "gallery")}
        np.savez(tmp_path / folder / "f.npz", **sides, **pids)
        done = script("evaluate.py", "--features", tmp_path / folder / "f.npz", "--exp_dir", tmp_path)
        assert done.returncode == 0, done.stderr
        assert "device" not in done.stderr  # scoring needs none
    places = sorted((tmp_path / "features").glob("f*/result.json"))
    assert len(places) == 2 and len({read_record(p).features for p in places}) == 2
    assert read_record(places[0]).weights is None and read_record(places[0]).dataset is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_device_is_missed_by_a_user_of_features(script, tmp_path, data, run, evaluated):
    assert "no CUDA" in evaluated().stderr
    done = script("evaluate.py", "--features", run / "eval-many" / "features.h5")
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("flags, words", [
    (["--h", "192"], "--h is for --weights; features have been extracted already"),
    (["--engine", "torch"], "--engine is for --weights"),
    (["--split", "0"], "--split with --features only names the images of a report; add --report"),
    (["--dataset_type", "tiny"], "--dataset_type with --features only names"),
    (["--split", "0", "1", "--report"], "one dataset and one split"),
    (["--fpr", "0.5"], "--fpr 0.5: give a rate of false accepts above 0, at most 0.01"),
    (["--occlude", "1", "1"], "names a band twice"),
])  # fmt: skip
def test_flags_that_would_do_nothing(flags, words, script):
    done = script("evaluate.py", "--features", "f.h5", *flags)
    assert done.returncode == 2 and words in done.stderr
