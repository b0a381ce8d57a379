"""Several images per query, tracks of the gallery, and VehicleID's draws, against plain forms and by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from reid.bench.measure import random_features
from reid.errors import InputError
from reid.evaluation.conventions import SingleShotDraws
from reid.evaluation.features import Features, Part
from reid.evaluation.pooling import multi_query, pool
from reid.evaluation.record import Scoring
from reid.evaluation.results import evaluate


def part(features, pids, camids, names="abcdefgh") -> Part:
    return Part(np.array(features, np.float32), np.array(pids), np.array(camids), [*names[: len(pids)]])


def test_pool_by_hand():
    two = np.array([[1, 0], [0, 1]])
    np.testing.assert_allclose(pool(two, "mean"), [0.5**0.5, 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(
        pool(np.array([[0.6, -0.8], [0.0, 1.0]]), "max"), [0.6 / 1.36**0.5, 1 / 1.36**0.5], rtol=1e-6
    )
    np.testing.assert_allclose(pool(np.array([[3.0, 4.0]]), "max"), [3, 4], rtol=1e-6)  # one image is unchanged
    with pytest.raises(InputError, match="mean of 2 descriptors is zero"):
        pool(np.array([[1.0, 0.0], [-1.0, 0.0]]), "mean")


def test_multi_query_by_hand():
    """Images a and c of identity 1, camera 0, each miss their match (0.6, 0.8); their mean finds it."""
    query = part([[1, 0], [0, 1], [0, 1]], [1, 2, 1], [0, 0, 0])
    gallery = part([[0.6, 0.8], [1, 0.01], [0.01, 1]], [1, 2, 3], [1, 1, 1])
    features = Features(query, gallery, {})
    assert evaluate(features).ranking.first_match.tolist() == [2, 3, 2]
    result = evaluate(features, Scoring(multi_query="mean"))
    assert result.features.query.names == ["a", "b"] and result.ranking.first_match.tolist() == [1, 3]
    assert result.mean_ap == pytest.approx((1 + 1 / 3) / 2)
    assert result.to_json()["record"]["scoring"]["multi_query"] == "mean"
    assert result.conventions["multi query"].startswith("mean")


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("further", [False, True])
def test_multi_query_against_a_loop(how, further):
    features = random_features(60, 200, 8, 3, 16)
    if further:
        several = random_features(300, 1, 8, 3, 16).query
        features = replace(features, several=several)
    query, images = features.query, features.several or features.query
    expected, seen = [], []
    for i in range(60):
        key = query.pids[i], query.camids[i]
        if key not in seen:
            seen.append(key)
            own = [images.features[j] for j in range(len(images)) if (images.pids[j], images.camids[j]) == key]
            total = np.sum(own, 0) if how == "mean" else np.max(own, 0)
            expected.append(total / np.linalg.norm(total))
    found = multi_query(features, how)
    np.testing.assert_allclose(found.query.features, expected, atol=1e-6)
    assert [*zip(found.query.pids, found.query.camids)] == seen


def test_multi_query_says_what_is_missing(caplog):
    query = part([[1, 0], [0, 1]], [1, 2], [0, 0])
    features = Features(query, part([[1, 0]], [1], [1]), {}, several=part([[1, 0]], [1], [0]))
    with pytest.raises(InputError, match="1 queries have no images for --multi_query, the first: b"):
        multi_query(features, "mean")
    multi_query(replace(features, several=None), "max")
    assert "--multi_query changes nothing" in caplog.text


def test_tracks_against_a_loop():
    features = random_features(40, 150, 6, 3, 8)
    gallery = features.gallery
    names = [str(i) for i in range(150)]
    tracks = {n: f"{p}_{c}_{int(n) % 2}" for n, p, c in zip(names, gallery.pids, gallery.camids)}
    labels = replace(features.labels, tracks=tracks)
    features = replace(features, gallery=replace(gallery, names=names), labels=labels)
    result = evaluate(features, Scoring(tracks=True))
    distance = -features.query.features @ gallery.features.T
    aps = []
    for q in range(40):
        nearest = {}
        for g, name in enumerate(names):
            nearest.setdefault(tracks[name], []).append(distance[q, g])
        own = features.query.pids[q], features.query.camids[q]
        kept = [
            (min(d), int(t.split("_")[0]) == own[0])
            for t, d in nearest.items()
            if tuple(map(int, t.split("_")[:2])) != own
        ]
        hits = [hit for _, hit in sorted(kept)]
        precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
        aps.append(np.mean(precisions) if precisions else np.nan)
    np.testing.assert_allclose(result.ap, aps, atol=1e-6)
    assert result.ranking.n_gallery == len(set(tracks.values()))
    with pytest.raises(InputError, match="150 of 150 gallery images have no track"):
        evaluate(replace(features, labels=replace(labels, tracks={})), Scoring(tracks=True))
    mixed = replace(labels, tracks=dict.fromkeys(names, "one"))
    with pytest.raises(InputError, match="track one has images of two identities or cameras"):
        evaluate(replace(features, labels=mixed), Scoring(tracks=True))


def all_draws(distance, pids):
    """CMC and mAP of VehicleID, averaged over every gallery that can be drawn."""
    images = [np.flatnonzero(pids == pid) for pid in np.unique(pids)]
    cmcs, maps = [], []
    for gallery in itertools.product(*images):
        ranks = []
        for q in set(range(len(pids))) - set(gallery):
            own = next(g for g in gallery if pids[g] == pids[q])
            ranks.append(1 + sum(distance[q, g] <= distance[q, own] for g in gallery if g != own))
        cmcs.append([np.mean(np.array(ranks) <= k) for k in range(1, len(pids) + 1)])
        maps.append(np.mean(1 / np.array(ranks)))
    return np.mean(cmcs, 0), np.mean(maps)


@pytest.mark.parametrize("seed", range(4))
def test_vehicleid_is_the_mean_over_all_draws(seed):
    """Identities of 1 to 4 images; distances with ties."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(5), rng.permutation([1, 2, 3, 3, 4]))
    camids = np.concatenate([np.arange(n) for n in np.bincount(pids)])
    distance = rng.integers(0, 8, (len(pids), len(pids))).astype(float)
    shots = SingleShotDraws(pids, pids, camids, camids)
    shots.add(distance[:4], 0)
    shots.add(distance[4:], 4)
    cmc, mean_ap = all_draws(distance, pids)
    np.testing.assert_allclose(shots.cmc(), cmc, atol=1e-12)
    assert shots.mean_ap() == pytest.approx(mean_ap, abs=1e-12)


def test_vehicleid_in_a_result():
    rng = np.random.default_rng(5)
    pids, camids = np.repeat(np.arange(6), 2), np.tile([0, 1], 6)
    features = rng.standard_normal((12, 4))
    side = part(features / np.linalg.norm(features, axis=1, keepdims=True), pids, camids, [str(i) for i in range(12)])
    result = evaluate(Features(side, side, {}), Scoring(cmc="vehicleid"))
    cmc, mean_ap = all_draws(-side.features @ side.features.T, pids)
    np.testing.assert_allclose(result.cmc, cmc, atol=1e-9)
    content = result.to_json()
    assert content["map"] == pytest.approx(mean_ap, abs=1e-9) == content["other_conventions"]["map"]["vehicleid"]
    with pytest.raises(InputError, match="--cmc vehicleid needs a dataset whose test images are query and gallery"):
        evaluate(random_features(20, 100, 5, 2, 4), Scoring(cmc="vehicleid"))


def test_the_integral_for_many_identities():
    """1000 identities, each before the match with probability 1/2: 1 / (1 + K) of a binomial K is known exactly."""
    shots = SingleShotDraws(np.zeros(2, int), np.zeros(2, int), np.arange(2), np.arange(2))
    shots.add_query(np.full((1, 1000), 0.5))
    assert shots.mean_ap() == pytest.approx(2 / 1001, abs=1e-9)  # (1 - (1 - p)^(n + 1)) / ((n + 1) p)
