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
    run, also when --max_steps sets its length. Cosine: 1 for --flat_epochs, then half a period from 1 to 0. Both are
    multiplied by a linear rise over --warmup_steps, or over --warmup_epochs of the epochs.
    """
    rise = config.warmup_steps or config.warmup_epochs * total / config.epochs
    warm = min(1.0, (step + 1) / rise) if rise else 1.0
    if config.schedule == "cosine":
        flat = config.flat_epochs * total / config.epochs
        return warm * (1 + math.cos(math.pi * max(0, step - flat) / (total - flat))) / 2
    drops = sum(step * config.epochs >= (d - 1) * total for d in config.decay_schedule)
    return warm * config.staircase_decay_multiply_factor**drops


def is_frozen(config: Config, step: int, total: int) -> bool:
    """Whether the backbone is frozen at `step` (from 0) of `total`: for --freeze_epochs of the epochs."""
    step, total = step - config.schedule_from, total - config.schedule_from
    return step * config.epochs < config.freeze_epochs * total
