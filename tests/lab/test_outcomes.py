"""Several runs together: diverged ones are the worst, differences have intervals, a fall counts every run."""

import math
import random
from itertools import pairwise

import pytest

from surefoot.lab.outcomes import Score, ScoredRun, difference, fall_of


def test_a_score_is_its_mean_and_the_samples_deviation() -> None:
    score = Score.over([0.97, 0.98, 0.99])
    assert (score.mean, score.std, score.diverged, score.tried) == (pytest.approx(0.98), pytest.approx(0.01), 0, 3)
    assert score.text(2, 100) == "98.00 ± 1.00"


def test_one_seed_has_no_spread_and_cannot_be_near() -> None:
    score = Score.over([0.97])
    assert score.text(1, 100) == "97.0"
    assert score.near(Score.over([0.97, 0.98])) is None


def test_diverged_seeds_are_the_worst_and_never_left_out() -> None:
    ranked = [Score.over([0.9, 0.9]), Score.over([0.99], 2), Score.over([0.98], 2), Score.over([], 2)]
    for better, worse in pairwise(ranked):
        assert better.standing() > worse.standing()
    assert ranked[0].near(ranked[1]) is False
    assert Score.over([1.0]).standing(least=True) < Score.over([0.9]).standing(least=True)
    assert Score.over([0.1], 2).standing(least=True) < Score.over([5.0, 5.0]).standing(least=True)


def test_a_difference_is_taken_seed_by_seed() -> None:
    lead = difference(Score({1: 0.9, 2: 0.8, 3: 0.7}), Score({3: 0.6, 2: 0.7, 1: 0.8, 9: 0.1}))
    assert lead == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1), 3)


def test_the_interval_is_students() -> None:
    lead = difference(Score.over([1.0, 2.0, 3.0]), Score.over([0.0, 0.0, 0.0]))
    half = 4.303 / math.sqrt(3)  # the sample's deviation is 1
    assert (lead.low, lead.high) == (pytest.approx(2 - half), pytest.approx(2 + half))


@pytest.mark.parametrize("seeds", [2, 3, 5, 15])
def test_the_interval_holds_the_truth_in_95_of_100_draws(seeds: int) -> None:
    generator, hits, draws = random.Random(0), 0, 4000
    for _ in range(draws):
        lead = difference(Score.over([generator.gauss(1, 1) for _ in range(seeds)]), Score.over([0.0] * seeds))
        assert lead.low is not None
        assert lead.high is not None
        hits += lead.low <= 1 <= lead.high
    assert hits / draws == pytest.approx(0.95, abs=0.015)  # four standard errors


def test_a_rate_that_diverged_fell_wherever_it_lies() -> None:
    fall = fall_of(
        [ScoredRun(0.5, True, 0.5), ScoredRun(1, False, 0.9), ScoredRun(2, False, 0.89), ScoredRun(4, False, 0.8)], 0.02
    )
    assert [(rate.multiple, rate.fell, rate.lost) for rate in fall.rates] == [
        (0.5, True, False),
        (1, False, False),
        (2, False, False),
        (4, True, True),
    ]
    assert fall.at is not None
    assert (fall.at.multiple, fall.spared, fall.top) == (0.5, (1, 2), 4)


def test_a_low_score_below_the_best_rate_is_slow_and_not_a_fall() -> None:
    assert fall_of([ScoredRun(0.25, False, 0.5), ScoredRun(1, False, 0.9)], 0.02).at is None


def test_one_diverged_run_of_several_is_a_fall() -> None:
    fall = fall_of(
        [ScoredRun(1, False, 0.9), *(ScoredRun(2, diverged, 0.9) for diverged in (False, True, False))], 0.02
    )
    assert fall.at is not None
    assert (fall.at.diverged, fall.at.tried) == (1, 3)
    assert fall.runs(fallen=True) == (1, 3)
    assert fall.runs(fallen=False) == (0, 1)


def test_the_best_rate_is_one_that_did_not_diverge() -> None:
    fall = fall_of(
        [ScoredRun(1, False, 0.9), ScoredRun(2, False, 0.95), ScoredRun(2, True, 0.5), ScoredRun(4, False, 0.89)], 0.02
    )
    assert [rate.fell for rate in fall.rates] == [False, True, False]


def test_scores_that_are_undefined_or_of_another_day_lose_nothing() -> None:
    assert fall_of([ScoredRun(1, False, math.nan), ScoredRun(2, False, math.nan)], 0.02).at is None
    assert fall_of([ScoredRun(1, False, 0.9), ScoredRun(2, False, math.nan)], 0.02).at is None


def test_everything_diverged() -> None:
    fall = fall_of([ScoredRun(1, True, 0.5), ScoredRun(2, True, 0.5)], 0.02)
    assert fall.short() == "1x 1/1"
    assert fall.spared == ()


def test_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match="runs is empty"):
        fall_of([], 0.02)
