"""Guesses a description of a log from column names and first rows, for the user to correct."""

import re
from dataclasses import dataclass
from datetime import date

import polars as pl

from surefoot.lab.file_discovery import in_path
from surefoot.lab.ingest.description import Csv
from surefoot.lab.ingest.reader import ROW, Rejections, columns_of, first_line, read

_ROWS = 100_000
_SEPARATORS = (",", "\t", ";", "|", "::", "\x01")
_TIME = re.compile(r"(^|_)(day|date|dt|ds|ts|time|timestamp|datetime|time_ms|event_time|week|hour_ts)$", re.IGNORECASE)
_ID = re.compile(
    r"(^|_)(id|uid|pid|cid|sid|gid|key|code|type|category|cat|brand|city|country|zip|device|tab|segment|gender)s?$|"
    r"(^|_)(user|item|movie|video|product|store|shop|ad|author|query|session|request)s?(_?id)?$",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^(is|has|label|y|target)(_|$)|(^|_)(click|clicked|like|liked|follow|share|purchase|purchased|buy|conversion|"
    r"converted|install|install|comment|forward|hate|long_view|rating|label|watched|ordered)$",
    re.IGNORECASE,
)
_DATUM = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|\d{4}-\d\d-\d\d.*", re.IGNORECASE)  # a header has no such cell
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # characters that TOML requires to be escaped
_UNNAMED = re.compile(r"column_\d+")  # names of columns in a file without a header
_AFTER = re.compile(
    r"(^|_)(play|watch|watching|dwell|stay|view|reading|comment_stay)_?(time|ms|sec|seconds|duration|times)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Suggestion:
    """A guessed description.

    Args:
        toml: the description as TOML, with a comment on each guess.
        guessed: whether a label was found; if not, the TOML has a label to fill in.
    """

    toml: str
    guessed: bool


@dataclass(frozen=True)
class _Look:
    """A column's first rows."""

    name: str
    values: pl.Series

    @property
    def text(self) -> bool:
        return self.values.dtype == pl.String

    @property
    def numbers(self) -> pl.Series | None:
        """The column as numbers; None if it has other values."""
        kind = self.values.dtype
        if kind.is_numeric() or kind == pl.Boolean:
            return self.values.cast(pl.Float64)
        if kind != pl.String:
            return None
        cast = self.values.str.strip_chars().cast(pl.Float64, strict=False)
        given = self.values.is_not_null() & (self.values != "")
        return cast if given.any() and not (cast.is_null() & given).any() else None

    @property
    def whole(self) -> bool:
        numbers = self.numbers
        return numbers is not None and bool((numbers.drop_nulls().drop_nans() % 1 == 0).all())

    @property
    def distinct(self) -> int:
        return self.values.n_unique()


def find_csv(file: str) -> Csv:
    """Guess the format of a text file: its separator is the one that splits the first line into the most cells.

    If the first line is a row and not a header, the columns are called ``column_1`` and so on.

    Raises:
        InputError: if the file cannot be read.
    """
    lines = {mark: first_line(file, Csv(separator=mark)) for mark in _SEPARATORS}
    best = max(_SEPARATORS, key=lambda mark: len(lines[mark]))
    cells = lines[best]
    is_row = any(_DATUM.fullmatch(cell) for cell in cells) and cells != [str(i) for i in range(len(cells))]
    names = tuple(f"column_{i + 1}" for i in range(len(cells))) if is_row or len(set(cells)) < len(cells) else None
    return Csv(separator=best, columns=names)


def suggest(name: str, files: tuple[str, ...], csv: Csv) -> Suggestion:
    """Guess a description from the first rows of the first file.

    Raises:
        InputError: if it cannot be read.
    """
    file = files[0]
    columns = columns_of(file, csv)
    rows = next(iter(read(file, csv, columns, Rejections()))).head(_ROWS)
    looks = [_Look(column, rows[column]) for column in columns if column != ROW]
    day, day_lines = _guess_day(looks, files)
    lines = [f"name = {_quoted(name)}", ""]
    labels = [look for look in looks if look is not day and _is_label(look)]
    after = [look for look in looks if look not in labels and look is not day and _AFTER.search(look.name)]
    rest = [look for look in looks if look not in (*labels, *after) and look is not day]
    times = [look for look in rest if _is_time(look)]
    rest = [look for look in rest if look not in times]
    ids = [look for look in rest if _is_id(look)]
    dense = [look for look in rest if look not in ids and look.numbers is not None]
    skipped = [look.name for look in rest if look not in ids and look not in dense]
    group = next((look.name for look in ids if re.search("user|uid|member|household", look.name, re.IGNORECASE)), None)
    lines += [f"group = {_quoted(group)}  # the grouped AUC compares its rows", ""] if group else []
    lines += (
        [f"after_event = {_listed(after)}  # guessed: known only after the event, never features", ""] if after else []
    )
    lines += [f"# left out, neither numbers nor ids: {', '.join(skipped)}", ""] if skipped else []
    if times:
        lines += [
            f"# left out, times: {', '.join(look.name for look in times)}; an hour or a weekday may be a feature",
            "",
        ]
    lines += [*day_lines, *_order(day, day_lines, times), ""]
    if csv.separator != "," or csv.columns is not None:
        lines += ["[csv]", f"separator = {_quoted(csv.separator)}"]
        if csv.columns is not None:
            lines += ["# guessed: the first line is a row, not a header; give the columns names"]
            lines += [f"columns = [{', '.join(map(_quoted, csv.columns))}]"]
        lines += [""]
    for look in ids:
        lines += ["[[categorical]]", f"name = {_quoted(look.name)}  # {look.distinct:,} values in {len(rows):,} rows"]
        lines += [*_several(look), ""]
    for look in dense:
        lines += ["[[dense]]", f"name = {_quoted(look.name)}", *_transform(look), ""]
    for look in labels:
        lines += ["[[label]]", f"name = {_quoted(look.name)}", *_label_kind(look), "", *_high(look)]
    if not labels:
        lines += [
            '# no label was found: name the column to predict, kind = "binary" or "regression"',
            "[[label]]",
            'name = "?"',
            "",
        ]
    return Suggestion("\n".join(lines), bool(labels))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    plain = re.sub(_CONTROL, lambda found: "\\u" + format(ord(found[0]), "04x"), escaped)
    return f'"{plain}"'


def _listed(looks: list[_Look]) -> str:
    return f"[{', '.join(_quoted(look.name) for look in looks)}]"


def _guess_day(looks: list[_Look], files: tuple[str, ...]) -> tuple[_Look | None, list[str]]:
    told = [name for name in in_path(files[0]) if _TIME.search(name)]
    for look in looks:
        if look.name in told:
            return look, ["[day]", f"column = {_quoted(look.name)}  # from the path"]
    may_be = (look for look in looks if _TIME.search(look.name) or _UNNAMED.fullmatch(look.name))
    candidates = sorted(may_be, key=lambda look: "date" not in look.name)
    for look in candidates:
        if (lines := _day_lines(look)) is not None:
            return look, ["[day]", f"column = {_quoted(look.name)}", *lines]
    if len(files) > 2:
        return None, ["[day]  # no column of dates was found", "file = true  # guessed: every file is a day"]
    return None, ["[day]  # no column of dates was found", "rows = 100000  # pseudo-days, by position"]


def _is_time(look: _Look) -> bool:
    """Whether a column other than the day's holds dates or times, by its type, its text, or its name and values."""
    named = _TIME.search(look.name) is not None or look.text or look.values.dtype.is_temporal()
    return named and _day_lines(look) is not None and not (look.text and look.whole and not _TIME.search(look.name))


def _order(day: _Look | None, day_lines: list[str], times: list[_Look]) -> list[str]:
    """Return the line with the column that sorts a day, if the day's column has no time and another column has one."""
    if day is None or any("offset_hours" in line for line in day_lines):
        return []
    fine = [
        look
        for look in times
        if look.values.dtype != pl.Date and (look.numbers is None or look.distinct > day.distinct)
    ]
    return [f"order = {_quoted(fine[0].name)}  # guessed: sorts the rows of a day"] if fine else []


def _high(look: _Look) -> list[str]:
    """Return a binary label made from a label with more than two values, since a study needs a binary task."""
    numbers = look.numbers
    assert numbers is not None
    known = numbers.drop_nulls().drop_nans()
    values = known.unique().sort().to_list()
    if len(values) <= 2:
        return []
    cut = min(values[1:], key=lambda value: abs(float((known >= value).mean() or 0.0) - 0.5))  # pyright: ignore
    lines = ["[[label]]", f"name = {_quoted(f'{look.name}_high')}  # a study selects by a binary task"]
    return [*lines, f"column = {_quoted(look.name)}", f"at_least = {cut:g}  # guessed: about half of the rows", ""]


def _day_lines(look: _Look) -> list[str] | None:
    """Return the lines that describe a column of days; None if it does not hold days."""
    kind = look.values.dtype
    if kind == pl.Date:
        return []
    if isinstance(kind, pl.Datetime):
        return ["offset_hours = 0  # from the log's clock to the local one"]
    if look.whole and (numbers := look.numbers) is not None:
        middle = float(numbers.median() or 0.0)  # pyright: ignore[reportArgumentType] - of numbers
        if 19_900_101 <= middle <= 21_000_101:
            return []
        for unit, second in (("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)):
            if 6e8 * second < middle < 4.1e9 * second:
                return [f'unit = "{unit}"', "offset_hours = 0  # from the log's clock to the local one"]
        return None
    if look.text:
        begin = look.values.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).drop_nulls()
        if len(begin) > 0.9 * len(look.values) and begin.is_between(date(1990, 1, 1), date(2100, 1, 1)).all():
            return []
    return None


def _is_label(look: _Look) -> bool:
    numbers = look.numbers
    if numbers is None or not _LABEL.search(look.name):
        return False
    return look.distinct <= 3 or look.name.lower().endswith("rating") or look.name.lower() in ("label", "y", "target")


def _is_id(look: _Look) -> bool:
    if isinstance(look.values.dtype, pl.List | pl.Array) or look.numbers is None:
        return look.text or isinstance(look.values.dtype, pl.List | pl.Array)
    return look.whole and bool(_ID.search(look.name))


def _several(look: _Look) -> list[str]:
    if isinstance(look.values.dtype, pl.List | pl.Array):
        return ["width = 8  # values kept of a list"]
    for mark in ("|", ",", ";"):
        if (
            look.text
            and look.numbers is None
            and (look.values.str.contains(mark, literal=True).sum() or 0) > 0.1 * len(look.values)
        ):
            return [f"separator = {_quoted(mark)}  # guessed: several values in a cell", "width = 8"]
    return []


def _transform(look: _Look) -> list[str]:
    numbers = look.numbers
    assert numbers is not None
    known = numbers.filter(numbers.is_finite()).drop_nulls()
    if len(known) and float(known.min() or 0) >= 0 and float(known.max() or 0) > 100:  # pyright: ignore
        return ['transform = "log1p"  # guessed: a count or a duration']
    return []


def _label_kind(look: _Look) -> list[str]:
    numbers = look.numbers
    assert numbers is not None
    known = numbers.drop_nulls()
    binary = bool(known.is_in([0.0, 1.0]).all())
    rate = float(known.mean() or 0.0)  # pyright: ignore[reportArgumentType] - of numbers
    lines = [f'kind = "{"binary" if binary else "regression"}"  # mean {rate:.3g}']
    if binary and min(rate, 1 - rate) < 0.01:
        lines.append("judged = false  # too few positives for a reliable score")
    return lines
