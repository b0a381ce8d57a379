"""What made a result: the versions of the packages and the commit of the source."""

import importlib.metadata
import subprocess
from pathlib import Path


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the source, with '+' when files differ from it; None outside a checkout."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + ("+" if changed.stdout else "")
