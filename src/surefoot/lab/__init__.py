"""The laboratory: proves rules on logs. It needs the extra `study`; the library never imports it.

Its public names are imported when they are first asked for: some bring torch, polars and pydantic with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surefoot.lab.data.prepared import PreparedLog
    from surefoot.lab.data.schema import Batch, Categorical, Log, Schema, Task
    from surefoot.lab.ingest.description import Description
    from surefoot.lab.ingest.prepare import prepare
    from surefoot.lab.ingest.source import Source
    from surefoot.lab.models.ranker import LabelUnits
    from surefoot.lab.study.config import RunConfig, StudyConfig, load_study
    from surefoot.lab.study.protocol import run_study
    from surefoot.lab.study.trial import run_trial
    from surefoot.lab.testing import check_source

_HOMES = {
    "Batch": "data.schema",
    "Categorical": "data.schema",
    "Description": "ingest.description",
    "LabelUnits": "models.ranker",
    "Log": "data.schema",
    "PreparedLog": "data.prepared",
    "RunConfig": "study.config",
    "Schema": "data.schema",
    "Source": "ingest.source",
    "StudyConfig": "study.config",
    "Task": "data.schema",
    "check_source": "testing",
    "load_study": "study.config",
    "prepare": "ingest.prepare",
    "run_study": "study.protocol",
    "run_trial": "study.trial",
}

__all__ = [
    "Batch",
    "Categorical",
    "Description",
    "LabelUnits",
    "Log",
    "PreparedLog",
    "RunConfig",
    "Schema",
    "Source",
    "StudyConfig",
    "Task",
    "check_source",
    "load_study",
    "prepare",
    "run_study",
    "run_trial",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
