"""The open set against brute force over all pairs; intervals against plain resampling."""

from functools import partial

import numpy as np
import pytest

from reid.bench.measure import random_features
from reid.errors import InputError
from reid.evaluation import open_set as module
from reid.evaluation.distances import blocks
from reid.evaluation.open_set import mean_interval, open_set
from reid.evaluation.ranking import same_person
from reid.evaluation.results import evaluate


@pytest.fixture(scope="module")
def features():
    return random_features(120, 600, 25, 4, 16)


def found(features, fpr=1e-3, **settings):
    q, g = features.query, features.gallery
    pairs = same_person(q.pids, g.pids, q.camids, g.camids)
    return open_set(q.features, g.features, q.pids, pairs, fpr, partial(blocks, **settings))


def all_pairs(features):
    q, g = features.query, features.gallery
    distance = (2 - 2 * q.features.astype(float) @ g.features.T.astype(float)).astype(np.float32)
    same = q.pids[:, None] == g.pids
    return distance[same & (q.camids[:, None] != g.camids)], distance[~same]


def test_equal_to_brute_force(features):
    same, wrong = all_pairs(features)
    report = found(features, fpr=5e-3)
    assert (report["n_same"], report["n_different"]) == (len(same), len(wrong))
    assert set(report["tpr"]) == {"0.0001", "0.001", "0.005", "0.01"}
    for rate, threshold in report["thresholds"].items():
        assert (wrong <= threshold - 1e-6).mean() <= float(rate)
        next_wrong = wrong[wrong > threshold + 1e-6].min()  # up to there nothing more could be accepted
        assert (wrong <= next_wrong).mean() > float(rate) - 1 / len(wrong)
        assert report["tpr"][rate] == pytest.approx((same <= threshold).mean(), abs=2 / len(same))
    assert report["threshold"] == report["thresholds"]["0.005"]
    low, high = report["threshold_interval"]
    assert low <= report["threshold"] <= high and high - low < 0.5 * report["threshold"]
    for rate, tpr in report["roc"]:
        assert tpr == pytest.approx((same <= np.quantile(wrong, rate)).mean(), abs=0.01)
    edges = report["distances"]["edges"]
    for kind, values in (("same", same), ("different", wrong)):
        assert sum(report["distances"][kind]) == pytest.approx(1)
        mean = np.dot(report["distances"][kind], np.add(edges[1:], edges[:-1]) / 2)
        assert mean == pytest.approx(values.mean(), abs=edges[1] - edges[0])


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_bounded_tail_gives_the_same(features, device, monkeypatch):
    """With few pairs all are kept; with many only those below an estimated bound, which is widened when it fails."""
    expected = found(features, fpr=1e-2)
    monkeypatch.setattr(module, "SAMPLE", 5000)
    bounds = []
    estimate = module.estimated_bound

    def low_at_first(*arguments):
        bounds.append(estimate(*arguments) if bounds else 0.01)
        return bounds[-1]

    monkeypatch.setattr(module, "estimated_bound", low_at_first)
    report = found(features, fpr=1e-2, device=device, limit=1 << 17)
    assert len(bounds) == 2 and bounds[1] < 4
    assert report["n_different"] == expected["n_different"]
    for key in ("tpr", "thresholds"):
        assert report[key] == pytest.approx(expected[key], abs=1e-6)
    np.testing.assert_allclose(report["threshold_interval"], expected["threshold_interval"], rtol=5e-3)
    np.testing.assert_allclose(report["roc"], expected["roc"], atol=0.05)


def test_ties_are_not_accepted():
    features = random_features(20, 100, 5, 4, 8)
    features.query.features[:] = features.gallery.features[:] = np.eye(8)[0]  # a model that sees no difference
    report = found(features)
    assert set(report["tpr"].values()) == {0.0} and report["threshold"] == 0  # and not below 0
    low, high = report["threshold_interval"]
    assert low == high == 0 and set(report["thresholds"].values()) == {0.0}
    assert report["n_equal"] == report["n_different"]
    text = str(evaluate(features, fpr=1e-3))
    assert "no threshold has only 0.001 false accepts" in text and "-" not in text.split("distance <=")[1][:12]


def test_threshold_interval_covers_other_samples(features):
    """Thresholds of other people from the same source mostly lie inside the interval of these."""
    rng = np.random.default_rng(0)
    low, high = found(features, fpr=1e-2)["threshold_interval"]
    q, g = features.query, features.gallery
    distance = 2 - 2 * q.features @ g.features.T
    pids, drawn = np.unique(q.pids), []
    for _ in range(300):
        rows = np.concatenate([np.flatnonzero(q.pids == p) for p in rng.choice(pids, len(pids))])
        drawn.append(np.quantile(distance[rows][q.pids[rows, None] != g.pids], 1e-2))
    assert np.mean((np.array(drawn) >= low) & (np.array(drawn) <= high)) == pytest.approx(0.95, abs=0.04)


def test_mean_interval():
    rng = np.random.default_rng(0)
    pids = rng.integers(0, 40, 200)
    values = rng.random(200) + pids / 40
    low, high = mean_interval(values, pids)
    people, means = np.unique(pids), []
    for _ in range(3000):  # the plain form
        drawn = np.concatenate([values[pids == p] for p in rng.choice(people, len(people))])
        means.append(drawn.mean())
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.02)
    # Counting each query twice, or adding unmatched ones, makes nothing surer.
    np.testing.assert_allclose(mean_interval(np.repeat(values, 2), np.repeat(pids, 2)), [low, high])
    np.testing.assert_allclose(mean_interval(np.append(values, np.nan), np.append(pids, 99)), [low, high])


def test_bad_input(features):
    for fpr in (0.0, 0.02, -1.0, float("nan")):
        with pytest.raises(InputError, match=r"--fpr .*: give a rate of false accepts above 0, at most 0\.01"):
            evaluate(features, fpr=fpr)
    one = random_features(5, 20, 1, 4, 8)
    with pytest.raises(InputError, match="all query and gallery images show one identity"):
        evaluate(one, fpr=1e-3)
