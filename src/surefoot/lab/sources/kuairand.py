"""KuaiRand: videos of Kuaishou shown to 27 thousand users in April and May of 2022, with the users' reactions.

A row is a video shown to a user. The tasks predict whether the user clicked, watched for long, liked, forwarded and so
on, and how long the video was played. Reference: C. Gao et al., "KuaiRand", CIKM 2022, doi:10.1145/3511808.3557624.

Three files of the download are not read. ``video_features_statistic_*.csv`` has averages over the whole month, which
would leak the future. ``log_random_*.csv`` is the log of an experiment with randomly drawn videos; in Pure it would be
four of five rows from 22 April on, an unnatural break. So ``is_rand`` is 0 in all rows and not a feature.
``load_data_*.py`` is code.

``user_features_*.csv`` and ``visible_status`` were recorded on an unknown day. User features change slowly and are
used; ``visible_status`` tells what happened to a video later and is not used.
"""

import re
from functools import partial
from typing import Any

import polars as pl

from surefoot.errors import InputError
from surefoot.lab.file_discovery import find_files, stem
from surefoot.lab.ingest.description import (
    NULLS,
    CategoricalColumn,
    Csv,
    Day,
    DenseColumn,
    Description,
    LabelColumn,
)
from surefoot.lab.ingest.reader import Rejections
from surefoot.lab.ingest.source import SideTable, Source, as_numbers, notes_on

NOTICE = (
    "KuaiRand (Gao et al., CIKM 2022) is published under CC BY-SA 4.0: name its authors, and share what you make of it "
    "alike."
)

CSV = Csv(nulls=(*NULLS, "-124", "-124.0"))  # the authors write -124 for a missing value

LABELS = (
    LabelColumn(name="click", column="is_click"),
    LabelColumn(name="long_view", mask="has_duration"),  # depends on the duration; always 1 if that is 0
    LabelColumn(name="like", column="is_like"),
    LabelColumn(name="follow", column="is_follow", judged=False),  # these four: 10 to 100 positives a day in Pure
    LabelColumn(name="comment", column="is_comment", judged=False),
    LabelColumn(name="forward", column="is_forward", judged=False),
    LabelColumn(name="hate", column="is_hate", judged=False),
    LabelColumn(
        name="log_play_time",
        column="play_time_ms",
        kind="regression",
        transform="log1p",
        clip=(0.0, 3_600_000.0),
    ),
)

_LOG = ("user_id", "video_id", "date", "hourmin", "time_ms", "tab", "duration_ms")
_USER_TEXT = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{i}" for i in range(18)),
)
_USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_VIDEO_IDS = ("author_id", "music_id")
_VIDEO_TEXT = ("video_type", "upload_type", "music_type", "tag")
_PERIODS = ("4_08_to_4_21", "4_22_to_5_08")
_HASHED = (
    4_000_000  # rows for 32 million videos, 9 million authors, 14 million pieces of music; 2 GB in all at width 16
)


def source(path: str) -> Source:
    """Return KuaiRand-Pure, 1K or 27K: its standard logs, joined with the features of users and videos.

    The day is the column ``date``, although just before midnight it is already the next day. ``time_ms`` sorts the rows
    of a day, since the files are sorted by user. Repeated rows count once.

    A part of the download is enough: one log and the files of users and videos, which may have headers only. The notes
    of the source list missing logs.

    Args:
        path: the folder ``KuaiRand-Pure`` (``-1K``, ``-27K``) or the folder ``data`` in it, with one version only.

    Raises:
        InputError: if the file of users or videos is missing, or the folder holds several versions.
    """
    found = {stem(file): file for file in find_files(path)}
    version = _version(path, found)
    parts = ("_part1", "_part2") if version == "27k" else ("",)
    logs = [f"log_standard_{period}_{version}{part}" for period in _PERIODS for part in parts]
    users, videos = f"user_features_{version}", f"video_features_basic_{version}"
    whole = f"KuaiRand-{version.upper() if version != 'pure' else 'Pure'}"
    if missing := [name for name in (users, videos) if name not in found]:
        raise InputError(
            f"{path} has no {' and no '.join(f'{name}.csv' for name in missing)}; expected the files of users and "
            f"videos of {whole}"
        )
    notes = [f"{path} has no {name}.csv, a part of {whole}" for name in logs if name not in found]
    rejected = Rejections()
    user_columns = ("user_id", *_USER_TEXT, *_USER_COUNTS)
    video_columns = ("video_id", *_VIDEO_IDS, *_VIDEO_TEXT, "upload_dt")
    people = SideTable.read(found[users], CSV, user_columns, key="user_id", rejected=rejected)
    clips = SideTable.read(found[videos], CSV, video_columns, key="video_id", rejected=rejected, shape=_video)
    notes += notes_on((people, clips))
    shape = partial(_shape, users=people, videos=clips)
    columns = (*_LOG, *(label.source for label in LABELS))
    files, beside = tuple(found[name] for name in logs if name in found), (found[users], found[videos])
    return Source(describe(version, len(clips.keys)), files, columns, shape, rejected, beside, tuple(notes))


def describe(version: str, videos: int = 0) -> Description:
    """Return the description of a version: ``"pure"``, ``"1k"`` or ``"27k"``.

    Args:
        version: of the log.
        videos: number of videos, 0 if not known. 27K hashes its ids unless it is a part with few videos.
    """
    long: dict[str, Any] = {} if version == "pure" else {"min_count": 2}
    if version == "27k" and not 0 < videos <= _HASHED:
        long = {"hash": _HASHED}
    context = ("tab", "hour", "weekday")
    several = CategoricalColumn(name="tag", separator=",", width=4)
    return Description(
        name=f"kuairand-{version}",
        day=Day(column="date", order="time_ms"),
        categorical=(
            CategoricalColumn(name="user_id"),
            *(CategoricalColumn(name=name, **long) for name in ("video_id", *_VIDEO_IDS)),
            *(several if name == "tag" else CategoricalColumn(name=name) for name in (*_VIDEO_TEXT, *context)),
            *(CategoricalColumn(name=name) for name in _USER_TEXT),
        ),
        dense=(
            DenseColumn(name="duration_ms", missing=(0.0,), clip=(0.0, 3_600_000.0), transform="log1p"),
            DenseColumn(name="upload_age_days", transform="log1p"),
            *(DenseColumn(name=name, clip=(0.0, 1e9), transform="log1p") for name in _USER_COUNTS),
        ),
        label=LABELS,
        group="user_id",
        after_event=("is_profile_enter", "profile_stay_time", "comment_stay_time", "visible_status"),
        repeated="reject",
        csv=CSV,
        notice=NOTICE,
    )


def _version(path: str, found: dict[str, str]) -> str:
    """Return the version of the log, from the names of its files."""
    names = (re.fullmatch(r"log_standard_.+?_(pure|1k|27k)(_part\d)?", name) for name in found)
    versions = sorted({name[1] for name in names if name})
    if not versions:
        raise InputError(
            f"{path} has no log of KuaiRand; expected log_standard_{_PERIODS[0]}_pure.csv, or that of 1k or 27k, in "
            "the folder or in its folder data"
        )
    if len(versions) > 1:
        raise InputError(f"{path} has logs of the versions {' and '.join(versions)}; expected the folder of one")
    return versions[0]


def _video(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(as_numbers(rows[name]).alias(name) for name in _VIDEO_IDS)


def _shape(rows: pl.DataFrame, users: SideTable, videos: SideTable) -> pl.DataFrame:
    """Join the features of user and video, and compute hour, weekday, age of the video and ``has_duration``."""
    rows = rows.with_columns(as_numbers(rows[name]).alias(name) for name in ("user_id", "video_id"))
    rows = pl.concat([rows, users.of(rows["user_id"]), videos.of(rows["video_id"])], how="horizontal")
    day = pl.col("date").str.to_date("%Y%m%d", strict=False)
    hour = pl.col("hourmin").cast(pl.Int64, strict=False) // 100
    age = (day - pl.col("upload_dt").str.to_date("%Y-%m-%d", strict=False)).dt.total_days()
    return rows.with_columns(
        hour=pl.when(hour.is_between(0, 23)).then(hour),
        weekday=day.dt.weekday(),
        upload_age_days=pl.when(age >= 0).then(age),  # some upload dates are after the impression
        has_duration=(pl.col("duration_ms").cast(pl.Float64, strict=False) > 0).fill_null(False),
    )
