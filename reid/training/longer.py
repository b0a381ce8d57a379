"""A finished run that is trained longer: more steps, and the schedule over them."""

from dataclasses import replace

from reid.config import Config
from reid.errors import InputError
from reid.training.schedule import rates, total_steps

LENGTH = ("epochs", "max_steps", "continued_from", "schedule_from")


def with_length(config: Config, stored: Config, step: int, steps_in_epoch: int) -> Config:
    """`config`, with `step` added to continued_from if a finished run is trained longer.

    stored, step: of the checkpoint. The rates are those of a run with the new number of steps; with
    --restart_schedule the whole schedule is run again over the added steps. Raises InputError if there are none.
    """
    ends, start = stored.continued_from, stored.schedule_from
    same = (config.epochs, config.max_steps) == (stored.epochs, stored.max_steps)
    if same or step < total_steps(stored, steps_in_epoch):
        if config.restart_schedule and not stored.restart_schedule:
            raise InputError(
                f"--restart_schedule is for a finished run, and this one is after step {step} of "
                f"{total_steps(stored, steps_in_epoch)}; finish it first"
            )
        return replace(config, continued_from=ends, schedule_from=start)
    total = total_steps(config, steps_in_epoch)
    if total <= step:
        raise InputError(
            f"this run is finished after {step} steps, and {total} steps are not more; give a greater --epochs or "
            "--max_steps"
        )
    ends = (*ends, step)
    if not config.restart_schedule:
        return replace(config, continued_from=ends, schedule_from=start)
    # the same fractions as before, over the added steps
    return replace(config, epochs=stored.epochs, max_steps=total, continued_from=ends, schedule_from=step)


def same_length(config: Config, stored: Config) -> Config:
    """`config` with the length of `stored`, for a comparison of the other settings."""
    return replace(config, **{name: getattr(stored, name) for name in LENGTH})


def words(config: Config, stored: Config, step: int, total: int) -> str:
    """For the log: the schedule of a run that is trained longer after `step`."""
    schedule = "is run again over the added steps"
    if config.schedule_from != step:
        schedule = f"is that of a run of {total} steps"
    _, before = rates(stored, step - 1, step)
    _, after = rates(config, step, total)
    return (
        f"this run was finished after step {step} and is trained longer, to step {total}. The schedule {schedule}: "
        f"--lr was {before:.3g} at the end and is {after:.3g} now"
    )
