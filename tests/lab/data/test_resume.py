"""A preparation that is interrupted at any moment and run again ends as one that was not."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raw_logs import RICH, source_of, write_rich
from surefoot.lab.ingest.ingest_state import partial
from surefoot.lab.ingest.prepare import Report, prepare
from surefoot.lab.ingest.source import Source

STRETCH = 25
Whole = tuple[Report, dict[str, bytes]]  # of an uninterrupted preparation
EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove")


def contents(out: Path) -> dict[str, bytes]:
    """Return all files of a folder, byte for byte."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


class Interruption:
    """Stops the process at a file event in a folder, as Ctrl-C would; events are counted while it is armed."""

    def __init__(self) -> None:
        self.folder, self.left, self.seen = "", 0, 0
        sys.addaudithook(self._look)

    def _look(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder and event in EVENTS and self.folder in str(args[0]):
            self.seen, self.left = self.seen + 1, self.left - 1
            if self.left == 0:
                raise KeyboardInterrupt

    @contextmanager
    def at(self, event: int, folder: Path) -> Iterator[None]:
        self.folder, self.left, self.seen = str(folder), event, 0
        try:
            yield
        finally:
            self.folder = ""


INTERRUPTION = Interruption()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_rich(folder)
    with (folder / "2024-05-03.csv").open("a") as file:
        file.write("2024-05-03,7,u1,i1,,many,1,1,1\n2024-05-03,7,u1\n")
    return folder


def convert(log: Path, out: Path, **options: Any) -> Report:
    return prepare(source_of(log, **RICH), out, stretch=STRETCH, max_rejected=0.1, **options)


@pytest.fixture(scope="module")
def whole(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out = tmp_path_factory.mktemp("whole") / "out"
    report = convert(log, out)
    assert report.rejected
    assert len(contents(out)) > 10
    return report, contents(out)


def test_the_same_log_becomes_the_same_bytes(log: Path, whole: Whole, tmp_path: Path):
    assert (convert(log, tmp_path / "out"), contents(tmp_path / "out")) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_it_goes_on_after_an_interruption_at_any_event(log: Path, whole: Whole, tmp_path: Path):
    with INTERRUPTION.at(0, tmp_path / "counted"):
        convert(log, tmp_path / "counted")
    events = INTERRUPTION.seen
    assert events > 100
    for i, event in enumerate(random.Random(0).sample(range(1, events), 12) + [events - n for n in range(12)]):
        out = tmp_path / str(i) / "out"
        with INTERRUPTION.at(event, out.parent), pytest.raises(KeyboardInterrupt):
            convert(log, out)
        assert not (out / "prepared.json").exists() or contents(out).items() >= whole[1].items()
        assert convert(log, out) == whole[0]
        assert contents(out) == whole[1]
        assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_chain_of_interruptions_gets_there(log: Path, whole: Whole, tmp_path: Path):
    seen: list[str] = []

    def stop_once(what: str, share: float) -> None:
        if (word := f"{what} {share}") not in seen:
            seen.append(word)
            raise KeyboardInterrupt

    for _ in range(40):
        try:
            report = convert(log, tmp_path / "out", on_progress=stop_once)
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "out").exists()
    else:
        pytest.fail("it never gets there")
    assert len(seen) > 10
    assert (report, contents(tmp_path / "out")) == whole


def test_what_is_done_is_not_done_again(log: Path, tmp_path: Path):
    source, calls = source_of(log, **RICH), []

    def shape(rows: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return rows

    counting = Source(source.description, source.files, shape=shape)
    with pytest.raises(KeyboardInterrupt):
        prepare(counting, tmp_path / "out", stretch=STRETCH, max_rejected=0.1)
    report = prepare(counting, tmp_path / "out", stretch=STRETCH, max_rejected=0.1)
    assert max(calls) == STRETCH
    assert sum(calls) == report.rows_in - 1 + calls[6]  # the row of three cells never gets so far


def test_a_day_is_written_once(log: Path, tmp_path: Path):
    written: list[dict[str, int]] = []
    for last in ("2024-05-03", "2024-05-05"):

        def stop(what: str, share: float, last: str = last) -> None:
            if what == f"encoding {last}":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(log, tmp_path / "out", on_progress=stop)
        days = partial(tmp_path / "out").glob("days/*/rows.parquet")
        written.append({day.parent.name: day.stat().st_ino for day in days})
    assert [len(days) for days in written] == [2, 4]
    assert written[0].items() <= written[1].items()


def test_other_files_begin_anew(log: Path, tmp_path: Path):
    source = source_of(log, **RICH)
    first = Source(source.description, source.files[:3])
    with INTERRUPTION.at(60, tmp_path), pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", stretch=STRETCH, max_rejected=0.1)
    assert partial(tmp_path / "out").exists()
    assert len(prepare(first, tmp_path / "out", stretch=STRETCH, max_rejected=0.1).days) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


CHILD = """
import os, random, signal, sys, threading
from pathlib import Path
from raw_logs import RICH, source_of
from surefoot.lab.ingest.prepare import prepare

log, out, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
generator, left = random.Random(seed), 0

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def look(event, args):
    global left
    if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove") and str(out) in str(args[0]):
        left -= 1
        if left == 0:
            kill()

if seed % 2:
    left = generator.randint(1, 250)
    sys.addaudithook(look)
elif seed:
    threading.Timer(generator.uniform(0.0, 1.5), kill).start()
print("ready", flush=True)
prepare(source_of(log, **RICH), out, stretch=25, max_rejected=0.1)
"""


@pytest.mark.slow
def test_it_goes_on_after_it_was_killed(log: Path, whole: Whole, tmp_path: Path):
    killed = 0
    for seed in range(1, 15):
        out = tmp_path / str(seed) / "out"
        out.parent.mkdir()
        arguments = [sys.executable, "-c", CHILD, str(log), str(out), str(seed)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        child = subprocess.run(arguments, env=environment, capture_output=True, text=True)
        assert child.returncode in (0, -signal.SIGKILL), child.stderr
        killed += child.returncode != 0
        assert convert(log, out) == whole[0]
        assert contents(out) == whole[1]
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert killed >= 10
