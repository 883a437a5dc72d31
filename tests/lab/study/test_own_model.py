"""A run, a study and a replay of a model that the user brings."""

import re
from pathlib import Path

import polars as pl
import pytest

import own_models
from surefoot.errors import InputError
from surefoot.lab.settings import dump, load
from surefoot.lab.study.config import RunConfig, StudyConfig, load_study, with_changes
from surefoot.lab.study.protocol import run_study
from surefoot.lab.study.replay import Elsewhere, Examined, examine
from surefoot.lab.study.trial import assemble, load_log, make_supervisor, run_trial

FACTORY = "own_models:two_towers"
RUN = {
    "data": {"days": 4, "rows_per_day": 256},
    "training": {"batch_size": 64},
    "model": {"name": "towers", "factory": FACTORY, "arguments": {"width": 4}},
    "recovery": {},
}


def run_of(factory: str, **arguments: object) -> RunConfig:
    return RunConfig.model_validate(RUN | {"model": {"factory": factory, "arguments": arguments}})


def test_a_run_and_the_replay_of_its_capsule(tmp_path: Path) -> None:
    """Layers have the model's own names; the configuration that is kept holds the function and its arguments."""
    config = RunConfig.model_validate(
        RUN | {"rate": 1e5, "rule": {"name": "naive"}, "data": {"days": 20, "rows_per_day": 256}}
    )
    run_trial(config, tmp_path)
    assert load(RunConfig, tmp_path / "config.toml") == config
    steps = pl.read_parquet(tmp_path / "metrics.parquet")
    assert {"clip_factor/left.weight", "clip_factor/right.bias", "clip_factor/out.weight"} <= set(steps.columns)
    capsule = next((tmp_path / "capsules").iterdir())
    with pytest.raises(InputError, match=re.escape(f"model.factory '{FACTORY}', and code that a capsule names is not")):
        examine(capsule)
    found = examine(capsule, elsewhere=Elsewhere(model=FACTORY))
    assert isinstance(found, Examined)
    assert found.replay.difference is None
    assert "left.weight" in found.replay.steps[-1].counterfactual.clip_ratios


def test_a_capsule_of_the_packages_own_model_takes_no_other(tmp_path: Path) -> None:
    config = RunConfig.model_validate(RUN | {"rate": 1e5, "rule": {"name": "naive"}, "model": {"hidden": [4]}})
    run_trial(config, tmp_path)
    with pytest.raises(InputError, match=f"has a model of the package, and --model is {FACTORY}; expected none"):
        examine(next((tmp_path / "capsules").iterdir()), elsewhere=Elsewhere(model=FACTORY))


def test_a_study_in_python_and_of_the_command_line(tmp_path: Path) -> None:
    config = StudyConfig.model_validate(
        {
            "name": "own",
            "data": RUN["data"],
            "training": RUN["training"],
            "search": {"extra_trials": 0, "search_seeds": [0], "seeds": [1], "floor_rates": [0.1]},
            "models": [{"name": "small"}],
            "methods": [{"name": "Clippy", "rule": {"name": "clippy"}}],
        }
    )
    study = run_study(config, tmp_path / "study", models={"towers": own_models.two_towers}, workers=1)
    assert study.summary.models == ["towers"]
    assert {row.model for row in study.rows} == {"towers", "linear floor"}
    assert not any(row.diverged for row in study.rows if row.model == "towers")
    (asked,) = with_changes(load_study("smoke"), models=[FACTORY]).models
    assert (asked.name, asked.factory) == ("two_towers", FACTORY)


@pytest.mark.parametrize("function", [lambda schema: None, len.__call__])
def test_a_function_that_no_other_process_finds_is_refused(function: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^models\['mine'\] is .*; expected a function at the top of a module"):
        run_study(load_study("smoke"), tmp_path / "out", models={"mine": function})  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()


def test_a_model_without_tables_has_one_optimizer_and_its_bad_steps_are_skipped(tmp_path: Path) -> None:
    config = run_of("own_models:without_tables")
    parts = assemble(config, load_log(config.data))
    assert len(parts.optimizers) == 1
    make_supervisor(config, parts, tmp_path)
    for param in parts.model.parameters():
        param.grad = param.new_full(param.shape, float("nan"))
    before = [param.clone() for param in parts.model.parameters()]
    with pytest.warns(RuntimeWarning, match="the step was skipped"):
        parts.dense.step()
    assert all(bool((param == old).all()) for param, old in zip(parts.model.parameters(), before, strict=True))


REFUSED = {
    "own_models": "model.factory is 'own_models'; expected 'package.module:function'",
    "own_model:two_towers": "cannot be imported: ModuleNotFoundError: No module named 'own_model'",
    "own_models:towers": "cannot be imported: AttributeError: module 'own_models' has no attribute 'towers'",
    "own_models:not_a_function": "'own_models:not_a_function' is of type int; expected a function",
    "own_models:raises": "called with (schema) it failed: KeyError: 'widths'",
    "own_models:no_module": "returned an object of type int; expected a torch.nn.Module",
    "own_models:tables_alone": "returned a model without weights other than embedding tables",
    "own_models:several_outputs": "its model returned an object of type list; expected one tensor (64, 6): rows, tasks",
    "own_models:too_narrow": "its model returned a tensor (64, 1) of torch.float32; expected (64, 6)",
    "own_models:whole_numbers": "returned a tensor (64, 6) of torch.int64; expected (64, 6), rows and tasks, of real",
    "own_models:not_finite": "its model returned nan for row 3 and task like, before any step",
    "own_models:fails_on_rows": "called with categorical (64, 3) torch.int32, dense (64, 8), failed: RuntimeError: "
    "shapes cannot be multiplied",
}


@pytest.mark.parametrize("factory", REFUSED)
def test_what_cannot_be_trained_is_refused_in_a_sentence_before_anything_is_written(
    factory: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        run_trial(run_of(factory), tmp_path / "run")
    assert REFUSED[factory] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="called with \\(schema, wide=4\\) it failed: TypeError: .*'wide'"):
        assemble(run_of(FACTORY, wide=4), load_log(run_of(FACTORY).data))
    for model, words in (
        ({"factory": FACTORY, "hidden": [4]}, "hidden is given beside a factory; expected it in arguments"),
        ({"arguments": {"width": 4}}, "arguments are {'width': 4} and there is no factory; expected both or none"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            RunConfig.model_validate(RUN | {"model": model})


def test_the_packages_own_model_is_written_as_before() -> None:
    assert "factory" not in dump(RunConfig())
    assert "arguments" not in dump(RunConfig())
    assert "hidden" not in dump(run_of(FACTORY))
