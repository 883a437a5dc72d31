"""The report of one run."""

from pathlib import Path

from surefoot.files import write_whole
from surefoot.lab.report import html, run_figures, style
from surefoot.lab.report.happened import MOST_LINES, conclusion, facts, happenings, score_table, warnings
from surefoot.lab.report.run_folder import RunFolder, read_run


def write_run_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, from what the folder holds; return its path.

    Raises:
        InputError: naming the file, if one cannot be read, or if the report cannot be written.
    """
    run = read_run(folder)
    return write_whole(folder / "report.html", render(run))


def render(run: RunFolder) -> str:
    """Return the page of a run."""
    plots = html.Plots()
    plots.place("losses", run_figures.losses(run), "relative loss, loss, and what happened")
    plots.place("scores", run_figures.scores(run))
    layers = run_figures.layers_over_time(run)
    if layers is None:
        plots.place("layers", None)
    else:
        choices = tuple((label, label) for label in run_figures.layer_names(run).values())
        plots.place("layers", layers, choices=choices, choice=run_figures.first_layer(run), chosen="layer")
    plots.place("ratios", run_figures.ratio_map(run))
    lines = happenings(run)
    return html.page(
        "run.html.j2",
        plots,
        run_figures.task_looks(run.tasks),
        run=run,
        facts=facts(run),
        conclusion=conclusion(run),
        warnings=warnings(run),
        happenings=lines[:MOST_LINES],
        smoothing=style.smoothing(run.steps),
        left_out=max(0, len(lines) - MOST_LINES),
        scores=score_table(run),
    )
