"""Distances in blocks against float64, and the k nearest against a full sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.errors import InputError
from reid.evaluation.distances import blocks, nearest, on_host

DEVICES = [None, "cpu"]  # NumPy, and torch as on a GPU


def whole(query, gallery, metric, device=None, limit=1000):
    """(distances, keys) of all blocks together."""
    parts = [
        (on_host(b.keys) + on_host(b.offsets), on_host(b.keys).copy())
        for b in blocks(query, gallery, metric, device, limit)
    ]
    assert len(parts) > 1
    return tuple(np.concatenate(x) for x in zip(*parts))


def reference(query, gallery, metric):
    q, g = query.astype(float), gallery.astype(float)
    if metric == "euclidean":
        return np.square(q[:, None] - g).sum(2)
    return 1 - q @ g.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(g, axis=1)


@pytest.fixture(params=["unit", "any length"])
def sides(request):
    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((n, 24)).astype(np.float32) for n in (30, 50)]
    if request.param == "unit":
        sides = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in sides]
    return sides


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_equal_to_float64(sides, device, metric, dtype, monkeypatch):
    monkeypatch.setattr("reid.evaluation.distances.CHUNK", 24 * 7)  # the gallery in pieces of 7
    query, gallery = (x.astype(dtype) for x in sides)
    distance, keys = whole(query, gallery, metric, device)
    expected = reference(query, gallery, metric)
    # Rounded to float16, a unit length is off by 1e-3 at most; it is then still taken for one.
    tolerance = 1e-5 * expected.max() if dtype == "float32" else 2e-3 * expected.max()
    np.testing.assert_allclose(distance, expected, rtol=0, atol=tolerance)
    order = np.argsort(keys, axis=1)
    inversions = -np.diff(np.take_along_axis(expected, order, 1), axis=1)
    assert inversions.max() < tolerance


def test_no_rounding_of_the_training_reaches_distances(sides):
    query, gallery = sides
    allowed = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            distance = whole(query, gallery, "euclidean", "cpu")[0]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(allowed)
    expected = reference(query, gallery, "euclidean")
    np.testing.assert_allclose(distance, expected, rtol=0, atol=1e-5 * expected.max())


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(0, 10**6), st.data())
def test_nearest_are_the_first_of_a_sort(columns, seed, data):
    k = data.draw(st.integers(1, columns))
    keys = np.random.default_rng(seed).permutation(3 * columns).reshape(3, columns).astype(np.float32)
    expected = np.argsort(keys, axis=1)[:, :k]
    np.testing.assert_array_equal(nearest(keys, k), expected)
    np.testing.assert_array_equal(nearest(torch.from_numpy(keys), k), expected)


def test_nearest_among_ties():
    keys = np.array([[1, 0, 1, 0, 1] * 40], np.float32)
    assert nearest(keys, 3).tolist() == [[1, 3, 6]]


@pytest.mark.parametrize("device", DEVICES)
def test_bad_input(device):
    ones, zeros = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    with pytest.raises(InputError, match="--metric manhattan is unknown; choose from euclidean, cosine"):
        next(blocks(ones, ones, "manhattan", device))
    with pytest.raises(InputError, match="length zero"):
        next(blocks(ones, zeros, "cosine", device))
