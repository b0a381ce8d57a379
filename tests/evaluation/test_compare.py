"""Two results on the same queries: the paired test against all sign flips, and what it refuses."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from reid.__main__ import main
from reid.bench.measure import random_features
from reid.evaluation.compare import flip_test
from reid.evaluation.features import Features
from reid.evaluation.record import Record, Scoring
from reid.evaluation.results import evaluate


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folders of one test's results: plain, by slightly and by much worse features, and in another convention."""
    root = tmp_path_factory.mktemp("results")
    features = random_features(80, 500, 20, 4, 16)
    rng = np.random.default_rng(0)

    def noisy(part, noise):
        return replace(
            part, features=part.features + np.float32(noise) * rng.standard_normal(part.features.shape, np.float32)
        )

    for name, noise in (("plain", 0), ("alike", 0.005), ("worse", 0.2)):
        evaluate(Features(noisy(features.query, noise), noisy(features.gallery, noise), {})).save(root / name)
    evaluate(features, Scoring(ap="trapezoid")).save(root / "trapezoid")
    return root


def compare(capsys, *paths):
    code = main(["compare", *map(str, paths)])
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return code, output.out + output.err


def test_chance_and_difference_are_told_apart(results, capsys):
    code, text = compare(capsys, results / "plain", results / "worse")
    assert code == 0 and "80 queries of 20 identities in both" in text
    mean_ap = next(line for line in text.splitlines() if line.startswith("mAP"))
    assert mean_ap.endswith("significant at 0.05") and float(mean_ap.split()[3].rstrip("%")) < 0
    code, text = compare(capsys, results / "plain" / "queries.csv", results / "alike")
    assert code == 0 and "significant" not in text
    code, text = compare(capsys, results / "plain", results / "plain")
    rows = [line.split() for line in text.splitlines() if line.startswith(("mAP", "Rank-1", "mINP"))]
    assert len(rows) == 3 and all(row[-1] == "1.0000" for row in rows)


def test_flip_test_equals_all_flips():
    rng = np.random.default_rng(0)
    pids = rng.integers(0, 10, 30)
    for shift in (0.0, 0.2, 0.6):
        difference = rng.standard_normal(30) + shift
        sums = np.array([difference[pids == p].sum() for p in np.unique(pids)])
        flips = np.array(list(itertools.product([-1, 1], repeat=len(sums)))) @ sums
        exact = (np.abs(flips) >= abs(sums.sum()) - 1e-12).mean()
        assert flip_test(difference, pids) == pytest.approx(exact, abs=0.02)


def test_refused(results, capsys, tmp_path):
    plain = (results / "plain" / "queries.csv").read_text(encoding="utf-8")
    lines = plain.splitlines()
    broken = {
        "other names": "\n".join([lines[0], *("x" + line for line in lines[1:])]),
        "other people": "\n".join([lines[0], *(line.replace(",", ",1", 1) for line in lines[1:])]),
        "cut": plain[: len(plain) // 2].rsplit(",", 1)[0],
        "columns": "a,b\n1,2\n",
        "no match": "\n".join([lines[0], "0,1,2,0,,,"]),
        "empty": "",
    }
    for name, content in broken.items():
        (tmp_path / f"{name}.csv").write_text(content, encoding="utf-8")
    (tmp_path / "bytes.csv").write_bytes(bytes(range(256)))
    for name, message in (
        ("other names", "no query name in common"),
        ("other people", "compare results of one test set"),
        ("cut", "was the file cut short"),
        ("columns", "is not a queries.csv"),
        ("no match", "has no query with a match"),
        ("empty", "is not a queries.csv"),
        ("bytes", "is not a queries.csv"),
        ("absent", "does not exist; evaluate.py writes it beside result.json"),
    ):
        code, text = compare(capsys, results / "plain", tmp_path / f"{name}.csv")
        assert code == 2 and message in text, name
    record = Record(fingerprint="1", scoring=Scoring()).to_json()
    older = {"conventions": {"ap": "step"}, "dataset": "1"}
    for name, content, message in (
        ("other", json.dumps({"record": record}), "are of different datasets"),
        ("cut", '{"record": {', "is damaged (JSONDecodeError"),
        ("list", "[]", "is damaged (AttributeError"),
        ("older", json.dumps(older), "was made by an older version, which kept no record; evaluate again"),
        ("fewer", json.dumps({"record": {"dataset": "a"}}), "evaluate again"),
        ("type", json.dumps({"record": record | {"split": "a"}}), "its record has split 'a'"),
    ):
        for side, text in (("a", content.replace('"1"', '"2"')), ("b", content)):
            (tmp_path / name / side).mkdir(parents=True)
            (tmp_path / name / side / "queries.csv").write_text(plain, encoding="utf-8")
            (tmp_path / name / side / "result.json").write_text(text, encoding="utf-8")
        code, text = compare(capsys, tmp_path / name / "a", tmp_path / name / "b")
        assert code == 2 and message in text, name
    code, text = compare(capsys, results / "plain", results / "trapezoid")
    assert code == 2 and "--ap step" in text and "evaluate both with the same --ap" in text


def test_queries_of_one_only_are_left_out(results, capsys, tmp_path):
    lines = (results / "plain" / "queries.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "fewer.csv").write_text("\n".join(lines[:-3]), encoding="utf-8")
    code, text = compare(capsys, results / "plain", tmp_path / "fewer.csv")
    assert code == 0 and "77 queries" in text and "3 found in only one left out" in text
