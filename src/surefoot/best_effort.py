"""Optional work may fail: a warning is given once, and the run goes on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class BestEffort:
    """Turns exceptions inside a ``with`` block into warnings, one for each kind of work.

    Use it for work that a run can do without: metric sinks, capsules, lines of the journal. A full disk, an unreachable
    server or a deleted folder then does not end the training. ``KeyboardInterrupt`` still does.

    >>> best_effort = BestEffort()
    >>> with warnings.catch_warnings(record=True, action="always") as told:
    ...     for _ in range(2):
    ...         with best_effort("writing metrics.parquet"):
    ...             raise OSError(28, "No space left on device")
    >>> [str(warning.message) for warning in told]
    ['writing metrics.parquet failed, training goes on without it: [Errno 28] No space left on device']
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Run the block; warn if it fails.

        Args:
            what: the work, as the beginning of the warning, such as ``"writing metrics.parquet"``.
        """
        try:
            yield
        except Exception as error:
            if what in self._warned:
                return
            self._warned.add(what)
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"{what} failed, training goes on without it: {reason}", RuntimeWarning, stacklevel=3)
