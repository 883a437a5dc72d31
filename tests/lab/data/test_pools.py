"""Plans of draws lose no row and favour none; what is read ahead comes in order, and its errors come through."""

import gc
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch

from properties import over
from stored_logs import SCHEMA, mixed, numbers, same
from surefoot.errors import InputError
from surefoot.lab.data import prepared
from surefoot.lab.data.dayfile import DayFile
from surefoot.lab.data.pools import DiskLimits, Draw, Visit, read_ahead
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.schema import Log
from surefoot.lab.data.sliding_window import MovingWindow, Stream

# Plans


def cut_at(*edges: int) -> Callable[[range], list[range]]:
    """Return what cuts row numbers at these, as row groups of uneven files do."""

    def row_groups(rows: range) -> list[range]:
        inside = [rows.start, *(edge for edge in edges if rows.start < edge < rows.stop), rows.stop]
        return [range(start, stop) for start, stop in pairwise(inside)]

    return row_groups


EDGES = (0, 16, 32, 40, 56, 72, 88, 93, 109, 125, 141, 157)


def visit(rows: int, batch_size: int, draw: Draw, rank: int = 0, ranks: int = 1, **others: Any) -> Visit:
    steps = -(-(rows // ranks) // batch_size)
    settings = {"limits": None, "day": 4, "seed": 3, "steps": steps} | others
    return Visit(range(5, 5 + rows), draw=draw, batch_size=batch_size, rank=rank, ranks=ranks, **settings)


def seeds(plan: Visit) -> list[int]:
    return [pool.seed for pool, _ in plan.pools()]


def drawn(plan: Visit, first: int = 0) -> list[list[int]]:
    """Return the row numbers of every batch from ``first`` on."""
    return [pool.numbers(positions).tolist() for pool, skip in plan.pools(first) for positions in pool.positions(skip)]


LIMITS: dict[str, DiskLimits | None] = {
    "in memory": None,
    "a small pool": DiskLimits(18, 16, cut_at(*EDGES)),
    "a pool of some row groups": DiskLimits(50, 16, cut_at(*EDGES)),
    "a pool that the window fits into": DiskLimits(1000, 16, cut_at(*EDGES)),
}


@over("limits", LIMITS)
@over("ranks", [1, 2, 3, 4])
def test_drawn_once_every_row_comes_once_whatever_the_sizes(ranks: int, limits: DiskLimits | None):
    for rows, batch_size in product(
        (4, 5, 7, 16, 17, 31, 32, 33, 64, 65, 66, 67, 68, 69, 128, 129, 150), (1, 4, 8, 16)
    ):
        plans = [visit(rows, batch_size, Draw.ONCE, rank, ranks, limits=limits) for rank in range(ranks)]
        batches = [drawn(plan) for plan in plans]
        assert {len(taken) for taken in batches} == {plans[0].steps}
        assert sorted(row for taken in batches for batch in taken for row in batch) == list(range(5, 5 + rows))
        for taken in batches:
            assert all(len(batch) == batch_size for batch in taken[:-1])
            assert 1 <= len(taken[-1]) <= batch_size + 1
            assert len(taken[-1]) <= batch_size or ranks > 1


@over("limits", LIMITS)
@over("draw", list(Draw))
def test_a_plan_goes_on_from_any_batch(draw: Draw, limits: DiskLimits | None):
    plan = visit(150, 7, draw, 1, 2, limits=limits)
    whole = drawn(plan)
    assert len(whole) == plan.steps == 11
    assert all(drawn(plan, first) == whole[first:] for first in range(plan.steps))


@over("limits", LIMITS)
@over("draw", list(Draw))
def test_draws_differ_with_seed_day_and_rank_and_between_pools(draw: Draw, limits: DiskLimits | None):
    rows = [drawn(visit(150, 16, draw, rank, 2, limits=limits, **others)) for rank in (0, 1) for others in SETTINGS]
    taken = [tuple(batch) for batches in rows for batch in batches]
    assert len(taken) == len(set(taken)) == 2 * 5 * len(SETTINGS)


@over("draw", list(Draw))
def test_every_pool_is_shuffled_in_its_own_way(draw: Draw):
    limits = LIMITS["a pool of some row groups"]
    plans = [visit(150, 16, draw, rank, 2, limits=limits, **others) for rank in (0, 1) for others in SETTINGS]
    found = [seed for plan in plans for seed in seeds(plan)]
    assert len(found) == len(set(found)) == 2 * 2 * len(SETTINGS)


SETTINGS: list[dict[str, int]] = [{}, {"seed": 4}, {"day": 5}, {"seed": -1}]


@over("draw", list(Draw))
def test_a_pool_fits_its_limit_and_its_rows_are_ascending(draw: Draw):
    for rows, most, batch_size in product((65, 150), (17, 18, 33, 50, 149, 150), (4, 16)):
        plan = visit(rows, batch_size, draw, limits=DiskLimits(most, 16, cut_at(*EDGES)))
        pools = [pool for pool, _ in plan.pools()]
        assert sum(pool.steps for pool in pools) == plan.steps
        for pool in pools:
            assert pool.rows <= most
            numbers = [row for rows in pool.ranges for row in rows]
            assert numbers == sorted(set(numbers))
            assert pool.numbers(torch.arange(pool.rows)).tolist() == numbers


def test_a_pool_has_many_row_groups_where_the_limit_allows_it():
    """Even if a visit draws few rows, or the pools could be filled by a few row groups each."""
    groups = cut_at(*range(0, 10_000, 10))
    few = Visit(range(10_000), 0, Draw.REPLACED, 4, 2, 0, 0, 1, DiskLimits(2000, 10, groups))
    (pool,) = [pool for pool, _ in few.pools()]
    assert (pool.rows, pool.steps) == (160, 2)
    once = Visit(range(10_000), 0, Draw.ONCE, 4, 2500, 0, 0, 1, DiskLimits(2000, 10, groups))
    pools = [pool for pool, _ in once.pools()]
    assert len(pools) == 6
    assert all(160 <= len(pool.ranges) <= 200 for pool in pools)
    for pool in [*pools, *(pool for day in range(5) for pool, _ in replace(few, day=day).pools())]:
        starts = torch.tensor([float(rows.start) for rows in pool.ranges])
        assert starts.diff().max() < 5000  # from all over the window
        assert 3000 < starts.mean() < 7000


def test_drawn_once_a_rank_reads_its_own_row_groups():
    limits = DiskLimits(50, 16, cut_at(*range(5, 1000, 16)))
    plans = [visit(640, 4, Draw.ONCE, rank, 4, limits=limits) for rank in range(4)]
    read = [{row for pool, _ in plan.pools() for rows in pool.ranges for row in rows} for plan in plans]
    assert [len(rows) for rows in read] == [160] * 4
    groups = [{(row - 5) // 16 for row in rows} for rows in read]
    assert len(set[int]().union(*groups)) == sum(map(len, groups)) == 40  # all 640 rows, no row group by two ranks


def test_drawn_with_replacement_no_row_is_favoured():
    """In row groups of 16, 8, 5 and 3 rows, and pools of 20: every row comes as often as any other."""
    limits, count = DiskLimits(20, 1, cut_at(0, 21, 29, 34)), Counter[int]()
    for day in range(3000):
        plan = Visit(range(5, 37), day, Draw.REPLACED, 10, 2, 0, 0, 1, limits)
        count.update(row for batch in drawn(plan) for row in batch)
    expected = 3000 * 20 / 32
    assert sorted(count) == list(range(5, 37))
    # a pool has a row with probability 20/32, and each of its 20 draws is that row with 1/20
    deviation = (3000 * (20 / 32) * (2 - 20 / 32)) ** 0.5
    assert all(abs(found - expected) < 4.5 * deviation for found in count.values())


def test_a_window_that_fits_is_drawn_from_as_one_in_memory():
    for draw in Draw:
        limits = DiskLimits(151 if draw is Draw.ONCE else 150, 16, cut_at(*EDGES))
        assert drawn(visit(150, 10, draw, limits=limits)) == drawn(visit(150, 10, draw))


# Reading ahead


def test_results_come_in_order_one_read_ahead():
    begun: list[int] = []

    def read(plan: int) -> int:
        begun.append(plan)
        return plan * plan

    results = read_ahead(range(5), read)
    for i, result in enumerate(results):
        assert result == i * i
        wait_for(lambda i=i: len(begun) == min(i + 2, 5))
    assert begun == list(range(5))
    assert list(read_ahead([], read)) == []


def test_an_error_comes_where_the_result_would():
    def read(plan: int) -> int:
        if plan == 2:
            raise InputError("plan 2 cannot be read")
        return plan

    results = read_ahead(range(5), read)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(InputError, match="plan 2 cannot be read") as error:
        next(results)
    wait_for(lambda: readers() == 0)
    assert error.traceback  # which holds on to what raised


def test_a_dropped_iterator_leaves_no_thread():
    wait_for(lambda: readers() == 0)
    results = read_ahead(range(1000), lambda plan: plan)
    assert next(results) == 0
    assert readers() == 1
    del results
    wait_for(lambda: readers() == 0)


def readers() -> int:
    """Return how many threads read ahead, those of streams that a caught error still holds left out."""
    gc.collect()
    return sum(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# Windows over a log on disk


ROWS = (150, 40, 333, 64, 90)
ROW_BYTES = 4 * (5 + 2 + 2) + 8


@pytest.fixture(scope="module")
def log() -> Log:
    return mixed(ROWS)


@pytest.fixture(scope="module")
def stored(log: Log, tmp_path_factory: pytest.TempPathFactory) -> PreparedLog:
    folder = tmp_path_factory.mktemp("log")
    prepared.write(log, folder, row_group=16)
    return PreparedLog.open(folder)


WINDOWS: dict[str, dict[str, Any]] = {
    "with replacement": {"width": 3},
    "with replacement, few steps": {"width": 2, "steps_per_day": 3},
    "once": {"width": 2, "draw": Draw.ONCE},
    "with replacement, a rank of two": {"width": 3, "rank": 1, "ranks": 2},
    "once, a rank of three": {"draw": Draw.ONCE, "width": 3, "rank": 2, "ranks": 3},
}
CACHES = {"pools": 2 * 60 * ROW_BYTES, "one pool": 1 << 20}


@over("cache", CACHES)
@over("settings", WINDOWS)
def test_a_stream_from_disk_resumes_anywhere(stored: PreparedLog, settings: dict[str, Any], cache: int):
    window = MovingWindow(stored, 10, seed=7, cache=cache, **settings)
    whole = [(day, numbers(batch)) for day, batch in window.stream(5)]
    assert len(whole) == window.stream(5).steps
    for position in random.Random(0).sample(range(len(whole) + 1), min(10, len(whole))):
        stream = window.stream(5)
        for _ in range(position):
            next(stream)
        state = json.loads(json.dumps(stream.state_dict()))
        again = MovingWindow(stored, 10, seed=7, cache=cache, **settings).stream(5)
        next(again)
        again.load_state_dict(state)
        assert [(day, numbers(batch)) for day, batch in again] == whole[position:]


@over("settings", WINDOWS)
def test_rows_of_a_batch_from_disk_are_those_of_the_log(log: Log, stored: PreparedLog, settings: dict[str, Any]):
    window = MovingWindow(stored, 10, cache=CACHES["pools"], **settings)
    stream, seen = window.stream(5), 0
    assert stream.rows is None
    for day, batch in stream:
        index = seen - sum(window.steps(before) for before in range(day))
        rows = window.rows_of(day, index)
        assert stream.rows is not None
        assert stream.rows.equal(rows)
        first = log.starts[max(0, day - window.width + 1)]
        assert first <= int(rows.min()) <= int(rows.max()) < log.starts[day + 1]
        assert same(batch, log.take(rows))
        seen += 1
        if seen % 7 == 0:
            assert same(window.batch(rows), batch)
    assert seen == stream.steps > 7


@over(
    "settings",
    [settings for settings in WINDOWS.values() if settings.get("draw") is not Draw.ONCE or "ranks" not in settings],
)
def test_what_fits_is_drawn_as_in_memory(log: Log, stored: PreparedLog, settings: dict[str, Any]):
    in_memory, on_disk = MovingWindow(log, 10, **settings).stream(5), MovingWindow(stored, 10, **settings).stream(5)
    for (day, mine), (other_day, theirs) in zip(in_memory, on_disk, strict=True):
        assert day == other_day
        assert same(mine, theirs)


@over("cache", CACHES)
@over("ranks", [1, 2, 4])
def test_ranks_share_a_log_on_disk_without_overlap_or_loss(log: Log, stored: PreparedLog, ranks: int, cache: int):
    windows = [
        MovingWindow(stored, 12, 2, draw=Draw.ONCE, rank=rank, ranks=ranks, cache=cache) for rank in range(ranks)
    ]
    for day in range(5):
        batches = [list(window.batches(day)) for window in windows]
        assert {len(taken) for taken in batches} == {windows[0].steps(day)}
        rows = sorted(number for taken in batches for batch in taken for number in numbers(batch))
        assert rows == list(range(log.starts[max(0, day - 1)], log.starts[day + 1]))


def test_a_state_is_for_the_same_pools_and_serves_every_rank(stored: PreparedLog):
    def stream(**settings: Any) -> Stream:
        settings = {"cache": CACHES["pools"], "ranks": 2} | settings
        return MovingWindow(stored, 10, **settings).stream(5)

    one = stream()
    for _ in range(3):
        next(one)
    state = one.state_dict()
    other = stream(rank=1)
    other.load_state_dict(state)
    assert other.position == one.position
    for settings, words in (
        ({"cache": 1 << 20}, r"state has pool_rows 60; expected \d+"),
        ({"ranks": 3}, "state has ranks 2; expected 3"),
        ({"draw": Draw.ONCE}, "state has draw replaced; expected once"),
    ):
        with pytest.raises(ValueError, match=words):
            stream(**settings).load_state_dict(state)


def test_a_window_moves_in_weeks_and_in_rows(log: Log, stored: PreparedLog):
    """Width and stride count partitions."""
    for partitions, in_memory in (
        (stored.partitions(days=2), log.partitions(days=2)),
        (stored.partitions(rows=100), log.partitions(rows=100)),
    ):
        window = MovingWindow(partitions, 10, 2, draw=Draw.ONCE, cache=CACHES["pools"])
        assert partitions.starts == in_memory.starts
        assert len(partitions.days) > 1
        for day in range(len(partitions.days)):
            rows = sorted(number for batch in window.batches(day) for number in numbers(batch))
            assert rows == list(range(partitions.starts[max(0, day - 1)], partitions.starts[day + 1]))


def test_a_window_moves_over_the_last_days_alone(log: Log, stored: PreparedLog):
    for cache in CACHES.values():
        window = MovingWindow(stored.last(3), 10, 2, draw=Draw.ONCE, cache=cache)
        for day in range(3):
            rows = sorted(number for batch in window.batches(day) for number in numbers(batch))
            assert rows == list(range(log.starts[max(2, day + 1)], log.starts[day + 3]))


def test_a_file_that_breaks_is_told_and_read_again_when_it_is_back(log: Log, tmp_path: Path):
    prepared.write(log, tmp_path, row_group=16)
    window = MovingWindow(PreparedLog.open(tmp_path), 10, draw=Draw.ONCE, cache=CACHES["pools"])
    expected = [(day, numbers(batch)) for day, batch in window.stream(5)]
    broken = tmp_path / "day=2022-04-03" / "rows.parquet"
    broken.rename(tmp_path / "away")
    stream, seen = window.stream(5), []
    with pytest.raises(InputError, match="rows.parquet does not exist"):
        seen.extend((day, numbers(batch)) for day, batch in stream)
    with pytest.raises(InputError, match="rows.parquet does not exist"):
        next(stream)
    assert stream.position == (2, 0)
    (tmp_path / "away").rename(broken)
    rest = [(day, numbers(batch)) for day, batch in stream]
    assert rest == expected[window.steps(0) + window.steps(1) :]


def test_a_cache_too_small_is_refused(stored: PreparedLog):
    least = 2 * 11 * ROW_BYTES
    MovingWindow(stored, 10, cache=least)
    with pytest.raises(ValueError, match=f"cache is {least - 1}; expected at least {least} bytes"):
        MovingWindow(stored, 10, cache=least - 1)


def test_a_stream_dropped_half_way_leaves_no_thread(stored: PreparedLog):
    wait_for(lambda: readers() == 0)
    stream = MovingWindow(stored, 10, cache=CACHES["pools"]).stream(5)
    assert readers() == 0  # nothing is read before it is asked for
    next(stream)
    assert readers() == 1
    del stream
    wait_for(lambda: readers() == 0)


MEASURE = """
import sys, torch
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.sliding_window import Draw, MovingWindow

torch.set_num_threads(1)

def resident():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])

log = PreparedLog.open(sys.argv[1])
log.take(torch.tensor([0]))  # loads what reading needs
for draw in Draw:
    before = resident()
    rows = peak = 0
    for batch in MovingWindow(log, 1000, 2, draw=draw, cache=8 << 20).batches(1):
        rows += len(batch.labels)
        peak = max(peak, resident() - before)
    print(rows, peak)
next(MovingWindow(log, 1000).stream(2))  # left half-way: the interpreter ends all the same
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_the_cache(tmp_path: Path):
    """72 MB of rows through a cache of 8 MiB; beside it, a row group and a few batches."""
    frame = prepared._frame(mixed((100_000,)), 0)
    for day in ("one", "two"):
        with DayFile(Path(prepared.day_path(tmp_path, day)), SCHEMA) as file:
            for _ in range(10):
                file.write(frame)
    prepared.write_manifest(tmp_path, name="much", schema=SCHEMA, days={"one": 1_000_000, "two": 1_000_000})
    told = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=60)
    replaced, once = (tuple(map(int, line.split())) for line in told.stdout.splitlines())
    assert (replaced[0], once[0]) == (1_000_000, 2_000_000)
    assert max(replaced[1], once[1]) < (8 << 20) + (32 << 20)
