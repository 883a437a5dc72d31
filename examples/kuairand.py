"""KuaiRand, from the unpacked download to next-day AUCs of two rules, cell by cell.

    python examples/kuairand.py [KuaiRand-Pure]

Without a folder a small log with made-up rows in the same layout is written and used.
"""

# %% The folder as it was unpacked, or a stand-in
import csv
import random
import sys
import tempfile
from pathlib import Path

import torch

import surefoot
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.ingest.prepare import prepare
from surefoot.lab.ingest.profile import profile
from surefoot.lab.metrics import evaluate
from surefoot.lab.models.layers import FeatureEmbedding, SharedBottom
from surefoot.lab.models.ranker import LabelUnits, Ranker, task_heads
from surefoot.lab.sources import kuairand
from surefoot.lab.training.loop import take_step


def stand_in(folder: Path) -> Path:
    """Write files with the names and the columns of KuaiRand-Pure."""
    draw = random.Random(0)
    log = "user_id video_id date hourmin time_ms is_click is_like is_follow is_comment is_forward is_hate long_view "
    log += "play_time_ms duration_ms profile_stay_time comment_stay_time is_profile_enter is_rand tab"
    user = "user_id user_active_degree is_lowactive_period is_live_streamer is_video_author follow_user_num "
    user += "follow_user_num_range fans_user_num fans_user_num_range friend_user_num friend_user_num_range "
    user += "register_days register_days_range " + " ".join(f"onehot_feat{i}" for i in range(18))
    video = "video_id author_id video_type upload_dt upload_type visible_status video_duration server_width "
    video += "server_height music_id music_type tag"

    def write(name: str, columns: str, rows: list[dict[str, object]]) -> None:
        with (folder / f"{name}_pure.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns.split(), restval=0)
            writer.writeheader()
            writer.writerows(rows)

    def shown(day: int) -> dict[str, object]:
        u, v, second = draw.randrange(60), draw.randrange(90), draw.randrange(86_400)
        click = int(draw.random() < 0.15 + 0.6 * (u * v % 5 < 2))
        duration = 5_000 + 1_000 * v
        play = round(draw.uniform(0, duration)) if click else 0
        date = 20220408 + day if day < 23 else 20220501 + day - 23
        time = 1_649_376_000_000 + 86_400_000 * day + 1000 * second
        seen = {"is_click": click, "long_view": int(play > duration / 2), "play_time_ms": play}
        seen["is_like"] = int(click and draw.random() < 0.3)
        known = {"user_id": u, "video_id": v, "date": date, "time_ms": time, "duration_ms": duration, "tab": v % 3}
        return {**known, **seen, "hourmin": 100 * (second // 3600)}

    write("log_standard_4_08_to_4_21", log, [shown(day) for day in range(6) for _ in range(700)])
    write("log_standard_4_22_to_5_08", log, [shown(day) for day in range(14, 17) for _ in range(700)])
    write("user_features", user, [{"user_id": u, "user_active_degree": "full_active"} for u in range(60)])
    clips = [{"video_id": v, "upload_dt": "2022-04-01", "tag": f"{v % 7},{v % 5}"} for v in range(90)]
    write("video_features_basic", video, clips)
    return folder


work = Path(tempfile.mkdtemp())
folder = Path(sys.argv[1]) if __name__ == "__main__" and sys.argv[1:] else stand_in(work)
source = kuairand.source(str(folder))
print(source.description.notice)

# %% What is in it
seen = profile(source)
clicks = ", ".join(f"{day.labels['click']:.3f}" for day in seen.days)
print(f"{seen.rows:,} rows on {len(seen.days)} days; share clicked by day: {clicks}")
for warning in seen.warnings:
    print("look at this:", warning)

# %% Prepared once, as day-partitioned parquet; rows in are rows out and rows rejected
report = prepare(source, work / "prepared")
print(f"{report.rows_in:,} rows in, {report.rows_out:,} out, rejected {report.rejected}")
log = PreparedLog.open(work / "prepared")

# %% Day after day, each scored before it is trained on
tasks = log.schema.tasks
widths = [column.width for column in log.schema.categorical]
rows = [column.rows for column in log.schema.categorical]


def next_day_aucs(rule: surefoot.Rule, rate: float) -> list[float]:
    """Train through the log; return the AUC of clicks on every day but the first."""
    torch.manual_seed(0)
    units = LabelUnits(len(tasks))  # heads begin at each task's mean or base rate, as the first day has it
    units.fit([log.day(0).labels], tasks)
    model = Ranker(
        embedding=FeatureEmbedding(rows, 8, widths=widths),
        interaction=torch.nn.Identity(),
        bottom=SharedBottom(8 * len(rows) + len(log.schema.dense), (64, 64), len(tasks)),
        heads=task_heads(tasks, 64),
        units=units,
    )
    dense, embedding = surefoot.split_parameters(model)
    optimizers = [
        surefoot.Adagrad(dense.values(), rate, rule=rule, nonfinite="propagate"),
        torch.optim.Adagrad(embedding.values(), 0.1, initial_accumulator_value=1e-6),
    ]
    aucs: list[float] = []
    today = 0
    for day, batch in MovingWindow(log, batch_size=128, width=3).stream(len(log.days) - 1):
        if day != today:
            aucs.append(score(model, day))
            today = day
        take_step(model, batch, optimizers, tasks)
    return [*aucs, score(model, len(log.days) - 1)]


@torch.no_grad()
def score(model: torch.nn.Module, day: int) -> float:
    """Return the AUC of clicks on a day."""
    batch = log.day(day)
    return evaluate(model(batch.categorical, batch.dense), batch.labels, tasks)["auc/click"]


torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns unless told either way
for name, rule in {"naive": surefoot.NoClip(), "Clippy": surefoot.Clippy()}.items():
    print(f"{name:7s}", " ".join(f"{auc:.3f}" for auc in next_day_aucs(rule, rate=0.5)))
