"""The detector on all signals of a step: what alarms, what does not, and what no bad number may do to it."""

import json
import math
import random
from collections.abc import Iterable
from typing import Any

import pytest

from surefoot.detect.detector import Alarm, Detector, Signals, Verdict

NOISE = [0.00, 0.03, -0.02, 0.01, -0.04, 0.02, -0.01, 0.04, -0.03]  # a cycle of nine steps
HEALTHY = 120  # steps before anything happens
GOLDEN: list[tuple[int, str | None, str]] = [
    (307, None, "clip_ratio"),
    (320, "click", "loss"),
    (336, None, "grad_norm"),
]


def step_of(step: int, changes: dict[str, float] | None = None) -> Signals:
    """A healthy step of one task and two layers; changes are factors, of AUC what is added."""
    noise, changes = 1 + NOISE[step % len(NOISE)], changes or {}
    loss, ratio, norm = (noise * changes.get(name, 1.0) for name in ("loss", "ratio", "norm"))
    looked = step % 4 == 0
    return Signals(
        losses={"click": 0.5 * loss},
        relative_losses={"click": 0.8 * loss},
        clip_ratios={"bottom": 0.2 * noise, "top": 0.2 * ratio},
        grad_norms={"bottom": 0.1 * noise, "top": 0.1 * norm},
        aucs={"click": 0.75 + 0.01 * (noise - 1) + changes.get("auc", 0.0)} if looked else {},
        calibrations={"click": noise * changes.get("calibration", 1.0)} if looked else {},
        prediction_std_ratios={"click": 0.3 * noise * changes.get("prediction_std_ratio", 1.0)} if looked else {},
    )


def run(steps: Iterable[Signals], detector: Detector | None = None, start: int = 0) -> tuple[Detector, list[Alarm]]:
    """Show steps to a detector; return it and the alarms."""
    detector = detector or Detector()
    alarms = [detector.update(step, signals) for step, signals in enumerate(steps, start)]
    return detector, [alarm for alarm in alarms if alarm is not None]


def healthy(steps: int = HEALTHY, start: int = 0) -> list[Signals]:
    return [step_of(step) for step in range(start, start + steps)]


def changed(steps: int, start: int = HEALTHY, **changes: float) -> list[Signals]:
    return [step_of(step, changes) for step in range(start, start + steps)]


def replaced(signals: Signals, field: str, value: float) -> Signals:
    """The step with every value of one field replaced."""
    return Signals(**{**vars(signals), field: dict.fromkeys(getattr(signals, field), value)})


def test_a_healthy_run_raises_nothing():
    detector, alarms = run(healthy(500))
    assert alarms == []
    assert detector.healthy
    assert detector.verdict is Verdict.HEALTHY


# What other guards do on the very input that they guard against.


def test_one_nan_loss_does_not_keep_it_alarming():
    """The 6-sd rule skips 129 steps after one NaN."""
    nan = replaced(replaced(step_of(HEALTHY), "losses", math.nan), "relative_losses", math.nan)
    detector, alarms = run([*healthy(), nan, *healthy(40, HEALTHY + 1)])
    assert [(alarm.step, alarm.signal, alarm.task) for alarm in alarms] == [(HEALTHY, "non_finite", "click")]
    assert detector.healthy
    assert [event.verdict for event in detector.events] == [Verdict.MICRO]
    assert detector.events[0].end - HEALTHY < 10


@pytest.mark.parametrize("bad", [math.nan, math.inf, 5.0])
def test_one_bad_loss_does_not_raise_its_own_limit(bad: float):
    """The 6-sd rule lets 3.0 pass for 128 steps after one loss of 5.0."""
    spike = replaced(replaced(step_of(HEALTHY), "losses", bad), "relative_losses", bad)
    later = changed(1, HEALTHY + 20, loss=1.6)
    _, alarms = run([*healthy(), spike, *healthy(19, HEALTHY + 1), *later])
    assert [alarm.step for alarm in alarms] == [HEALTHY, HEALTHY + 20]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_does_not_switch_it_off(bad: float):
    """One NaN norm makes every later threshold of ZClip NaN."""
    broken = replaced(step_of(HEALTHY), "grad_norms", bad)
    later = changed(1, HEALTHY + 20, norm=300.0)
    _, alarms = run([*healthy(), broken, *healthy(19, HEALTHY + 1), *later])
    assert [(alarm.step, alarm.signal) for alarm in alarms] == [(HEALTHY, "non_finite"), (HEALTHY + 20, "grad_norm")]
    assert alarms[1].layer == "top"


def test_a_jump_after_a_nan_is_seen():
    """After one NaN in the window KillLossSpike does not see 0.7 -> 100."""
    nan = replaced(step_of(HEALTHY), "losses", math.nan)
    later = changed(10, HEALTHY + 20, loss=100 / 0.7)
    detector, alarms = run([*healthy(), nan, *healthy(19, HEALTHY + 1), *later])
    assert [alarm.step for alarm in alarms] == [HEALTHY, HEALTHY + 20]
    assert not detector.healthy


def test_an_auc_of_a_half_at_a_mild_loss_is_seen():
    """10 x the largest of the first losses never sees a ranking that is lost: the loss rises by a few per cent."""
    _, alarms = run([*healthy(), *changed(30, loss=1.08, auc=-0.25)])
    (alarm,) = alarms
    assert (alarm.signal, alarm.task) == ("auc", "click")
    assert alarm.step == HEALTHY  # the first look
    assert "fell from 0.75 to 0.5" in alarm.reason


def test_a_collapse_to_the_base_rate_is_seen():
    """The log-loss rises by 1 / 0.8 only; predictions hardly spread any more."""
    detector, alarms = run([*healthy(), *changed(100, loss=1.25, auc=-0.25, prediction_std_ratio=0.01)])
    assert len(alarms) == 1
    assert alarms[0].step == HEALTHY
    assert detector.finish(HEALTHY + 100) is Verdict.FULL


def test_a_restored_detector_decides_as_the_one_that_went_on():
    """ZClip has no state_dict."""
    story = [*healthy(), *changed(3, norm=300.0), *changed(12, HEALTHY + 3, loss=3.0), *healthy(60, HEALTHY + 15)]
    whole, expected = run(story)
    assert expected
    for cut in (1, 60, HEALTHY, HEALTHY + 1, HEALTHY + 8, HEALTHY + 17, HEALTHY + 40):
        first, before = run(story[:cut])
        state = json.loads(json.dumps(first.state_dict()))
        second = Detector()
        second.load_state_dict(state)
        second, after = run(story[cut:], second, cut)
        assert before + after == expected
        assert second.events == whole.events
        assert second.state_dict() == whole.state_dict()


# Each signal, told apart.


@pytest.mark.parametrize(
    ("changes", "signal", "task", "layer"),
    [
        ({"ratio": 100.0}, "clip_ratio", None, "top"),
        ({"norm": 100.0}, "grad_norm", None, "top"),
        ({"loss": 1.4}, "relative_loss", "click", None),
        ({"loss": 1.6}, "loss", "click", None),
        ({"auc": -0.2}, "auc", "click", None),
        ({"calibration": 3.0}, "calibration", "click", None),
        ({"calibration": 0.3}, "calibration", "click", None),
        ({"prediction_std_ratio": 0.01}, "prediction_std_ratio", "click", None),
        ({"prediction_std_ratio": 20.0}, "saturation", "click", None),
    ],
)
def test_each_signal_alone_raises_its_alarm_at_once(
    changes: dict[str, float], signal: str, task: str | None, layer: str | None
):
    detector, alarms = run([*healthy(), *(step_of(step, changes) for step in range(HEALTHY, HEALTHY + 10))])
    (alarm,) = alarms
    assert (alarm.step, alarm.signal, alarm.task, alarm.layer) == (HEALTHY, signal, task, layer)
    assert (task or layer or "") in alarm.reason
    assert not detector.healthy


def test_a_large_ratio_is_no_concern_where_clippy_would_not_clip():
    quiet = [Signals(clip_ratios={"top": 1e-4 * (1 + NOISE[i % 9])}) for i in range(HEALTHY)]
    _, alarms = run([*quiet, Signals(clip_ratios={"top": 0.1})])
    assert alarms == []


def test_the_layer_that_is_furthest_out_is_named():
    jump = Signals(grad_norms={"bottom": 20.0, "top": 500.0})
    _, alarms = run([*healthy(), jump])
    assert alarms[0].layer == "top"


def test_a_change_that_stays_and_harms_nothing_becomes_the_new_level():
    detector, alarms = run([*healthy(), *changed(200, norm=100.0), *changed(1, HEALTHY + 200, norm=1e4)])
    assert [alarm.step for alarm in alarms] == [HEALTHY, HEALTHY + 200]
    assert detector.events == []


def test_an_alarm_that_comes_to_nothing_leaves_no_event():
    detector, alarms = run([*healthy(), *changed(2, ratio=100.0), *healthy(40, HEALTHY + 2)])
    assert len(alarms) == 1
    assert detector.healthy
    assert detector.finish(200) is Verdict.HEALTHY


def test_an_event_says_where_it_began():
    story = [*healthy(), *changed(1, ratio=1000.0), *changed(100, HEALTHY + 1, loss=20.0)]
    detector, _ = run(story)
    detector.finish(HEALTHY + 101)
    (event,) = detector.events
    assert (event.task, event.layer, event.signal, event.verdict) == ("click", "top", "clip_ratio", Verdict.FULL)
    assert (event.alarm, event.onset) == (HEALTHY, HEALTHY + 1)


def test_rises_of_layers_and_tasks_that_are_too_small_apart_are_seen_together():
    def step(number: int, *, ratio: float = 1.0, loss: float = 1.0) -> Signals:
        noise = 1 + NOISE[number % len(NOISE)]
        ratios = {"bottom": 0.8 * noise * ratio, "top": 0.8 * noise * ratio}
        return Signals({"click": 0.5 * noise * loss}, {"click": 0.8 * noise * loss}, clip_ratios=ratios)

    state = run([step(i) for i in range(HEALTHY)])[0].state_dict()

    def alarm_of(signals: Signals) -> Alarm | None:
        detector = Detector()
        detector.load_state_dict(state)
        return detector.update(HEALTHY, signals)

    assert alarm_of(step(0, ratio=1.6)) is None
    assert alarm_of(step(0, loss=1.25)) is None
    alarm = alarm_of(step(0, ratio=1.6, loss=1.25))
    assert alarm is not None
    assert alarm.signal in ("clip_ratio", "relative_loss")


def test_losses_alone_are_enough_for_an_alarm():
    _, alarms = run([*(Signals(losses=signals.losses) for signals in [*healthy(), *changed(9, loss=1.4)])])
    assert [(alarm.step, alarm.signal, alarm.task) for alarm in alarms] == [(HEALTHY, "loss", "click")]
    assert "rose from 0.5 to 0.7" in alarms[0].reason


def test_what_came_just_before_an_alarm_is_not_accepted():
    detector, alarms = run([*healthy(), *changed(3, loss=1.1), *changed(1, HEALTHY + 3, loss=9.0)])
    assert len(alarms) == 1
    panel = detector.state_dict()["panel"]
    levels = [level for each in panel["levels"].values() for level in each.values()]
    assert levels
    assert not any(level["waiting"] for level in [*levels, panel["layers"]])


def test_an_auc_that_is_not_defined_is_nothing_and_harms_nothing():
    undefined = [replaced(signals, "aucs", math.nan) for signals in healthy(40, HEALTHY)]
    _, alarms = run([*healthy(), *undefined, *changed(4, HEALTHY + 40, auc=-0.2)])
    assert [(alarm.step, alarm.signal) for alarm in alarms] == [(HEALTHY + 40, "auc")]


def test_gradients_that_are_dead_now_and_then_are_not_dead():
    blinking = [*changed(4, HEALTHY, norm=1e-5), *healthy(1, HEALTHY + 4)] * 5
    assert run([*healthy(), *blinking])[1] == []


def test_a_batch_on_which_a_constant_does_well_is_no_rise():
    """The relative loss of a heavy-tailed label is high where the batch holds no large label: the loss is as ever."""
    steps = [
        Signals(losses={"sales": 0.05 * (1 + NOISE[i % 9])}, relative_losses={"sales": 0.7 if i in late else 0.07})
        for late in [{100, 101, 102, 103, 110}]
        for i in range(140)
    ]
    detector, alarms = run(steps)
    assert alarms == []
    assert detector.finish(140) is Verdict.HEALTHY


def test_a_clip_ratio_beyond_all_measure_needs_no_history():
    _, alarms = run([Signals(clip_ratios={"top": 0.3, "bottom": 25.0})])
    assert (alarms[0].step, alarms[0].signal, alarms[0].layer) == (0, "clip_ratio", "bottom")


def test_dead_gradients_are_seen_once_they_have_been_dead_for_a_window():
    _, alarms = run([*healthy(), *changed(10, norm=1e-5)])
    assert [(alarm.step, alarm.signal, alarm.layer) for alarm in alarms] == [(HEALTHY + 4, "dead_gradient", "top")]
    assert "dead for 5 steps" in alarms[0].reason


def test_a_slow_collapse_that_no_single_step_shows_leaves_the_road():
    creeping = [Signals(relative_losses={"click": 0.6 + 0.02 * (i % 3)}) for i in range(100)]
    creeping += [Signals(relative_losses={"click": min(1.01, 0.6 + 0.004 * i)}) for i in range(160)]
    detector, alarms = run(creeping)
    assert [(alarm.signal, alarm.task) for alarm in alarms][-1:] == [("relative_loss", "click")]
    assert detector.finish(260) is Verdict.FULL


def test_an_event_is_micro_after_all_if_the_task_comes_back_late():
    detector, _ = run([*healthy(), *changed(90, loss=3.0)])
    assert detector.verdict is Verdict.FULL
    run(healthy(30, HEALTHY + 90), detector, HEALTHY + 90)
    assert [event.verdict for event in detector.events] == [Verdict.MICRO]
    assert detector.events[0].end > HEALTHY + 90
    assert detector.healthy


def test_departures_of_a_task_during_one_alarm_are_one_event():
    shaking = [*changed(6, HEALTHY, loss=3.0), *healthy(4, HEALTHY + 6)] * 3
    detector, alarms = run([*healthy(), *shaking, *healthy(30)])
    assert len(alarms) == 1
    assert len(detector.events) == 1


def test_a_recorded_like_run_gives_the_same_alarms_as_ever():
    """Noise, a drift of the level, a heavy tail, a ramp that ends in a divergence; from a fixed generator."""
    draw = random.Random(5)

    def noise(scale: float) -> float:
        return math.exp(scale * (sum(draw.random() for _ in range(12)) - 6))  # nearly normal

    story = []
    for step in range(400):
        ramp = 1.25 ** max(0, step - 300)
        blow = 4.0 if step >= 320 else 1.0
        loss = (0.5 + 0.3 * 0.98**step) * noise(0.06) * blow
        story.append(
            Signals(
                losses={"click": loss, "sales": 0.3 * noise(0.3) * blow},
                relative_losses={"click": 1.6 * loss, "sales": 0.4 * noise(0.5) * blow},
                clip_ratios={layer: 0.3 * ramp * noise(0.4) for layer in ("bottom", "middle", "top")},
                grad_norms={layer: 0.1 * ramp**0.5 * noise(0.4) for layer in ("bottom", "middle", "top")},
                aucs={"click": (0.8 if step < 320 else 0.55) - 0.01 * noise(0.5)} if step % 8 == 0 else {},
            )
        )
    detector, alarms = run(story)
    assert [(alarm.step, alarm.task, alarm.signal) for alarm in alarms] == GOLDEN
    assert detector.finish(400) is Verdict.FULL


# An alarm is over when its own signal says so, and a second trouble in it is told.


def looked(step: int, auc: float = 0.75, **changes: float) -> Signals:
    """A healthy step whose scores are shown every 8 steps, as a monitor shows them."""
    signals = step_of(step, changes)
    scores = {"aucs": {"click": auc}, "auc_errors": {"click": 0.005}} if step % 8 == 0 else {"aucs": {}}
    return Signals(
        **{**vars(signals), **scores, **({} if step % 8 == 0 else {"calibrations": {}, "prediction_std_ratios": {}})}
    )


@pytest.mark.parametrize("changes", [{"auc": 0.6}, {"prediction_std_ratio": 0.01}, {"calibration": 3.0}])
def test_a_fall_that_stays_and_is_shown_every_8_steps_is_one_alarm(changes: dict[str, float]):
    """Calm steps between two looks say nothing of it: it would be raised again at every look."""
    story = [*map(looked, range(HEALTHY)), *(looked(step, **changes) for step in range(HEALTHY, HEALTHY + 56))]
    detector, alarms = run(story)
    assert len(alarms) == 1
    assert not detector.healthy


def test_an_alarm_of_a_score_is_over_after_two_good_looks():
    bad = [looked(step, auc=0.6) for step in range(HEALTHY, HEALTHY + 16)]
    detector, _ = run([*map(looked, range(HEALTHY)), *bad, *map(looked, range(HEALTHY + 16, HEALTHY + 24))])
    assert not detector.healthy
    detector, alarms = run(map(looked, range(HEALTHY + 24, HEALTHY + 60)), detector, HEALTHY + 24)
    assert detector.healthy
    assert alarms == []


@pytest.mark.parametrize("first", ["auc", "loss", "norm", "ratio"])
@pytest.mark.parametrize("second", ["auc", "loss", "norm", "ratio"])
def test_a_second_trouble_in_an_open_alarm_is_told(first: str, second: str):
    """A rate thirty times too high while a drift's alarm is open, say."""
    sizes = {"auc": 0.65, "loss": 1.9, "norm": 100.0, "ratio": 30.0}
    larger = {"auc": 0.5, "loss": 6.0, "norm": 1e5, "ratio": 30.0**2}
    two = HEALTHY + 24
    one = {first: sizes[first]}
    both = one | {second: larger[second] if second == first else sizes[second]}
    story = [
        *map(looked, range(HEALTHY)),
        *(looked(step, **one) for step in range(HEALTHY, two)),
        *(looked(step, **both) for step in range(two, two + 8)),
    ]
    families = {"auc": {"auc"}, "loss": {"loss", "relative_loss"}, "norm": {"grad_norm"}, "ratio": {"clip_ratio"}}
    _, alarms = run(story)
    assert [alarm.step for alarm in alarms] == [HEALTHY, two]
    assert alarms[0].signal in families[first]
    assert alarms[-1].signal in families[second] | families[first]


def test_a_value_that_is_not_finite_is_told_at_once_in_an_open_alarm_and_once_while_it_lasts():
    nan = [replaced(signals, "losses", math.nan) for signals in changed(30, HEALTHY + 2, norm=100.0)]
    _, alarms = run([*healthy(), *changed(2, norm=100.0), *nan])
    assert [(alarm.step, alarm.signal) for alarm in alarms] == [(HEALTHY, "grad_norm"), (HEALTHY + 2, "non_finite")]


def test_what_a_divergence_does_in_its_first_steps_is_one_alarm():
    growing = [step_of(step, {"ratio": 30.0, "loss": 1.3 ** (step - HEALTHY)}) for step in range(HEALTHY, HEALTHY + 5)]
    _, alarms = run([*healthy(), *growing])
    assert [(alarm.step, alarm.layer) for alarm in alarms] == [(HEALTHY, "top")]


def test_a_loss_that_blows_up_step_by_step_is_not_news_at_each():
    blow = [step_of(step, {"loss": 2.0 ** (step - HEALTHY)}) for step in range(HEALTHY, HEALTHY + 50)]
    _, alarms = run([*healthy(), *blow])
    assert len(alarms) == 1


def test_a_window_that_fills_with_bad_rows_is_one_alarm():
    """Its AUC falls from look to look, since a quarter of its rows are new at each."""
    fall = {HEALTHY: 0.69, HEALTHY + 8: 0.63, HEALTHY + 16: 0.57, HEALTHY + 24: 0.5}
    story = [looked(step, auc=fall.get(step, 0.5)) for step in range(HEALTHY, HEALTHY + 56)]
    _, alarms = run([*map(looked, range(HEALTHY)), *story])
    assert len(alarms) == 1


def test_a_second_spike_of_the_same_signal_is_told_if_it_is_much_larger():
    for second, told in ((1.7, 1), (12.0, 2)):
        spikes = {HEALTHY: 1.7, HEALTHY + 20: second}
        story = [looked(step, loss=spikes.get(step, 1.0), norm=100.0) for step in range(HEALTHY, HEALTHY + 30)]
        _, alarms = run([*map(looked, range(HEALTHY)), *story])
        assert len(alarms) == told


# An AUC is judged by its recent best.


def test_a_fall_of_the_auc_while_it_is_still_learnt_is_seen():
    """Its median over 64 looks lies at 0.55 when 0.82 has been reached."""

    def auc_at(step: int) -> float:
        return min(0.82, 0.5 + 0.0015 * step)

    learning = [looked(step, auc=auc_at(step)) for step in range(320)]
    assert run(learning)[1] == []
    _, alarms = run([*learning, *(looked(step, auc=auc_at(step) - 0.06) for step in range(320, 336))])
    assert [(alarm.step, alarm.signal) for alarm in alarms] == [(320, "auc")]
    assert "fell from 0.82 to 0.76" in alarms[0].reason


def test_an_auc_of_a_half_has_nothing_to_lose():
    story = [looked(step, auc=0.5 if step < HEALTHY else 0.4) for step in range(HEALTHY + 40)]
    assert run(story)[1] == []


def test_the_auc_of_few_positives_may_move_by_chance():
    """80 positives among 8,192 rows: a standard error of 3 points."""
    draw = random.Random(1)
    few = [
        Signals(aucs={"rare": 0.7 + 0.03 * draw.gauss(0, 1)}, auc_errors={"rare": 0.03}) if step % 8 == 0 else Signals()
        for step in range(4000)
    ]
    assert run(few)[1] == []
    _, alarms = run([Signals(aucs={"rare": 0.5}, auc_errors={"rare": 0.03})], run(few)[0], 4000)
    assert len(alarms) == 1


# Learning is no harm.


def test_predictions_that_spread_less_than_at_the_start_are_no_collapse_while_losses_fall():
    def step_at(step: int) -> Signals:
        noise = 1 + NOISE[step % len(NOISE)]
        loss = noise * (0.4 + 2.0 * 0.98**step)
        shown = {"prediction_std_ratios": {"click": 1.0 if step < 96 else 0.2}} if step % 8 == 0 else {}
        return Signals(losses={"click": 0.7 * loss}, relative_losses={"click": loss}, **shown)

    assert run(map(step_at, range(165)))[1] == []


def test_a_rare_task_that_does_not_rank_yet_has_no_spread_to_lose():
    """Its predictions begin near one half and fall to its base rate: the spread falls by a factor of 17."""
    shown = [
        Signals(aucs={"rare": 0.5}, prediction_std_ratios={"rare": 1.2 if step < 64 else 0.07})
        if step % 8 == 0
        else Signals()
        for step in range(165)
    ]
    assert run(shown)[1] == []
    learnt = [replaced(signals, "aucs", 0.7) for signals in shown]
    assert [alarm.signal for alarm in run(learnt)[1]] == ["prediction_std_ratio"]


# States of other versions.


def saved() -> dict[str, Any]:
    story = [*healthy(), *changed(3, norm=300.0), *changed(12, HEALTHY + 3, loss=3.0)]
    return json.loads(json.dumps(run(story)[0].state_dict()))


def test_a_state_from_before_a_signal_existed_is_taken_over():
    state = saved()
    for key in ("rankings", "ranked"):
        del state["panel"][key]
    del state["panel"]["levels"]["calibration"]
    ratios = state["panel"]["levels"].pop("prediction_std_ratio")
    state["panel"]["levels"]["spread"] = ratios
    state["roads"] = state.pop("tasks")
    for task in state["roads"].values():
        del task["shock"], task["shown"]
        task["road"] = task.pop("back_below")
    for event in state["events"]:
        del event["alarm"]
    state["open"], state["calm"] = state["open"]["told"][-1], 2  # as it was saved once
    detector = Detector()
    detector.load_state_dict(state)
    assert detector.state_dict()["panel"]["levels"]["prediction_std_ratio"] == ratios != {}
    assert not detector.healthy
    _, alarms = run(healthy(100, HEALTHY + 15), detector, HEALTHY + 15)
    assert alarms == []
    assert detector.healthy


def test_what_a_newer_version_has_saved_beside_is_passed_over():
    state = saved()
    expected = Detector()
    expected.load_state_dict(saved())
    state["panel"]["levels"]["entropy"] = {"click": {"waiting": [], "accepted": [1.0]}}
    state["more"] = state["panel"]["more"] = state["open"]["more"] = state["alarms"][0]["more"] = 1
    detector = Detector()
    detector.load_state_dict(state)
    assert detector.state_dict() == expected.state_dict()


@pytest.mark.parametrize("broken", [{"tasks": 3}, {"panel": {}}, {"open": {"told": [{"step": 1}]}}, {"alarms": [4]}])
def test_a_state_that_is_broken_is_refused_in_a_sentence_and_changes_nothing(broken: dict[str, Any]):
    detector = run(healthy())[0]
    before = json.dumps(detector.state_dict())
    with pytest.raises(ValueError, match=r"^state is not one that a Detector saves .*; expected what its state_dict"):
        detector.load_state_dict({**saved(), **broken})
    assert json.dumps(detector.state_dict()) == before


# Bad input.


def test_steps_must_count_up():
    detector = Detector()
    detector.update(3, step_of(3))
    with pytest.raises(ValueError, match="step is 3; expected more than 3"):
        detector.update(3, step_of(3))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("window", 0), ("history", 0), ("patience", 0), ("deviations", 0.0), ("deviations", math.nan), ("learnt", 0.0)],
)
def test_limits_must_make_sense(argument: str, value: float):
    with pytest.raises(ValueError, match=f"{argument} is {value}"):
        Detector(**{argument: value})  # pyright: ignore[reportArgumentType]


def test_signals_must_be_signals():
    with pytest.raises(TypeError, match=r"signals is \[0.5\]; expected"):
        Detector().update(0, [0.5])  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_state_of_something_else_is_refused():
    with pytest.raises(ValueError, match="state"):
        Detector().load_state_dict({"mean": 0.1})


def test_empty_and_zero_signals_are_nothing():
    _, alarms = run([Signals()] * 100)
    assert alarms == []
    zero = Signals(losses={"a": 0.0}, relative_losses={"a": 0.0}, clip_ratios={"l": 0.0}, grad_norms={"l": 0.0})
    _, alarms = run([zero] * 200)
    assert alarms == []
