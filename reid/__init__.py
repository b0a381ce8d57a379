"""RRID: Relation Network for Person Re-identification, reproduced."""

__all__ = ["Extractor", "load_model"]


def __getattr__(name: str):
    """Imports torch only when one of the names is used, so that the command line starts quickly."""
    if name not in __all__:
        raise AttributeError(f"module 'reid' has no attribute {name!r}")
    from reid.inference.extractor import Extractor
    from reid.models.weights import load_model

    return Extractor if name == "Extractor" else load_model
