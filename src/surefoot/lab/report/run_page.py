"""The report of one run."""

from pathlib import Path

from surefoot.files import write_whole
from surefoot.lab.report import html, run_figures
from surefoot.lab.report.happened import MOST_LINES, conclusion, happenings, score_table, warnings
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
        left_out=max(0, len(lines) - MOST_LINES),
        scores=score_table(run),
    )


def facts(run: RunFolder) -> str:
    """Return what was trained, in a line; what the configuration does not say is left out."""
    config, said = run.config, []
    if rule := config.get("rule", {}).get("name"):
        said.append(f"rule {rule}")
    for key, called in (("rate", "learning rate"), ("warmup_steps", "warm-up of"), ("seed", "seed")):
        if config.get(key) is not None and (key != "warmup_steps" or config[key]):
            said.append(f"{called} {config[key]}{' steps' if key == 'warmup_steps' else ''}")
    if model := config.get("model", {}).get("name"):
        said.append(f"model {model}")
    if source := config.get("data", {}).get("source"):
        said.append(f"data {source}")
    said.append(f"{len(run.steps)} steps written")
    return " · ".join(said)
