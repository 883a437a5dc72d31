"""A real study, as small as one can be that still has all of a report in it."""

from pathlib import Path

from surefoot.lab.settings import parse
from surefoot.lab.study.config import StudyConfig
from surefoot.lab.study.protocol import run_study

FOLDER = "small-study"  # under pytest's own folder: whoever asks second finds it finished
SECTIONS = ("rate", "steps", "timeline", "around", "ratios", "curve", "factors", "share")  # a figure of each model
CONFIG = {
    "name": "tiny",
    "data": {"days": 5, "rows_per_day": 256},
    "training": {"batch_size": 64, "initial_accumulator_value": 0.1},
    "search": {
        "rates": [1],
        "extra_trials": 1,
        "sweep": [1, 64],
        "seeds": [1, 2],
        "search_seeds": [0, 3],
        "floor_rates": [0.1],
    },
    "models": [{"name": "small", "hidden": [8]}, {"name": "large", "hidden": [8, 8], "cross_layers": 1}],
    "methods": [
        {"name": "naive", "rule": {"name": "naive"}},
        {"name": "GC", "rule": {"name": "gc"}, "vary": "threshold", "values": [0.1]},
        {"name": "Clippy", "rule": {"name": "clippy"}},
    ],
}


def run(folder: Path) -> Path:
    """Run the study into the folder, or what is left of it; return it."""
    run_study(parse(StudyConfig, CONFIG, "the tests"), folder, workers=1)
    return folder
