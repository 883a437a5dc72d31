"""Runs trials side by side in processes of this machine."""

import os
import pickle
import signal
import subprocess
import sys
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

import psutil

from surefoot.errors import InputError
from surefoot.lab.study.config import RunConfig
from surefoot.lab.study.trial import read_result, run_trial

# What a worker runs. Before it imports anything that takes long, a thread of it waits for the end of a pipe that only
# its parent holds, and which the system closes however the parent ends: nobody would read what the worker computes.
_BOOT = """
import os, signal, sys, threading

def end_with_parent():
    os.read({life}, 1)
    os._exit(1)

threading.Thread(target=end_with_parent, daemon=True).start()
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent ends us
sys.path[:] = {path!r}
from surefoot.lab.study.engine import serve
serve({pipe})
"""
_ATTEMPTS = 2  # a trial whose worker is killed is run once more


@dataclass(frozen=True)
class Trial:
    """A run and the folder that it writes."""

    config: RunConfig
    folder: Path


@dataclass(frozen=True, eq=False)
class _Worker:
    """A process that runs one trial after another, the pipe to it, and the one that ends with us."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    life: int

    @classmethod
    def start(cls) -> "_Worker":
        ours, theirs = Pipe()
        watched, held = os.pipe()
        boot = _BOOT.format(life=watched, pipe=theirs.fileno(), path=sys.path)
        process = subprocess.Popen([sys.executable, "-c", boot], pass_fds=(watched, theirs.fileno()))
        theirs.close()  # so that the pipe ends with the process
        os.close(watched)
        return cls(process, ours, held)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        os.close(self.life)


@dataclass
class LocalEngine:
    """Worker processes that keep their log between trials, and end when this process does, however it ends.

    Args:
        workers: processes; by default as many as there are physical cores for ``threads`` each.
        threads: threads that each trial uses.
        on_lost: called with a sentence about a trial whose worker was killed, and that is run again.
    """

    workers: int | None
    threads: int
    on_lost: Callable[[str], None] = lambda sentence: None
    _workers: dict[_Worker, int | None] = field(default_factory=dict, init=False)  # and the trial that each runs

    @property
    def processes(self) -> int:
        """How many trials run side by side."""
        cores = len(psutil.Process().cpu_affinity() or [0])
        physical = min(cores, psutil.cpu_count(logical=False) or cores)
        return self.workers or max(1, physical // self.threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:  # those still busy run trials that nobody will read
            worker.stop()

    def run(
        self, trials: Iterable[Trial], *, on_done: Callable[[dict[str, Any]], None] = lambda result: None
    ) -> list[dict[str, Any]]:
        """Return the results in the order of the trials; those whose folders are finished are read, not run.

        Args:
            trials: what to run.
            on_done: called with each result as it is there, and the folder's name as ``"trial"``.

        Raises:
            InputError: if a worker is killed in the same trial twice.
            Exception: whatever a trial raises.
        """
        trials = list(trials)
        results = {i: result for i, trial in enumerate(trials) if (result := read_result(trial.folder))}
        for i, result in results.items():
            on_done(result | {"trial": trials[i].folder.name})
        waiting, lost = deque(i for i in range(len(trials)) if i not in results), Counter[int]()
        while waiting or self._busy:
            while waiting and len(self._busy) < self.processes:
                self._give(trials, waiting.popleft())
            busy = self._busy
            for pipe in wait([worker.pipe for worker in busy]):
                worker = next(worker for worker in busy if worker.pipe is pipe)
                i, answer = busy[worker], self._take(worker)
                if answer is None:
                    lost[i] += 1
                    self._tell_lost(trials[i], worker.process.returncode, lost[i])
                    waiting.appendleft(i)
                elif isinstance(answer, Exception):
                    raise answer
                else:
                    results[i] = answer
                    on_done(answer | {"trial": trials[i].folder.name})
        return [results[i] for i in range(len(trials))]

    @property
    def _busy(self) -> dict[_Worker, int]:
        return {worker: i for worker, i in self._workers.items() if i is not None}

    def _give(self, trials: list[Trial], i: int) -> None:
        """Let a worker run a trial; one that died while it was idle is replaced."""
        for worker in [worker for worker, runs in self._workers.items() if runs is None]:
            try:
                worker.pipe.send(trials[i])
            except OSError:
                self._drop(worker)
            else:
                self._workers[worker] = i
                return
        worker = _Worker.start()
        self._workers[worker] = i
        with suppress(OSError):  # it died at once: there is no answer to take, which says so
            worker.pipe.send(trials[i])

    def _take(self, worker: _Worker) -> dict[str, Any] | Exception | None:
        """Return what a worker answers; None if it is dead."""
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            self._drop(worker)
            return None
        self._workers[worker] = None
        return answer

    def _drop(self, worker: _Worker) -> None:
        worker.stop()
        del self._workers[worker]

    def _tell_lost(self, trial: Trial, code: int, times: int) -> None:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        what = f"trial {trial.folder.name}: its worker process {how}"
        if times == _ATTEMPTS:
            raise InputError(
                f"{what}, {times} times, for want of memory perhaps; expected it to finish: the same command with "
                f"--workers below {self.processes} goes on from the finished trials"
            )
        self.on_lost(f"{what}; the trial is run again")


def serve(descriptor: int) -> None:
    """Run the trials that arrive by a pipe, one after another, until it is closed."""
    pipe = Connection(descriptor)
    warnings.filterwarnings(
        "ignore", r".* initial_accumulator_value", UserWarning
    )  # a study's row says where it starts
    while True:
        try:
            trial: Trial = pipe.recv()
            pipe.send(_answer(trial))
        except (EOFError, OSError):  # the parent has closed its end: nobody reads what this process computes
            return


def _answer(trial: Trial) -> dict[str, Any] | Exception:
    """Return a trial's result, or what it raised, in a form that a pipe can carry."""
    try:
        return run_trial(trial.config, trial.folder)
    except Exception as error:
        error.add_note(f"in trial {trial.folder.name}:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(f"trial {trial.folder.name} failed:\n{traceback.format_exc()}")
        return error
