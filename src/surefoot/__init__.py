"""Keeps multitask ranking models from diverging in training."""

from surefoot.capsule.ring import Ring
from surefoot.observe.monitor import Monitor
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.clip_gradients import clip_gradients
from surefoot.optim.clip_updates import ClipHandle, clip_updates
from surefoot.optim.clippy_adagrad import ClippyAdagrad
from surefoot.optim.eager import Accumulate, Epsilon
from surefoot.optim.gradients import gradient_operations
from surefoot.optim.groups import GroupSpec, parameter_groups
from surefoot.optim.guard import guard
from surefoot.optim.nonfinite import NonFinite
from surefoot.recover.recovery import Recovery
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
    "ClipHandle",
    "Clippy",
    "ClippyAdagrad",
    "Epsilon",
    "GlobalGradientClip",
    "GradientClip",
    "GroupSpec",
    "Monitor",
    "NoClip",
    "NonFinite",
    "Recovery",
    "Ring",
    "Rule",
    "TrustRatio",
    "__version__",
    "clip_gradients",
    "clip_updates",
    "gradient_operations",
    "guard",
    "parameter_groups",
]
