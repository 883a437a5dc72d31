"""Keeps multitask ranking models from diverging in training."""

from surefoot.optim.adagrad import Accumulate, Adagrad, ClippyAdagrad, Epsilon
from surefoot.rules import (
    AdaptiveGradientClip,
    Clippy,
    GlobalGradientClip,
    GradientClip,
    NoClip,
    Rule,
    TrustRatio,
)

__version__ = "0.1.0"

__all__ = [
    "Accumulate",
    "Adagrad",
    "AdaptiveGradientClip",
    "Clippy",
    "ClippyAdagrad",
    "Epsilon",
    "GlobalGradientClip",
    "GradientClip",
    "NoClip",
    "Rule",
    "TrustRatio",
    "__version__",
]
