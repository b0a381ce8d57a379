"""Sparse re-ranking against the dense form; query expansion by hand."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from reid.bench.measure import random_features
from reid.bench.rerank import dense
from reid.errors import InputError
from reid.evaluation.features import Features
from reid.evaluation.record import Scoring
from reid.evaluation.rerank import Reciprocal, expand_queries, reciprocal_blocks
from reid.evaluation.results import evaluate


def sparse(query, gallery, **settings):
    return np.concatenate([block.keys.copy() for block in reciprocal_blocks(query, gallery, **settings)])


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("k", [{}, {"k1": 7, "k2": 3, "weight": 0.6}])
def test_equal_to_the_dense_form(device, k):
    features = random_features(60, 400, 30, 6, 32)
    query, gallery = features.query.features, features.gallery.features
    ours = sparse(query, gallery, device=device, limit=1 << 18, settings=Reciprocal(**k))  # several blocks
    np.testing.assert_allclose(ours, dense(query, gallery, **k), rtol=0, atol=2e-6)


def test_other_metric_and_stored_type():
    features = random_features(40, 200, 20, 6, 32)
    query, gallery = features.query.features, features.gallery.features
    # On unit vectors the cosine distance is half the squared Euclidean one, and both are divided by their largest.
    np.testing.assert_allclose(sparse(query * 3, gallery * 5, metric="cosine"), dense(query, gallery), atol=2e-6)
    half = sparse(query.astype(np.float16), gallery.astype(np.float16))  # some neighbours change places
    assert np.median(np.abs(half - dense(query, gallery))) < 2e-4


@pytest.mark.slow
def test_smaller_than_the_dense_form():
    """A sixth of the memory at 500 x 3,000 x 256; at this size at most a half. It runs in a process of its own, as
    memory that other tests have freed would hide the peak."""
    sizes = ["--queries", "200", "--gallery", "1200", "--width", "128", "--repeat", "2"]
    done = subprocess.run([sys.executable, "-m", "reid", "bench", "rerank", *sizes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (dense_speed, dense_memory), (speed, memory) = re.findall(r"([\d.]+)x +([\d,]+|-) ", done.stdout)[:2]
    assert float(dense_speed) == 1 and float(speed) > 0
    if memory == "-":
        pytest.skip("peak memory is only measured on Linux")
    assert int(dense_memory.replace(",", "")) > 2 * int(memory.replace(",", ""))


def test_helps_in_an_evaluation():
    features = random_features(100, 1000, 40, 6, 128)
    plain, reranked, expanded = (
        evaluate(features, Scoring(**settings)) for settings in ({}, {"rerank": True}, {"query_expansion": 5})
    )
    assert reranked.mean_ap > plain.mean_ap + 0.05
    assert expanded.mean_ap > plain.mean_ap + 0.05
    assert reranked.conventions["reranking"] == "k-reciprocal, k1 20, k2 6, lambda 0.3"
    assert expanded.conventions["query expansion"] == "mean with 5 nearest"


@pytest.mark.parametrize("device", [None, "cpu"])
def test_query_expansion_by_hand(device):
    query = np.array([[1, 0]], np.float32)
    gallery = np.array([[0, -1], [0.6, 0.8], [0, 1], [0.8, 0.6]], np.float32)
    expected = np.array([1 + 0.8 + 0.6, 0 + 0.6 + 0.8])  # the two nearest of it
    np.testing.assert_allclose(
        expand_queries(query, gallery, 2, device=device)[0], expected / np.linalg.norm(expected), atol=1e-6
    )


def test_query_expansion_keeps_the_length_of_features():
    features = random_features(50, 500, 20, 4, 32)
    longer = [replace(part, features=20 * part.features) for part in (features.query, features.gallery)]
    expected, got = (evaluate(f, Scoring(query_expansion=3)) for f in (features, Features(*longer, {})))
    np.testing.assert_allclose(got.ap, expected.ap, atol=1e-6)


def test_bad_input():
    few = np.eye(10, dtype=np.float32)
    with pytest.raises(InputError, match="needs 20 neighbours, but there are only 20 images"):
        next(reciprocal_blocks(few, few))
    with pytest.raises(InputError, match="--query_expansion 11: give 1 to 10"):
        expand_queries(few, few, 11)
