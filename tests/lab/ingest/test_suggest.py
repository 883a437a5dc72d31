"""A suggested schema is one that can be used, and guesses what an engineer would."""

import tomllib
from pathlib import Path

import polars as pl

from properties import over
from surefoot.lab.ingest.description import Csv, Description
from surefoot.lab.ingest.prepare import prepare
from surefoot.lab.ingest.source import Source
from surefoot.lab.ingest.suggest import find_csv, suggest

ROWS = 120
COLUMNS = {
    "user_id": [i % 7 for i in range(ROWS)],
    "video_id": [f"v{i % 11}" for i in range(ROWS)],
    "tags": ["|".join(str(k) for k in range(i % 4)) for i in range(ROWS)],
    "price": [0.5 * i for i in range(ROWS)],
    "duration_ms": [1000 * i for i in range(ROWS)],
    "comment_text": [None] * ROWS,
    "is_click": [int(i % 3 == 0) for i in range(ROWS)],
    "play_time_ms": [7 * i for i in range(ROWS)],
    "rating": [1 + i % 5 for i in range(ROWS)],
}
MS = [1_714_550_400_000 + 43_200_000 * (i // 40) for i in range(ROWS)]
DATES: dict[str, tuple[pl.Series, dict[str, object]]] = {
    "date": (pl.Series("date", [f"2024-05-0{1 + i // 40}" for i in range(ROWS)]), {"column": "date"}),
    "dt": (pl.Series("dt", [20240501 + i // 40 for i in range(ROWS)]), {"column": "dt"}),
    "time_ms": (pl.Series("time_ms", MS), {"column": "time_ms", "unit": "ms", "offset_hours": 0}),
    "timestamp": (
        pl.Series("timestamp", [m // 1000 for m in MS]),
        {"column": "timestamp", "unit": "s", "offset_hours": 0},
    ),
    "event_time": (
        pl.Series("event_time", MS).cast(pl.Datetime("ms")),
        {"column": "event_time", "offset_hours": 0},
    ),
}


@over("name", list(DATES))
def test_days_labels_ids_and_numbers_are_guessed_and_can_be_prepared(name: str, tmp_path: Path):
    day, described = DATES[name]
    file = tmp_path / "log.parquet"
    pl.DataFrame(COLUMNS).with_columns(day).write_parquet(file)
    found = suggest("log", (str(file),), Csv())
    made = Description.model_validate(tomllib.loads(found.toml))
    assert tomllib.loads(found.toml)["day"] == described
    assert [column.name for column in made.categorical] == ["user_id", "video_id", "tags"]
    assert (made.categorical[2].separator, made.group) == ("|", "user_id")
    assert [column.name for column in made.dense] == ["price", "duration_ms"]
    assert made.dense[1].transform == "log1p"
    assert {label.name: label.kind for label in made.label} == {
        "is_click": "binary",
        "rating": "regression",
        "rating_high": "binary",
    }
    assert (made.label[2].column, made.label[2].at_least) == ("rating", 3.0)  # 60 % of 1 to 5, the nearest to half
    assert made.after_event == ("play_time_ms",)
    assert "comment_text" in found.toml
    report = prepare(Source(made, (str(file),)), tmp_path / "out")
    assert (report.rows_out, report.rejected) == (ROWS, {})


def test_a_second_column_of_times_is_no_feature_and_sorts_the_rows_of_a_day(tmp_path: Path):
    file = tmp_path / "log.csv"
    fine = [ms + 1000 * i for i, ms in enumerate(MS)]
    moments = pl.Series(fine).cast(pl.Datetime("ms")).dt.to_string("%Y-%m-%d %H:%M:%S")
    rows = pl.DataFrame(COLUMNS).drop("tags").with_columns(DATES["date"][0], time_ms=pl.Series(fine), seen_at=moments)
    rows.with_columns(last=pl.lit("2024-04-30")).write_csv(file)
    found = suggest("log", (str(file),), find_csv(str(file)))
    made = Description.model_validate(tomllib.loads(found.toml))
    assert not {"time_ms", "seen_at", "last"} & {each.name for each in (*made.categorical, *made.dense)}
    assert "left out, times: time_ms, seen_at, last" in found.toml
    assert (made.day.column, made.day.order) == ("date", "time_ms")
    assert prepare(Source(made, (str(file),)), tmp_path / "out").rows_out == ROWS


def test_a_first_line_that_is_a_row_is_no_header(tmp_path: Path):
    file = tmp_path / "ratings.dat"
    lines = [f"{i % 7}::{i % 11}::{1 + i % 5}::{978300760 + 40000 * i}" for i in range(ROWS)]
    file.write_text("\n".join(lines))
    csv = find_csv(str(file))
    assert (csv.separator, csv.columns) == ("::", ("column_1", "column_2", "column_3", "column_4"))
    table = tomllib.loads(suggest("ratings", (str(file),), csv).toml)
    assert table["csv"] == {"separator": "::", "columns": list(csv.columns or ())}
    assert table["day"] == {"column": "column_4", "unit": "s", "offset_hours": 0}


@over("header", ["user_id,is_click", "0,1", ",is_click", "Unnamed: 0,is_click", "2nd_user,click"])
def test_a_header_is_a_header(header: str, tmp_path: Path):
    file = tmp_path / "log.csv"
    file.write_text(f"{header}\n7,1\n8,0\n")
    assert find_csv(str(file)).columns is None


@over("separator", [",", "\t", ";", "|", "::"])
def test_the_separator_is_found(separator: str, tmp_path: Path):
    names = [name for name in COLUMNS if name != "tags"]
    lines = [separator.join([*names, "date"])]
    lines += [
        separator.join([*("" if COLUMNS[n][i] is None else str(COLUMNS[n][i]) for n in names), "20240501"])
        for i in range(ROWS)
    ]
    file = tmp_path / "log.csv"
    file.write_text("\n".join(lines))
    csv = find_csv(str(file))
    assert csv.separator == separator
    made = Description.model_validate(tomllib.loads(suggest("log", (str(file),), csv).toml))
    assert (made.csv.separator, made.day.column) == (separator, "date")


def test_without_days_or_labels_there_is_a_place_to_fill_in(tmp_path: Path):
    file = tmp_path / "log.csv"
    file.write_text("user_id,price\n1,2.5\n2,3.5\n")
    found = suggest("log", (str(file),), Csv())
    assert not found.guessed
    table = tomllib.loads(found.toml)
    assert table["day"] == {"rows": 100000}
    assert table["label"] == [{"name": "?"}]
    assert suggest("log", (str(file),) * 3, Csv()).toml.count("file = true") == 1


def test_days_told_by_the_path(tmp_path: Path):
    file = tmp_path / "day=2024-05-01" / "rows.csv"
    file.parent.mkdir()
    file.write_text("user_id,is_click\n1,1\n2,0\n")
    made = Description.model_validate(tomllib.loads(suggest("log", (str(file),), Csv()).toml))
    assert made.day.column == "day"
    assert prepare(Source(made, (str(file),)), tmp_path / "out").days == {"2024-05-01": 2}


def test_a_name_that_toml_must_quote(tmp_path: Path):
    file = tmp_path / "log.csv"
    file.write_text('"the ""x"" user_id",is_click\n1,1\n')
    (column,) = tomllib.loads(suggest("log", (str(file),), Csv()).toml)["categorical"]
    assert column["name"] == 'the "x" user_id'
