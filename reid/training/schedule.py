"""The learning rate as a function of the step alone, so that resuming needs no state."""

import math

from reid.config import Config


def total_steps(config: Config, steps_in_epoch: int) -> int:
    return config.max_steps or config.epochs * steps_in_epoch


def rates(config: Config, step: int, total: int) -> tuple[float, float]:
    """Learning rates of (backbone, heads) at `step` (from 0) of `total`.

    A restarted schedule runs from config.schedule_from to `total`.
    """
    step, total = step - config.schedule_from, total - config.schedule_from
    factor = rate_factor(config, step, total)
    early = step * config.epochs < (config.base_lr_from - 1) * total  # the published code's D25
    return factor * (config.lr if early else config.base_lr), factor * config.lr


def rate_factor(config: Config, step: int, total: int) -> float:
    """Factor on both learning rates at `step` (from 0) of `total`.

    Staircase: a drop at the start of epoch d of E (epochs count from 1) is at the fraction (d - 1) / E of the
    run, also when --max_steps sets its length. Cosine: half a period from 1 to 0 over the whole run. Both are
    multiplied by a linear rise over --warmup_steps, or over --warmup_epochs of the epochs.
    """
    rise = config.warmup_steps or config.warmup_epochs * total / config.epochs
    warm = min(1.0, (step + 1) / rise) if rise else 1.0
    if config.schedule == "cosine":
        return warm * (1 + math.cos(math.pi * step / total)) / 2
    drops = sum(step * config.epochs >= (d - 1) * total for d in config.decay_schedule)
    return warm * config.staircase_decay_multiply_factor**drops
