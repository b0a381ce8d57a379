"""What a user can repair is an InputError. Any other exception is a bug of this project."""


class InputError(Exception):
    """Input that cannot be used. The message gives what came, what was expected and how to repair it."""


class MissingInput(InputError):
    """A file or dataset that does not exist. The message gives where it was searched and where to get it."""


class CheckFailed(Exception):
    """The input was usable, but a check of the work failed: a loss that is not finite, an export that differs."""


class Interrupted(Exception):
    """Stopped by a signal after a whole step. The message gives the command that continues."""
