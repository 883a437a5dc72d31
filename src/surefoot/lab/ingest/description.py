"""How a data set is described: which column says what, in TOML or in Python, and what such a description may not say.

A description is about the log as it comes; ``Schema`` is about the tensors that it becomes.
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
    """Which day a row belongs to: a column of dates or times, the path of its file, or its position.

    Args:
        column: a date, a time, a text such as 2024-05-01 or 20240501, or a number since 1970 with a ``unit``. A column
            that no file has may be in the path, ``day=2024-05-01/``.
        format: of a text, as in ``strptime``; by default both forms above.
        unit: of a number.
        offset_hours: from the log's clock to the local one, whose midnight parts the days.
        order: a column that sorts the rows of a day; by default they keep the files' order, or that of the times in
            ``column``.
        file: every file is a day, in the files' natural order.
        rows: for a log without time, pseudo-days of so many rows each, in the log's order.
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
            raise ValueError(f"format is {value!r}; expected one that tells a day, as %d.%m.%Y does")
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
        """Whether the days are only positions."""
        return self.rows is not None

    @property
    def timed(self) -> bool:
        """Whether the format tells the time too."""
        return self.format is not None and _tried(self.format).hour == _MOMENT.hour


def _tried(form: str) -> datetime:
    """Return a moment as it comes back from a text in this format; another one if it does not."""
    try:
        return pl.select(parsed(pl.lit(_MOMENT).dt.strftime(form), form)).item() or datetime.min
    except pl.exceptions.ComputeError:
        return datetime.min


def parsed(text: pl.Expr, form: str) -> pl.Expr:
    """Return the times of texts in a format, which may tell hours without minutes; null where a text is in another."""
    if "%H" in form and "%M" not in form:
        text, form = text + " 00", f"{form} %M"
    return text.str.to_datetime(form, strict=False, time_unit="us")


class _Column(_Part, frozen=True):
    name: str = Field(min_length=1)
    column: str = ""  # in the file, if named otherwise there

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not value.isprintable() or value == "*" or (value.startswith("^") and value.endswith("$")):
            raise ValueError(
                f"name is {value!r}; expected printable characters, and neither * nor ^...$, which mean many columns "
                "(column = ... says what it is called in the file)"
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
    """An id: numbered from 2 in order of appearance; 0 is missing, 1 one that no day before had.

    Args:
        separator: of the values in a cell that has several. A list column of parquet needs none.
        width: values kept of a cell that has several; 1: it has one.
        hash: rows of the table that values are hashed to, instead of a vocabulary.
        min_count: rows, over the days before, from which on a value is known.
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
    """A number. First ``missing`` values are set apart, then it is clipped, transformed and standardised.

    Args:
        clip: the least and the largest value, in the file's units.
        transform: ``log1p`` is sign(x) log(1 + |x|), for counts and durations.
        standardise: subtract the mean and divide by the standard deviation of the days before; the first day, which is
            never scored, of its own.
        missing: numbers that mean that there is none. These, nulls and non-finite numbers become 0 after all else: the
            mean where it is standardised.
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
                f"standardise is {value!r}; expected true or false: true takes mean and deviation of the days before a "
                "row's own, since statistics over the whole log tell a model of the future"
            )
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip of {self.name} is {list(self.clip)}; expected the lower bound first")
        return self


class LabelColumn(_Column, frozen=True):
    """What a task predicts.

    Args:
        kind: binary (0 and 1, or false and true) or regression.
        weight: of its loss.
        judged: whether verdicts look at it.
        at_least: 1 where the column is at least so much, 0 elsewhere: a binary label out of a number.
        transform: of a regression label, as of a dense column.
        clip: of a regression label, before the transform.
        mask: a column; where it is 0, false or missing, the row does not count for this task.
        optional: rows without a value do not count for this task; by default they are rejected.
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
        """The task that it makes."""
        masked = self.mask is not None or self.optional
        return Task(self.name, TaskKind(self.kind), self.weight, self.judged, masked)


class Csv(_Part, frozen=True):
    """How text files are written; parquet files need none of it.

    Args:
        separator: one character or several.
        columns: their names, where the first line is not a header.
        encoding: of the text.
        quote: stands around cells that have separators or line ends in them; empty: a quote is text.
        nulls: cells that mean that there is no value.
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
            "".encode(value)  # a name that lookup alone knows may be of bytes
        except LookupError:
            raise ValueError(f"encoding is {value!r}; expected one that Python knows, as utf-8 or latin-1") from None
        return value

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if set(self.separator) & {"\0", "\r", "\n", self.quote}:
            raise ValueError(f"separator is {self.separator!r}; expected neither a line's end nor the quote nor NUL")
        return self


class Description(_Part, frozen=True):
    """A data set.

    Args:
        name: of the data set.
        day: which day a row belongs to.
        categorical: the ids.
        dense: the numbers.
        label: what is predicted.
        group: the column that the grouped AUC compares within, as a rule the user's.
        after_event: columns that are known only after what the labels tell has happened, as a play time is after a
            click: never features.
        repeated: what becomes of a row that is equal to another of its day in all columns: kept, or rejected.
        csv: how text files are written.
        notice: what must be said wherever the data is offered.

    Raises:
        pydantic.ValidationError: a ``ValueError``, if it cannot be.
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
        told = {label.source: f"label {label.name} is made of it" for label in self.label}
        told |= {label.mask: f"it is the mask of label {label.name}" for label in self.label if label.mask}
        told |= dict.fromkeys(self.after_event, "after_event names it")
        for feature in (*self.categorical, *self.dense):
            if (why := told.get(feature.source)) is not None:
                raise ValueError(
                    f"feature {feature.name} reads column {feature.source}, and {why}; expected only columns that are "
                    "known before the event: a model that is shown the answer learns nothing else"
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
                    f"name {name} is used {count} times; expected a name of its own for each column (column = ... says "
                    f"what it is called in the file), and none of {', '.join(RESERVED)}"
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
        """The columns that are read from the files, each once."""
        wanted = [each.source for each in (*self.categorical, *self.dense, *self.label)]
        wanted += [label.mask for label in self.label if label.mask]
        wanted += [column for column in (self.group, self.day.column, self.day.order) if column is not None]
        return list(dict.fromkeys(wanted))


def to_toml(description: Description) -> str:
    """Return the description as TOML, without what is as by default.

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
