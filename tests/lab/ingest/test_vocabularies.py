"""Vocabularies against dictionaries, moments against numpy, hashes against what they were and must stay."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from properties import over
from raw_logs import described
from slow import SlowVocabulary
from surefoot.lab.ingest.vocabularies import MISSING, UNSEEN, FeatureEncoder, Moments, Vocabulary, hashed

DAYS: list[int] = [400, 1, 90, 0, 2000, 15]  # rows


def drawn(generator: np.random.Generator, rows: int, *, text: bool) -> list[Any]:
    values = [None if n % 11 == 0 else int(n) for n in generator.zipf(1.3, rows) % 10_000 - 50]
    return [None if value is None else f"u{value}" for value in values] if text else values


@over("min_count", [1, 2, 5])
@over("text", [False, True])
def test_a_vocabulary_is_a_dictionary(min_count: int, text: bool, tmp_path: Path):
    generator, kind = np.random.default_rng(min_count), pl.String if text else pl.Int64
    fast, slow = Vocabulary(min_count), SlowVocabulary(min_count)
    for day, rows in enumerate(DAYS):
        values = drawn(generator, rows, text=text)
        for piece in (values[: rows // 3], values[rows // 3 :]):
            series = pl.Series(piece, dtype=kind)
            assert fast.ids(series).to_list() == [slow.id(value) for value in piece]
            fast.note(series.filter(fast.ids(series) == UNSEEN))
        fast.learn()
        slow.learn(values)
        assert fast.rows == len(slow.known) + 2
        fast.save(tmp_path / f"{day}.parquet")
        fast = Vocabulary(min_count)
        fast.load(tmp_path / f"{day}.parquet")
    assert len(slow.known) > 40
    assert min_count == 1 or len(slow.counts) > 50


def test_an_empty_vocabulary_knows_nothing(tmp_path: Path):
    Vocabulary().save(tmp_path / "0.parquet")
    vocabulary = Vocabulary()
    vocabulary.load(tmp_path / "0.parquet")
    vocabulary.learn()
    assert vocabulary.ids(pl.Series([5, None])).to_list() == [UNSEEN, MISSING]
    assert vocabulary.rows == 2


@over("spread", [(0.0, 1e-20), (0.0, 1.0), (-1e3, 1.0), (1e6, 10.0), (1e6, 1e6), (0.0, 1e30)])
def test_moments_are_those_of_all_rows_at_once(spread: tuple[float, float]):
    offset, scale = spread
    values = (np.random.default_rng(0).normal(offset, scale, (1000, 2))).astype(np.float32)
    moments = Moments(3)
    for piece in np.split(values, [1, 1, 400, 998]):
        frame = pl.DataFrame({"a": piece[:, 0], "b": piece[:, 1]})
        frame = frame.with_columns(pl.when(pl.col("b") > offset).then("b"), none=pl.lit(None, pl.Float32))
        moments.add(frame)
    known = values[:, 1][values[:, 1] > offset].astype(float)
    np.testing.assert_allclose(moments.count, [1000, len(known), 0])
    np.testing.assert_allclose(
        moments.mean, [values[:, 0].mean(dtype=float), known.mean(), 0], rtol=1e-9, atol=1e-12 * scale
    )
    np.testing.assert_allclose(moments.std, [values[:, 0].std(dtype=float), known.std(), 1], rtol=1e-6)
    again = Moments(3)
    again.restore(moments.state())
    assert (again.mean.tolist(), again.std.tolist()) == (moments.mean.tolist(), moments.std.tolist())


@over("value", [0.0, 0.1, -3e38, 1e-30])
def test_a_constant_has_the_deviation_one(value: float):
    moments = Moments(1)
    for rows in (7, 1000, 3, 100_000):
        moments.add(pl.DataFrame({"a": pl.Series([value] * rows, dtype=pl.Float32)}))
    assert moments.std.tolist() == [1.0]


def test_no_number_becomes_infinite():
    past = FeatureEncoder(described(dense=["price"]))
    day = {"user": pl.Series([1, 1]), "click": pl.Series([0.0, 1.0])}
    for prices in ([1e-30, 3e-30], [3e38, -3e38]):
        piece = pl.DataFrame(day | {"price": pl.Series(prices, dtype=pl.Float32)})
        encoded = past.encoded(piece)["price"]
        assert encoded.is_finite().all()
        past.note(piece, past.encoded(piece))
        past.learn()
    assert encoded.to_list() == pytest.approx([np.finfo(np.float32).max, np.finfo(np.float32).min])


def test_hashes_stay_for_ever():
    numbers = pl.Series([0, 1, -1, 2**63 - 1, None])  # the first is SplitMix64's first number of seed 0
    assert [value and hex(value) for value in hashed(numbers)] == [
        "0xe220a8397b1dcdaf",
        "0x910a2dec89025cc1",
        "0xe4d971771b652c20",
        "0x2a67d7552e039ea7",
        None,
    ]
    text = pl.Series(["", "7", "u1", None, "\N{GRINNING FACE}", "7"])
    assert [value and hex(value) for value in hashed(text)] == [
        "0xb4b2797457a0a6e4",
        "0x828f78ceca1750e7",
        "0xd56a4e3f684d9992",
        None,
        "0x70e72ae2eb8bf0f5",
        "0x828f78ceca1750e7",
    ]


def test_hashed_ids_leave_room_for_the_missing():
    past = FeatureEncoder(described(categorical=[{"name": "user", "hash": 7}], dense=[]))
    users = pl.Series([*range(-500, 500), None])
    piece = pl.DataFrame({"user": users, "click": pl.repeat(0.0, len(users), eager=True)})
    ids = past.encoded(piece)["user"]
    assert ids[-1] == MISSING
    assert set(ids[:-1]) == {2, 3, 4, 5, 6}
    assert ids[:3].to_list() == [2, 6, 4]
