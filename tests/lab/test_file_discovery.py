"""Which URLs a log may be at: nothing is asked, and nothing runs, for any other."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lab.study.recorded_run import TINY, capsule_of
from surefoot.errors import InputError
from surefoot.lab.cli import app
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.file_discovery import PROTOCOLS, find_files, locate, refuse_other_urls
from surefoot.lab.settings import dump
from surefoot.lab.study.config import DataConfig
from surefoot.lab.study.replay import Elsewhere, Examined, examine


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port of this machine, and what comes to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """References whose template writes a file if it is rendered as jinja does without a sandbox."""
    run = "{{ cycler.__init__.__globals__.os.system('touch %s') }}" % (tmp_path / "it-ran")
    path = tmp_path / "references.json"
    gen = [{"key": "k{{i}}", "url": run, "dimensions": {"i": [1]}}]
    path.write_text(json.dumps({"version": 1, "templates": {}, "gen": gen, "refs": {"prepared.json": run}}))
    return path


def urls(listener: socket.socket, reference: Path) -> list[str]:
    port = listener.getsockname()[1]
    http = f"http://127.0.0.1:{port}/log"
    return [
        http,
        f"HTTP://127.0.0.1:{port}/log",
        f"https://127.0.0.1:{port}/log",
        f"ftp://127.0.0.1:{port}/log",
        f"webhdfs://127.0.0.1:{port}/log",
        f"reference://{reference}",
        f"reference://::file://{reference}",
        f"reference://::{http}",
        f"simplecache::{http}",
        f"file:///log::{http}",
        f"memory://log::reference://::file://{reference}",
        f"zip://a.csv::{http}",
        f"s3://bucket/log::{http}",
        f"s3://key:secret@bucket/log?endpoint_override=127.0.0.1:{port}&scheme=http&region=r",
        f"gs://anonymous@bucket/log?endpoint_override=127.0.0.1:{port}&scheme=http",
        f"s3://127.0.0.1:{port}/log",
        f"abfs://account:a2V5@127.0.0.1:{port}/container/log",
        "abfs://container@account.example.net/log",
        "github://owner:repository@main/log",
        "local:///log",
        "://log",
    ]


def asked(listener: socket.socket) -> bool:
    listener.settimeout(0.05)
    try:
        listener.accept()[0].close()
    except TimeoutError:
        return False
    return True


def test_of_other_urls_nothing_is_asked_and_nothing_runs(listener: socket.socket, reference: Path):
    for url in urls(listener, reference):
        for reads in (locate, find_files, PreparedLog.open):
            with pytest.raises(InputError, match="; expected "):
                reads(url)
    assert not asked(listener)
    assert not (reference.parent / "it-ran").exists()


def test_the_sentence_names_the_url_and_what_is_opened():
    with pytest.raises(InputError, match=f"^http://a/b has the protocol 'http'; .*one of {', '.join(PROTOCOLS)}$"):
        locate("http://a/b")
    with pytest.raises(InputError, match="^memory://a::memory://b chains several URLs; expected one URL$"):
        locate("memory://a::memory://b")
    with pytest.raises(InputError, match=r"has options; expected none after '\?': set them in the environment"):
        locate("s3://bucket/log?region=r")


def test_a_url_of_a_storage_service_is_opened():
    for url in ("s3://bucket/day=1/a.csv", "s3://key:secret@bucket/a", "hdfs://names:8020/a"):
        refuse_other_urls(url)
    for url in ("gs://bucket/a", "abfss://container@account.dfs.core.windows.net/a"):
        assert locate(url)[1]


def test_the_command_line_asks_nothing(listener: socket.socket, reference: Path, tmp_path: Path):
    for i, url in enumerate(urls(listener, reference)[:13:6]):
        config = tmp_path / f"{i}.toml"
        config.write_text(f"[data]\nsource = {json.dumps(url)}\n")
        for command in (
            ("data", "check", url),
            ("data", "prepare", "kuairand", url, "--out", tmp_path / "out"),
            ("study", "smoke", "--data", url, "--out", tmp_path / "out"),
            ("train", config, "--out", tmp_path / "out"),
        ):
            done = CliRunner().invoke(app, [str(word) for word in command])
            assert isinstance(done.exception, InputError), done.output
        assert not (tmp_path / "out").exists()
    assert not asked(listener)
    assert not (reference.parent / "it-ran").exists()


def test_for_a_capsule_no_url_is_opened_that_its_reader_did_not_name(listener: socket.socket, reference: Path):
    for i, url in enumerate([*urls(listener, reference), "s3://bucket/log", "memory://log", "file:///log"]):
        config = TINY.model_copy(update={"data": DataConfig.model_construct(**dict(TINY.data, source=url))})
        folder = capsule_of(TINY, reference.parent / str(i), alarm=1, after=0, written=dump(config)).folder
        with pytest.raises(InputError, match="and URLs are not opened for a capsule; name the log yourself: --data"):
            examine(folder)
        with pytest.raises(InputError, match="memory://nothing does not exist; expected a folder"):
            examine(folder, elsewhere=Elsewhere(data="memory://nothing"))
    assert not asked(listener)
    assert not (reference.parent / "it-ran").exists()


def test_a_capsule_is_replayed_on_the_log_that_its_reader_names(tmp_path: Path):
    config = TINY.model_copy(update={"data": TINY.data.model_copy(update={"source": "s3://bucket/log"})})
    folder = capsule_of(TINY, tmp_path, alarm=1, after=0, written=dump(config)).folder
    found = examine(folder, elsewhere=Elsewhere(data="synthetic"))
    assert isinstance(found, Examined)
    assert found.replay.difference is None
