"""A model class that nobody here wrote, through ``surefoot train``, ``surefoot replay`` and ``surefoot study``."""

from pathlib import Path

from typer.testing import CliRunner

from surefoot.lab.cli import app

FACTORY = "clients.mmoe_factory:build"
MODEL = f'{{name = "mmoe", factory = "{FACTORY}", arguments = {{experts = 2}}}}'
RUN = f"""
rate = 3.0
data = {{days = 6}}
model = {MODEL}
rule = {{name = "naive"}}
monitor = {{}}
"""
STUDY = f"""
name = "mmoe"
data = {{days = 5}}
search = {{rates = [1.0], extra_trials = 0, search_seeds = [0], seeds = [1], sweep = [16.0], floor_rates = [0.1]}}
models = [{MODEL}]
methods = [{{name = "naive", rule.name = "naive"}}, {{name = "Clippy", rule.name = "clippy"}}]
"""


def said(*arguments: object, expect: int = 0) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
    return done.output


def test_deepctrs_own_mmoe_is_trained_replayed_and_studied(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    assert "diverged (full)" in said("train", tmp_path / "run.toml", "--out", tmp_path / "run", expect=3)
    capsule = next((tmp_path / "run" / "capsules").iterdir())
    replayed = said("replay", capsule, "--model", FACTORY, "--rule", "clippy")
    assert "equal bit for bit" in replayed
    assert "mmoe.tower_dnn" in replayed
    assert "Under naive the run does not survive" in replayed
    assert "Under clippy the run survives" in replayed
    (tmp_path / "study.toml").write_text(STUDY)
    table = said("study", tmp_path / "study.toml", "--out", tmp_path / "study", "--workers", 1)
    assert "mmoe" in table
    assert "linear floor" in table
    assert (tmp_path / "study" / "report.html").exists()
