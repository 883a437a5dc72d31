"""Files that are malformed, or odd: each is refused by a clear sentence, or all its rows are accounted for."""

import threading
from pathlib import Path

import malformed
import malformed_parquet
from malformed import Case
from properties import over
from raw_logs import nothing_is_left, rejected_rows, rows_of, source_of
from surefoot.errors import InputError
from surefoot.lab.ingest.prepare import Report, prepare

FAMILIES = {
    "text": malformed.TEXTS,
    "cells": malformed.CELLS,
    "packed": malformed.PACKED,
    "parquet": malformed_parquet.PARQUET,
    "folder": malformed_parquet.FOLDERS,
}
CASES = {f"{family}: {name}": case for family, cases in FAMILIES.items() for name, case in cases.items()}
SECONDS = 60.0  # far above what any of the files takes, and far below for ever


def write(case: Case, folder: Path) -> None:
    folder.mkdir()
    if callable(case.files):
        case.files(folder)
    else:
        for name, data in case.files.items():
            (folder / name).write_bytes(data)


def prepared(case: Case, folder: Path, out: Path) -> Report | str:
    """Return the report on a folder, or the sentence that refuses it; fail if there is neither in time."""
    results: list[Report | str] = []

    def run() -> None:
        try:
            share = 0.9 if case.rejected else 0.0
            results.append(prepare(source_of(folder, **case.changes), out, max_rejected=share))
        except InputError as error:
            results.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert results, "it hangs, or raised something else"
    return results[0]


@over("case", CASES)
def test_a_file_is_refused_or_all_its_rows_are_accounted_for(case: Case, tmp_path: Path):
    write(case, tmp_path / "log")
    result = prepared(case, tmp_path / "log", tmp_path / "out")
    if case.says:
        assert isinstance(result, str), f"it was read: {result}"
        assert [part for part in case.says if part not in result] == [], result
        assert len(result) < 1000
        assert "\n" not in result
        assert nothing_is_left(tmp_path / "out")
        return
    assert isinstance(result, Report), result
    assert (result.rows_in, result.rows_out) == (case.rows + len(case.rejected), case.rows)
    assert sum(result.rejected.values()) == len(case.rejected)
    assert len(rows_of(tmp_path / "out")) == case.rows
    told = {row: (column, value, reason) for _, row, column, value, reason in rejected_rows(tmp_path / "out")}
    assert set(told) == set(case.rejected)
    for row, (column, value, reason) in case.rejected.items():
        assert told[row][:2] == (column, value)
        assert reason in told[row][2]


def test_there_are_enough_of_them():
    assert sum(bool(case.says) for case in CASES.values()) >= 30
    assert sum(bool(case.rejected) for case in CASES.values()) >= 20
