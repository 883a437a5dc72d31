"""Runs trials side by side in processes of this machine."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from surefoot.study.config import RunConfig
from surefoot.study.trial import read_result, run_trial


@dataclass(frozen=True)
class Trial:
    """A run and the folder that it writes."""

    config: RunConfig
    folder: Path


class LocalEngine:
    """A pool of worker processes that keep their log between trials.

    Args:
        workers: processes; by default as many as there are physical cores for ``threads`` each.
        threads: threads that each trial uses.
    """

    def __init__(self, *, workers: int | None, threads: int) -> None:
        cores = len(psutil.Process().cpu_affinity() or [0])
        physical = min(cores, psutil.cpu_count(logical=False) or cores)
        self.workers = workers or max(1, physical // threads)
        self._pool = ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,  # Ctrl-C reaches every process of a terminal; the parent ends the workers
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:  # do not wait for trials that nobody will read
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def run(
        self, trials: Iterable[Trial], *, on_done: Callable[[dict[str, Any]], None] = lambda result: None
    ) -> list[dict[str, Any]]:
        """Return the results in the order of the trials; those whose folders are finished are read, not run.

        Raises:
            InputError: whatever a trial raises.
            RuntimeError: if a worker dies, by lack of memory for example.
        """
        trials = list(trials)
        results = {i: result for i, trial in enumerate(trials) if (result := read_result(trial.folder))}
        futures: dict[Future[dict[str, Any]], int] = {}
        for i, trial in enumerate(trials):
            if i in results:
                on_done(results[i])
            else:
                future = self._pool.submit(run_trial, trial.config, trial.folder)
                future.add_done_callback(
                    lambda f: on_done(f.result()) if not f.cancelled() and not f.exception() else None
                )
                futures[future] = i
        done, pending = wait(futures, return_when=FIRST_EXCEPTION)
        for future in pending:
            future.cancel()
        try:
            results |= {futures[future]: future.result() for future in done}
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a worker process died in one of {len(futures)} trials, for want of memory perhaps; "
                f"run again with fewer than {self.workers} workers to go on from the finished trials"
            ) from error
        return [results[i] for i in range(len(trials))]
