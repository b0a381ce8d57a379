"""RRID: Relation Network for Person Re-identification, reproduced."""

__all__ = ["Extractor", "load_model"]


def __getattr__(name: str):
    """Imports torch only when one of the names is used, so that the command line starts quickly."""
    if name == "Extractor":
        from reid.inference.extractor import Extractor

        return Extractor
    if name == "load_model":
        from reid.models.weights import load_model

        return load_model
    raise AttributeError(f"module 'reid' has no attribute {name!r}")
