"""The networks: each gives penultimate features and logits."""

from prunebench.models.narrow import narrowed
from prunebench.models.nets import MODELS, Classifier, build_model, identify_model, widened

__all__ = ["MODELS", "Classifier", "build_model", "identify_model", "narrowed", "widened"]
