"""Errors that a command reports without a traceback. Any other exception is a bug in this project."""


class InputError(Exception):
    """Input that cannot be used. The message says what was found, what was expected and how to fix it."""


class MissingInput(InputError):
    """A file or dataset that does not exist. The message says where it was searched for and where to get it."""


class CheckFailed(Exception):
    """The input was usable, but a check of the work failed: a loss that is not finite, an export that differs."""


class Interrupted(Exception):
    """Stopped by a signal after a complete step. The message says how to continue."""


class StoreUnavailable(InputError):
    """A gallery store that does not answer, or refuses. The same call may succeed later."""
