"""What a user can repair is an InputError; anything else that is raised is a bug of ours."""


class InputError(ValueError):
    """Input that cannot be used. The message says what came, what was expected and how to repair it."""


class MissingInput(InputError, FileNotFoundError):
    """A file or dataset that is not there. The message says where it was looked for and where to get it."""
