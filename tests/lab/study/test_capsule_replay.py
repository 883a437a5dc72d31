"""The capsule of a configured run: built again from its configuration, under its rule or another."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.study.recorded_run import DRIFT, TINY, capsule_of
from surefoot.capsule import storage
from surefoot.capsule.recovery_test import loss_changes
from surefoot.capsule.replay import replay
from surefoot.capsule.storage import Capsule, StepRecord
from surefoot.errors import InputError
from surefoot.lab.data.schema import Batch
from surefoot.lab.settings import dump
from surefoot.lab.study import replay_tables
from surefoot.lab.study.config import RecoveryConfig, RuleConfig, RunConfig
from surefoot.lab.study.replay import Examined, Recorded, examine, rebuild
from surefoot.lab.study.trial import run_trial


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Capsule:
    torch.set_num_threads(1)
    return capsule_of(DRIFT, tmp_path_factory.mktemp("drift"), alarm=225)


def examined(folder: Path, **options: Any) -> Examined:
    """Examine the capsule of a configured run."""
    found = examine(folder, **options)
    assert isinstance(found, Examined)
    return found


def test_naive_falls_on_the_drift_day_and_clippy_would_have_survived(drifted: Capsule):
    found = examined(drifted.folder, rule="clippy")
    assert found.replay.difference is None
    assert found.replay.surroundings == []
    assert list(found.went_on) == ["naive", "clippy"]
    assert [seen[-1].step for seen in found.went_on.values()] == [289, 289]  # 60 of them in the log, not in the capsule
    outcome = {
        rule: [level.survived for level in loss_changes(seen, 225, names=found.judged, relative=True).values()]
        for rule, seen in found.went_on.items()
    }
    assert not all(outcome["naive"])
    assert all(outcome["clippy"])
    event = next(seen for seen in found.replay.steps if seen.step == 225)
    assert event.counterfactual.clip_ratios["bottom.layers.0.weight"] > 5
    words = [part for part in replay_tables.page(found) if isinstance(part, str)]
    assert words[-2].startswith("Under naive the run does not survive: ")
    assert words[-1] == "Under clippy the run survives, to step 289."


def test_going_on_past_the_capsule_is_the_run_itself(tmp_path: Path):
    """Batches after the capsule's end are those that the run would have had."""
    short = capsule_of(TINY, tmp_path / "short", alarm=10, after=0)
    long = capsule_of(TINY, tmp_path / "long", alarm=20, after=0)
    found = examined(short.folder, rule="naive", steps=10)
    assert [seen.step for seen in found.went_on["clippy"]] == list(range(21))
    recorded = [record.losses for record in long.steps]
    assert [{name: seen.losses[name] for name in recorded[0]} for seen in found.went_on["clippy"]] == recorded


def test_what_recovery_did_is_done_again(tmp_path: Path):
    config = TINY.model_copy(update={"recovery": RecoveryConfig()})
    capsule = capsule_of(config, tmp_path, alarm=12, slowed=range(5, 9))
    built = rebuild(capsule)
    assert replay(capsule, built.training).difference is None
    plain = replace(rebuild(capsule).training, prepare=lambda record: None)
    first = replay(capsule, plain).difference
    assert first is not None
    assert first.step == 6


def test_a_warm_up_and_a_rule_with_arguments(tmp_path: Path):
    config = TINY.model_copy(
        update={"warmup_steps": 30, "rule": RuleConfig.model_validate({"name": "agc", "threshold": 0.02})}
    )
    found = examined(capsule_of(config, tmp_path, alarm=20).folder)
    assert (found.own, found.replay.difference, found.went_on) == ("agc", None, {})


def test_the_rows_of_a_spoilt_batch_are_named_with_their_columns(tmp_path: Path):
    def spoil(step: int, batch: Batch) -> None:
        if step == 20:
            batch.dense[17, 3] = torch.nan

    capsule = capsule_of(TINY, tmp_path, alarm=20, spoil=spoil)
    found = examined(capsule.folder, bisect_batch=True)
    assert found.bisection is not None
    (row,) = found.bisection.rows
    assert (row.number, row.values[0].column) == (17, "dense_3")
    assert row.row == int(capsule.steps[20].rows[17])  # pyright: ignore[reportOptionalSubscript]
    *_, words, table = replay_tables.page(found)
    assert re.fullmatch(
        r"At step 20 the loss rating is nan; at most [\d.]+ before. Without row 17 of 64 it is [\d.]+ \(1\d tries\)\.",
        str(words),
    )
    assert isinstance(table, replay_tables.Table)
    assert table.sections[0][0][:4] == ("17", str(row.row), "dense_3", "nan")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("rate = ", "config.toml is not TOML: "),
        ("rote = 1.0", "config.toml: rote is not a known key; the closest is 'rate'"),
        (dump(TINY.model_copy(update={"rule": RuleConfig(name="gc")})), "cannot be replayed: state_dict's group 0"),
    ],
)
def test_a_configuration_that_does_not_do(config: str | None, words: str, tmp_path: Path):
    capsule = capsule_of(TINY, tmp_path, alarm=3, written=config)
    with pytest.raises(InputError, match=words):
        examine(capsule.folder)


@pytest.mark.filterwarnings("ignore:Adagrad. a gradient was NaN or infinite:RuntimeWarning")
def test_every_capsule_of_a_run_that_was_slowed_held_and_rolled_back_is_equal_bit_for_bit(tmp_path: Path):
    """As the loop of ``surefoot train`` writes them, rates and held steps as the policy had them."""
    wild = {"rate": 0.5, "rule": {"name": "naive"}, "monitor": {}, "recovery": {}}
    config = RunConfig.model_validate(TINY.model_dump(exclude_none=True) | wild)
    run_trial(config, tmp_path / "run")
    folders = sorted((tmp_path / "run" / "capsules").iterdir())
    assert folders
    for folder in folders:
        capsule = storage.read(folder)
        assert replay(capsule, rebuild(capsule).training).difference is None
    notes = [step.note for folder in folders for step in storage.read(folder).steps]
    assert {note["held"] for note in notes} == {0, 1}
    assert min(note["rate_factor"] for note in notes) < 1


def test_an_unknown_rule_is_told_before_anything_runs(drifted: Capsule):
    with pytest.raises(InputError, match=r"^--rule is 'clipy'; expected one of naive, .*\(closest: clippy\)$"):
        examine(drifted.folder, rule="clipy")


# The first steps of a run


def test_a_rule_is_judged_though_the_alarm_is_at_the_first_step(tmp_path: Path):
    found = examined(capsule_of(TINY, tmp_path, alarm=0, after=20).folder, rule="gc", steps=20)
    for seen in found.went_on.values():
        for level in loss_changes(seen, 0, names=found.judged, relative=True).values():
            assert (math.isnan(level.before), level.limit, level.survived) == (True, 1.5, True)
    words = [part for part in replay_tables.page(found) if isinstance(part, str)]
    assert words[-2:] == [f"Under {rule} the run survives, to step 20." for rule in ("clippy", "gc")]


def test_rows_that_cannot_be_looked_for_do_not_hide_what_was_replayed(tmp_path: Path):
    found = examined(capsule_of(TINY, tmp_path, alarm=2).folder, bisect_batch=True)
    assert (found.replay.difference, found.bisection) == (None, None)
    words = [part for part in replay_tables.page(found) if isinstance(part, str)]
    assert words[-1].startswith(
        "Rows were not looked for: step 2 shows no loss, gradient norm or Clippy ratio out of line"
    )


# A loop of one's own


def test_of_a_loop_of_ones_own_it_shows_what_was_recorded_and_what_is_missing(tmp_path: Path):
    capsule = capsule_of(TINY, tmp_path, alarm=20, spoil=spoil_at_20, written=None)
    found = examine(capsule.folder, rule="clippy", bisect_batch=True)
    assert isinstance(found, Recorded)
    words = [part for part in replay_tables.page(found) if isinstance(part, str)]
    assert words[0] == "Alarm at step 20: the relative loss of rating rose."
    assert "nothing was run: it holds the steps 0 to 24 and 1 snapshots" in words[1]
    assert words[2].startswith("Missing without your model and step function: ")
    losses, norms = [part for part in replay_tables.page(found) if not isinstance(part, str)]
    assert [row[0] for row in losses.sections[0]] == [f"{'> ' if step == 20 else ''}{step}" for step in range(14, 25)]
    assert losses.sections[0][6][1] == f"{capsule.steps[20].losses['click']:.3g}"
    layer = norms.sections[0][0][0]
    norm = capsule.steps[20].norms[layer]
    assert norms.sections[0][0][3] == f"{min(1.0, 0.1 / norm):.2g}"
    numbers = replay_tables.document(found)
    assert numbers["equal"] is None
    assert len(numbers["steps"]) == 25
    with pytest.raises(InputError, match="--rule is 'clipy'"):
        examine(capsule.folder, rule="clipy")


def spoil_at_20(step: int, batch: Batch) -> None:
    if step == 20:
        batch.dense[[5, 40]] *= 1e3


def test_factors_of_norms_that_are_not_finite_are_not_made_up():
    record = StepRecord(0, None, None, {}, {}, {"a": math.nan, "b": 0.0, "c": 0.2, "d": math.inf}, True, {})
    factors = Recorded(None, [record]).factors(record)  # pyright: ignore[reportArgumentType]
    assert math.isnan(factors["gc"]["a"])
    assert [factors["gc"][layer] for layer in "bcd"] == [1.0, 0.5, 0.0]
