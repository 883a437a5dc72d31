"""KuaiRand: its layout as it is unpacked, and each of its traps."""

import math
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from surefoot.errors import InputError
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.schema import Log
from surefoot.lab.ingest.column_parsing import typed
from surefoot.lab.ingest.description import Description
from surefoot.lab.ingest.ingest_state import ExistingLog, Preparation
from surefoot.lab.ingest.prepare import prepare
from surefoot.lab.ingest.reader import Rejections, read
from surefoot.lab.ingest.source import Source
from surefoot.lab.sources import kuairand

LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
USER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
)
VIDEO = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)

SHOWN = dict.fromkeys(LOG.split(","), "0") | {
    "user_id": "1",
    "video_id": "10",
    "date": "20220410",
    "hourmin": "1900",
    "time_ms": "1649588400000",
    "play_time_ms": "1385",
    "duration_ms": "209900",
    "tab": "1",
}
PERSON = dict.fromkeys(USER.split(","), "0") | {
    "user_id": "1",
    "user_active_degree": "full_active",
    "follow_user_num": "5",
    "follow_user_num_range": '"(0,10]"',
    "fans_user_num_range": '"[100,1k)"',
    "register_days": "3624",
    "register_days_range": "730+",
    "onehot_feat0": "1",
}
CLIP = dict.fromkeys(VIDEO.split(","), "0.0") | {
    "video_id": "10",
    "author_id": "123",
    "video_type": "NORMAL",
    "upload_dt": "2022-04-07",
    "upload_type": "LongImport",
    "music_id": "9155697141",
    "music_type": "9.0",
    "tag": '"20,43"',
}
FILES = (
    "log_standard_4_08_to_4_21_pure",
    "log_standard_4_22_to_5_08_pure",
    "user_features_pure",
    "video_features_basic_pure",
)


LONG = ("video_id", "author_id", "music_id")


def table(path: Path, header: str, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(row[name] for name in header.split(",")) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def unpacked(
    folder: Path, *shown: dict[str, str], person: dict[str, str] | None = None, clip: dict[str, str] | None = None
) -> Path:
    """Write KuaiRand-Pure: rows of the first log, each given by what is not as in ``SHOWN``; one user, one video."""
    data = folder / "KuaiRand-Pure" / "data"
    table(data / f"{FILES[0]}.csv", LOG, [SHOWN | row for row in shown or [{}]])
    table(data / f"{FILES[1]}.csv", LOG, [SHOWN | {"date": "20220508", "time_ms": "1652000000000"}])
    table(data / f"{FILES[2]}.csv", USER, [PERSON | (person or {})])
    table(data / f"{FILES[3]}.csv", VIDEO, [CLIP | (clip or {})])
    return data.parent


def typed_rows(source: Source) -> pl.DataFrame:
    """Return the rows of the source's first file as its description types them; none may be bad."""
    rejected = Rejections()
    pieces = read(source.files[0], source.description.csv, source.columns or (), rejected)
    rows = pl.concat([typed(source.shape(piece), source.description, "", rejected) for piece in pieces])
    assert not rejected.rows
    return rows


def prepared(source: Source, out: Path) -> Log:
    prepare(source, out)
    return PreparedLog.open(out).load()


def column(log: Log, name: str) -> list[float]:
    names = [each.name for each in log.schema.tasks]
    if name in names:
        return log.rows.labels[:, names.index(name)].tolist()
    return log.rows.dense[:, log.schema.dense.index(name)].tolist()


def test_what_was_shown_and_to_whom(tmp_path: Path):
    row = typed_rows(kuairand.source(str(unpacked(tmp_path)))).row(0, named=True)
    assert row["day"] == "2022-04-10"
    assert (row["user_id"], row["video_id"], row["author_id"], row["music_id"]) == (1, 10, 123, 9155697141)
    assert (row["hour"], row["weekday"], row["tab"]) == (19, 7, "1")
    assert (row["follow_user_num_range"], row["fans_user_num_range"]) == ("(0,10]", "[100,1k)")
    assert row["tag"] == ["20", "43"]
    assert row["duration_ms"] == pytest.approx(math.log1p(209900))
    assert row["register_days"] == pytest.approx(math.log1p(3624))
    assert row["upload_age_days"] == pytest.approx(math.log1p(3))
    assert row["log_play_time"] == pytest.approx(math.log1p(1385))
    assert row["__group__"] == 1


def test_rows_in_are_rows_out_and_rows_rejected(tmp_path: Path):
    good = [{"time_ms": str(1649588400000 + i), "user_id": str(i % 5)} for i in range(20)]
    bad = [{"is_click": "2"}, {"play_time_ms": "soon"}, {"date": "yesterday"}, {"is_hate": "-124"}, good[3], good[3]]
    folder = unpacked(tmp_path, *good, *bad)
    with (folder / "data" / f"{FILES[0]}.csv").open("a") as file:
        file.write("1,10,20220410\n")
    report = prepare(kuairand.source(str(folder)), tmp_path / "out", max_rejected=0.5)
    assert report.rows_in == 20 + 6 + 1 + 1
    assert report.rows_out == 20 + 1
    by_column = Counter(key.split(":")[0] for key in report.rejected for _ in range(report.rejected[key]))
    assert by_column == {
        **dict.fromkeys(("is_click", "play_time_ms", "date", "is_hate", "expected 19 cells, found 3"), 1),
        "expected no row equal to an earlier one": 2,
    }
    assert report.days == {"2022-04-10": 20, "2022-05-08": 1}
    assert "CC BY-SA 4.0" in PreparedLog.open(tmp_path / "out").notice


def test_a_row_just_before_midnight_is_of_the_day_that_date_says(tmp_path: Path):
    """2022-04-09 23:59:30 in Beijing, dated the day after."""
    rows = typed_rows(kuairand.source(str(unpacked(tmp_path, {"time_ms": "1649519970000", "date": "20220410"}))))
    assert rows["day"].to_list() == ["2022-04-10"]


def test_files_sorted_by_user_are_sorted_by_time(tmp_path: Path):
    shown = [
        {"user_id": "1", "time_ms": "1649588400003", "play_time_ms": "300"},
        {"user_id": "1", "time_ms": "1649588400009", "play_time_ms": "900"},
        {"user_id": "2", "time_ms": "1649588400001", "play_time_ms": "100"},
        {"user_id": "2", "time_ms": "1649588400007", "play_time_ms": "700"},
    ]
    log = prepared(kuairand.source(str(unpacked(tmp_path, *shown))), tmp_path / "out")
    assert column(log, "log_play_time")[:4] == pytest.approx([math.log1p(t) for t in (100, 300, 700, 900)])


def test_duration_0_is_none_and_says_nothing_of_a_long_view(tmp_path: Path):
    shown = [{"time_ms": "1", "duration_ms": "0", "long_view": "1"}, {"time_ms": "2", "long_view": "1"}]
    source = kuairand.source(str(unpacked(tmp_path, *shown)))
    assert typed_rows(source)["duration_ms"].is_null().to_list() == [True, False]
    log = prepared(source, tmp_path / "out")
    assert math.isnan(column(log, "long_view")[0])
    assert column(log, "long_view")[1] == 1
    assert column(log, "duration_ms")[0] == 0


def test_minus_124_and_nan_are_missing(tmp_path: Path):
    person = {"fans_user_num": "-124", "is_live_streamer": "-124", "onehot_feat4": "NaN", "onehot_feat5": "3.0"}
    clip = {"author_id": "-124", "music_type": "NaN", "tag": "-124"}
    shown = {"duration_ms": "-124"}
    row = typed_rows(kuairand.source(str(unpacked(tmp_path, shown, person=person, clip=clip)))).row(0, named=True)
    missing = ("fans_user_num", "is_live_streamer", "onehot_feat4", "author_id", "music_type", "tag", "duration_ms")
    assert [row[name] for name in missing] == [None] * 7
    assert row["onehot_feat5"] == "3.0"
    assert math.isnan(row["long_view"])


def test_categories_that_no_list_names_are_categories(tmp_path: Path):
    person, clip = {"user_active_degree": "2_14_day_new"}, {"video_type": "UNKNOWN", "upload_type": "Kmovie"}
    log = prepared(kuairand.source(str(unpacked(tmp_path, person=person, clip=clip))), tmp_path / "out")
    sizes = {each.name: each.rows for each in log.schema.categorical}
    assert [sizes[name] for name in ("user_active_degree", "video_type", "upload_type")] == [3, 3, 3]


def test_a_list_of_one_tag_is_not_quoted(tmp_path: Path):
    assert typed_rows(kuairand.source(str(unpacked(tmp_path, clip={"tag": "39"}))))["tag"].to_list() == [["39"]]


@pytest.mark.parametrize(("upload", "age"), [("2022-04-10", 0), ("2022-04-11", None), ("2022-04-09", math.log(2))])
def test_the_age_of_a_video_is_only_known_from_the_past(tmp_path: Path, upload: str, age: float | None):
    rows = typed_rows(kuairand.source(str(unpacked(tmp_path, clip={"upload_dt": upload}))))
    assert rows["upload_age_days"].to_list() == pytest.approx([age])


@pytest.mark.parametrize(("hourmin", "hour"), [("0", 0), ("59", 0), ("400", 4), ("2300", 23), ("2400", None)])
def test_the_hour(tmp_path: Path, hourmin: str, hour: int | None):
    rows = typed_rows(kuairand.source(str(unpacked(tmp_path, {"hourmin": hourmin}))))
    assert rows["hour"].to_list() == [hour]


def test_a_user_and_a_video_without_an_entry(tmp_path: Path):
    row = typed_rows(kuairand.source(str(unpacked(tmp_path, {"user_id": "7", "video_id": "77"})))).row(0, named=True)
    assert (row["user_id"], row["video_id"]) == (7, 77)
    assert [row[name] for name in ("user_active_degree", "author_id", "tag", "upload_age_days")] == [None] * 4


def test_bad_rows_of_side_files_are_named(tmp_path: Path):
    folder = unpacked(tmp_path)
    people = [PERSON | {"user_id": str(i)} for i in range(200)]
    table(folder / "data" / f"{FILES[2]}.csv", USER, [*people, PERSON | {"user_id": "5"}])
    source = kuairand.source(str(folder))
    assert [(Path(row[0]).name, *row[1:]) for row in source.rejected.rows] == [
        ("user_features_pure.csv", 201, "user_id", "5", "expected no second row of an id")
    ]


def test_the_months_statistics_and_the_experiment_are_not_read(tmp_path: Path):
    """Neither is a csv file here, so that reading either would end in an error."""
    folder = unpacked(tmp_path)
    for name in ("video_features_statistic_pure", "log_random_4_22_to_5_08_pure"):
        (folder / "data" / f"{name}.csv").write_bytes(b"\xff\xfe\x00PAR1")
    source = kuairand.source(str(folder))
    assert [Path(file).name for file in source.files] == [f"{FILES[0]}.csv", f"{FILES[1]}.csv"]
    assert prepare(source, tmp_path / "out").rows_out == 2
    read_columns = set(source.columns or ()) | set(source.description.columns)
    assert not read_columns & {"show_cnt", "play_cnt", "counts", "is_rand", "visible_status"}


def test_what_is_known_only_afterwards_is_no_feature():
    description = kuairand.describe("pure").model_dump()
    for name in ("profile_stay_time", "comment_stay_time", "is_profile_enter", "play_time_ms", "visible_status"):
        with pytest.raises(ValidationError, match="expected only columns that are known before the event"):
            Description.model_validate(description | {"dense": [{"name": "leak", "column": name}]})


def test_rare_labels_are_not_judged():
    tasks = [label.task for label in kuairand.describe("pure").label]
    assert {task.name for task in tasks if task.judged} == {"click", "long_view", "like", "log_play_time"}
    assert [task.name for task in tasks if task.masked] == ["long_view"]


def test_the_parts_of_27k(tmp_path: Path):
    periods = [
        f"log_standard_{period}_27k_part{part}" for period in ("4_08_to_4_21", "4_22_to_5_08") for part in (1, 2)
    ]
    for i, name in enumerate(periods):
        table(tmp_path / "data" / f"{name}.csv", LOG, [SHOWN | {"time_ms": str(i)}])
    table(tmp_path / "data" / "user_features_27k.csv", USER, [PERSON])
    with pytest.raises(
        InputError, match=r"has no video_features_basic_27k.csv; expected the files of users .* of KuaiRand-27K"
    ):
        kuairand.source(str(tmp_path))
    table(tmp_path / "data" / "video_features_basic_27k.csv", VIDEO, [CLIP])
    source = kuairand.source(str(tmp_path))
    assert [Path(file).stem for file in source.files] == periods
    assert source.notes == ()


@pytest.mark.parametrize(("videos", "hashed"), [(9_359, []), (32_038_725, list(LONG)), (0, list(LONG))])
def test_27k_is_hashed_only_where_there_are_too_many_videos(videos: int, hashed: list[str]):
    description = kuairand.describe("27k", videos)
    assert [each.name for each in description.categorical if each.hash] == hashed
    counts = {each.min_count for each in description.categorical if each.name in LONG}
    assert counts == ({1} if hashed else {2})


@pytest.mark.parametrize("name", FILES[2:])
def test_a_missing_side_file_is_named(tmp_path: Path, name: str):
    folder = unpacked(tmp_path)
    (folder / "data" / f"{name}.csv").unlink()
    with pytest.raises(InputError, match=f"{folder} has no {name}.csv; expected the files of users and videos"):
        kuairand.source(str(folder))


@pytest.mark.parametrize("name", FILES[:2])
def test_a_log_that_is_not_there_is_told_and_the_other_is_enough(tmp_path: Path, name: str):
    folder = unpacked(tmp_path)
    (folder / "data" / f"{name}.csv").unlink()
    source = kuairand.source(str(folder))
    assert source.notes == (f"{folder} has no {name}.csv, a part of KuaiRand-Pure",)
    assert prepare(source, tmp_path / "out").rows_out == 1


def test_side_files_without_rows_are_told_and_their_features_missing(tmp_path: Path):
    folder = unpacked(tmp_path, {}, {"user_id": "2"})
    for name, header in ((FILES[2], USER), (FILES[3], VIDEO)):
        table(folder / "data" / f"{name}.csv", header, [])
    source = kuairand.source(str(folder))
    assert source.notes == tuple(
        f"{folder}/data/{name}.csv has no rows: its features are missing in every row of the log" for name in FILES[2:]
    )
    rows = typed_rows(source)
    assert len(rows) == 2
    for name in ("author_id", "video_type", "user_active_degree", "register_days", "upload_age_days"):
        assert rows[name].null_count() == 2
    assert prepare(source, tmp_path / "out").rows_out == 3


def test_the_folder_data_itself(tmp_path: Path):
    folder = unpacked(tmp_path)
    assert kuairand.source(str(folder / "data")).files == kuairand.source(str(folder)).files


def test_a_folder_of_two_versions(tmp_path: Path):
    table(unpacked(tmp_path) / "data" / "log_standard_4_08_to_4_21_1k.csv", LOG, [SHOWN])
    with pytest.raises(InputError, match="has logs of the versions 1k and pure; expected the folder of one"):
        kuairand.source(str(tmp_path))


def test_a_folder_of_something_else(tmp_path: Path):
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has no log of KuaiRand; expected log_standard_4_08_to_4_21_pure.csv"):
        kuairand.source(str(tmp_path))
    with pytest.raises(InputError, match="is not there"):
        kuairand.source(str(tmp_path / "nowhere"))


def test_side_rows_left_out_are_told_and_a_changed_side_file_starts_anew(tmp_path: Path):
    folder, out = unpacked(tmp_path), tmp_path / "out"
    videos = folder / "data" / f"{FILES[3]}.csv"
    many = [CLIP | {"video_id": str(number)} for number in range(10, 310)]
    table(videos, VIDEO, [*many, CLIP])  # the last has an id that is there already
    report = prepare(kuairand.source(str(folder)), out)
    assert (report.beside, report.rejected, report.rows_out) == (1, {}, report.rows_in)
    (row,) = pl.read_parquet(out / "rejected" / "*.parquet").iter_rows()
    assert row[:4] == (str(videos), 301, "video_id", "10")
    digests: set[str] = set()
    for author in ("123", "124"):
        table(videos, VIDEO, [CLIP | {"author_id": author, "tag": author}])
        source = kuairand.source(str(folder))
        work = Preparation.under_way(ExistingLog(out, {}), source.description, list(source.files), source.beside, 100)
        digests.add(work.state["digest"])
    assert len(digests) == 2
