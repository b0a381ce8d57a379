"""Shared material: $RRID_SHARED, else ../shared beside the project; tests that need it skip without it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    path = Path(os.environ.get("RRID_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"shared material is not at {path} ($RRID_SHARED)")
    return path
