"""The table of results: evaluations of files that are in no run."""

from dataclasses import replace

import pytest

from reid.__main__ import main
from reid.bench.measure import random_features
from reid.evaluation.features import Features
from reid.evaluation.record import USUAL, Record, Scoring
from reid.evaluation.results import evaluate
from reid.report.table import covered, read_runs, summary

WEIGHTS = Record(dataset="zoo", split=0, weights="a" * 64, h=128, w=128, flip=True, precision="fp32", covered=0)


@pytest.fixture()
def logs(tmp_path):
    """logs/zoo/eval-theirs, plain, re-ranked and with a covered band, and logs/features/peer of a features file."""
    made = random_features(30, 100, 10, 3, 8)

    def save(name: str, record: Record, scoring: Scoring = USUAL) -> None:
        features = Features(made.query, made.gallery, {}, record)
        folder = tmp_path / "logs" / name
        folder.mkdir(parents=True)
        evaluate(features, scoring).save(folder)

    save("zoo/eval-theirs", WEIGHTS)
    save("zoo/eval-theirs_rerank", WEIGHTS, Scoring(rerank=True))
    save("zoo/eval-theirs_occlude-2", replace(WEIGHTS, covered=2))
    save("zoo/eval-other", replace(WEIGHTS, weights="b" * 64, split=3))
    save("features/peer", Record(features="c" * 64))
    return tmp_path / "logs"


def test_files_without_a_run_have_rows(logs, capsys):
    rows, left_out = read_runs([logs])
    assert len(rows) == 5 and left_out == []
    lines = summary([row for row in rows if not row.record.covered])
    found = sorted((line["model"], line["test"]) for line in lines)
    assert found == [("other", "zoo split-3"), ("peer", "unknown"), ("theirs", "zoo"), ("theirs", "zoo rerank")]
    assert {line["width"] for line in lines} == {8} and {line["parameters"] for line in lines} == {None}
    (line,) = covered(rows)
    assert line["model"] == "theirs" and line["whole"] == line["2"] and line["1"] is None
    assert main(["table", str(logs / "zoo"), "--csv", str(logs / "table.csv")]) == 0
    out = capsys.readouterr().out
    assert out.count("| theirs |") == 3 and "| other |" in out and "peer" not in out
    assert (logs / "table.csv").read_text(encoding="utf-8").count("theirs,") == 3


def test_damaged_and_absent_results(logs, tmp_path, capsys):
    (logs / "zoo" / "eval-other" / "result.json").write_text("{", encoding="utf-8")
    assert main(["table", str(logs)]) == 0
    out = capsys.readouterr().out
    assert "not in the table: " in out and "eval-other" in out and "| theirs |" in out
    (tmp_path / "empty").mkdir()
    assert main(["table", str(tmp_path / "empty")]) == 2
    assert "has no run" in capsys.readouterr().err
