"""The sentences: right whoever wins, and no more certain than the numbers."""

import pytest

from surefoot.report import text
from surefoot.report.text import Entry, Fall, Score

GC = Entry("GC", "8x, threshold 0.1", Score.over([0.975, 0.976, 0.977]))
CLIPPY = Entry("Clippy", "1x", Score.over([0.972, 0.974, 0.976]))
FAR = Entry("LAMB", "2x, scale 0.1", Score.over([0.95, 0.951, 0.952]))


def test_a_score_is_its_mean_and_the_samples_deviation() -> None:
    score = Score.over([0.97, 0.98, 0.99])
    assert (score.mean, score.std, score.alive, score.tried) == (pytest.approx(0.98), pytest.approx(0.01), 3, 3)
    assert score.text(2, 100) == "98.00 ± 1.00"


def test_one_seed_has_no_spread_and_cannot_be_near() -> None:
    score = Score.over([0.97])
    assert score.text(1, 100) == "97.0"
    assert score.near(GC.score) is None


def test_scores_are_near_where_their_deviations_overlap() -> None:
    assert Score(0.5, 0.01, 2, 2).near(Score(0.5199, 0.01, 2, 2))
    assert not Score(0.5, 0.01, 2, 2).near(Score(0.5201, 0.01, 2, 2))


@pytest.mark.parametrize(
    ("falls", "said"),
    [
        (
            [Fall("naive Adagrad", 1, 32), Fall("Clippy, untuned,", None, 32)],
            "On large+dcn, naive Adagrad diverges at 1x; Clippy, untuned, holds at every rate up to 32x.",
        ),
        (
            [Fall("naive Adagrad", 0.5, 32, spared=(1,)), Fall("Clippy, untuned,", 16, 32, diverged=False)],
            "On large+dcn, naive Adagrad diverges at 0.5x (yet not at 1x); "
            "Clippy, untuned, loses over 2 points of AUC only at 16x.",
        ),
        (
            [Fall("naive Adagrad", 4, 32), Fall("Clippy, untuned,", 2, 32)],
            "On large+dcn, naive Adagrad diverges at 4x; Clippy, untuned, diverges at 2x.",
        ),
        (
            [Fall("naive Adagrad", None, 8), Fall("Clippy, untuned,", 4, 8)],
            "On large+dcn, naive Adagrad holds at every rate up to 8x; Clippy, untuned, diverges at 4x.",
        ),
        ([], ""),
    ],
)
def test_stability(falls: list[Fall], said: str) -> None:
    assert text.stability("large+dcn", falls, 2) == said


@pytest.mark.parametrize(
    ("onsets", "said"),
    [
        ({4: 2, 8: 2}, "Naive Adagrad diverges in its first steps (at step 2 of 200) at 4x and 8x."),
        ({4: 90, 8: 120}, "Naive Adagrad diverges after a healthy stretch (at steps 90 to 120 of 200) at 4x and 8x."),
        (
            {4: 90, 8: 2, 16: 9},
            "Naive Adagrad diverges in its first steps (at steps 2 to 9 of 200) at 8x and 16x, "
            "after a healthy stretch (at step 90 of 200) at 4x.",
        ),
        ({}, "Naive Adagrad falls off without diverging: its loss never leaves the road, its AUC is lower."),
    ],
)
def test_onset(onsets: dict[float, int], said: str) -> None:
    assert text.onset(Fall("naive Adagrad", 4, 16), onsets, 200) == said


def test_what_did_not_fall_has_no_onset() -> None:
    assert text.onset(Fall("naive Adagrad", None, 16), {}, 200) == ""


def test_warm_up() -> None:
    fell = Fall("naive + warm-up", 8, 32)
    assert text.cure("naive + warm-up", 60, 4, holds=True, fall=fell) == (
        "A warm-up of 60 steps (naive + warm-up) cures it at 4x and itself falls off at 8x."
    )
    held = Fall("naive + warm-up", None, 32)
    assert text.cure("naive + warm-up", 60, 4, holds=True, fall=held).endswith("holds at every rate up to 32x.")
    assert text.cure("naive + warm-up", 60, 4, holds=False, fall=fell).endswith("does not cure it at 4x.")


def test_another_rule_wins_within_the_spread() -> None:
    assert text.quality("day-07", [CLIPPY, GC, FAR], "Clippy") == (
        "Best on day-07: GC at 8x, threshold 0.1, AUC 97.60 ± 0.10; "
        "Clippy at 1x has 97.40 ± 0.20, within the spread of the seeds."
    )


def test_another_rule_wins_beyond_the_spread() -> None:
    worse = Entry("Clippy", "1x", Score.over([0.960, 0.961, 0.962]))
    assert text.quality("day-07", [worse, GC], "Clippy") == (
        "Best on day-07: GC at 8x, threshold 0.1, AUC 97.60 ± 0.10; "
        "Clippy at 1x has 96.10 ± 0.10, 1.50 less, beyond the spread of the seeds."
    )


def test_the_reference_wins_and_is_compared_with_the_next() -> None:
    assert text.quality("day-07", [FAR, CLIPPY], "Clippy") == (
        "Best on day-07: Clippy at 1x, AUC 97.40 ± 0.20; "
        "next, LAMB at 2x, scale 0.1 has 95.10 ± 0.10, 2.30 less, beyond the spread of the seeds."
    )


def test_one_seed_says_that_it_cannot_tell() -> None:
    alone = [Entry("GC", "8x", Score.over([0.976])), Entry("Clippy", "1x", Score.over([0.974]))]
    assert text.quality("day-07", alone, "Clippy").endswith("0.20 less, from too few seeds to know their spread.")


def test_a_winner_that_lost_seeds_does_not_hide_it() -> None:
    shaky = Entry("GC", "8x", Score.over([0.98, 0.98], 3))
    assert "GC at 8x, AUC 98.00 ± 0.00 (1 of 3 seeds diverged);" in text.quality("day-07", [CLIPPY, shaky], "Clippy")


def test_a_reference_that_did_not_survive_leaves_the_runner_up() -> None:
    assert "; next, LAMB at" in text.quality("day-07", [GC, FAR], "Clippy")


def test_one_method_or_none() -> None:
    assert text.quality("day-07", [GC], None) == "Best on day-07: GC at 8x, threshold 0.1, AUC 97.60 ± 0.10."
    assert text.quality("day-07", [], "Clippy") == "No method is left to score on day-07: all final runs diverged."


def test_the_floor() -> None:
    assert text.against_floor(GC, Score.over([0.98, 0.982])) == "No method beats the linear floor (98.10 ± 0.14)."
    near = text.against_floor(CLIPPY, Score.over([0.973, 0.974]))
    assert near == "The lead of Clippy over the linear floor (97.35 ± 0.07) is within the spread of the seeds."
    assert text.against_floor(GC, Score.over([0.9, 0.902])) == "GC is 7.50 above the linear floor (90.10 ± 0.14)."


def test_ties() -> None:
    assert text.ties(GC, [CLIPPY, FAR]) == "The seeds cannot tell GC from Clippy."
    assert text.ties(GC, [CLIPPY, Entry("AGC", "1x", GC.score)]) == "The seeds cannot tell GC from Clippy or AGC."
    assert text.ties(GC, [FAR]) == "GC is ahead of all others beyond the spread of the seeds."
    assert text.ties(Entry("GC", "1x", Score.over([0.9])), [FAR]) == ""


def test_the_papers_grid() -> None:
    assert text.paper_grid("day-06", [1.0, 2.0], CLIPPY, GC) == (
        "The paper's own grid alone (1x and 2x) would have put Clippy at 1x first on day-06, with 97.40; "
        "the wider search puts GC at 8x, threshold 0.1 first, with 97.60."
    )
    assert text.paper_grid("day-06", [1.0], GC, GC).endswith(
        "(1x) would have put the same first on day-06: GC at 8x, threshold 0.1."
    )
    assert text.paper_grid("day-06", [1.0], None, GC).endswith("has no setting that survives on day-06.")


def test_edges_and_losses() -> None:
    assert text.edges([]) == ""
    assert text.edges(["GC"]).startswith("The best setting of GC lies at the edge")
    assert text.edges(["GC", "AGC"]).startswith("The best settings of GC and AGC lie at the edge")
    assert text.lost([], "day-07") == ""
    assert text.lost(["GC", "AGC"], "day-07") == "No final run of GC or AGC survived to be scored on day-07."
    assert text.rest([], 2) == ""
    assert text.rest([Fall("GC", None, 8), Fall("AGC", 4, 8)], 2) == (
        "GC holds at every rate up to 8x; AGC diverges at 4x."
    )
