"""Keeps multitask ranking models from diverging in training."""

from surefoot.capsule.bad_rows import bisect
from surefoot.capsule.replay import Replay, Training, go_on, replay
from surefoot.capsule.ring import Ring
from surefoot.capsule.storage import Capsule, StepRecord
from surefoot.capsule.storage import read as read_capsule
from surefoot.detect.detector import Alarm, Detector, Event, FreshScore, Verdict
from surefoot.errors import InputError, TrainingStopped
from surefoot.observe.attribution import Attribution, attribute
from surefoot.observe.monitor import Monitor
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.clip_gradients import clip_gradients
from surefoot.optim.clip_updates import ClipHandle, clip_updates
from surefoot.optim.clippy_adagrad import ClippyAdagrad
from surefoot.optim.eager import Accumulate, Epsilon
from surefoot.optim.embedding_tables import split_parameters
from surefoot.optim.gradients import gradient_operations
from surefoot.optim.groups import GroupSpec, parameter_groups
from surefoot.optim.guard import guard
from surefoot.optim.nonfinite import NonFinite
from surefoot.recover.journal import Journal
from surefoot.recover.journal import read as read_journal
from surefoot.recover.policy import Action, RecoveryPolicy, RollBack, Slow
from surefoot.recover.recorded_steps import under_recovery
from surefoot.recover.recovery import Recovery
from surefoot.rules import (
    AdaptiveGradientClip,
    Clippy,
    GlobalGradientClip,
    GradientClip,
    NoClip,
    Reduce,
    Rule,
    TrustRatio,
)
from surefoot.supervisor import Made, Supervisor

__version__ = "0.1.0"

__all__ = [
    "Accumulate",
    "Action",
    "Adagrad",
    "AdaptiveGradientClip",
    "Alarm",
    "Attribution",
    "Capsule",
    "ClipHandle",
    "Clippy",
    "ClippyAdagrad",
    "Detector",
    "Epsilon",
    "Event",
    "FreshScore",
    "GlobalGradientClip",
    "GradientClip",
    "GroupSpec",
    "InputError",
    "Journal",
    "Made",
    "Monitor",
    "NoClip",
    "NonFinite",
    "Recovery",
    "RecoveryPolicy",
    "Reduce",
    "Replay",
    "Ring",
    "RollBack",
    "Rule",
    "Slow",
    "StepRecord",
    "Supervisor",
    "Training",
    "TrainingStopped",
    "TrustRatio",
    "Verdict",
    "__version__",
    "attribute",
    "bisect",
    "clip_gradients",
    "clip_updates",
    "go_on",
    "gradient_operations",
    "guard",
    "parameter_groups",
    "read_capsule",
    "read_journal",
    "replay",
    "split_parameters",
    "under_recovery",
]
