"""A run folder: whole, reproducible, refused where it cannot be."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from surefoot.errors import InputError
from surefoot.study.config import RunConfig, load
from surefoot.study.trial import read_result, run_trial, total_steps

TINY = RunConfig.model_validate(
    {
        "data": {"days": 4, "rows_per_day": 128},
        "model": {"hidden": [8], "cross_layers": 1},
        "training": {"batch_size": 64},
    }
)


def test_the_folder(tmp_path: Path):
    steps: list[int] = []
    result = run_trial(TINY, tmp_path / "run", on_step=steps.append)
    assert steps == list(range(total_steps(TINY))) == list(range(6))
    assert load(RunConfig, tmp_path / "run" / "config.toml") == TINY
    assert pl.read_parquet(tmp_path / "run" / "metrics.parquet")["step"].to_list() == steps
    last = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["verdict"], last["scored_day"]) == ("finished", "healthy", "day-03")
    assert read_result(tmp_path / "run") == result


def test_the_same_seed_and_threads_give_the_same_result_and_another_seed_another(tmp_path: Path):
    first, again, other = (
        run_trial(TINY.model_copy(update={"seed": seed}), tmp_path / name)
        for seed, name in ((1, "first"), (1, "again"), (2, "other"))
    )
    for result in (first, again, other):
        del result["seconds"], result["peak_memory_mib"]
    assert first == again
    assert first != other
    metrics = [pl.read_parquet(tmp_path / name / "metrics.parquet") for name in ("first", "again", "other")]
    assert metrics[0].equals(metrics[1])
    assert not metrics[0].equals(metrics[2])


@pytest.mark.parametrize("bottom", ["experts", "linear"])
def test_other_bottoms(bottom: str, tmp_path: Path):
    config = TINY.model_copy(update={"model": TINY.model.model_copy(update={"bottom": bottom})})
    assert run_trial(config, tmp_path / "run")["verdict"] == "healthy"


def test_an_unfinished_folder_has_no_result(tmp_path: Path):
    run_trial(TINY, tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").rename(tmp_path / "run" / "events.jsonl.draft")
    assert read_result(tmp_path / "run") is None


def test_data_that_cannot_be(tmp_path: Path):
    config = TINY.model_copy(update={"data": TINY.data.model_copy(update={"drift_day": 7})})
    with pytest.raises(InputError, match="data: drift_day is 7; expected 0 to 3"):
        run_trial(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device whose lack is told")
def test_a_missing_device(tmp_path: Path):
    config = TINY.model_copy(update={"training": TINY.training.model_copy(update={"device": "cuda"})})
    with pytest.raises(InputError, match="training.device is 'cuda' and no CUDA device is found"):
        run_trial(config, tmp_path / "run")
