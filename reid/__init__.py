"""RRID: Relation Network for Person Re-identification, reproduced."""

from reid.models import load_model

__all__ = ["Extractor", "load_model"]


def __getattr__(name: str):
    if name != "Extractor":
        raise AttributeError(f"module 'reid' has no attribute {name!r}")
    from reid.deploy.extract import Extractor  # only where it is used: it brings readers of images and files

    return Extractor
