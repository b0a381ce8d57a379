"""Learning rates by step: the paper's drops, warm-up, the published code's first rate."""

import numpy as np

from reid.config import Config
from reid.training.schedule import rate_factor, rates, total_steps


def test_schedule():
    """Of 80 epochs 39 run at the full rate, 20 at a tenth, 21 at a hundredth; --max_steps keeps the fractions."""
    c = Config()
    assert total_steps(c, 809) == 80 * 809
    factors = [rate_factor(c, (e - 1) * 809, 80 * 809) for e in range(1, 81)]
    np.testing.assert_allclose(factors, [1] * 39 + [0.1] * 20 + [0.01] * 21)
    assert rate_factor(c, 39 * 809 - 1, 80 * 809) == 1
    cut = Config(max_steps=1600, warmup_steps=100)
    assert total_steps(cut, 809) == 1600
    factors = [rate_factor(cut, s, 1600) for s in range(1600)]
    np.testing.assert_allclose(factors[:100], np.arange(1, 101) / 100)
    np.testing.assert_allclose(factors[100:780], 1)
    np.testing.assert_allclose(factors[780:1180], 0.1)
    np.testing.assert_allclose(factors[1180:], 0.01)
    warm = Config(epochs=120, warmup_epochs=10, decay_schedule=(30,), max_steps=1200)
    np.testing.assert_allclose([rate_factor(warm, s, 1200) for s in range(100)], np.arange(1, 101) / 100)


def test_base_lr_from():
    """As published, the backbone learns at the heads' rate up to epoch 39 (D25)."""
    c = Config(base_lr_from=40)
    both = [rates(c, (e - 1) * 809, 80 * 809) for e in (1, 39, 40, 60)]
    np.testing.assert_allclose(both, [(1e-2, 1e-2), (1e-2, 1e-2), (1e-4, 1e-3), (1e-5, 1e-4)])
    assert rates(Config(), 0, 100) == (1e-3, 1e-2)
