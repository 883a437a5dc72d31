"""Which mistakes the tests catch: each one is made in a copy of the tree, and the tests of its place are run.

usage: python benchmarks/mutations.py [--tests DIR] [WORD ...]

Writes a line for each mistake, and the sum. With words, only the mistakes whose file has one of them in its path. With
``--tests`` the tests are taken from another folder, to compare an older version of them. A mistake is caught if a test
fails with it, or does not end, and passes without it.
"""

# ruff: noqa: E501 - a mistake a line

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import NoReturn

import polars  # noqa: F401 - imported here for all that is forked
import pyarrow.parquet  # noqa: F401
import pydantic  # noqa: F401
import pytest
import torch._dynamo  # noqa: F401

ROOT = Path(__file__).parent.parent
LIMIT = 240  # seconds of a processor for the tests of a mistake; without one they take a fraction of that
Change = tuple[str, str, str]  # a file below src/surefoot, the text that is there once, the text in its place

# fmt: off
# The files of tests, below tests/, and the mistakes that one of them should catch.
ROOMS: dict[str, list[Change]] = {
    "test_rules.py": [
        ("rules.py", "((weight_norm == 0) & update_norm.isfinite())", "(weight_norm == 0)"),
        ("rules.py", "torch.where(step == 0, self", "torch.where(update == 0, self"),
        ("rules.py", "len(shape) > self.unit_dims", "len(shape) >= self.unit_dims"),
    ],
    "optim/test_adagrad.py": [
        ("optim/eager.py", "start += len(piece.weight)", "start += 0"),
        ("optim/eager.py", "torch.where(item.skip, 1.0, decay))", "decay)"),
        ("optim/adagrad.py", "if slow and not bad:", "if slow and not fast:"),
        ("optim/adagrad.py", "self.param_groups.pop()  # a refused", "pass  # a refused"),
        ("optim/adagrad.py", "+= ~item.skip", "+= 1"),
        ("optim/adagrad.py", "parts.setdefault(rule, [])", "parts.setdefault(stepper, [])"),
        ("optim/state_loading.py", "wide = torch.promote_types(total.dtype, torch.float32)", "wide = param.dtype"),
    ],
    "optim/test_kernel.py": [
        ("optim/kernel.cpp", "if (r == r && !(least[c] >= r)) r = least[c];", "if (least[c] < r) r = least[c];"),
        ("optim/kernel.cpp", "const float kept = optimistic ? 1.0f : decay;", "const float kept = decay;"),
        ("optim/kernel.py", " or not x.is_contiguous():", ":"),
    ],
    "optim/test_hooks.py optim/test_clip_updates.py": [
        ("optim/clip_updates.py", "groups = [{**rule, **group} for rule", "groups = [group for rule"),
        ("optim/clip_updates.py", "but_not(around.bad(), around.scaler_skips())", "around.bad()"),
        ("optim/hooks.py", "if self._step_before is not None:", "if False:"),
        ("optim/clip_gradients.py", "if rule.scope is Scope.MODEL and bad:", "if False:"),
    ],
    "optim/test_guard.py": [
        ("optim/nonfinite.py", "(~both.isfinite().all(dim=1)).unbind()", "both.isnan().any(dim=1).unbind()"),
        ("optim/guard.py", "if optimizer in self._stepped or seen.replaced():", "if seen.replaced():"),
        ("optim/guard.py", "self._add(around, around.bad(optimizer))", "pass"),
    ],
    "optim/test_groups.py optim/test_gradients.py optim/test_unwrap.py optim/test_accumulator_start.py": [
        ("optim/accumulator_start.py", "if 2 * slow > weights:", "if slow > 2 * weights:"),
        ("optim/groups.py", "** height * spec.lr_multiplier", "** (height + 1) * spec.lr_multiplier"),
        ("optim/embedding_tables.py", "for base in type(module).__mro__", "for base in [type(module)]"),
        ("optim/unwrap.py", "loaded = {**optimizer.state, **others}", "loaded = {**optimizer.state}"),
    ],
    "observe/test_streaming_metrics.py observe/test_step_stats.py observe/test_attribution.py": [
        ("observe/streaming_metrics.py", "cleaned[:, :, -count:]", "cleaned[:, :, :count]"),
        ("observe/streaming_metrics.py", "least = 1 / max(count, 2)", "least = 1 / max(count, 2) ** 2"),
        ("observe/streaming_metrics.py", "torch.minimum(a, 1 - 0.5 / torch.minimum(positives, negatives))", "a"),
        ("observe/attribution.py", "torch.where(finite, x * torch.where(finite, grad, 0.0), 0.0)", "x * grad"),
    ],
    "observe/test_batch_norms.py observe/test_reported_forms.py observe/test_monitor.py": [
        ("observe/detector_input.py", "few and kind in OF_BATCH and math.isfinite(value)", "few and kind in OF_BATCH"),
        ("observe/monitor.py", "        self._batch_norms.forget()\n", ""),
        ("observe/monitor.py", "self._forget_window()  # which holds", "pass  # which holds"),
        ("observe/batch_norms.py", "torch.where(now[2] > count,", "torch.where(now[2] >= count,"),
    ],
    "detect/test_signals.py detect/test_alarm.py detect/test_task_state.py detect/test_detector.py detect/test_detector_signals.py": [
        ("detect/task_state.py", "step - self.onset - self.missed >=", "step - self.onset >="),
        ("detect/task_state.py", "self.accepted.forget_waiting()\n", "pass\n"),
        ("detect/task_state.py", "if healthy < self.limits.learnt else self.limits.learnt", "if True else 0.0"),
        ("detect/detector.py", "            self._baselines.forget()\n", ""),
        ("detect/detector.py", "event.onset - earlier.end < 2 * self.window", "event.onset - earlier.end < 0"),
        ("detect/alarm.py", "worst + max(1.0, worst / 2)", "worst + worst / 2"),
        ("detect/baselines.py", "if steps >= self._window:", "if steps > self._window:"),
        ("detect/baselines.py", "math.hypot(layers, tasks)", "max(layers, tasks)"),
    ],
    "recover/test_lr_scale.py recover/test_state_size.py recover/test_journal.py recover/test_checkpoint_schedule.py": [
        ("recover/lr_scale.py", "if group.get(key) is not value:", "if False:"),
        ("recover/lr_scale.py", "measure is not self._measured.get(param)", "True"),
        ("recover/state_size.py", "if not ratio <= (_AVERAGES if averages", "if ratio > (_AVERAGES if averages"),
        ("recover/journal.py", "            file.truncate(end)  # of a line", "            # of a line"),
        ("recover/checkpoint_schedule.py", "self._spent > _FREE + _SHARE * total", "self._spent > _SHARE * total"),
    ],
    "recover/test_buffers.py recover/test_checkpoints.py": [
        ("recover/buffers.py", "(~finite & _finite([kept.values for kept, _ in pairs])).any()", "(~finite).any()"),
        ("recover/checkpoints.py", "self._path(step, tag).unlink(missing_ok=True)", "pass"),
        ("recover/checkpoints.py", "*waiting[: self.waiting], *waiting[-1:]", "*waiting[: self.waiting]"),
    ],
    "recover/test_recovery.py": [
        ("recover/recovery.py", "alarm.step < state.rolled_at", "alarm.step <= state.rolled_at"),
        ("recover/recovery.py", "how.hold * 2 ** (state.roll_backs - 1)", "how.hold"),
        ("recover/recovery.py", "if state.pending[0] > state.rolled_at and state.factor == 1.0:", "if True:"),
    ],
    "capsule/test_ring.py": [
        ("capsule/ring.py", "if self._pending is None:\n            self._pending = _", "if True:\n            self._pending = _"),
        ("capsule/storage.py", "        shutil.rmtree(draft, ignore_errors=True)\n", ""),
    ],
    "capsule/test_replay.py": [
        ("capsule/replay.py", "            torch.use_deterministic_algorithms(deterministic)", "            pass"),
        ("capsule/replay.py", "elif repr(value) != repr(now[name]):", "elif value != now[name]:"),
    ],
    "capsule/test_bad_rows.py": [
        ("capsule/bad_rows.py", "self.records[blamed + (batch is None) :]", "self.records[blamed:]"),
        ("capsule/bad_rows.py", "math.isfinite(value) and value <= signal.limit", "not value > signal.limit"),
    ],
    "test_supervisor.py": [
        ("supervisor.py", "self._stepped:\n            self._end()\n        for", "self._stepped:\n            pass\n        for"),
        ("supervisor.py", "self._with_ring(lambda ring: ring.clear())", "pass"),
        ("supervisor.py", "        if not torch.is_grad_enabled():\n            return\n", ""),
    ],
    "integrations/test_lightning.py": [
        ("integrations/lightning.py", "            return\n        batches, self._", "            pass\n        batches, self._"),
        ("integrations/lightning.py", "            trainer.should_stop = True\n", "            pass\n"),
    ],
    "lab/data/test_sliding_window.py lab/data/test_schema.py lab/data/test_prepared.py lab/data/test_pools.py": [
        ("lab/data/sliding_window.py", "or ceil(rows / (self.batch_size * self.ranks))", "or rows // (self.batch_size * self.ranks)"),
        ("lab/data/sliding_window.py", "self._move_to(*self.position)  # the next", "pass  # the next"),
        ("lab/data/pools.py", "torch.bucketize(positions, ends, right=True)", "torch.bucketize(positions, ends)"),
        ("lab/data/schema.py", "count = max(1, (end - oldest) // size)", "count = (end - oldest) // size"),
    ],
    "lab/ingest/test_days.py lab/ingest/test_vocabularies.py lab/ingest/test_prepare.py": [
        ("lab/ingest/encode_features.py", "first = not i and not before.days", "first = not i"),
        ("lab/ingest/encode_features.py", "nulls_last=True", "nulls_last=False"),
        ("lab/ingest/partition_by_day.py", "natural(day) <= natural(", "natural(day) < natural("),
    ],
    "lab/ingest/test_column_parsing.py lab/ingest/test_reader.py": [
        ("lab/ingest/column_parsing.py", "value.abs() >= 2**digits", "value.abs() > 2**digits"),
        ("lab/ingest/reader.py", 'index, side="right")', 'index, side="left")'),
    ],
    "lab/sources/test_synthetic.py lab/sources/test_movielens.py lab/sources/test_kuairand.py": [
        ("lab/sources/synthetic.py", "day >= drift_day", "day > drift_day"),
        ("lab/sources/movielens.py", 'pl.when(pl.col(genres) != "(no genres listed)")', "pl.when(True)"),
        ("lab/sources/kuairand.py", "pl.when(age >= 0)", "pl.when(age > 0)"),
    ],
    "lab/models/test_ranker.py lab/models/test_feature_embedding.py": [
        ("lab/models/ranker.py", "0.0).sum() / seen.sum().clamp(min=1)", "0.0).mean()"),
        ("lab/models/ranker.py", "weights / units.scale.square()", "weights / units.scale"),
        ("lab/models/layers.py", "gate(x).softmax(dim=1)", "gate(x).softmax(dim=0)"),
    ],
    "lab/test_metrics.py lab/test_outcomes.py": [
        ("lab/metrics.py", "- (all_negatives.cumsum(0) - all_negatives)[owner]", ""),
        ("lab/outcomes.py", "r.multiple > best.multiple and r.mean", "r.mean"),
        ("lab/outcomes.py", "if self.standing()[0] != other.standing()[0]:", "if False:"),
    ],
    "lab/training/test_loop.py": [
        ("lab/training/loop.py", "    model.eval()\n", ""),
        ("lab/training/loop.py", "if not fresh[task].auc_low > 0.5]", "]"),
    ],
    "lab/study/test_config.py lab/study/test_claim.py": [
        ("lab/study/claim.py", "(out / name).unlink(missing_ok=True)  # while", "pass  # while"),
        ("lab/settings.py", "<= value < 1 << 63:", "<= value <= 1 << 63:"),
    ],
    "lab/study/test_trial.py": [
        ("lab/study/trial.py", "            supervisor.monitor.flush()  # what", "            pass  # what"),
    ],
    "lab/report/test_conclusions.py lab/report/test_text.py": [
        ("lab/report/conclusions.py", "all(trial.diverged for trial in trials)", "any(trial.diverged for trial in trials)"),
        ("lab/report/text.py", 'return "0.00" if float(shown) == 0 else shown', "return shown"),
    ],
    "lab/report/test_run.py": [
        ("lab/report/run_folder.py", '.unique("step", keep="last")', '.unique("step", keep="first")'),
    ],
    "lab/test_cli_data.py": [
        ("lab/cli_data.py", "        left -= needed\n", ""),
        ("lab/cli_data.py", "        if to.exists():\n", "        if False:\n"),
    ],
    "test_architecture.py": [
        ("detect/signals.py", "import math\n", "import math\nimport torch\n"),
    ],
}
# fmt: on


def main() -> None:
    """Try every mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="of the files to try")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", help="the folder of tests")
    options = parser.parse_args()
    caught, tried, began = 0, 0, time.monotonic()
    with TemporaryDirectory() as folder:
        tree = copy_of_the_tree(Path(folder), options.tests)
        for files, changes in ROOMS.items():
            wanted = [c for c in changes if not options.words or any(word in c[0] for word in options.words)]
            found = {
                change: failed_with(tree, change, [f"tests/{name}" for name in files.split()]) for change in wanted
            }
            several = sorted({test for test in found.values() if "::" in test})
            broken = failed(tree, several) if several else ""
            for (file, old, new), test in found.items():
                tried += 1
                caught += bool(test) and not broken
                said = (
                    f"UNSOUND  {broken} fails without it too" if broken else f"caught by {test}" if test else "MISSED"
                )
                print(f"{file}: {_line(old)} -> {_line(new)}\n    {said}", flush=True)
    minutes = (time.monotonic() - began) / 60
    print(f"{caught} of {tried} mistakes caught, in {minutes:.1f} minutes")
    sys.exit(caught < tried)


def _line(text: str) -> str:
    return repr(" ".join(text.split()))


def copy_of_the_tree(folder: Path, tests: Path) -> Path:
    """Copy what the tests look at into a folder: nothing is ever changed in place."""
    kept = shutil.ignore_patterns("__pycache__", ".git", ".venv", ".*_cache", "runs", "demo", "tests")
    tree = Path(shutil.copytree(ROOT, folder / "tree", ignore=kept))
    shutil.copytree(tests, tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    # compiled files that are compared by their content: two changes of one second would look alike by their time
    compiled = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", str(tree / "src")]
    subprocess.run(compiled, check=True)
    return tree


def failed_with(tree: Path, change: Change, tests: list[str]) -> str:
    """Make a mistake, run the tests, take it back; return which test failed, or nothing."""
    name, old, new = change
    path = tree / "src" / "surefoot" / name
    text = path.read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{name} has {text.count(old)} times {old!r}; expected it once: mend the table")
    path.write_text(text.replace(old, new))
    try:
        return failed(tree, tests)
    finally:
        path.write_text(text)


def failed(tree: Path, tests: list[str]) -> str:
    """Run tests up to the first failure; return its name, or nothing if all pass.

    In a process that begins as a copy of this one: to import torch takes longer than most of the tests.
    """
    output = tree / "output.txt"
    if (child := os.fork()) == 0:
        _run(tree, tests, output)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGXCPU:
        return f"tests that did not end in {LIMIT} s"
    if not code:
        return ""
    lines = [line for line in output.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].partition(" ")[2].split(" - ")[0] if lines else f"pytest, which ended with {code}"


def _run(tree: Path, tests: list[str], output: Path) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 10))
    os.chdir(tree)
    sys.modules["__main__"] = ModuleType("__main__")  # which processes of the tests would run again, as they start
    sys.path[0] = os.environ["PYTHONPATH"] = str(tree / "src")  # in the place of this script's folder
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=no", *tests])
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
