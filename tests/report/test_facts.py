"""What a report says of a run: configuration, expected numbers, training curves."""

from dataclasses import replace

import pytest

from reid.bench.measure import random_features
from reid.config import Config
from reid.errors import InputError
from reid.evaluation.features import Features
from reid.evaluation.record import USUAL, Scoring
from reid.evaluation.results import evaluate
from reid.report import facts
from reid.report.published import published

BANDS = [(0, 0.5), (0.5, 1), (0, 1)]


@pytest.fixture(scope="module")
def features() -> Features:
    """40 queries of 10 people on 3 cameras among 200 images, in 3 slots of 8."""
    made = random_features(40, 200, 10, 3, 24)
    return Features(made.query, made.gallery, {"slots": [3, 8], "bands": BANDS})


def published_rows(features, dataset: str, trained: str, scoring: Scoring = USUAL) -> dict[str, str]:
    result = evaluate(features, scoring)
    return dict(facts.expected(result, dataset, Config(dataset_type=(trained,))))


def test_facts_compare_with_published_scores(features):
    rows = published_rows(features, "market1501", "market1501")
    result = evaluate(features)
    points = f"{100 * (result.mean_ap - 0.889):+.1f} and {100 * (result.cmc[0] - 0.952):+.1f} points"
    assert points in rows["Expected (Park and Ham, AAAI 2020)"]
    assert "trained on dukemtmc" in published_rows(features, "market1501", "dukemtmc")["Expected"]
    assert "default scoring" in published_rows(features, "market1501", "market1501", Scoring(rerank=True))["Expected"]
    assert "nothing is published" in published_rows(features, "demo", "demo")["Expected"]
    for name in ("rrid", "baseline", "strong_baseline", "pcb", "mgn"):
        assert all(0.5 < row.map < row.rank1 < 1 for row in published(name, "market1501"))
    assert [row.map for row in published("rrid", "cuhk03_detected")] == [0.696, 0.6763]


def test_facts_name_what_differs_from_the_profile():
    rows = dict(facts.config_facts(replace(Config(), stripes=(6,), seed=3, exp_dir="x")))
    assert rows["Configuration"] == "profile paper with stripes 6" and rows["Seed"] == "3"


def test_damaged_run_folder(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"run": ')
    with pytest.raises(InputError, match="not valid JSON"):
        facts.read_config(tmp_path)
    (tmp_path / "versions.json").write_bytes(b'[{"time": ""}]')
    with pytest.raises(InputError, match="not a list of versions"):
        facts.read_versions(tmp_path)
