"""What a user can repair is an InputError; anything else that is raised is a bug of ours."""

import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Input that cannot be used. The message says what came, what was expected and how to repair it."""


class MissingInput(InputError, FileNotFoundError):
    """A file or dataset that is not there. The message says where it was looked for and where to get it."""


class Interrupted(Exception):
    """Stopped by a signal after a whole step; the message says how to go on."""


def reported(work: Callable[[], int], debug: bool) -> int:
    """Exit code of a command: what work() returns, 1 for numbers that are not finite, 2 for a user's mistake,
    or what the system refuses (a full disk, a folder without permission), 130 when stopped, 141 when nobody reads the
    output any more; each as one message instead of a traceback unless `debug`.
    """
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains again
        return 141
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (InputError, OSError, FloatingPointError, Interrupted) as e:
        if debug:
            raise
        print(e if isinstance(e, Interrupted) else f"error: {e}", file=sys.stderr)
        return {Interrupted: 130, FloatingPointError: 1}.get(type(e), 2)
