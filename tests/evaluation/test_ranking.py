"""Ranking against golden numbers, hand-computed cases, scikit-learn, and its own invariances."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from reid.bench.ranking import measures, published
from reid.errors import InputError
from reid.evaluation.conventions import SingleGalleryShot
from reid.evaluation.ranking import rank

KINDS = [np.asarray, torch.as_tensor]  # the CPU's form and the device's


@pytest.mark.parametrize("kind", KINDS)
def test_published_numbers(kind):
    golden = np.load(Path(__file__).parents[1] / "golden" / "ranking.npz")
    labels = [golden[k] for k in ("query_ids", "gallery_ids", "query_cams", "gallery_cams")]
    result = rank(kind(golden["distance"]), *labels)
    assert result.mean_ap == pytest.approx(float(golden["mean_ap"]), abs=1e-12)
    np.testing.assert_allclose(result.cmc, golden["cmc_market1501"], atol=1e-12)
    np.testing.assert_allclose(result.cmc_allshots, golden["cmc_allshots"], atol=1e-12)
    mean_ap, cmc = published(golden["distance"], *labels)  # the plain form that benchmarks measure
    assert mean_ap == pytest.approx(float(golden["mean_ap"]), abs=1e-12)
    np.testing.assert_allclose(cmc, golden["cmc_market1501"], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_by_hand(kind):
    # pid 1, camera 0; junk at 0.1 does not count; matches at places 2 and 4 of the kept five.
    distance = kind(np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], np.float32))
    result = rank(distance, [1], [1, 2, 1, 2, 1, 2], [0], [0, 0, 1, 0, 2, 0])
    assert result.matches.tolist() == [2]
    assert result.ap[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result.ap_trapezoid[0] == pytest.approx(((0 / 1 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert result.first_match.tolist() == [2]
    assert result.inp[0] == pytest.approx(2 / 4)
    assert result.cmc.tolist() == [0, 1, 1, 1, 1, 1]
    assert result.cmc_allshots.tolist() == [0, 0.5, 1, 1, 1, 1]  # places 2 and 4 - 1


def test_trapezoid_starts_at_one():
    # A match in front: the precision before it counts as 1, so (1 + 1/1) / 2 for it.
    assert rank(np.array([[0.1, 0.2]]), [1], [1, 2]).ap_trapezoid.tolist() == [1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_ties_never_flatter(kind):
    # One match tied with two wrong entries, a second match farther away.
    result = rank(kind(np.array([[0.5, 0.5, 0.5, 0.9]])), [1], [2, 1, 2, 1])
    assert result.first_match.tolist() == [3]
    assert result.ap[0] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert result.ap_trapezoid[0] == pytest.approx(((0 / 2 + 1 / 3) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert result.inp[0] == pytest.approx(2 / 4)
    everything = rank(kind(np.zeros((1, 4))), [1], [2, 1, 2, 1])
    assert everything.ap[0] == pytest.approx(2 / 4)
    assert everything.first_match.tolist() == [3]


def test_unmatched_queries_are_left_out_and_counted():
    result = rank(np.array([[0.1, 0.2], [0.1, 0.2]]), [5, 9], [5, 5], [0, 0], [1, 1])
    assert (result.n_query, result.n_valid, result.mean_ap) == (2, 1, 1.0)
    assert np.isnan(result.ap[1]) and np.isnan(result.first_match[1]) and np.isnan(result.inp[1])
    assert result.cmc.tolist() == [1, 1]


@st.composite
def labelled_distances(draw):
    queries, gallery = draw(st.integers(1, 8)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    distance = rng.integers(0, draw(st.sampled_from([2, 5, 1000])), (queries, gallery)).astype(np.float32)
    people, cameras = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    labels = [rng.integers(0, n, size) for n in (people, cameras) for size in (queries, gallery)]
    return distance, labels


def plain(distance, query_pids, gallery_pids, query_camids, gallery_camids):
    """AP, first match and INP of each query by their definitions."""
    rows = []
    for d, pid, camid in zip(distance, query_pids, query_camids):
        kept = (gallery_pids != pid) | (gallery_camids != camid)
        d, match = d[kept], (gallery_pids == pid)[kept]
        if not match.any():
            rows.append((np.nan,) * 3)
            continue
        first = 1 + (~match & (d <= d[match].min())).sum()
        rows.append((average_precision_score(match, -d), first, match.sum() / (d <= d[match].max()).sum()))
    return np.array(rows).T


@settings(deadline=None)
@given(labelled_distances())
def test_equal_to_scikit_learn_and_the_definitions(test):
    distance, labels = test
    expected = plain(distance, *labels)
    if np.isnan(expected).all():
        for kind in KINDS:
            with pytest.raises(InputError, match="none of the"):
                rank(kind(distance), *labels)
        return
    for kind in KINDS:
        result = rank(kind(distance), *labels)
        np.testing.assert_allclose([result.ap, result.first_match, result.inp], expected, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(labelled_distances(), st.integers(0, 1000))
def test_gallery_order_and_monotone_transforms_change_nothing(test, seed):
    distance, (query_pids, gallery_pids, query_camids, gallery_camids) = test
    query_pids[0], query_camids[0], gallery_pids[0], gallery_camids[0] = 0, 0, 0, 1  # one match at least
    order = np.random.default_rng(seed).permutation(len(gallery_pids))
    result = rank(distance, query_pids, gallery_pids, query_camids, gallery_camids)
    same = [
        rank(distance[:, order], query_pids, gallery_pids[order], query_camids, gallery_camids[order]),
        rank(np.exp(distance.astype(float) / 100) - 5, query_pids, gallery_pids, query_camids, gallery_camids),
    ]
    for other in same:
        for measure in ("ap", "ap_trapezoid", "inp", "first_match", "cmc", "cmc_allshots"):
            np.testing.assert_array_equal(getattr(result, measure), getattr(other, measure), measure)


@pytest.mark.parametrize("share", [0.02, 0.4])  # matches of a row; a row of many is sorted, near ones shorten it
@pytest.mark.parametrize("shift", [0, 4])
def test_long_rows(share, shift):
    rng = np.random.default_rng(0)
    gallery_pids = (rng.random(6_000) < share).astype(int)
    distance = rng.standard_normal((3, 6_000)).astype(np.float32) - np.float32(shift) * gallery_pids.astype(np.float32)
    camids = (np.zeros(3, int), rng.integers(0, 3, 6_000))
    expected = plain(distance, np.ones(3), gallery_pids, *camids)
    for kind in KINDS:
        result = rank(kind(distance), [1, 1, 1], gallery_pids, *camids)
        np.testing.assert_allclose([result.ap, result.first_match, result.inp], expected, rtol=0, atol=1e-9)


def test_benchmarked_forms_agree():
    """`bench ranking` compares the speed of two forms that give the same mAP and CMC."""
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, n, size) for n in (50, 6) for size in (60, 1000)]
    distance = rng.standard_normal((60, 1000), dtype=np.float32)
    expected_map, expected_cmc = published(distance, *labels)
    mean_ap, cmc = measures(distance, labels)
    assert mean_ap == pytest.approx(expected_map, abs=1e-9)
    np.testing.assert_allclose(cmc, expected_cmc, atol=1e-12)


def test_single_gallery_shot_is_the_mean_of_random_draws():
    rng = np.random.default_rng(0)
    query_pids, gallery_pids = np.arange(10), np.repeat(np.arange(12), 5)
    query_camids, gallery_camids = rng.integers(0, 2, 10), rng.integers(0, 3, 60)
    distance = rng.integers(0, 30, (10, 60)) - 6 * (query_pids[:, None] == gallery_pids)
    shots = SingleGalleryShot(query_pids, gallery_pids, query_camids, gallery_camids)
    shots.add(distance[:4], 0)
    shots.add(distance[4:], 4)

    draws = 4000
    counts = np.zeros(50)
    for q in range(10):
        allowed = gallery_camids != query_camids[q]
        chosen = np.full((draws, 12), np.inf)
        for pid in range(12):
            images = np.flatnonzero(allowed & (gallery_pids == pid))
            if len(images):
                chosen[:, pid] = distance[q, rng.choice(images, draws)]
        own = chosen[:, q]
        assert np.isfinite(own).all()
        before = (np.delete(chosen, q, 1) <= own[:, None]).sum(1)
        counts += np.bincount(before, minlength=50)[:50] / draws
    np.testing.assert_allclose(shots.cmc(), np.cumsum(counts) / 10, atol=4 * 0.5 / np.sqrt(draws * 10))


def test_single_gallery_shot_by_hand():
    # Own image at 2. Person 2: one of two images nearer; person 3: its only image nearer; person 4: tied, so before.
    shots = SingleGalleryShot(np.array([1]), np.array([1, 2, 2, 3, 4, 5]))
    shots.add(np.array([[2.0, 1.0, 3.0, 0.5, 2.0, 9.0]]), 0)
    np.testing.assert_allclose(shots.cmc(), [0, 0, 0.5, 1, 1, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input(kind):
    zeros = np.zeros((1, 2))
    for arguments, message in (
        ((zeros, [1], [1, 2], [0], [0, 1]), r"none of the 1 queries has a match among the 2"),
        ((np.zeros((1, 3)), [1], [1, 2]), r"shape \(1, 3\), but there are 1 query and 2 gallery"),
        ((np.array([[np.nan, 1]]), [1], [1, 2]), r"NaN"),
        ((zeros, [1], [1, 2], [0], [0]), r"2 gallery pids but 1 gallery camids"),
        ((zeros, [1], [1, 2], [0], None), r"camids of one side only"),
        ((zeros, [1.5], [1, 2]), r"query pids .* expected one integer each"),
        ((zeros, ["a"], [1, 2]), r"query pids .* expected one integer each"),
        ((np.zeros((1, 0)), [1], []), r"there are no gallery pids"),
    ):
        with pytest.raises(InputError, match=message):
            rank(kind(arguments[0]), *arguments[1:])
