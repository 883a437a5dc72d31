"""MovieLens: ratings of films from 1995 to 2023: 100K, 1M, and the releases in CSV (20M, 25M, 32M, small).

A row is a rating. The tasks predict whether it is four stars or more, and its value. Days have few rows, and most users
of the last day are new, so weeks fit better: ``PreparedLog.open(folder).partitions(days=7)``. The files are sorted by
user; days and the order of rows come from the timestamps, in UTC.

A timestamp tells when a user entered a rating, often many at once, not when the user saw the film. So hour and weekday
are not features. Postcodes, almost one for each user, are not read.
"""

from dataclasses import dataclass
from functools import partial

import polars as pl
from pyarrow import fs

from surefoot.errors import InputError
from surefoot.lab.file_discovery import locate
from surefoot.lab.ingest.description import CategoricalColumn, Csv, Day, DenseColumn, Description, LabelColumn
from surefoot.lab.ingest.reader import ROW, Rejections
from surefoot.lab.ingest.source import Shape, SideTable, Source, notes_on

NOTICE = (
    "MovieLens is of GroupLens Research at the University of Minnesota (Harper and Konstan, 2015, "
    "doi:10.1145/2827872), for research: no redistribution, and no commercial use without GroupLens's permission."
)

LABELS = (
    LabelColumn(name="liked", column="rating", at_least=4),
    LabelColumn(name="rating", kind="regression"),
)

_RATING = ("user_id", "movie_id", "rating", "timestamp")
_USER = ("gender", "age", "occupation")
_GENRES = (  # the flags of u.item, in its order
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


@dataclass(frozen=True)
class _Table:
    """A file of a release: its name, its format, and the columns to read."""

    file: str
    csv: Csv
    columns: tuple[str, ...]


@dataclass(frozen=True)
class _Release:
    """The files of a release; ``film`` returns id, year and genres from the rows of the file of films."""

    name: str
    ratings: _Table
    films: _Table
    film: Shape
    users: _Table | None = None


def source(path: str) -> Source:
    """Return a release: its ratings, joined with the features of films and users.

    Args:
        path: the folder with ``u.data``, ``ml-100k.inter`` (RecBole's 100K), ``ratings.dat`` or ``ratings.csv``; if it
            has several, the first in this order.

    Raises:
        InputError: if it has none of them, or if the file of films or users is missing.
    """
    release = next((each for each in _RELEASES if _there(path, each.ratings.file)), None)
    if release is None:
        names = " or ".join(each.ratings.file for each in _RELEASES)
        raise InputError(f"{path} has no ratings of MovieLens; expected {names} in this folder")
    beside = [release.films.file, *([release.users.file] if release.users else [])]
    if missing := [file for file in beside if not _there(path, file)]:
        raise InputError(
            f"{path} has {release.ratings.file} and no {' and no '.join(missing)}; expected all files of {release.name}"
        )
    rejected = Rejections()
    sides = {"movie_id": _side(path, release.films, "movie_id", release.film, rejected)}
    if release.users is not None:
        who = partial(_renamed, names=dict(zip(release.users.columns, ("user_id", *_USER), strict=True)))
        sides["user_id"] = _side(path, release.users, "user_id", who, rejected)
    ratings = release.ratings
    return Source(
        describe(release.name, ratings.csv, users=release.users is not None),
        (_join(path, ratings.file),),
        ratings.columns,
        partial(_shape, names=dict(zip(ratings.columns, _RATING, strict=True)), sides=sides),
        rejected,
        tuple(_join(path, file) for file in beside),
        notes_on(sides.values()),
    )


def describe(name: str, csv: Csv, *, users: bool) -> Description:
    """Return the description of a release; ``users``: whether it has features of users."""
    return Description(
        name=name,
        day=Day(column="timestamp", unit="s"),
        categorical=(
            CategoricalColumn(name="user_id"),
            CategoricalColumn(name="movie_id"),
            CategoricalColumn(name="genres", separator="|", width=6),  # few films have more
            *(CategoricalColumn(name=column) for column in (_USER if users else ())),
        ),
        dense=(DenseColumn(name="movie_year"),),
        label=LABELS,
        group="user_id",
        csv=csv,
        notice=NOTICE,
    )


def _join(path: str, file: str) -> str:
    return f"{path.rstrip('/')}/{file}"


def _there(path: str, file: str) -> bool:
    system, inside = locate(_join(path, file))
    return system.get_file_info(inside).type == fs.FileType.File


def _side(path: str, table: _Table, key: str, shape: Shape, rejected: Rejections) -> SideTable:
    return SideTable.read(_join(path, table.file), table.csv, table.columns, key=key, rejected=rejected, shape=shape)


def _renamed(rows: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame:
    return rows.rename(names)


def _shape(rows: pl.DataFrame, names: dict[str, str], sides: dict[str, SideTable]) -> pl.DataFrame:
    """Join the features of film and user."""
    rows = rows.rename(names)
    return pl.concat([rows, *(side.of(rows[key]) for key, side in sides.items())], how="horizontal")


# Films: from the columns of a release's file to id, year and genres


def _film(rows: pl.DataFrame) -> pl.DataFrame:
    movie, title, genres = rows.drop(ROW).columns
    listed = pl.when(pl.col(genres) != "(no genres listed)").then(pl.col(genres))
    return rows.select(ROW, movie_id=movie, movie_year=_year(title), genres=listed)


def _flagged_film(rows: pl.DataFrame) -> pl.DataFrame:
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES]
    genres = pl.concat_str(flags, separator="|", ignore_nulls=True)
    return rows.select(ROW, movie_id="id", movie_year=_year("title"), genres=genres)


def _recbole_film(rows: pl.DataFrame) -> pl.DataFrame:
    movie, year, genres = rows.drop(ROW).columns
    only_year = pl.col(year).str.extract(r"^(\d{4})$")  # two films have a word instead
    return rows.select(ROW, movie_id=movie, movie_year=only_year, genres=pl.col(genres).str.replace_all(" ", "|"))


def _year(title: str) -> pl.Expr:
    return pl.col(title).str.extract(r"\((\d{4})\)\s*$")


# The releases


def _text(separator: str, *columns: str) -> Csv:
    """Return the format of a release without a header."""
    return Csv(separator=separator, columns=columns, encoding="iso-8859-1")


_ITEM = ("id", "title", "released", "video", "url", *_GENRES)
_TAB = Csv(separator="\t")
_RELEASES = (
    _Release(
        "movielens-100k",
        _Table("u.data", _text("\t", *_RATING), _RATING),
        _Table("u.item", _text("|", *_ITEM), ("id", "title", *_GENRES)),
        _flagged_film,
        _Table("u.user", _text("|", "user_id", "age", "gender", "occupation", "zip"), ("user_id", *_USER)),
    ),
    _Release(
        "movielens-100k",
        _Table("ml-100k.inter", _TAB, ("user_id:token", "item_id:token", "rating:float", "timestamp:float")),
        _Table("ml-100k.item", _TAB, ("item_id:token", "release_year:token", "class:token_seq")),
        _recbole_film,
        _Table("ml-100k.user", _TAB, ("user_id:token", "gender:token", "age:token", "occupation:token")),
    ),
    _Release(
        "movielens-1m",
        _Table("ratings.dat", _text("::", *_RATING), _RATING),
        _Table("movies.dat", _text("::", "id", "title", "genres"), ("id", "title", "genres")),
        _film,
        _Table("users.dat", _text("::", "user_id", "gender", "age", "occupation", "zip"), ("user_id", *_USER)),
    ),
    _Release(
        "movielens",
        _Table("ratings.csv", Csv(), ("userId", "movieId", "rating", "timestamp")),
        _Table("movies.csv", Csv(), ("movieId", "title", "genres")),
        _film,
    ),
)
