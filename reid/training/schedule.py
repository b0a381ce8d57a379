"""The learning rate as a function of the step alone, so that resuming needs no state."""

import math

from reid.config import Config


def total_steps(config: Config, steps_in_epoch: int) -> int:
    return config.max_steps or config.epochs * steps_in_epoch


def rate_factor(config: Config, step: int, total: int) -> float:
    """Factor on both learning rates at `step` (from 0) of `total`.

    Staircase: a drop at the start of epoch d of E (epochs count from 1) is at the fraction (d - 1) / E of the
    run, also when --max_steps sets its length. Cosine: half a period from 1 to 0 over the whole run. Both are
    multiplied by a linear rise over --warmup_steps.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        return warm * (1 + math.cos(math.pi * step / total)) / 2
    drops = sum(step * config.epochs >= (d - 1) * total for d in config.decay_schedule)
    return warm * config.staircase_decay_multiply_factor**drops
