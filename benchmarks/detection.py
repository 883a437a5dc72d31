"""Does the detector see divergences, early, and is it quiet otherwise? Real runs, recorded once; rivals beside it.

    python benchmarks/detection.py record [--processes 2]   # an hour of CPU; goes on where it was stopped
    python benchmarks/detection.py score                    # a few minutes; writes benchmarks/results/detection.txt

What the modules beside this one say in full:

- ``faults``: what goes wrong; ``detection_plan``: set-ups and faults, all from one seed; both logs, several depths,
  rates, warm-ups, with and without cross layers, Clippy, regression tasks.
- ``detection_record``: a twin without a fault for each set-up; each fault branches off it, bit for bit
  equal up to there.
- ``detection_labels``: outcomes, from rows that are never trained on and that no detector sees, scored at every step.
- ``detection_rivals``: the rules of other libraries as their code has them.
- ``detection_score``: half of the set-ups may set thresholds; the other half is reported.

The detector sees what a monitor at its defaults shows: AUC, calibration and spread over the last 8,192 rows, every 8
steps. "found": an alarm starts at most 50 steps before the onset, not before the fault, and no later than the end of
the run (full) or the recovery (micro). "delay": median and 90 % quantile, over full divergences, of alarm less onset;
the onset is the first step that starts with damaged weights, so -1 is the very step that damaged them. "early":
alarmed before the step that starts with a point of AUC lost; where a fault damages the model itself that cannot be;
"seen" counts the step that the alarm tells of, "delivered" the step at which a training loop hears of it, one later:
what a step left on its device is read when the next has been taken, so that none waits. The others' rules are counted
likewise, though most of them wait. "false": alarms that start on healthy steps, with a 95 % interval for each 10,000
as if they were independent, and their number; flags of a rule less than 10 steps apart are one alarm. "open": healthy
steps on which an alarm is open, or a rule would act.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import detection_load
import detection_plan
import detection_record
import detection_score
import detection_table
import torch

from surefoot.detect.detector import Detector

RESULTS = Path(__file__).parent / "results" / "detection.txt"
OURS: dict[str, Callable[[], Detector]] = {"surefoot.monitor.Detector, its defaults": Detector}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "score"])
    parser.add_argument("--records", type=Path, default=Path("build/detection"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--setups",
        type=int,
        default=len(detection_plan.setups()),
        help="record the first so many only",
    )
    parser.add_argument("--half", choices=["reported", "thresholds"], default="reported", help="which half to score")
    options = parser.parse_args()
    if options.what == "record":
        record(options.records, options.processes, options.setups)
    else:
        lines = list(detection_table.report(watch_all(options.records, options.half), list(OURS)))
        if options.half == "reported":
            lines += ["", *detection_table.report_fresh(watch_all(options.records, "fresh"), list(OURS))]
        print("\n".join(lines))
        if options.half == "reported":
            RESULTS.write_text("\n".join([__doc__ or "", *lines, ""]))


def record(folder: Path, processes: int, count: int) -> None:
    """Train what is not in the folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [i for i in range(min(count, len(detection_plan.setups()))) if not (folder / f"{i:03d}.npz").exists()]
    started = time.monotonic()
    with ProcessPoolExecutor(processes) as pool:
        running = [pool.submit(_record_one, i, folder) for i in wanted]
        for done, future in enumerate(as_completed(running), 1):
            future.result()
            print(f"{done} of {len(wanted)} set-ups, {time.monotonic() - started:.0f} s", flush=True)


def _record_one(index: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns unless told either way
    setup = detection_plan.setups()[index]
    schema = detection_record.load_logs(setup).train.schema
    detection_record.record(setup, detection_plan.faults_of(setup, schema), folder)


def watch_all(folder: Path, half: str) -> list[detection_score.Watched]:
    """Return the runs of one half, or of the fresh set-ups, each with what all detectors said."""

    def is_of_it(setup: int) -> bool:
        fresh = setup >= detection_plan.SETUPS + detection_plan.UNHARMED
        return half == "fresh" if fresh else detection_score.is_reported(setup) == (half == "reported")

    runs = detection_load.load(folder, is_of_it)
    return [detection_score.watch(run, OURS) for run in runs]


if __name__ == "__main__":
    main()
