"""Parts that a run can do without may fail: one warning, and the run goes on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class BestEffort:
    """Turns what goes wrong inside a ``with`` block into one warning for each thing that was being done.

    For what a run does not need: sinks, capsules, lines of a journal. A full disk, a server that is away, a folder
    that is gone end no training. An interruption passes through.

    >>> best_effort = BestEffort()
    >>> with warnings.catch_warnings(record=True, action="always") as told:
    ...     for _ in range(2):
    ...         with best_effort("writing metrics.parquet"):
    ...             raise OSError(28, "No space left on device")
    >>> [str(warning.message) for warning in told]
    ['writing metrics.parquet failed, training goes on without: [Errno 28] No space left on device']
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Do something that may fail.

        Args:
            what: is done, for the warning, in the words that a sentence begins with.
        """
        try:
            yield
        except Exception as error:
            if what in self._told:
                return
            self._told.add(what)
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"{what} failed, training goes on without: {reason}", RuntimeWarning, stacklevel=3)
