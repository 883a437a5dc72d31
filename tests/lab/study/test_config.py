"""Configuration: complete round trips, and one sentence for every mistake."""

import tomllib
from pathlib import Path

import pytest

from surefoot import rules
from surefoot.errors import InputError
from surefoot.lab.settings import dump, load, parse
from surefoot.lab.study import config
from surefoot.lab.study.config import RULES, RuleConfig, RunConfig, StudyConfig, load_study, with_changes


def test_every_rule_has_a_name():
    assert list(RULES.values()) == list(rules.ALL)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_built_from_its_name(name: str):
    assert RuleConfig(name=name).build() == RULES[name]()


def test_a_rules_arguments():
    assert RuleConfig.model_validate({"name": "clippy", "relative": 0.1}).build() == rules.Clippy(relative=0.1)


def test_presets():
    assert config.presets() == ["drift", "paper", "quick", "smoke"]


@pytest.mark.parametrize("name", config.presets())
def test_a_preset_survives_a_round_trip(name: str):
    study = load_study(name)
    assert parse(StudyConfig, tomllib.loads(dump(study)), "again") == study


def test_a_run_survives_a_round_trip(tmp_path: Path):
    run = RunConfig.model_validate({"rate": 0.3, "rule": {"name": "agc", "threshold": 0.5}, "until": "selection"})
    (tmp_path / "run.toml").write_text(dump(run))
    assert load(RunConfig, tmp_path / "run.toml") == run


MISTAKES = [
    (RunConfig, "rat = 0.1", "rat is not a known key; the closest is 'rate'"),
    (RunConfig, "[training]\nbatchsize = 8", "training.batchsize is not a known key; the closest is 'batch_size'"),
    (RunConfig, "[rule]\nname = 'clipy'", "rule: rule.name is 'clipy'; expected one of .* (closest: clippy)"),
    (
        RunConfig,
        "[rule]\nname = 'gc'\nthreshhold = 1",
        "rule.threshhold is not a known key; the closest is 'threshold'",
    ),
    (RunConfig, "[rule]\nname = 'naive'\nx = 1", "rule.x is not a known key; expected none here"),
    (RunConfig, "[rule]\nname = 'gc'\nthreshold = -1", "threshold is -1; expected a finite number above 0"),
    (RunConfig, "[data]\nsource = 'kuairnd'", "data.source is 'kuairnd'; expected one of completejourney, synthetic"),
    (RunConfig, "rate = 'fast'", "rate is 'fast'; input should be a valid number"),
    (RunConfig, "rate = 0", "rate is 0; input should be greater than 0"),
    (StudyConfig, "name = 'x'", "models is missing; expected a value"),
    (
        StudyConfig,
        "name = 'x'\n[[models]]\n[[methods]]\nname = 'a'\nrule.name = 'gc'\nvary = 'treshold'\nvalues = [1]",
        "method 'a': vary is 'treshold'; expected one of threshold",
    ),
    (
        StudyConfig,
        "name = 'x'\n[[models]]\n[[methods]]\nname = 'a'\nrule.name = 'gc'\nvary = 'threshold'",
        r"method 'a': vary is 'threshold' and values are \[\]; expected both or none",
    ),
    (
        StudyConfig,
        "name = 'x'\n[[models]]\nhiden = [3]\n[[methods]]\nname = 'a'\nrule.name = 'gc'",
        "models.0.hiden is not a known key; the closest is 'hidden'",
    ),
    (
        StudyConfig,
        "name = 'x'\n[[models]]\n[[models]]\n[[methods]]\nname = 'a'\nrule.name = 'gc'",
        "models has the name 'small' more than once",
    ),
]


@pytest.mark.parametrize(("kind", "text", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_file(kind: type, text: str, sentence: str, tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(
        InputError, match=sentence.replace("(closest", r"\(closest").replace("clippy)", r"clippy\)")
    ) as error:
        load(kind, path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"rate = = 1", "is not TOML"), (b"\xff\xfe", "is not TOML"), (None, "does not exist")]
)
def test_a_file_that_cannot_be_read(content: bytes | None, sentence: str, tmp_path: Path):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        load(RunConfig, path)


def test_an_unknown_preset_names_the_closest():
    with pytest.raises(InputError, match=r"study 'quik' is neither a preset nor a .toml file.*\(closest: quick\)"):
        load_study("quik")


def test_an_unknown_model_and_data_set():
    study = load_study("quick")
    with pytest.raises(
        InputError, match=r"--model is 'larg'; expected one of small, large\+dcn \(closest: large\+dcn\)"
    ):
        with_changes(study, models=["larg"])
    with pytest.raises(InputError, match="data.source is 'criteo'; expected one of completejourney, synthetic"):
        with_changes(study, source="criteo")


def test_changes():
    changed = with_changes(load_study("quick"), source="synthetic", models=["large+dcn"], select_by="like")
    assert changed.data.source == "synthetic"
    assert [model.name for model in changed.models] == ["large+dcn"]
    assert changed.search.select_by == "like"


def test_a_whole_number_has_at_most_64_bits():
    assert parse(RunConfig, {"seed": (1 << 63) - 1}, "here").seed == (1 << 63) - 1
    with pytest.raises(InputError, match="here: seed is 9223372036854775808; expected a whole number of at most 64"):
        parse(RunConfig, {"seed": 1 << 63}, "here")
