"""Sinks: whole files or none, whatever happens; bounded memory; a run that is resumed; TensorBoard reads it."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from full_disks import fill as fill_disk
from full_disks import nothing_can_be_written, small_disk
from surefoot.observe import sinks
from surefoot.observe.sinks import ParquetSink, default_sinks, parquet_sink, tensorboard_sink


def fill(sink: sinks.Sink, start: int, stop: int, names: int = 40) -> None:
    for step in range(start, stop):
        values = {f"loss/{i}": step + i / 64 for i in range(names)}
        sink(step, values | ({"auc/click": 0.5} if step % 10 == 0 else {}))


def test_a_row_for_each_step_and_a_column_for_each_name(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.parquet"
    sink = parquet_sink(path)
    fill(sink, 0, 5000)
    sink.close()
    table = pl.read_parquet(path)
    assert table["step"].to_list() == list(range(5000))
    assert table["loss/3"].to_list() == [step + 3 / 64 for step in range(5000)]
    assert table["auc/click"].null_count() == 4500
    assert [p.name for p in path.parent.iterdir()] == ["metrics.parquet"]
    sink.close()  # again


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    sink = parquet_sink(tmp_path / "metrics.parquet")
    for step, value in enumerate((math.nan, math.inf, -math.inf)):
        sink(step, {"a": value})
    sink.close()
    found = pl.read_parquet(tmp_path / "metrics.parquet")["a"].to_list()
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf]


def test_memory_is_bounded(tmp_path: Path) -> None:
    sink = parquet_sink(tmp_path / "metrics.parquet")
    fill(sink, 0, 10_000)
    assert sink._held < sinks._VALUES
    assert sum(map(len, sink._rows)) <= sinks._VALUES + len(sink._rows)
    assert len(list(sink.parts.iterdir())) == 6


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
sink = runpy.run_path(sys.argv[1])["parquet_sink"](Path(sys.argv[2]))
for step in range(3000):
    sink(step, {f"loss/{i}": float(step) for i in range(40)})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_whole_parts_that_the_next_one_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.parquet"
    run = subprocess.run([sys.executable, "-c", KILLED, sinks.__file__, str(path)], check=False)
    assert run.returncode == -9
    assert not path.exists()
    parts = sorted((tmp_path / "metrics.parts").iterdir())
    assert len(parts) == 1
    kept = pl.read_parquet(parts[0])["step"].to_list()
    assert kept == list(range(len(kept)))
    sink = parquet_sink(path)
    fill(sink, len(kept), 3000)
    sink.close()
    assert pl.read_parquet(path)["step"].to_list() == list(range(3000))


def test_a_draft_that_was_cut_short_is_not_taken_for_a_part(tmp_path: Path) -> None:
    sink = parquet_sink(tmp_path / "metrics.parquet")
    (tmp_path / "metrics.parts" / "00000000.draft").write_bytes(b"PAR1")
    (tmp_path / "metrics.draft").write_bytes(b"PAR1")
    fill(sink, 0, 10)
    sink.close()
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.parquet"]
    assert len(pl.read_parquet(tmp_path / "metrics.parquet")) == 10


def test_a_run_that_was_closed_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.parquet"
    for start in (0, 10, 20):
        sink = parquet_sink(path)
        fill(sink, start, start + 10, names=start + 1)
        sink.close()
    table = pl.read_parquet(path)
    assert table["step"].to_list() == list(range(30))
    assert table["loss/20"].null_count() == 20


def test_parts_that_closing_did_not_get_to_remove_are_not_counted_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.parquet"
    sink = parquet_sink(path)
    for start in (0, 5):
        fill(sink, start, start + 5)
        sink.flush()
    shutil.copytree(sink.parts, tmp_path / "copy")
    sink.close()
    (tmp_path / "copy").rename(sink.parts)
    sink = parquet_sink(path)
    fill(sink, 10, 12)
    sink.close()
    assert pl.read_parquet(path)["step"].to_list() == list(range(12))


def test_no_steps_leave_no_file(tmp_path: Path) -> None:
    sink = parquet_sink(tmp_path / "metrics.parquet")
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_what_it_is_given(tmp_path: Path) -> None:
    sink = tensorboard_sink(tmp_path, every=10)
    fill(sink, 0, 31, names=2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss/0", "loss/1", "auc/click"}
    assert [(e.step, e.value) for e in events.Scalars("loss/1")] == [(s, s + 1 / 64) for s in (0, 10, 20, 30)]


def test_a_run_folder_has_both(tmp_path: Path) -> None:
    several = default_sinks(tmp_path, every=5)
    for sink in several:
        fill(sink, 0, 11)
        if isinstance(sink, ParquetSink):
            sink.close()
    assert len(pl.read_parquet(tmp_path / "metrics.parquet")) == 11
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/0")] == [0, 5, 10]


def test_without_tensorboard_there_is_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    assert [type(sink) for sink in default_sinks(tmp_path, every=1)] == [ParquetSink]


def test_without_polars_it_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ModuleNotFoundError, match="polars"):
        default_sinks(tmp_path, every=1)


# Full disks


def test_rows_that_cannot_be_written_are_held_and_written_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.parquet"
    sink = parquet_sink(path)
    fill(sink, 0, 10)
    sink.flush()
    fill(sink, 10, 20)
    with nothing_can_be_written():
        for _ in range(2):
            with pytest.raises(OSError, match="File too large"):
                sink.flush()
        with pytest.raises(OSError, match="File too large"):
            sink.close()
        fill(sink, 20, 4000)  # writing is not tried again at every step
    assert [part.name for part in sink.parts.iterdir()] == ["00000000.parquet"]
    sink.close()
    assert pl.read_parquet(path)["step"].to_list() == list(range(4000))


def test_where_the_parts_cannot_be_put_together_they_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.parquet"
    sink = parquet_sink(path)
    fill(sink, 0, 10)
    sink.flush()
    with nothing_can_be_written(), pytest.raises(OSError, match="metrics.parquet: "):
        sink.close()
    assert [found.name for found in tmp_path.iterdir()] == ["metrics.parts"]
    sink = parquet_sink(path)
    fill(sink, 10, 20)
    sink.close()
    assert pl.read_parquet(path)["step"].to_list() == list(range(20))


def test_memory_is_bounded_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_MOST_VALUES", 4000)
    sink = parquet_sink(tmp_path / "metrics.parquet")
    fill(sink, 0, 1000)
    with nothing_can_be_written(), pytest.raises(OSError, match="File too large"):
        sink.flush()
    assert sink._held <= 4000
    sink.close()
    kept = pl.read_parquet(tmp_path / "metrics.parquet")["step"].to_list()
    assert kept == list(range(1000 - len(kept), 1000))
    assert len(kept) > 90


def test_tensorboard_reads_all_but_what_could_not_be_written(tmp_path: Path) -> None:
    sink = tensorboard_sink(tmp_path)
    fill(sink, 0, 5, names=2)
    with nothing_can_be_written(), pytest.raises(OSError, match="File too large"):
        sink(5, {"loss/1": 0.0})
    fill(sink, 6, 9, names=2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/1")] == [0, 1, 2, 3, 4, 6, 7, 8]


def test_a_real_disk_that_fills_up_and_has_room_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        parquet, board = parquet_sink(disk / "metrics.parquet"), tensorboard_sink(disk / "tensorboard")
        for sink in (parquet, board):
            fill(sink, 0, 100)
        parquet.flush()
        fill_disk(disk, leave=100)
        fill(parquet, 100, 200)
        for act in (parquet.flush, parquet.close, lambda: fill(board, 100, 200)):
            with pytest.raises(OSError, match="No space left|bytes were written"):
                act()
        (disk / "filling").unlink()
        parquet.close()
        fill(board, 200, 300)
        assert pl.read_parquet(disk / "metrics.parquet")["step"].to_list() == list(range(200))
        events = EventAccumulator(str(disk / "tensorboard"))
        events.Reload()
        steps = [event.step for event in events.Scalars("loss/1")]  # some of the others fitted in
        assert (steps[:100], steps[-100:]) == (list(range(100)), list(range(200, 300)))


# Rows on the disk in time, and a run that goes on


def test_rows_are_written_by_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_SECONDS", 0.0)
    sink = parquet_sink(tmp_path / "metrics.parquet")
    fill(sink, 0, 3, names=1)
    assert len(list(sink.parts.iterdir())) == 3


@pytest.mark.parametrize("step", [0, 3, 5, 8, 12, 20])
def test_steps_that_are_taken_again_are_there_once(tmp_path: Path, step: int) -> None:
    path = tmp_path / "metrics.parquet"
    for start in (0, 5, 10):
        sink = parquet_sink(path)
        fill(sink, start, start + 5, names=1 if start < step else 2)
        sink.flush() if start == 10 else sink.close()
    fill(sink, 15, 17)
    sink.rewind(step)
    fill(sink, step, 25)
    sink.close()
    assert pl.read_parquet(path)["step"].to_list() == [*range(min(step, 17)), *range(step, 25)]


def test_tensorboard_forgets_steps_that_are_taken_again(tmp_path: Path) -> None:
    for start, stop in ((0, 10), (5, 12)):
        sink = tensorboard_sink(tmp_path)
        sink.rewind(start)
        fill(sink, start, stop, names=1)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/0")] == list(range(12))
