"""One run's report: what it says and draws of real runs, of what is missing, and what it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lab.report.small_runs import BAD_STEP, KINDS
from lab.report.test_page import figures_of
from surefoot.errors import InputError
from surefoot.lab.report import html
from surefoot.lab.report.happened import MOST_LINES, conclusion, happenings
from surefoot.lab.report.run_figures import first_layer, layer_names, layers_over_time, losses, ratio_map, scores
from surefoot.lab.report.run_folder import is_run, read_run
from surefoot.lab.report.run_page import write_run_report

Copied = Callable[[str], Path]


def page(folder: Path) -> str:
    text = write_run_report(folder).read_text(encoding="utf-8")
    return re.sub(r"<script>/\*\*.*?</script>", "", text, count=1, flags=re.DOTALL)


@pytest.mark.parametrize("kind", [*KINDS, "own", "supervised"])
def test_the_page_stands_alone_and_is_the_same_when_it_is_written_again(runs: dict[str, Path], kind: str) -> None:
    html = page(runs[kind])
    assert "default-src 'none'" in html
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)([\w/.:-]+)""", html)
    assert all((runs[kind] / link).exists() for link in outside)  # capsules, in the folder itself
    assert page(runs[kind]) == html
    assert not list(runs[kind].glob("*.draft"))


def test_a_run_that_diverged_says_so_and_shows_every_event_with_its_capsule(runs: dict[str, Path]) -> None:
    run = read_run(runs["diverged"])
    lines = [json.loads(line) for line in (runs["diverged"] / "events.jsonl").read_text().splitlines()]
    *happened, last = lines
    assert last["verdict"] in ("micro", "full")
    said = conclusion(run)
    assert said.startswith(f"Diverged from step {last['onset']} on")
    assert last["reason"] in said
    alarms = sum(line["event"] == "alarm" for line in happened)
    assert f"{alarms} alarm" in said
    shown = happenings(run)
    assert sorted(line.step for line in shown) == sorted(str(line.get("step", "")) for line in happened)
    assert [int(line.step) for line in shown if line.step] == sorted(int(line.step) for line in shown if line.step)
    assert run.capsules
    linked = [line.capsule.name for line in shown if line.capsule]
    assert set(linked) == {f"capsules/{path.name}" for path in (runs["diverged"] / "capsules").iterdir()}
    html = page(runs["diverged"])
    for capsule in run.capsules:
        assert f'href="{capsule.name}/"' in html
        assert f"surefoot replay {run.folder}/{capsule.name}" in html
    assert "road" not in html


def test_the_marks_stand_at_the_steps_of_the_events(runs: dict[str, Path]) -> None:
    run = read_run(runs["diverged"])
    figure = losses(run)
    assert figure is not None
    traces = figure.to_dict()["data"]
    marks = {trace["name"]: trace["x"] for trace in traces if trace.get("yaxis") == "y3" and trace["mode"] == "markers"}
    assert marks["alarm"] == [event.step for event in run.of_kind("alarm")]
    named = {trace["name"]: set(trace["y"]) for trace in traces if trace.get("yaxis") == "y3"}
    assert named == {name: {name} for name in marks}
    assert marks["rolled back"] == [event.step for event in run.of_kind("rolled_back")]
    assert {t["name"] for t in traces if t.get("yaxis", "y") == "y"} == {*run.tasks, "loss of a constant prediction"}


def test_events_are_told_by_their_steps_whatever_their_order_in_the_journal(copied: Copied) -> None:
    folder = copied("diverged")
    events = [("stopped", 82), ("divergence", 72), ("never_learnt", None), ("alarm", 70)]
    more = {"task": "click", "verdict": "full", "end": 82, "reason": "why"}
    lines = [json.dumps({"event": kind, "step": step, **more}) for kind, step in events]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(folder)
    assert [line.step for line in happenings(run)] == ["70", "72", "82", ""]
    assert conclusion(run).startswith("Stopped at step 82: why.")


def test_an_alarm_is_linked_to_the_capsule_that_shows_its_step(copied: Copied) -> None:
    folder = copied("diverged")
    capsule = read_run(folder).capsules[0]
    inside = capsule.first if capsule.step != capsule.first else capsule.last
    steps = (inside, 10**6)
    lines = [json.dumps({"event": "alarm", "step": step}) for step in steps]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert [line.capsule for line in happenings(read_run(folder))] == [capsule, None]


def test_steps_that_only_the_monitor_has_are_there_too(copied: Copied) -> None:
    folder = copied("healthy")
    own = pl.read_parquet(folder / "metrics.parquet").head(5)
    own.write_parquet(folder / "metrics.parquet")
    watched = pl.read_parquet(folder / "monitor" / "metrics.parquet")
    steps = read_run(folder).steps
    assert steps["step"].to_list() == sorted({*own["step"], *watched["step"]})
    assert steps["lr"].null_count() == len(steps) - 5


def test_a_spike_of_one_step_is_seen_in_a_long_run(tmp_path: Path) -> None:
    steps, spike = 30_000, 12_345
    loss = [1e6 if step == spike else 0.5 for step in range(steps)]
    table = pl.DataFrame({"step": range(steps), "loss/click": loss})
    table.write_parquet(tmp_path / "metrics.parquet")
    figure = losses(read_run(tmp_path))
    assert figure is not None
    smooth, largest = figure.to_dict()["data"]
    assert max(smooth["y"]) < 1
    assert max(largest["y"]) == 1e6
    assert largest["x"][largest["y"].index(1e6)] <= spike < largest["x"][largest["y"].index(1e6) + 1]
    assert len(largest["x"]) <= 300
    assert "Losses are smoothed over 100 steps; a thin line shows the largest loss in each stretch of steps." in page(
        tmp_path
    )


def test_a_healthy_run(runs: dict[str, Path]) -> None:
    run = read_run(runs["healthy"])
    assert run.result is not None
    assert conclusion(run) == f"Healthy: {run.result['steps']} steps, and no task diverged. There was no alarm."
    html = page(runs["healthy"])
    assert "Nothing: no alarm was raised, and no task diverged." in html
    assert "There is no capsule in this folder." in html
    assert f"{100 * run.scores['auc/click']:.2f}" in html
    assert set(figures_of(html)) == {"losses-0", "scores-0", "layers-0", "ratios-0"}


def test_the_scores_are_those_of_the_days(runs: dict[str, Path]) -> None:
    figure = scores(read_run(runs["healthy"]))
    assert figure is not None
    line = next(trace for trace in figure.to_dict()["data"] if trace["name"] == "click")
    days = pl.read_parquet(runs["healthy"] / "days.parquet").filter(pl.col("scored") == "next_day")
    assert list(line["x"]) == days["day"].to_list()
    assert line["y"] == pytest.approx([100 * (1 - auc) for auc in days["auc/click"]], rel=1e-3)


def test_a_run_without_a_monitor_says_what_it_has_not(runs: dict[str, Path]) -> None:
    html = page(runs["unwatched"])
    assert set(figures_of(html)) == {"losses-0", "scores-0", "layers-0"}  # layers: their clipping factors
    assert "ratio: the run had no monitor." in html


def test_a_loop_of_ones_own_has_its_own_layers_and_no_result(runs: dict[str, Path]) -> None:
    run = read_run(runs["own"])
    assert not (runs["own"] / "config.toml").exists()
    assert conclusion(run).startswith("This folder does not record how the run ended")
    assert list(layer_names(run).values()) == ["0", "2"]  # as a Sequential calls them
    (alarm, *_) = [line for line in happenings(run) if line.what.text == "alarm"]
    assert alarm.step == str(BAD_STEP)
    html = page(runs["own"])
    assert "no config.toml in this folder: the run does not come from" in html
    assert "AUC of the last training rows, measured by the monitor." in html
    assert set(figures_of(html)) == {"losses-0", "scores-0", "layers-0", "ratios-0"}


def test_a_supervised_loop_has_its_capsules_too(runs: dict[str, Path]) -> None:
    run = read_run(runs["supervised"])
    (alarm, *_) = [line for line in happenings(run) if line.what.text == "alarm"]
    assert alarm.step == str(BAD_STEP)
    assert alarm.capsule is not None
    assert alarm.capsule.first <= BAD_STEP <= alarm.capsule.last
    html = page(runs["supervised"])
    assert "To see what was recorded (this run has no configuration, so its steps cannot be run again):" in html
    assert set(figures_of(html)) == {"losses-0", "scores-0", "layers-0", "ratios-0"}


def test_steps_that_moved_nothing_leave_a_gap_in_a_layers_line_and_rare_values_do_not(tmp_path: Path) -> None:
    steps = range(30)
    table = pl.DataFrame(
        {
            "step": steps,
            "clip_ratio/a.weight": [None if 5 <= step < 15 else 1.0 for step in steps],
            "l2_norm/weight/a.weight": [2.0 if step % 10 == 0 else None for step in steps],
        }
    )
    table.write_parquet(tmp_path / "metrics.parquet")
    (tmp_path / "events.jsonl").write_text('{"event": "alarm", "step": 1, "layer": "a.bias"}\n')
    run = read_run(tmp_path)
    figure = layers_over_time(run)
    assert figure is not None
    lines = {trace["name"]: trace for trace in figure.to_dict()["data"]}
    ratio, weight = lines["Clippy's ratio"], lines["weight norm"]
    assert [x for x, y in zip(ratio["x"], ratio["y"], strict=True) if y is None] == list(range(6, 14))  # smoothed
    assert (list(weight["x"]), weight["mode"]) == ([0, 10, 20], "lines+markers")
    assert first_layer(run) == "a"  # that of the alarm's bias


def test_a_stretch_of_the_map_shows_its_largest_ratio(runs: dict[str, Path]) -> None:
    run = read_run(runs["own"])
    figure = ratio_map(run)
    assert figure is not None
    heat = figure.to_dict()["data"][0]
    assert heat["y"] == ["2", "0"]
    largest = [max(float(value) for value in row if value is not None) for row in heat["customdata"]]
    columns = [run.steps[f"clip_ratio/{name}.weight"].max() for name in ("2", "0")]
    assert largest == pytest.approx(columns, rel=1e-3)


def test_a_run_that_goes_on_is_read_from_its_parts(copied: Copied) -> None:
    folder = copied("healthy")
    (folder / "metrics.parquet").unlink()
    (folder / "days.parquet").unlink()
    watched = folder / "monitor" / "metrics.parquet"
    rows = pl.read_parquet(watched)
    (folder / "monitor" / "metrics.parts").mkdir()
    rows.head(10).write_parquet(folder / "monitor" / "metrics.parts" / "00000000.parquet")
    rows.slice(10, 5).write_parquet(folder / "monitor" / "metrics.parts" / "00000001.parquet")
    watched.unlink()
    (folder / "events.jsonl").write_text('{"event": "alarm", "step": 4, "task": "click"}\n{"event": "rolled_b')
    run = read_run(folder)
    assert run.steps["step"].to_list() == rows["step"].head(15).to_list()
    assert [event.kind for event in run.events] == ["alarm"]  # the last line was cut off by a kill
    assert conclusion(run) == (
        f"Not finished: the run is still going, or was interrupted. The last recorded step is {rows['step'][14]}. "
        "There was 1 alarm."
    )
    assert "The run is not finished: this page shows what it has written so far." in page(folder)


@pytest.mark.parametrize("left", ["events.jsonl", "metrics.parquet"])
def test_one_file_alone_is_enough(runs: dict[str, Path], tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_bytes((runs["own"] / left).read_bytes())
    html = page(tmp_path)
    assert ("This folder holds no losses." in html) == (left == "events.jsonl")
    assert ("No alarm and no action is recorded" in html) == (left == "metrics.parquet")


def test_no_row_no_day_and_details_of_any_kind_break_nothing(tmp_path: Path) -> None:
    columns = {"step": pl.Int64, "loss/a": pl.Float64, "clip_ratio/x.weight": pl.Float64, "auc/a": pl.Float64}
    pl.DataFrame(schema=columns).write_parquet(tmp_path / "metrics.parquet")
    odd = {"layer": ["x"], "task": {"a": 1}, "rate_factor": "half", "reason": 7, "checkpoint": 1}
    lines = [{"event": kind, "step": 1, **odd} for kind in ("alarm", "slowed", "rolled_back", "stopped", "more")]
    lines.append({"event": "finished", "verdict": "healthy", "steps": 2, "auc/a": 0.5, "rmse/b": None})
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = page(tmp_path)
    assert "learning rate times half" in html
    assert "<h3>Final scores</h3>" in html
    assert "This folder holds no losses." in html


def test_a_long_journal_is_cut_and_says_so(copied: Copied) -> None:
    folder = copied("own")
    lines = [json.dumps({"event": "skipped", "step": step, "count": 1}) for step in range(MOST_LINES + 7)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    html = page(folder)
    assert "7 later events are not shown; all of them are in events.jsonl." in html
    assert html.count("<td>step ") == MOST_LINES


def test_what_ones_own_journal_tells_is_shown_as_it_is_and_is_no_markup(copied: Copied) -> None:
    folder = copied("own")
    event = {"event": "<img src=x>", "step": 3, "who": "<script>alert(1)</script>", "reason": "a & b"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    html = page(folder)
    assert "<img" not in html
    assert "&lt;img src=x&gt;" in html
    assert "who &lt;script&gt;alert(1)&lt;/script&gt;" in html


BROKEN: dict[str, Callable[[Path], Any]] = {
    "metrics.parquet cut short": lambda p: (p / "metrics.parquet").write_bytes(b"PAR1"),
    "metrics.parquet of other columns": lambda p: pl.DataFrame({"a": [1]}).write_parquet(p / "metrics.parquet"),
    "metrics.parquet with text": lambda p: pl.DataFrame({"step": [0], "loss/a": ["x"]}).write_parquet(
        p / "metrics.parquet"
    ),
    "monitor/metrics.parquet": lambda p: (p / "monitor" / "metrics.parquet").write_text("no"),
    "days.parquet": lambda p: (p / "days.parquet").write_text("no"),
    "events.jsonl no JSON": lambda p: (p / "events.jsonl").write_text("no\n"),
    "events.jsonl a list": lambda p: (p / "events.jsonl").write_text("[1]\n"),
    "events.jsonl nested": lambda p: (p / "events.jsonl").write_text(100_000 * "[" + "\n"),
    "events.jsonl without a name": lambda p: (p / "events.jsonl").write_text('{"step": 1}\n'),
    "events.jsonl with a step that is none": lambda p: (p / "events.jsonl").write_text(
        '{"event": "alarm", "step": "x"}\n'
    ),
    "events.jsonl, half a result": lambda p: (p / "events.jsonl").write_text('{"event": "finished"}\n'),
    "events.jsonl with a score that is none": lambda p: (p / "events.jsonl").write_text(
        '{"event": "finished", "verdict": "full", "steps": 3, "auc/click": "x"}\n'
    ),
    "events.jsonl with another verdict": lambda p: (p / "events.jsonl").write_text(
        '{"event": "finished", "verdict": "well", "steps": 3}\n'
    ),
    "events.jsonl without an end": lambda p: (p / "events.jsonl").write_text('{"event": "alarm", "step": Infinity}\n'),
    "events.jsonl, half a divergence": lambda p: (p / "events.jsonl").write_text('{"event": "divergence"}\n'),
    "config.toml": lambda p: (p / "config.toml").write_text("= ="),
    "config.toml not text": lambda p: (p / "config.toml").write_bytes(b"\xff\xfe\x00"),
    "capsule.json": lambda p: next(p.glob("capsules/*/capsule.json")).write_text("no"),
    "capsule.json of something else": lambda p: next(p.glob("capsules/*/capsule.json")).write_text("{}"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_named_and_nothing_is_written(copied: Copied, what: str) -> None:
    folder = copied("diverged")
    (folder / "report.html").unlink(missing_ok=True)
    BROKEN[what](folder)
    with pytest.raises(InputError) as caught:
        write_run_report(folder)
    sentence = str(caught.value)
    assert what.split()[0].rstrip(",") in sentence
    assert str(folder) in sentence
    assert "\n" not in sentence
    assert not (folder / "report.html").exists()


def test_a_folder_of_nothing_is_named(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    with pytest.raises(InputError, match=r"holds neither metrics\.parquet nor events\.jsonl; expected the folder of a"):
        write_run_report(tmp_path)
    with pytest.raises(InputError, match="nowhere is not a folder; expected the folder of a run"):
        write_run_report(tmp_path / "nowhere")


def test_a_study_is_no_run(study: Path) -> None:
    assert not is_run(study)
    assert all(is_run(trial) for trial in (study / "trials").iterdir())


def test_every_section_of_the_template_is_drawn_or_said(runs: dict[str, Path], tmp_path: Path) -> None:
    template = (Path(html.__file__).parent / "run.html.j2").read_text()
    sections = re.findall(r"plots\('(\w+)'", template)
    assert {f"{name}-0" for name in sections} == set(figures_of(page(runs["diverged"])))
    (tmp_path / "events.jsonl").write_text('{"event": "alarm", "step": 1}\n')
    assert page(tmp_path).count('<p class="note">') >= len(sections)


def test_of_a_step_that_was_written_twice_the_later_row_counts(tmp_path: Path):
    """As where a run that was killed went on from an earlier checkpoint."""
    (tmp_path / "metrics.parts").mkdir()
    for i, (steps, values) in enumerate((([0, 1], [0.9, 0.8]), ([1, 2], [0.5, 0.4]))):
        part = pl.DataFrame({"step": steps, "loss/click": values})
        part.write_parquet(tmp_path / "metrics.parts" / f"{i:08d}.parquet")
    assert read_run(tmp_path).steps["loss/click"].to_list() == [0.9, 0.5, 0.4]
