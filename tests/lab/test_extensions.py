"""Rules and log sources of other packages: registered by entry points, as an installed package has them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import surefoot
from surefoot.errors import InputError
from surefoot.lab import Source, check_source
from surefoot.lab.sources import movielens, names, open_source
from surefoot.lab.study.config import RULES, RuleConfig, RunConfig, rule_names
from surefoot.lab.study.replay import Examined, examine
from surefoot.lab.study.trial import run_trial
from surefoot.rules import Reduce, Rule
from surefoot.testing import check_rule

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

import torch
from surefoot.lab.sources import movielens
from surefoot.rules import Reduce, Rule


@dataclass(frozen=True)
class HalfStep(Rule):
    share: float = 0.5
    reduce: ClassVar[Reduce] = Reduce.SUM

    def terms(self, weight, grad, update, lr):
        return (update.abs(),)

    def factor(self, measure):
        return torch.where(measure == 0, 1.0, torch.full_like(measure, self.share))


def not_a_rule():
    pass


def films(path):
    return movielens.source(path)


def fails(path):
    raise OSError(5, "Input/output error")


def wrong(path):
    return path
"""
Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with one entry point."""
    (tmp_path / "half_steps.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def package(group: str, name: str, value: str, number: list[int] = [0]) -> None:  # noqa: B006 - a counter
        number[0] += 1
        folder = tmp_path / f"half_steps{number[0]}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: half-steps{number[0]}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")

    return package


def test_a_rule_of_another_package_in_a_run_and_in_the_replay_of_its_capsule(install: Install, tmp_path: Path) -> None:
    install("surefoot.rules", "half", "half_steps:HalfStep")
    assert rule_names() == [*RULES, "half"]
    config = RunConfig.model_validate(
        {
            "rate": 1e5,
            "rule": {"name": "half", "share": 0.25},
            "data": {"days": 4, "rows_per_day": 256},
            "model": {"hidden": [4]},
            "training": {"batch_size": 64},
            "recovery": {},
        }
    )
    assert repr(config.rule.build()) == "HalfStep(share=0.25)"
    check_rule(config.rule.build())
    result = run_trial(config, tmp_path / "run")
    assert result["clipped_share"] > 0
    found = examine(next((tmp_path / "run" / "capsules").iterdir()))
    assert isinstance(found, Examined)
    assert found.replay.difference is None
    factors = found.replay.steps[-1].counterfactual.factors
    assert {float(sigma) for sigma in factors["half"].values()} == {0.25}
    with pytest.raises(ValueError, match="rule.shar is not a known key; the closest is 'share'"):
        RuleConfig.model_validate({"name": "half", "shar": 1.0})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("half_steps:not_a_rule", "expected a class derived from surefoot.rules.Rule"),
        ("half_steps:missing", "registers for surefoot.rules as half_steps:missing, cannot be imported: Attribut"),
        ("no_such_module:Rule", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_an_entry_point_that_fails_is_told_in_a_sentence_when_it_is_asked_for(
    value: str, words: str, install: Install
) -> None:
    install("surefoot.rules", "half", value)
    RuleConfig(name="clippy")  # another rule is no worse for it
    with pytest.raises(ValueError, match=re.escape(words)):
        RuleConfig(name="half")


def test_two_packages_with_one_name_are_refused_and_none_takes_ours(install: Install) -> None:
    install("surefoot.rules", "clippy", "half_steps:HalfStep")
    assert RuleConfig(name="clippy").build() == surefoot.Clippy()
    install("surefoot.rules", "half", "half_steps:HalfStep")
    install("surefoot.rules", "half", "half_steps:HalfStep")
    with pytest.raises(ValueError, match="half is registered for surefoot.rules by half-steps.* and by half-steps"):
        RuleConfig(name="half")


def test_a_source_of_another_package(install: Install, tmp_path: Path) -> None:
    install("surefoot.sources", "films", "half_steps:films")
    install("surefoot.sources", "fails", "half_steps:fails")
    install("surefoot.sources", "wrong", "half_steps:wrong")
    assert names()[-3:] == ["fails", "films", "wrong"]
    with pytest.raises(InputError, match="has no ratings of MovieLens"):
        open_source("films", str(tmp_path))
    with pytest.raises(InputError, match=r"source fails, called with 'x', failed: OSError: \[Errno 5\] Input/output"):
        open_source("fails", "x")
    with pytest.raises(InputError, match="source wrong returned an object of type str; expected a Source"):
        open_source("wrong", "x")


RATINGS = "".join(f"{row % 7}\t{row % 5}\t{1 + row % 5}\t{1_000_000_000 + row * 5000}\n" for row in range(100))
FILMS = "".join(f"{film}|Film {film} (1995)|01-Jan-1995||x|{'|'.join('0' * 19)}\n" for film in range(5))
USERS = "".join(f"{user}|24|M|writer|{user}\n" for user in range(7))


def test_the_contract_of_sources(tmp_path: Path) -> None:
    for name, text in (("u.data", RATINGS), ("u.item", FILMS), ("u.user", USERS)):
        (tmp_path / name).write_text(text)
    check_source(movielens.source, str(tmp_path))

    def always_there(path: str) -> Source:
        return movielens.source(str(tmp_path))

    def one_day(path: str) -> Source:
        (tmp_path / "u.data").write_text("".join(RATINGS.splitlines(keepends=True)[:5]))
        return movielens.source(path)

    with pytest.raises(AssertionError, match="nowhere, which does not exist, was accepted"):
        check_source(always_there, str(tmp_path))
    with pytest.raises(AssertionError, match="gave 1 days; expected 3 or more"):
        check_source(one_day, str(tmp_path))


@dataclass(frozen=True)
class Waits(Rule):
    """Looks at a value: the host would wait for the device."""

    reduce = Reduce.SUM

    def terms(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor) -> tuple[Tensor, ...]:
        return (update.square(),)

    def factor(self, measure: Tensor) -> Tensor:
        return torch.ones_like(measure) if float(measure.sum()) < 1 else measure.rsqrt()


@dataclass(frozen=True)
class NanOfZeros(Rule):
    """Divides by the size of the update."""

    reduce = Reduce.SUM

    def terms(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor) -> tuple[Tensor, ...]:
        return (update.square(),)

    def factor(self, measure: Tensor) -> Tensor:
        return measure / measure


def test_the_contract_of_rules_names_what_does_not_hold() -> None:
    for rule, words in (
        (Waits(), "never_waits_for_the_device does not hold for a weight of shape ()"),
        (NanOfZeros(), "gives_one_for_an_update_of_zeros does not hold"),
    ):
        with pytest.raises(AssertionError, match=re.escape(words)):
            check_rule(rule)
    with pytest.raises(TypeError, match="rule is 0.5; expected an object of a class derived"):
        check_rule(0.5)  # pyright: ignore[reportArgumentType]
