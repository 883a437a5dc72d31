"""The description of a data set, in TOML or in Python, and its checks: the meaning of each column of the files.

A description is about the files; ``Schema`` is about the tensors made from them.
"""

from collections import Counter
from datetime import UTC, datetime
from typing import Literal, Self

import polars as pl
import tomli_w
from pydantic import BaseModel, Field, field_validator, model_validator

from surefoot.lab.data.schema import Task
from surefoot.tasks import TaskKind

NULLS = ("", "\\N", "NULL", "null", "NaN", "nan", "None", "NA")
RESERVED = ("day", "__group__", "__row__", "__file__")
_INTERNAL = ("__row__", "__date__", "__order__", "__group__", "__file__")  # columns that preparing adds
_INT64 = (1 << 63) - 1
_MOMENT = datetime(2024, 5, 1, 13, 14, 15, tzinfo=UTC)


class _Part(BaseModel, frozen=True, extra="forbid"):
    pass


class Day(_Part, frozen=True):
    """How to find the day of a row: from a column of dates or times, from its file, or from its position.

    Args:
        column: dates, times, text such as 2024-05-01 or 20240501, or numbers since 1970 with a ``unit``. The column may
            also be in the path of the files: ``day=2024-05-01/``.
        format: ``strptime`` format of text; by default the two forms above.
        unit: unit of numbers.
        offset_hours: hours to add to the log's times to get local time; days begin at local midnight.
        order: column that sorts the rows of a day; by default the times in ``column``, or else the order in the files.
        file: every file is a day, in the natural order of the files' names.
        rows: for a log without time: rows of a pseudo-day; rows keep the order of the files.
    """

    column: str | None = None
    format: str | None = None
    unit: Literal["s", "ms", "us", "ns", "days"] | None = None
    offset_hours: float = Field(default=0.0, ge=-24, le=24)
    order: str | None = None
    file: bool = False
    rows: int | None = Field(default=None, ge=1, le=_INT64)

    @field_validator("format")
    @classmethod
    def _tells_a_day(cls, value: str | None) -> str | None:
        if value is not None and _tried(value).date() != _MOMENT.date():
            raise ValueError(f"format is {value!r}; expected a format with year, month and day, such as %d.%m.%Y")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.column is not None) + self.file + (self.rows is not None) != 1:
            raise ValueError(
                "day has column, file and rows; expected exactly one of them: a column of dates or times, file = true "
                "where every file is a day, or rows = 100000 for pseudo-days of a log without time"
            )
        return self

    @property
    def pseudo(self) -> bool:
        """Whether the days are pseudo-days, made by position."""
        return self.rows is not None

    @property
    def timed(self) -> bool:
        """Whether the format includes the time of day."""
        return self.format is not None and _tried(self.format).hour == _MOMENT.hour


def _tried(form: str) -> datetime:
    """Format a fixed time and parse it back; return ``datetime.min`` if that fails."""
    try:
        return pl.select(parsed(pl.lit(_MOMENT).dt.strftime(form), form)).item() or datetime.min
    except pl.exceptions.ComputeError:
        return datetime.min


def parsed(text: pl.Expr, form: str) -> pl.Expr:
    """Parse text to times, null if it does not have the format; the format may have hours without minutes."""
    if "%H" in form and "%M" not in form:
        text, form = text + " 00", f"{form} %M"
    return text.str.to_datetime(form, strict=False, time_unit="us")


class _Column(_Part, frozen=True):
    name: str = Field(min_length=1)
    column: str = ""  # name in the file, if different

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not value.isprintable() or value == "*" or (value.startswith("^") and value.endswith("$")):
            raise ValueError(
                f"name is {value!r}; expected printable characters, and neither * nor ^...$, which mean many columns "
                "(column = ... gives the name in the file)"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: object) -> object:
        return {"name": values} if isinstance(values, str) else values

    @property
    def source(self) -> str:
        """The column's name in the file."""
        return self.column or self.name


class CategoricalColumn(_Column, frozen=True):
    """An id column: values are numbered from 2 in order of appearance; 0 is missing, 1 if no earlier day had the value.

    Args:
        separator: separator of several values in a cell. A list column of parquet needs none.
        width: most values of a cell; further values are dropped.
        hash: number of rows of the embedding table that values are hashed to; without it, a vocabulary is kept.
        min_count: a value is known once it was in this many rows of earlier days.
    """

    separator: str | None = Field(default=None, min_length=1)
    width: int = Field(default=1, ge=1, le=10_000)
    hash: int | None = Field(default=None, ge=3, lt=1 << 31)
    min_count: int = Field(default=1, ge=1, le=_INT64)

    @model_validator(mode="after")
    def _several(self) -> Self:
        if self.separator is not None and self.width == 1:
            raise ValueError(
                f"categorical {self.name} has separator {self.separator!r} and width 1; expected a width above 1, the "
                "values kept of a cell"
            )
        if self.hash is not None and self.min_count > 1:
            raise ValueError(f"categorical {self.name} has hash and min_count; expected one: hashes are not counted")
        return self


class DenseColumn(_Column, frozen=True):
    """A numeric feature: missing values are found first; the others are clipped, transformed and standardised.

    Args:
        clip: smallest and largest value, in the file's units.
        transform: ``log1p`` is sign(x) log(1 + |x|), for counts and durations.
        standardise: subtract the mean and divide by the standard deviation of all earlier days. The first day, which is
            never scored, uses its own.
        missing: numbers that mean a missing value. These, nulls and non-finite numbers become 0 at the end, which is
            the mean of a standardised column.
    """

    clip: tuple[float, float] | None = None
    transform: Literal["none", "log1p"] = "none"
    standardise: bool = True
    missing: tuple[float, ...] = ()

    @field_validator("standardise", mode="before")
    @classmethod
    def _past_only(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(
                f"standardise is {value!r}; expected true or false: true uses mean and deviation of the days before a "
                "row's day, since statistics over the whole log would leak the future"
            )
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip of {self.name} is {list(self.clip)}; expected the lower bound first")
        return self


class LabelColumn(_Column, frozen=True):
    """A label: what a task predicts.

    Args:
        kind: binary (0 and 1, or false and true) or regression.
        weight: weight of the task's loss.
        judged: whether a run's verdict and the selection of settings use the task.
        at_least: makes a binary label from a number: 1 if the number is at least this, else 0.
        transform: as for a dense column; regression only.
        clip: smallest and largest value, applied before the transform; regression only.
        mask: a column; a row where it is 0, false or missing does not count for this task.
        optional: whether a row without a value does not count for this task; by default, such a row is rejected.
    """

    kind: Literal["binary", "regression"] = "binary"
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    judged: bool = True
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    transform: Literal["none", "log1p"] = "none"
    clip: tuple[float, float] | None = None
    mask: str | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.at_least is not None and self.kind != "binary":
            raise ValueError(f"label {self.name} is {self.kind} and has at_least; expected kind = 'binary' with it")
        if self.kind == "binary" and (self.transform != "none" or self.clip is not None):
            raise ValueError(
                f"label {self.name} is binary and has transform or clip; expected them of regressions only"
            )
        return self

    @property
    def task(self) -> Task:
        """The task of this label."""
        masked = self.mask is not None or self.optional
        return Task(self.name, TaskKind(self.kind), self.weight, self.judged, masked)


class Csv(_Part, frozen=True):
    """The format of text files; not used for parquet files.

    Args:
        separator: one or more characters.
        columns: names of the columns, if the first line is not a header.
        encoding: encoding of the text.
        quote: encloses cells with separators or line ends; if empty, quotes are ordinary text.
        nulls: cells that mean a missing value.
    """

    separator: str = Field(default=",", min_length=1)
    columns: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    quote: Literal['"', "'", ""] = '"'
    nulls: tuple[str, ...] = NULLS

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            "".encode(value)  # codecs.lookup would also accept codecs that are not for text
        except LookupError:
            raise ValueError(f"encoding is {value!r}; expected one of Python, such as utf-8 or latin-1") from None
        return value

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if set(self.separator) & {"\0", "\r", "\n", self.quote}:
            raise ValueError(f"separator is {self.separator!r}; expected neither a line's end nor the quote nor NUL")
        return self


class Description(_Part, frozen=True):
    """A data set.

    Args:
        name: name of the data set.
        day: how to find the day of a row.
        categorical: the id columns.
        dense: the numeric features.
        label: the labels.
        group: column of the grouped AUC, which compares rows of the same group only; usually the user id.
        after_event: columns that are known only after the labelled event, such as the play time after a click; they
            are refused as features.
        repeated: keep or reject a row that is equal, in all described columns, to an earlier row of its day.
        csv: the format of text files.
        notice: licence terms that every report must show.

    Raises:
        pydantic.ValidationError: a ``ValueError``, if the description is not valid.
    """

    name: str = Field(default="log", min_length=1)
    day: Day
    categorical: tuple[CategoricalColumn, ...] = ()
    dense: tuple[DenseColumn, ...] = ()
    label: tuple[LabelColumn, ...] = Field(min_length=1)
    group: str | None = None
    after_event: tuple[str, ...] = ()
    repeated: Literal["keep", "reject"] = "keep"
    csv: Csv = Csv()
    notice: str = ""

    @model_validator(mode="after")
    def _no_leak(self) -> Self:
        reasons = {label.source: f"label {label.name} is made of it" for label in self.label}
        reasons |= {label.mask: f"it is the mask of label {label.name}" for label in self.label if label.mask}
        reasons |= dict.fromkeys(self.after_event, "after_event names it")
        for feature in (*self.categorical, *self.dense):
            if (why := reasons.get(feature.source)) is not None:
                raise ValueError(
                    f"feature {feature.name} reads column {feature.source}, and {why}; expected only columns that are "
                    "known before the event, since a model that sees the answer learns nothing else"
                )
        return self

    @model_validator(mode="after")
    def _unique(self) -> Self:
        if not self.categorical and not self.dense:
            raise ValueError("there is no feature; expected at least one categorical or dense column")
        names = Counter(each.name for each in (*self.categorical, *self.dense, *self.label))
        for name, count in names.items():
            if count > 1 or name in RESERVED:
                raise ValueError(
                    f"name {name} is used {count} times; expected different names for all columns (column = ... gives "
                    f"the name in the file), and none of {', '.join(RESERVED)}"
                )
        return self

    @model_validator(mode="after")
    def _readable(self) -> Self:
        for column in self.columns:
            if column in _INTERNAL or "\0" in column:
                raise ValueError(
                    f"column {column!r} of the files is described; expected one without NUL in its name, and none of "
                    f"{', '.join(_INTERNAL)}, which preparing adds: rename it in the files"
                )
        return self

    @property
    def columns(self) -> list[str]:
        """The columns to read from the files, without repetition."""
        wanted = [each.source for each in (*self.categorical, *self.dense, *self.label)]
        wanted += [label.mask for label in self.label if label.mask]
        wanted += [column for column in (self.group, self.day.column, self.day.order) if column is not None]
        return list(dict.fromkeys(wanted))


def to_toml(description: Description) -> str:
    """Return the description as TOML, without keys that have their default value.

    >>> made = Description(day=Day(column="date"), categorical=("user",), label=({"name": "click"},))
    >>> print(to_toml(made), end="")
    categorical = [
        { name = "user" },
    ]
    label = [
        { name = "click" },
    ]
    <BLANKLINE>
    [day]
    column = "date"
    """
    return tomli_w.dumps(description.model_dump(mode="json", exclude_defaults=True, exclude_none=True))
