"""RRID: Relation Network for Person Re-identification, reproduced."""

from reid.models import load_model

__all__ = ["load_model"]
