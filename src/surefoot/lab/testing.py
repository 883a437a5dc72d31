"""What a log source of your own must do, so that ``surefoot data prepare`` and studies can work with it."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from surefoot.errors import InputError
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.schema import Log
from surefoot.lab.ingest.prepare import prepare
from surefoot.lab.ingest.source import Source

_FEWEST_DAYS = 3  # to train on, to select on, to score


def check_source(source: Callable[[str], Source], path: str) -> None:
    """Prepare the log at a path, twice, and look at what came of it.

    Args:
        source: what your package registers in the group ``surefoot.sources``.
        path: of a folder with a few days of your files.

    Raises:
        AssertionError: in one sentence, if it returns no source, if a path without files is not refused by an
            ``InputError`` of one line, if too few days come out, a label is the same in every row, or a second
            preparation gives other rows.
        InputError: if the log cannot be prepared, or holds values that cannot be trained on.
    """
    with TemporaryDirectory() as folder:
        nowhere = f"{folder}/nowhere"
        try:
            source(nowhere)
        except InputError as error:
            refusal = str(error)
        except Exception as error:
            raise AssertionError(f"{nowhere} raised {type(error).__name__}: {error}; expected an InputError") from error
        else:
            raise AssertionError(f"{nowhere}, which does not exist, was accepted; expected an InputError")
        assert "\n" not in refusal, f"the refusal of {nowhere} has several lines: {refusal}; expected one"
        logs = [_prepared(source, path, Path(folder) / name) for name in ("once", "again")]
    once, again = logs
    assert len(once.days) >= _FEWEST_DAYS, f"{path} gave {len(once.days)} days; expected {_FEWEST_DAYS} or more"
    for i, task in enumerate(once.schema.tasks):
        labels = once.rows.labels[:, i]
        seen = labels[~labels.isnan()]
        assert len(seen), f"label {task.name} is missing in every row; expected some"
        assert seen.min() < seen.max(), f"label {task.name} is {seen[0]:g} in every row; expected two values or more"
    alike = once.days == again.days and all(
        one.equal(other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
        for one, other in zip(once.rows, again.rows, strict=True)
    )
    assert alike, f"{path}, prepared twice, gave two different logs; expected the same"


def _prepared(source: Callable[[str], Source], path: str, out: Path) -> Log:
    found = source(path)
    assert isinstance(found, Source), f"{path} gave an object of type {type(found).__name__}; expected a Source"
    prepare(found, out)
    return PreparedLog.open(out).load()
