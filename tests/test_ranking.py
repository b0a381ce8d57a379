"""Ranking against golden numbers, hand-computed cases, scikit-learn, and its own invariances."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reid.errors import InputError
from reid.evaluation.ranking import rank

KINDS = [np.asarray, torch.as_tensor]  # the CPU's form and the device's


@pytest.mark.parametrize("kind", KINDS)
def test_published_numbers(kind):
    golden = np.load(Path(__file__).parent / "golden" / "ranking.npz")
    labels = [golden[k] for k in ("query_ids", "gallery_ids", "query_cams", "gallery_cams")]
    result = rank(kind(golden["distance"]), *labels)
    assert result.mean_ap == pytest.approx(float(golden["mean_ap"]), abs=1e-12)
    np.testing.assert_allclose(result.cmc, golden["cmc_market1501"], atol=1e-12)
    np.testing.assert_allclose(result.cmc_allshots, golden["cmc_allshots"], atol=1e-12)


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


def test_bad_input():
    with pytest.raises(InputError, match=r"none of the 1 queries has a match among the 2"):
        rank(np.zeros((1, 2)), [1], [1, 2], [0], [0, 1])
    with pytest.raises(InputError, match=r"shape \(1, 3\), but there are 1 query and 2 gallery"):
        rank(np.zeros((1, 3)), [1], [1, 2])
