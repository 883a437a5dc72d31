"""The sentences: right whoever wins, and no more certain than the numbers."""

import pytest

from surefoot.lab.outcomes import Score, ScoredRun, fall_of
from surefoot.lab.report import text
from surefoot.lab.report.text import Entry, Falling

GC = Entry("GC", "8x, threshold 0.1", Score.over([0.975, 0.976, 0.977]))
CLIPPY = Entry("Clippy", "1x", Score.over([0.972, 0.974, 0.976]))
FAR = Entry("LAMB", "2x, scale 0.1", Score.over([0.95, 0.951, 0.952]))


def falling(who: str, **rates: str) -> Falling:
    """Return where a method falls, told by the runs at each rate: "." held, "x" diverged, "-" lost AUC."""
    scores = {".": 0.9, "x": 0.5, "-": 0.8}
    runs = [ScoredRun(float(name[1:]), run == "x", scores[run]) for name, told in rates.items() for run in told]
    return Falling(who, fall_of(runs, 0.02))


NAIVE = falling("naive Adagrad", x1=".", x4="x.x", x16="x")


@pytest.mark.parametrize(
    ("falls", "said"),
    [
        (
            [falling("naive Adagrad", x1="x", x32="x"), falling("Clippy, untuned,", x1="..", x32="...")],
            "On large+dcn, naive Adagrad diverges at 1x and above (2 of 2 runs); "
            "Clippy, untuned, trains well at every rate up to 32x (none of 5 runs diverged).",
        ),
        (
            [NAIVE, falling("Clippy, untuned,", x1=".", x8=".", x16="---")],
            "On large+dcn, naive Adagrad diverges at 4x and above (3 of 4 runs); "
            "Clippy, untuned, loses more than 2 points of AUC only at 16x.",
        ),
        (
            [NAIVE, falling("Clippy, untuned,", x1=".", x2="x", x4="x")],
            "On large+dcn, naive Adagrad diverges at 4x and above (3 of 4 runs); "
            "Clippy, untuned, diverges at 2x and above (2 of 2 runs).",
        ),
        (
            [falling("naive Adagrad", x1=".", x8="."), falling("Clippy, untuned,", x1=".", x2="x", x4=".", x8=".")],
            "On large+dcn, naive Adagrad trains well at every rate up to 8x (none of 2 runs diverged); "
            "Clippy, untuned, diverges at 2x (1 of 1 run), but not at 4x and 8x.",
        ),
        (
            [falling("naive Adagrad", x1=".")],
            "On large+dcn, naive Adagrad trains well at every rate up to 1x (its only run did not diverge).",
        ),
        ([], ""),
    ],
)
def test_stability(falls: list[Falling], said: str) -> None:
    assert text.stability("large+dcn", falls, 2) == said


@pytest.mark.parametrize(
    ("onsets", "said"),
    [
        ({4: [2, 2], 8: [2]}, "Naive Adagrad diverges in its first steps (at step 2 of 200) at 4x and 8x."),
        (
            {4: [90], 8: [120]},
            "Naive Adagrad diverges after a healthy start (at steps 90 to 120 of 200) at 4x and 8x.",
        ),
        (
            {4: [90, 3], 8: [2], 16: [9]},
            "Naive Adagrad diverges in its first steps (at steps 2 to 9 of 200) at 4x, 8x and 16x, "
            "after a healthy start (at step 90 of 200) at 4x.",
        ),
        ({}, "Naive Adagrad falls off without diverging: its loss stays below that of a constant prediction."),
    ],
)
def test_onset(onsets: dict[float, list[int]], said: str) -> None:
    assert text.onset(NAIVE, onsets, 200) == said


def test_what_did_not_fall_has_no_onset() -> None:
    assert text.onset(falling("naive Adagrad", x1="."), {}, 200) == ""


def test_warm_up() -> None:
    fell, held = falling("", x4="...", x8="x").fall, falling("", x4=".", x32=".").fall
    assert text.cure("naive + warm-up", 60, 4, (0, 3), holds=True, fall=fell) == (
        "A warm-up of 60 steps (naive + warm-up) prevents this at 4x (none of 3 runs diverged) but falls off at 8x."
    )
    said = text.cure("naive + warm-up", 60, 4, (0, 1), holds=True, fall=held)
    assert said.endswith("(none of 1 run diverged) and up to 32x.")
    assert text.cure("w", 60, 4, (2, 3), holds=False, fall=fell).endswith(
        "does not prevent this at 4x (2 of 3 runs diverged)."
    )


def test_another_rule_wins_and_the_seeds_cannot_tell() -> None:
    assert text.quality("day-07", [CLIPPY, GC, FAR], "Clippy") == (
        "Best on day-07: GC at 8x, threshold 0.1, AUC 97.60 ± 0.10; Clippy at 1x: 97.40 ± 0.20, which is not "
        "significantly lower (difference 0.20, 95 % interval \N{MINUS SIGN}0.05 to 0.45 over 3 seeds)."
    )


def test_another_rule_wins_beyond_its_interval() -> None:
    worse = Entry("Clippy", "1x", Score.over([0.960, 0.9615, 0.962]))
    assert text.quality("day-07", [worse, GC], "Clippy") == (
        "Best on day-07: GC at 8x, threshold 0.1, AUC 97.60 ± 0.10; "
        "Clippy at 1x: 96.12 ± 0.10, 1.48 lower (95 % interval 1.41 to 1.56 over 3 seeds)."
    )


def test_the_reference_wins_and_is_compared_with_the_next() -> None:
    assert text.quality("day-07", [FAR, CLIPPY], "Clippy") == (
        "Best on day-07: Clippy at 1x, AUC 97.40 ± 0.20; "
        "next, LAMB at 2x, scale 0.1: 95.10 ± 0.10, 2.30 lower (95 % interval 2.05 to 2.55 over 3 seeds)."
    )


def test_one_seed_says_that_it_cannot_tell() -> None:
    alone = [Entry("GC", "8x", Score.over([0.976])), Entry("Clippy", "1x", Score.over([0.974]))]
    assert text.quality("day-07", alone, "Clippy").endswith(
        "0.20 lower, with too few seeds to know whether that is significant."
    )


def test_a_method_that_lost_seeds_does_not_win_on_the_others() -> None:
    shaky = Entry("GC", "8x", Score.over([0.98, 0.98], 3))
    assert text.quality("day-07", [CLIPPY, shaky], "Clippy") == (
        "Best on day-07: Clippy at 1x, AUC 97.40 ± 0.20; "
        "next, GC at 8x: 98.00 ± 0.00 (1 of 3 seeds diverged), with more diverged seeds."
    )


def test_a_reference_that_did_not_survive_leaves_the_runner_up() -> None:
    assert "; next, LAMB at" in text.quality("day-07", [GC, FAR], "Clippy")


def test_one_method_or_none() -> None:
    assert text.quality("day-07", [GC], None) == "Best on day-07: GC at 8x, threshold 0.1, AUC 97.60 ± 0.10."
    assert text.quality("day-07", [], "Clippy") == "No method has a score on day-07: all final runs diverged."


def test_the_floor() -> None:
    assert text.against_floor(GC, Score.over([0.98, 0.982])) == "No method beats the linear floor (98.10 ± 0.14)."
    near = text.against_floor(CLIPPY, Score.over([0.973, 0.974]))
    assert near == "Clippy is not significantly better than the linear floor (97.35 ± 0.07)."
    above = text.against_floor(GC, Score.over([0.9, 0.902]))
    assert above == "GC is 7.50 points of AUC above the linear floor (90.10 ± 0.14)."
    assert text.against_floor(GC, Score.over([0.45, 0.452])).endswith(
        "(45.10 ± 0.14); the floor itself is no better than a constant prediction."
    )


def test_ties() -> None:
    assert text.ties(GC, [CLIPPY, FAR]) == "GC is not significantly better than Clippy."
    assert text.ties(GC, [CLIPPY, Entry("AGC", "1x", GC.score)]) == "GC is not significantly better than Clippy or AGC."
    first = text.ties(GC, [FAR])
    assert first == "GC is significantly better than all others: no 95 % interval of a difference includes 0."
    assert text.ties(Entry("GC", "1x", Score.over([0.9])), [FAR]) == ""


def test_the_papers_grid() -> None:
    assert text.paper_grid("day-06", [1.0, 2.0], FAR, GC) == (
        "The paper's own grid alone (1x and 2x) has another best setting on day-06: LAMB at 2x, scale 0.1, "
        "95.10 ± 0.10; that of the wider search is GC at 8x, threshold 0.1, 97.60 ± 0.10."
    )
    assert text.paper_grid("day-06", [1.0], CLIPPY, GC).endswith("; the difference is not significant.")
    assert text.paper_grid("day-06", [1.0], GC, GC).endswith(
        "(1x) has the same best setting on day-06: GC at 8x, threshold 0.1."
    )
    assert text.paper_grid("day-06", [1.0], None, GC).endswith("has no setting that does not diverge.")


def test_edges_and_losses() -> None:
    assert text.edges([]) == ""
    assert text.edges(["GC"]).startswith("The best setting of GC lies at the edge")
    assert text.edges(["GC", "AGC"]).startswith("The best settings of GC and AGC lie at the edge")
    assert text.lost([], "day-07") == ""
    assert text.lost(["GC", "AGC"], "day-07") == "All final runs of GC and AGC diverged: no score on day-07."
    assert text.rest([], 2) == ""
    assert text.rest([falling("GC", x8="."), falling("AGC", x1=".", x4="x.")], 2) == (
        "GC trains well at every rate up to 8x (its only run did not diverge); AGC diverges at 4x (1 of 2 runs)."
    )


@pytest.mark.parametrize(
    ("value", "said"), [(0.3, "0.30"), (-0.3, "\N{MINUS SIGN}0.30"), (-0.001, "0.00"), (0.0, "0.00")]
)
def test_a_difference_of_nothing_has_no_sign(value: float, said: str):
    assert text.signed(value) == said
