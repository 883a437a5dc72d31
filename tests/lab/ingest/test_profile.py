"""What a look at a log says is so, and what is odd about it is said."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from properties import over
from surefoot.lab.ingest import profile as module
from surefoot.lab.ingest.description import Description
from surefoot.lab.ingest.profile import Profile, profile
from surefoot.lab.ingest.source import Source

DAYS = [f"2024-05-{day:02d}" for day in range(1, 7)]


def frame(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    days = np.repeat(DAYS, rows)
    count = len(days)
    number = np.repeat(np.arange(len(DAYS)), rows)
    return pl.DataFrame(
        {
            "date": days,
            "user": draw.integers(0, 50 + 20 * number),  # twenty new ones a day
            "age": draw.normal(30, 10, count),
            "seen": draw.integers(0, 100, count).astype(float),
            "click": (draw.random(count) < 0.1 + 0.1 * number).astype(int),
            "watch": draw.exponential(10, count),
        }
    )


def look(folder: Path, rows: pl.DataFrame, **changes: Any) -> Profile:
    rows.write_parquet(folder / "log.parquet", row_group_size=500)
    table = {
        "day": {"column": "date"},
        "categorical": ["user"],
        "dense": ["age", "seen"],
        "label": [{"name": "click"}, {"name": "watch", "kind": "regression"}],
    }
    return profile(Source(Description.model_validate(table | changes), (str(folder / "log.parquet"),)))


def test_days_labels_and_columns_are_those_of_a_plain_count(tmp_path: Path):
    rows = frame().with_columns(age=pl.when(pl.int_range(pl.len()) % 10 == 0).then(None).otherwise("age"))
    found = look(tmp_path, rows)
    assert (found.rows, found.rejected, [day.day for day in found.days]) == (len(rows), {}, DAYS)
    for day in found.days:
        of_day = rows.filter(date=day.day)
        assert day.rows == len(of_day)
        assert day.labels["click"] == pytest.approx(of_day["click"].mean())
        assert day.labels["watch"] == pytest.approx(of_day["watch"].mean(), rel=1e-5)
    user, age, seen = found.columns
    assert (user.kind, user.values, user.missing) == ("id", rows["user"].n_unique(), 0)
    assert (age.missing, age.mean) == (240, pytest.approx(rows["age"].mean(), rel=1e-5))
    assert (seen.low, seen.high) == (0, 99)


def test_unseen_ids_and_the_largest_shift_by_day(tmp_path: Path):
    rows = frame().with_columns(seen=pl.when(pl.col("date") == DAYS[4]).then(pl.col("seen") * 50).otherwise("seen"))
    found = look(tmp_path, rows)
    assert math.isnan(found.days[0].unseen)
    before: set[int] = set()
    for day in found.days:
        users = rows.filter(date=day.day)["user"]
        if before:
            assert (day.unseen, day.unseen_in) == (pytest.approx(1 - users.is_in(list(before)).mean()), "user")  # pyright: ignore
        before |= set(users)
    earlier = rows.filter(pl.col("date") < DAYS[4])["seen"]
    expected = (rows.filter(date=DAYS[4])["seen"].mean() - earlier.mean()) / earlier.std(ddof=0)  # pyright: ignore
    assert (found.days[4].shift, found.days[4].shift_of) == (pytest.approx(expected, rel=1e-4), "seen")
    assert (
        f"on {DAYS[4]} the mean of seen is {expected:+.1f} standard deviations from that of the earlier days"
        in found.warnings
    )


def test_many_values_are_counted_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_KEPT", 500)
    rows = frame(4000).with_columns(user=pl.int_range(pl.len()) // 2)
    (user, *_) = look(tmp_path, rows).columns
    assert user.values is not None
    assert user.values % 2 == 0  # a share of them was counted
    assert user.estimated
    assert user.told_values.startswith("about ")
    assert user.values == pytest.approx(len(rows) // 2, rel=0.25)


Change = Callable[[pl.DataFrame], pl.DataFrame]
ODD: dict[str, tuple[Change, str]] = {
    "a gap": (lambda rows: rows.filter(pl.col("date") != DAYS[2]), "1 gaps between days, the first from 2024-05-02 to"),
    "a last day cut short": (
        lambda rows: rows.filter((pl.col("date") != DAYS[5]) | (pl.int_range(pl.len()) % 20 == 0)),
        "the last day, 2024-05-06, has 20 rows, while the median is 400: is it complete?",
    ),
    "a constant": (lambda rows: rows.with_columns(age=pl.lit(1.0)), "age: the same value in all rows with a value"),
    "nothing": (lambda rows: rows.with_columns(age=pl.lit(None, pl.Float64)), "age: no value in any row"),
    "an id for each row": (
        lambda rows: rows.with_columns(user=pl.int_range(pl.len())),
        "user has a different value in",
    ),
    "the answer": (
        lambda rows: rows.with_columns(seen=pl.col("click") * 3.0 + pl.col("age") / 1000),
        "seen alone predicts click with an AUC of 1.000: is it known before the event?",
    ),
    "a value that is only there after the event": (
        lambda rows: rows.with_columns(seen=pl.when(pl.col("click") == 1).then(pl.col("seen"))),
        "seen alone predicts click with an AUC of 1.000",
    ),
    "both ends": (
        lambda rows: rows.with_columns(seen=pl.col("click") * (200 * (pl.int_range(pl.len()) % 2) - 100.0)),
        "seen alone predicts click with an AUC of 1.000",
    ),
    "most of it": (
        lambda rows: rows.with_columns(seen=pl.col("click") * 2.5 + pl.col("age") / 10),
        "seen alone predicts click with an AUC of 0.9",
    ),
    "an id of few values": (
        lambda rows: rows.with_columns(user=pl.col("click") * 10 + pl.int_range(pl.len()) % 3),
        "user alone predicts click with an AUC of 1.000",
    ),
    "a regression's answer": (
        lambda rows: rows.with_columns(seen=1 / (0.1 + pl.col("watch"))),
        "seen alone predicts watch up to 100% of the variance of its ranks",
    ),
    "rows twice": (
        lambda rows: pl.concat([rows, rows[:3], rows[:1]]),
        "4 rows are equal to an earlier row of the same day in all described columns; they are kept",
    ),
    "its opposite": (
        lambda rows: rows.with_columns(seen=-1.0 * pl.col("click")),
        "seen alone predicts click with an AUC",
    ),
    "two days": (lambda rows: rows.filter(pl.col("date") <= DAYS[1]), "there are 2 days; a study needs 3"),
}


@over("name", list(ODD))
def test_what_is_odd_is_said(name: str, tmp_path: Path):
    change, sentence = ODD[name]
    assert not look(tmp_path, frame()).warnings
    found = look(tmp_path, change(frame()))
    assert any(sentence in warning for warning in found.warnings), found.warnings


def test_pseudo_days_and_rejected_rows_are_told(tmp_path: Path):
    rows = frame().with_columns(click=pl.when(pl.int_range(pl.len()) == 7).then(2).otherwise("click"))
    found = look(tmp_path, rows, day={"rows": 800})
    assert [(day.day, day.rows) for day in found.days] == [
        ("rows-000000", 800),
        ("rows-000001", 800),
        ("rows-000002", 799),
    ]
    assert any("pseudo-days" in warning for warning in found.warnings)
    assert found.rejected == {"click: expected 0 or 1, since the label click is binary": 1}
    assert f"{tmp_path}/log.parquet row 8, column click: '2'" in found.first_rejected[0]
