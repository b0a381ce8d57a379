"""The evaluate command on trained weights: covered queries, results that never replace others, replaced images."""

import json
import os
import shutil

import pytest
from conftest import make_dataset

from reid.evaluation.features import read_features
from reid.evaluation.record import read_record
from reid.models import weights as weights_file

pytestmark = pytest.mark.slow


def test_covered_queries(straight, script, small_run, tmp_path):
    """--occlude scores queries without one sixth of the image; the gallery stays as it is."""
    weights = tmp_path / "w.pth"
    weights.write_bytes((straight[0] / "weights.pth").read_bytes())
    flags = ["--weights", weights, *small_run[:4], "--exp_dir", tmp_path]
    done = script("evaluate.py", *flags, "--occlude", 1, 6)
    assert done.returncode == 0, done.stderr
    assert "band 1 of 6" in done.stdout and "band 6 of 6" in done.stdout
    results = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in tmp_path.glob("tiny/*/result.json")}
    assert set(results) == {"eval-w", "eval-w_occlude-1", "eval-w_occlude-6"}
    assert len({tuple(r["cmc"] + [r["map"]]) for r in results.values()}) > 1
    done = script("evaluate.py", *flags, "--occlude", 7)
    assert done.returncode == 2 and "--occlude 7 is unknown; choose from 0, 1" in done.stderr


def test_what_is_not_the_run_goes_elsewhere(straight, script, small_run, tmp_path):
    """Other weights beside the run's, other settings and other images never stand for the run's own result."""
    logs, flags = tmp_path / "logs", small_run[:4]
    for name in ("first", "second"):
        shutil.copytree(straight[0], logs / "tiny" / name)
    for name, seconds in (("first", 2_000_000_000), ("second", 1_000_000_000)):
        os.utime(logs / "tiny" / name / "weights.pth", (seconds, seconds))
    os.utime(logs / "tiny" / "second", (2_100_000_000, 2_100_000_000))  # as an evaluation there leaves it
    done = script("evaluate.py", *flags, "--exp_dir", logs)
    assert done.returncode == 0 and f"result in {logs / 'tiny' / 'first' / 'eval-tiny'}" in done.stdout, done.stderr
    run = logs / "tiny" / "first"
    before = (run / "eval-tiny" / "result.json").read_bytes()
    shutil.copy(run / "weights.pth", run / "previous.pth")
    for more, place in (
        (["--weights", run / "previous.pth"], logs / "tiny" / "eval-previous"),
        (["--weights", run / "weights.pth", "--h", 96], run / "eval-tiny_96x32"),
        (["--weights", run / "weights.pth", "--precision", "bf16"], run / "eval-tiny_precision-bf16"),
    ):
        done = script("evaluate.py", *flags, "--exp_dir", logs, *more)
        assert done.returncode == 0 and f"result in {place}\n" in done.stdout, done.stderr
    record = read_record(run / "eval-tiny_96x32" / "result.json")
    assert (record.h, record.w, record.precision) == (96, 32, "fp32")
    assert (run / "eval-tiny" / "result.json").read_bytes() == before
    done = script("evaluate.py", "--features", run / "eval-tiny" / "features.h5", "--occlude", 3)
    assert done.returncode == 2 and "--occlude needs images" in done.stderr


def test_features_of_images_that_were_replaced_are_made_anew(straight, script, tmp_path):
    """Of the same names and sizes in bytes."""
    folder = make_dataset(tmp_path / "tiny")
    flags = ["--dataset_type", "tiny", "--dataset_path", tmp_path, "--exp_dir", tmp_path / "logs",
             "--weights", straight[0] / "weights.pth"]  # fmt: skip
    shutil.copytree(straight[0], tmp_path / "run")
    flags[-1] = tmp_path / "run" / "weights.pth"
    for path in (folder / "images").iterdir():
        path.write_bytes(path.read_bytes().ljust(5000, b"\0"))
    path = tmp_path / "run" / "eval-tiny" / "features.h5"
    assert script("evaluate.py", *flags).returncode == 0
    before = read_features(path).query.features
    one, two = sorted((folder / "images").iterdir())[-4::3]
    content = one.read_bytes(), two.read_bytes()
    two.write_bytes(content[0])
    one.write_bytes(content[1])
    assert script("evaluate.py", *flags).returncode == 0
    (other,) = (p for p in path.parent.parent.glob("eval-*/features.h5") if p != path)
    assert (read_features(path).query.features == before).all()  # an evaluation is not overwritten
    assert (read_features(other).query.features != before).any()


def test_several_datasets_train_together_and_are_scored_one_by_one(script, small_run, tmp_path):
    """Identities are kept apart: 8 + 6 classes. Scored on a set it was trained on and on one it was not."""
    make_dataset(tmp_path / "data" / "one")
    make_dataset(tmp_path / "data" / "two", train_ids=6, cameras=3)
    make_dataset(tmp_path / "data" / "other", test_ids=3)
    flags = [*small_run, "--dataset_path", tmp_path / "data", "--exp_dir", tmp_path / "logs", "--max_steps", 2]
    done = script("train.py", *flags, "--dataset_type", "one", "two", "--name", "joint")
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "logs" / "one+two" / "joint" / "weights.pth"
    assert weights_file.load_checkpoint(weights)["classes"] == 14
    done = script(
        "evaluate.py", "--dataset_path", tmp_path / "data", "--weights", weights, "--dataset_type", "one", "other"
    )
    assert done.returncode == 0, done.stderr
    for name, queries in (("one", 8), ("other", 6)):
        result = json.loads((weights.parent / f"eval-{name}" / "result.json").read_text(encoding="utf-8"))
        assert result["n_query"] == queries and 0 < result["map"] <= 1
    done = script("evaluate.py", "--dataset_path", tmp_path / "data", "--weights", weights)
    assert done.stdout.count("mAP step") == 2 and "eval-two" in done.stdout


def test_without_flags_the_newest_run_of_any_dataset_is_scored(straight, script, small_run, tmp_path):
    """With --dataset_type only runs on that dataset count; if there are none, the others are named."""
    logs = tmp_path / "logs"
    for dataset, seconds in (("other", 1_000_000_000), ("tiny", 2_000_000_000)):
        shutil.copytree(straight[0], logs / dataset / "run")
        os.utime(logs / dataset / "run" / "weights.pth", (seconds, seconds))
    flags = [*small_run[2:4], "--exp_dir", logs]
    done = script("evaluate.py", *flags)
    assert done.returncode == 0 and f"result in {logs / 'tiny' / 'run' / 'eval-tiny'}\n" in done.stdout, done.stderr
    done = script("evaluate.py", *flags, "--dataset_type", "third")
    named = ", ".join((logs / name / "run" / "weights.pth").as_posix() for name in ("tiny", "other"))
    assert done.returncode == 2 and f"no finished run under {logs / 'third'}; name one of these" in done.stderr
    assert done.stderr.rstrip().endswith(f"with --weights: {named}")
    done = script("evaluate.py", "--exp_dir", tmp_path / "empty")
    assert done.returncode == 2 and "train one with train.py" in done.stderr
    stopped = logs / "third" / "run"
    stopped.mkdir(parents=True)
    (stopped / "checkpoint.pth").touch()
    done = script("evaluate.py", *flags, "--dataset_type", "third")
    assert done.returncode == 2 and f"{stopped} was stopped; continue it with: python train.py --resume" in done.stderr


@pytest.mark.slow
def test_a_dataset_that_changed_since_the_training_is_reported(straight, script, tmp_path):
    """Another split drawn under the same name may put training identities into the test."""
    datasets = make_dataset(tmp_path / "data" / "tiny").parent
    lists = json.loads((datasets / "tiny" / "test.json").read_text(encoding="utf-8"))
    lists[0]["gallery"].pop()
    (datasets / "tiny" / "test.json").write_text(json.dumps(lists), encoding="utf-8")
    weights = shutil.copy(straight[0] / "weights.pth", tmp_path / "w.pth")
    flags = ["--weights", weights, "--exp_dir", tmp_path, "--dataset_type", "tiny", "--dataset_path", datasets]
    done = script("evaluate.py", *flags)
    assert done.returncode == 0 and "has changed since the weights were trained on it" in done.stderr
