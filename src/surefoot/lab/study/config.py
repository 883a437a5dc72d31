"""What a run and a study are made of.

The same objects in Python or in TOML. Here, at the edge, rules, models and data sets have names.
"""

import math
import os
import tomllib
from dataclasses import asdict
from difflib import get_close_matches
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass

from surefoot import rules
from surefoot.capsule.storage import MOST_THREADS
from surefoot.errors import InputError
from surefoot.lab import extensions
from surefoot.lab.data.pools import Draw
from surefoot.lab.data.prepared import MANIFEST, PreparedLog
from surefoot.lab.file_discovery import is_url
from surefoot.lab.settings import choice, load, one_of, parse, unknown_key
from surefoot.recover.policy import RecoveryPolicy

RULES: dict[str, type[rules.Rule]] = dict(
    zip(("naive", "gc", "global_gc", "agc", "lamb", "clippy"), rules.ALL, strict=True)
)

LOGS = ("completejourney", "synthetic")


def rule_names() -> list[str]:
    """Return the names of the rules that a configuration may ask for: ours, then those of installed packages."""
    return [*RULES, *(name for name in extensions.names(extensions.RULES) if name not in RULES)]


def rule_kind(name: str) -> type[rules.Rule]:
    """Return a rule's class; a package cannot take the name of one of ours.

    Raises:
        InputError: if a package registers something else, or something that cannot be imported.
    """
    if name in RULES:
        return RULES[name]
    kind = extensions.registered(extensions.RULES, name)
    if not (isinstance(kind, type) and issubclass(kind, rules.Rule)):
        raise InputError(f"rule {name} is {kind!r}; expected a class derived from surefoot.rules.Rule")
    return kind


class _Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    pass


class DataConfig(_Section, frozen=True):
    """Which log, and how much of it."""

    source: str = "synthetic"  # or completejourney, or the folder of a prepared log
    days: int = Field(default=14, ge=3)  # the last so many day partitions; the very last is day N
    partition_days: int | None = Field(default=None, ge=1)  # of a prepared log, as all that follows: 7 makes weeks
    partition_rows: int | None = Field(default=None, ge=1)  # or partitions of so many rows
    memory_mib: int = Field(default=2048, ge=0)  # a log that takes more is read from disk as it is needed
    cache_mib: int = Field(default=256, ge=1)  # and so much of it is held
    rows_per_day: int = Field(default=2048, ge=1)  # synthetic only, as all that follows
    drift_day: int | None = None
    drift: float = Field(default=30.0, gt=0)
    seed: int = 0

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source not in LOGS and _folder(source) is None:
            known = choice("", source, list(LOGS)).lstrip()
            raise ValueError(
                f"{known}, or the folder of a log that 'surefoot data prepare' has prepared; {Path(source).absolute()} "
                "is none"
            )
        if _folder(source) is None or is_url(source):
            return source
        return os.path.abspath(source)  # a configuration that is kept means the same folder wherever it is read

    @model_validator(mode="after")
    def _one_partition(self) -> "DataConfig":
        if self.partition_days is not None and self.partition_rows is not None:
            raise ValueError("partition_days and partition_rows are both given; expected one of them")
        return self

    @property
    def prepared(self) -> str | None:
        """The folder or URL of a prepared log; None if the source is one of ours."""
        return _folder(self.source)


def _folder(source: str) -> str | None:
    named = source in LOGS or not ("/" in source or (Path(source) / MANIFEST).exists())
    return None if named else source


class ModelConfig(_Section, frozen=True):
    """A ranker's parts, or a model of the user's own: what a function returns for a log's columns."""

    name: str = "small"
    factory: str | None = None  # "package.module:function" for a model of one's own, with none of the ranker's parts
    arguments: dict[str, Any] = {}  # of the function, beside the log's schema
    bottom: Literal["shared", "experts", "linear"] = "shared"
    hidden: tuple[int, ...] = (64, 64)
    cross_layers: int = Field(default=0, ge=0)
    embedding_dim: int = Field(default=16, ge=1)
    experts: int = Field(default=4, ge=1)  # for bottom = "experts"

    @model_validator(mode="after")
    def _one_kind(self) -> "ModelConfig":
        if self.factory is None and self.arguments:
            raise ValueError(f"arguments are {self.arguments} and there is no factory; expected both or none")
        for key in sorted(_PARTS_OF_RANKER):
            if self.factory is not None and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is given beside a factory; expected it in arguments, or no factory")
        return self

    @model_serializer(mode="wrap")
    def _of_its_kind(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused = {"arguments"} if self.factory is None else _PARTS_OF_RANKER
        return {key: value for key, value in write(self).items() if key not in unused}


_PARTS_OF_RANKER = set(ModelConfig.model_fields) - {"name", "factory", "arguments"}


class TrainingConfig(_Section, frozen=True):
    """How a run goes through the log."""

    batch_size: int = Field(default=512, ge=1)
    window_days: int = Field(default=3, ge=1)
    steps_per_day: int | None = Field(default=None, ge=1)
    draw: Draw = Draw.REPLACED  # or "once": every row of a window once before it moves on
    initial_accumulator_value: float = Field(default=1e-6, ge=0)  # of the dense layers; 0.1 in the paper
    embedding_rate: float = Field(default=0.1, gt=0)
    embedding_initial_accumulator_value: float = Field(default=1e-6, gt=0)
    threads: int = Field(default=1, ge=1, le=MOST_THREADS)
    device: Literal["cpu", "cuda"] = "cpu"


class RuleConfig(BaseModel, frozen=True, extra="allow"):
    """A rule by name, with any of its arguments."""

    name: str = "clippy"

    @model_validator(mode="after")
    def _known(self) -> "RuleConfig":
        one_of("rule.name", self.name, rule_names())
        known = list(signature(rule_kind(self.name)).parameters)
        for key in self.model_extra or {}:
            if key not in known:
                raise ValueError(unknown_key(f"rule.{key}", key, known))
        self.build()
        return self

    def build(self) -> rules.Rule:
        """Return the rule."""
        return rule_kind(self.name)(**(self.model_extra or {}))


class MonitorConfig(_Section, frozen=True):
    """What is watched, written down and kept to be replayed."""

    every: int = Field(default=50, ge=1)  # steps between two full surveys of the layers
    rows: int = Field(default=8192, ge=1)  # of the window over which AUC and calibration are taken
    capsules: bool = True  # on an alarm, write the last steps so that they can be replayed
    capsule_steps: int = Field(default=128, ge=1)  # how many of them at least
    capsule_mib: int = Field(default=512, ge=1)  # of memory for them, and of disk for all capsules


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RecoveryConfig(RecoveryPolicy):
    """The recovery's policy and its checkpoints; the run is watched by a monitor then.

    A stage is a table of its numbers, ``true`` for the defaults, or ``false`` for none.
    """

    every: int = Field(default=100, ge=1)  # steps between two checkpoints
    keep: int = Field(default=3, ge=1)  # healthy checkpoints

    @field_validator("slow", "roll_back", mode="before")
    @classmethod
    def _stage(cls, given: Any) -> Any:
        return {True: {}, False: None}[given] if isinstance(given, bool) else given

    @model_serializer
    def _table(self) -> dict[str, Any]:
        return {key: False if value is None else value for key, value in asdict(self).items()}


class RunConfig(_Section, frozen=True):
    """One training."""

    rate: float = Field(default=0.2, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    seed: int = 0
    until: Literal["selection", "final"] = "final"  # train up to the day before day N - 1, or before day N
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    rule: RuleConfig = Field(default_factory=RuleConfig)
    monitor: MonitorConfig | None = None  # a study judges a rule by itself, with neither of these
    recovery: RecoveryConfig | None = None


class MethodConfig(_Section, frozen=True):
    """One row of a study's table: a rule, and which of its arguments is searched over which values."""

    name: str
    rule: RuleConfig
    warmup_steps: int = Field(default=0, ge=0)
    initial_accumulator_value: float | None = Field(default=None, ge=0)  # None: that of [training]
    vary: str | None = None
    values: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "MethodConfig":
        if (self.vary is None) != (not self.values):
            raise ValueError(
                f"method {self.name!r}: vary is {self.vary!r} and values are {list(self.values)}; expected both or none"
            )
        if self.vary is not None:
            known = list(signature(rule_kind(self.rule.name)).parameters)
            one_of(f"method {self.name!r}: vary", self.vary, known)
        return self


class SearchConfig(_Section, frozen=True):
    """The protocol's numbers."""

    base_rate: float = Field(default=0.2, gt=0)
    rates: tuple[float, ...] = (1.0, 2.0)  # multiples of the base rate: the paper's own grid
    extra_trials: int = Field(default=12, ge=0)  # what a method may add to its grid until its best is inside
    sweep: tuple[float, ...] = ()  # multiples at which every method's best threshold is tried, on every model
    fall_off: float = Field(default=0.02, gt=0)  # AUC below a method's best that counts as fallen off
    search_seeds: tuple[int, ...] = Field(default=(0, 11, 12), min_length=1)  # the first searches, all of them decide
    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1)  # of the final runs
    select_by: str | None = (
        None  # the binary task whose AUC on day N - 1 selects; by default the log's first judged one
    )
    show: str | None = None  # the regression task shown beside it; by default the log's first judged one
    floor_rates: tuple[float, ...] = Field(default=(0.025, 0.05, 0.1, 0.2), min_length=1)  # of the linear floor

    @model_validator(mode="after")
    def _distinct(self) -> "SearchConfig":
        for key, seeds in (("search_seeds", self.search_seeds), ("seeds", self.seeds)):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{key} is {list(seeds)}; expected each seed once")
        if both := sorted(set(self.search_seeds) & set(self.seeds)):
            raise ValueError(
                f"search_seeds and seeds both have {both[0]}; expected final runs of seeds that chose nothing"
            )
        return self


class StudyConfig(_Section, frozen=True):
    """The paper's protocol on one log: the first model's grid is searched, what wins is carried to the others."""

    name: str
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig = SearchConfig()
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    methods: tuple[MethodConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> "StudyConfig":
        for what, names in (("models", [m.name for m in self.models]), ("methods", [m.name for m in self.methods])):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{what} has the name {min(twice)!r} more than once; expected distinct names")
        return self


def presets() -> list[str]:
    """Return the names of the studies that come with surefoot."""
    folder = files("surefoot.lab.study") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_study(preset_or_path: str) -> StudyConfig:
    """Return a preset by its name, or the study of a TOML file.

    Raises:
        InputError: naming the file, the key and the closest known key, or the presets.
    """
    if preset_or_path in presets():
        text = (files("surefoot.lab.study") / "presets" / f"{preset_or_path}.toml").read_text()
        return parse(StudyConfig, tomllib.loads(text), f"preset {preset_or_path}")
    if not preset_or_path.endswith(".toml"):
        closest = get_close_matches(preset_or_path, presets(), 1, 0.0)[0]
        raise InputError(
            f"study {preset_or_path!r} is neither a preset nor a .toml file; expected one of {', '.join(presets())} "
            f"(closest: {closest})"
        )
    return load(StudyConfig, Path(preset_or_path))


def with_changes(
    config: StudyConfig, *, source: str | None = None, models: list[str] | None = None, select_by: str | None = None
) -> StudyConfig:
    """Return the study on another data set, with some of its models, or selected by another task.

    Raises:
        InputError: if a name is unknown, naming the known ones.
    """
    table = config.model_dump(exclude_none=True)
    if source is not None:
        table["data"] = {**table["data"], "source": source}
        if (folder := _folder(source)) is not None:
            table["data"]["days"] = min(config.data.days, len(PreparedLog.open(folder).days))
    if select_by is not None:
        table["search"]["select_by"] = select_by
    if models:
        known = {model.name: model for model in config.models}
        known |= {name: ModelConfig(name=name.rpartition(":")[2], factory=name) for name in models if ":" in name}
        for name in models:
            if name not in known:
                raise InputError(f"{choice('--model', name, list(known))}, or 'package.module:function'")
        table["models"] = [known[name].model_dump(exclude_none=True) for name in models]
    return parse(StudyConfig, table, "--data")


def with_overrides(
    config: RunConfig, *, rate: float | None = None, seed: int | None = None, rule: str | None = None
) -> RunConfig:
    """Return the run at another rate, from another seed, or under another rule, which has its default arguments then.

    Raises:
        InputError: if a value cannot be used, or no rule has the name.
    """
    table = config.model_dump(exclude_none=True)
    if rate is not None:
        if not 0 < rate < math.inf:
            raise InputError(f"--rate is {rate:g}; expected a number above 0")
        table["rate"] = rate
    if seed is not None:
        table["seed"] = seed
    if rule is not None and rule != config.rule.name:
        if rule not in rule_names():
            raise InputError(choice("--rule", rule, rule_names()))
        table["rule"] = {"name": rule}
    return parse(RunConfig, table, "the command line")
