"""Distances by slot and the band of the body of each slot."""

import numpy as np
import pytest

from reid.models.rrid import RRID
from reid.report import slots
from reid.variants import Variant


def test_the_slots_add_up_to_the_distance():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(2, 5, 12)).astype(np.float32)
    q, g = np.divmod(np.arange(25), 5)
    found = slots.slot_distances(query, gallery, q, g, 3)
    for pair, (i, j) in enumerate(zip(q, g)):
        for s in range(3):
            at = slice(4 * s, 4 * s + 4)
            assert found[pair, s] == pytest.approx(
                sum((float(a) - float(b)) ** 2 for a, b in zip(query[i, at], gallery[j, at]))
            )
    whole = ((query[q].astype(float) - gallery[g]) ** 2).sum(1)
    np.testing.assert_allclose(found.sum(1), whole, rtol=1e-12)


def test_bands_of_the_model_follow_its_slots():
    model = RRID(0, (6, 4, 2), "resnet18")
    bands = np.array(model.bands)
    assert bands.shape == (model.slots, 2)
    names = [f"{i} of {n}" for n in (6, 4, 2) for i in range(1, n + 1)] + 3 * ["whole"]
    assert [name for _, name in slots.names(bands)] == names
    np.testing.assert_allclose(bands[6], (0, 0.25))
    assert len(RRID(0, (2,), "resnet18", Variant(pooling="none")).bands) == 2
