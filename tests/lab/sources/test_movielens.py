"""MovieLens: the same few ratings as each release writes them, and the releases' traps."""

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest

from surefoot.errors import InputError
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.ingest.column_parsing import typed
from surefoot.lab.ingest.prepare import prepare
from surefoot.lab.ingest.reader import Rejections, read
from surefoot.lab.ingest.source import Source
from surefoot.lab.sources import movielens

DAY = 86_400
START = 946_684_800  # 2000-01-01 00:00 UTC
RATINGS = [  # by user, as all releases are; user, film, stars, seconds since the start
    (1, 10, 4, 5 * DAY),
    (1, 20, 3, 2 * DAY),
    (2, 20, 5, 2 * DAY - 1),
    (2, 30, 1, 2 * DAY + 7),
    (3, 10, 2, 13 * DAY),
]
FLAGS = {"Animation": 3, "Children's": 4, "Comedy": 5, "Drama": 8}  # places among u.item's 19


Ratings = Sequence[tuple[int, int, float | str, int]]


def lines(path: Path, rows: list[str], *, encoding: str = "utf-8", end: str = "\n") -> None:
    path.write_bytes("".join(row + end for row in rows).encode(encoding))


def rated(separator: str, ratings: Ratings) -> list[str]:
    return [separator.join(map(str, (user, film, stars, START + at))) for user, film, stars, at in ratings]


def item(film: int, title: str, *genres: str) -> str:
    flags = ["0"] * 19
    for genre in genres:
        flags[FLAGS[genre]] = "1"
    return "|".join([str(film), title, "01-Jan-1995", "", "http://us.imdb.com/M/title-exact?a", *flags])


def write_100k(folder: Path, ratings: Ratings) -> None:
    lines(folder / "u.data", rated("\t", ratings))
    films = [
        item(10, "Toy Story, The (1995)", "Animation", "Children's", "Comedy"),
        item(20, "Misérables, Les (1998)", "Drama"),
        item(30, "Untitled"),
    ]
    lines(folder / "u.item", films, encoding="iso-8859-1")
    lines(folder / "u.user", ["1|25|F|writer|85711", "2|56|M|none|V1A2B", "3|1|M|writer|0"])


def write_recbole(folder: Path, ratings: Ratings) -> None:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    lines(folder / "ml-100k.inter", [header, *rated("\t", ratings)])
    films = [
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        "10\tToy Story, The\t1995\tAnimation Children's Comedy",
        "20\tMisérables, Les\t1998\tDrama",
        "30\tUntitled\tV\t",
    ]
    lines(folder / "ml-100k.item", films)
    people = ["1\t25\tF\twriter\t85711", "2\t56\tM\tnone\tV1A2B", "3\t1\tM\twriter\t0"]
    lines(
        folder / "ml-100k.user", ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", *people]
    )


def write_1m(folder: Path, ratings: Ratings) -> None:
    lines(folder / "ratings.dat", rated("::", ratings))
    films = [
        "10::Toy Story, The (1995)::Animation|Children's|Comedy",
        "20::Misérables, Les (1998)::Drama",
        "30::Untitled::",
    ]
    lines(folder / "movies.dat", films, encoding="iso-8859-1")
    lines(folder / "users.dat", ["1::F::25::writer::85711", "2::M::56::none::V1A2B", "3::M::1::writer::0"])


def write_csv(folder: Path, ratings: Ratings) -> None:
    lines(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *rated(",", ratings)], end="\r\n")
    films = [
        "movieId,title,genres",
        '10,"Toy Story, The (1995)",Animation|Children\'s|Comedy',
        '20,"Misérables, Les (""The Wretched"", ""Les Miz"") (1998) ",Drama',
        "30,Untitled,(no genres listed)",
    ]
    lines(folder / "movies.csv", films, end="\r\n")


Writer = Callable[[Path, Ratings], None]
WRITERS = (write_100k, write_recbole, write_1m, write_csv)
each_release = pytest.mark.parametrize("write", WRITERS)


def typed_rows(source: Source) -> pl.DataFrame:
    """Return the rows as the description types them; none may be bad."""
    rejected = Rejections()
    pieces = read(source.files[0], source.description.csv, source.columns or (), rejected)
    rows = pl.concat([typed(source.shape(piece), source.description, "", rejected) for piece in pieces])
    assert not rejected.rows
    return rows


@each_release
def test_ratings_and_films(tmp_path: Path, write: Writer):
    write(tmp_path, RATINGS)
    rows = typed_rows(movielens.source(str(tmp_path)))
    assert rows["__group__"].to_list() == ["1", "1", "2", "2", "3"]
    assert rows["movie_id"].to_list() == ["10", "20", "20", "30", "10"]
    assert rows["rating"].to_list() == [4, 3, 5, 1, 2]
    assert rows["liked"].to_list() == [1, 0, 1, 0, 0]
    assert rows["movie_year"].to_list() == [1995, 1998, 1998, None, 1995]
    toys = ["Animation", "Children's", "Comedy"]
    assert [each or [] for each in rows["genres"].to_list()] == [toys, ["Drama"], ["Drama"], [], toys]


@pytest.mark.parametrize("write", WRITERS[:3])
def test_users_where_the_release_tells_of_them(tmp_path: Path, write: Writer):
    write(tmp_path, RATINGS)
    rows = typed_rows(movielens.source(str(tmp_path)))
    assert rows["gender"].to_list() == ["F", "F", "M", "M", "M"]
    assert rows["age"].to_list() == ["25", "25", "56", "56", "1"]
    assert rows["occupation"].to_list() == ["writer", "writer", "none", "none", "writer"]


@each_release
def test_rows_in_are_rows_out_and_rows_rejected(tmp_path: Path, write: Writer):
    write(tmp_path, [*RATINGS, (4, 10, "five", 0), (4, 10, 5, -START)])  # the last one is of 1970
    report = prepare(movielens.source(str(tmp_path)), tmp_path / "out", max_rejected=0.5)
    assert (report.rows_in, report.rows_out, sum(report.rejected.values())) == (7, 5, 2)
    assert {key.split(":")[0] for key in report.rejected} == {"rating", "timestamp"}


@each_release
def test_files_by_user_become_days_by_time(tmp_path: Path, write: Writer):
    write(tmp_path, RATINGS)
    prepare(movielens.source(str(tmp_path)), tmp_path / "out")
    log = PreparedLog.open(tmp_path / "out").load()
    assert log.days == ("2000-01-02", "2000-01-03", "2000-01-06", "2000-01-14")
    assert log.starts == (0, 1, 3, 4, 5)
    assert log.rows.labels[:, 1].tolist() == [5, 3, 1, 4, 2]
    assert log.rows.categorical[:, 0].tolist() == [2, 1, 2, 3, 1]  # user 3 is new on the last day: 1
    assert "no redistribution, and no commercial use" in log.notice


def test_several_days_are_a_partition(tmp_path: Path):
    write_csv(tmp_path, RATINGS)
    prepare(movielens.source(str(tmp_path)), tmp_path / "out")
    assert PreparedLog.open(tmp_path / "out").partitions(days=2).starts == (0, 3, 5)


def test_half_stars(tmp_path: Path):
    write_csv(tmp_path, [(1, 10, stars, i) for i, stars in enumerate((0.5, 3.5, 4.0, 4.5, 5.0))])
    rows = typed_rows(movielens.source(str(tmp_path)))
    assert rows["liked"].to_list() == [0, 0, 1, 1, 1]
    assert rows["rating"].to_list() == [0.5, 3.5, 4.0, 4.5, 5.0]


def test_a_film_that_no_file_tells_of(tmp_path: Path):
    write_1m(tmp_path, [*RATINGS, (9, 99, 4, 0)])
    row = typed_rows(movielens.source(str(tmp_path))).row(-1, named=True)
    assert (row["user_id"], row["movie_id"]) == ("9", "99")
    assert [row[name] for name in ("movie_year", "genres", "gender", "age", "occupation")] == [None] * 5


def test_the_label_is_no_feature(tmp_path: Path):
    write_1m(tmp_path, RATINGS)
    description = movielens.source(str(tmp_path)).description
    features = {each.source for each in (*description.categorical, *description.dense)}
    assert not features & {"rating", "timestamp"}


@pytest.mark.parametrize(
    ("write", "file"),
    [
        *((write_100k, file) for file in ("u.item", "u.user")),
        *((write_recbole, file) for file in ("ml-100k.item", "ml-100k.user")),
        *((write_1m, file) for file in ("movies.dat", "users.dat")),
        (write_csv, "movies.csv"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, write: Writer, file: str):
    write(tmp_path, RATINGS)
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=f"{tmp_path} has .* and no {file}; expected all files of movielens"):
        movielens.source(str(tmp_path))


def test_a_folder_of_something_else(tmp_path: Path):
    sentence = "has no ratings of MovieLens; expected u.data or ml-100k.inter or ratings.dat or ratings.csv"
    with pytest.raises(InputError, match=sentence):
        movielens.source(str(tmp_path))


def test_the_path_may_end_with_a_slash(tmp_path: Path):
    write_1m(tmp_path, RATINGS)
    assert movielens.source(f"{tmp_path}/").files == (f"{tmp_path}/ratings.dat",)
