"""The learning rate as a function of the step alone, so that resuming needs no state."""

from reid.config import Config


def total_steps(config: Config, steps_in_epoch: int) -> int:
    return config.max_steps or config.epochs * steps_in_epoch


def rate_factor(config: Config, step: int, total: int) -> float:
    """Factor on both learning rates at `step` (from 0) of `total`.

    Staircase: a drop at the start of epoch d of E (epochs count from 1) is at the fraction (d - 1) / E of the
    run, also when --max_steps sets its length. Before it, --warmup_steps rise linearly to the full rate.
    """
    drops = sum(step * config.epochs >= (d - 1) * total for d in config.decay_schedule)
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warm * config.staircase_decay_multiply_factor**drops
