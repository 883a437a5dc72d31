"""The C++ sources, compiled and kept: with and without a compiler, a home, a folder of ours alone; after a fork."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from properties import over
from surefoot.optim import kernel


@pytest.fixture
def compiled() -> None:
    if not kernel.available():
        pytest.skip("no C++ compiler")


# In a process of its own, since a library is compiled once in a life

SCRIPT = """
import ctypes, os, shutil, sys, traceback, warnings, torch, surefoot
from pathlib import Path
from surefoot.optim import compiled, kernel

work, path = Path(sys.argv[1]), os.environ["PATH"]

def step(**options):
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    w.grad = torch.tensor([0.3, -40.0])
    surefoot.ClippyAdagrad([w], lr=0.1, initial_accumulator_value=0.1, **options).step()
    torch.testing.assert_close(w.detach(), torch.tensor([0.9312, 2.1]), atol=1e-4, rtol=0)

def assert_refused():
    try:
        step(fused=True)
    except ValueError as error:
        assert "fused is True and no C++ compiler is found" in str(error)
    else:
        raise AssertionError("fused=True was taken")

def never_asked():
    step(fused=False)
    assert not compiled.library.cache_info().currsize and not list(folder.iterdir())

def no_compiler_available():
    assert not kernel.available()
    assert_refused()
    assert not list(folder.iterdir())

def no_compiler_steps():
    step()
    step(fused=False)

def broken_compiler_told_once():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            assert not kernel.available()
        assert_refused()
    assert [each.category for each in told] == [RuntimeWarning], told
    assert "torch's slower operations are used" in str(told[0].message)
    assert not list((folder / "surefoot").iterdir())  # nothing half made

def broken_compiler_steps():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        step()
        step()
    assert [each.category for each in told] == [RuntimeWarning], told

def library_kept():
    step(fused=True)
    (library,) = (folder / "surefoot").iterdir()
    assert library.name.startswith("kernel-") and library.suffix == ".so"
    assert (folder / "surefoot").stat().st_mode & 0o777 == 0o700
    made = library.stat().st_mtime_ns
    compiled.library.cache_clear()
    step(fused=True)
    assert [each.stat().st_mtime_ns for each in (folder / "surefoot").iterdir()] == [made]
    assert (work / "log").read_text() == "called\\n"

def libraries():
    return sorted((folder / "surefoot").glob("*.so"))

def have():
    '''Have a library in the folder; it is compiled for the first case alone.'''
    if not (work / "made").exists():
        step(fused=True)
        shutil.copytree(folder / "surefoot", work / "made", copy_function=shutil.copy2)
    else:
        (folder / "surefoot").mkdir(mode=0o700)
        for each in (work / "made").iterdir():
            shutil.copy2(each, folder / "surefoot")
    (library,) = libraries()
    return library

def steps_with(pattern=None, **options):
    compiled.library.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        step(fused=True)
    said = [str(each.message) for each in told]
    assert [pattern in each for each in said] == ([] if pattern is None else [True]), said

def cxx_with_arguments():
    step(fused=True)
    assert (work / "log").read_text().count("called") == 2

def cxx_no_command():
    for value in ("g++ '", str(work / "nothing")):
        os.environ["CXX"] = value
        compiled.library.cache_clear()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step()
        assert "torch's slower operations are used" in (warned := str(told[0].message)) and value.split()[0] in warned

def truncated():
    library = have()
    whole = library.read_bytes()
    for size in (0, len(whole) - 1):
        library.unlink()
        library.write_bytes(whole[:size])
        library.chmod(0o700)
        steps_with()
        assert libraries() == [library] and library.read_bytes() == whole

def foreign():
    library = have()
    source = folder / "other.cpp"
    source.write_text('extern "C" int other() { return 1; }')
    assert os.system(f"{real} -shared -fPIC {source} -o {folder}/other.so") == 0
    (folder / "other.so").chmod(0o700)
    digest = compiled._digest(folder / "other.so")
    planted = library.with_name(library.stem.rpartition("-")[0] + f"-{digest}.so")
    library.unlink()
    shutil.copy(folder / "other.so", planted)
    steps_with("has no function surefoot_nonfinite")
    assert libraries() == [library]

def writable_file():
    have()
    libraries()[0].chmod(0o777)
    steps_with("may be written by others (mode 777)")
    assert libraries()[0].stat().st_mode & 0o777 == 0o700

def writable_folder():
    have()
    (folder / "surefoot").chmod(0o1777)
    before = libraries()[0].stat().st_mtime_ns
    steps_with("for this process alone, not cached")
    assert libraries()[0].stat().st_mtime_ns == before

def writable_above():
    have()
    folder.chmod(0o1777)  # where nobody may rename what is ours, as in /tmp
    steps_with()
    folder.chmod(0o777)
    steps_with("may be written by everybody")

def other_owner():
    library = have()
    marker = folder / "ran"
    source = folder / "other.cpp"
    source.write_text(
        "#include <cstdio>\\n"
        '__attribute__((constructor)) void run() { std::fclose(std::fopen("%s", "w")); }' % marker
    )
    assert os.system(f"{real} -shared -fPIC {source} -o {folder}/other.so") == 0
    planted = library.with_name(library.stem.rpartition("-")[0] + f"-{compiled._digest(folder / 'other.so')}.so")
    library.unlink()
    shutil.copy(folder / "other.so", planted)
    planted.chmod(0o755)
    os.chown(planted, 54321, 54321)
    steps_with("belongs to user 54321")
    assert not marker.exists()
    os.chown(folder / "surefoot", 54321, 54321)
    steps_with("belongs to user 54321")
    ctypes.CDLL(str(folder / "other.so"))
    assert marker.exists()  # it would have run

def no_home():
    for name in ("HOME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.setresuid(54321, 0, 0)
    steps_with("has no home folder")

def a_file_in_the_way():
    (folder / "surefoot").write_text("")
    steps_with("for this process alone, not cached")

def relative_home():
    os.environ["HOME"], os.environ["XDG_CACHE_HOME"] = str(folder), "somewhere"
    steps_with()
    assert list((folder / ".cache" / "surefoot").iterdir()) and not Path("somewhere").exists()

real = os.environ["REAL_CXX"]
for case in sys.argv[2:]:
    (folder := work / case).mkdir()
    os.environ["XDG_CACHE_HOME"] = str(folder)
    os.environ["PATH"] = "" if case.startswith("no_compiler") else path
    compilers = {"broken": "/bin/false", "library": str(work / "compiler"), "cxx": f"'{work / 'compiler'}' -g0"}
    os.environ["CXX"] = compilers.get(case.split("_")[0], "")
    compiled.library.cache_clear()
    try:
        with warnings.catch_warnings(action="error"):
            globals()[case]()
        print(case, "ok")
    except BaseException:
        print(case, ascii(traceback.format_exc()))
"""
CASES = (
    "never_asked",
    "no_compiler_available",
    "no_compiler_steps",
    "broken_compiler_told_once",
    "broken_compiler_steps",
    "library_kept",
    "cxx_with_arguments",
    "cxx_no_command",
    "truncated",
    "foreign",
    "writable_file",
    "writable_folder",
    "writable_above",
    "a_file_in_the_way",
    "relative_home",
)
AS_ROOT = ("other_owner", "no_home")  # they give a file to somebody else, or take this user's entry away


def cases() -> tuple[str, ...]:
    return CASES + AS_ROOT if os.geteuid() == 0 else CASES


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what each case of the script said: all in one process, for torch takes seconds to import."""
    work = tmp_path_factory.mktemp("compilers")
    compiler = work / "compiler"
    real = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    compiler.write_text(f'#!/bin/sh\necho called >> {work / "log"}\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    assert real is not None or not kernel.available()
    command = [sys.executable, "-c", SCRIPT, str(work), *cases()]
    environment = {**os.environ, "REAL_CXX": real or ""}
    out = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True, env=environment).stdout
    return {name: said for name, _, said in (line.partition(" ") for line in out.splitlines())}


def test_every_case_has_spoken(told: dict[str, str]) -> None:
    assert tuple(told) == cases()


def test_fused_false_asks_for_no_compiler(told: dict[str, str]) -> None:
    assert told["never_asked"] == "ok"


@over("case", ["no_compiler_available", "no_compiler_steps"])
def test_without_a_compiler_the_eager_path_serves(told: dict[str, str], case: str) -> None:
    assert told[case] == "ok"


@over("case", ["broken_compiler_told_once", "broken_compiler_steps"])
def test_a_compiler_that_fails_is_told_of_once(told: dict[str, str], case: str) -> None:
    assert told[case] == "ok"


@pytest.mark.usefixtures("compiled")
def test_the_compiled_library_is_kept_and_used_again(told: dict[str, str]) -> None:
    assert told["library_kept"] == "ok"


@over("case", ["cxx_with_arguments", "cxx_no_command"])
@pytest.mark.usefixtures("compiled")
def test_cxx_is_a_command_with_its_arguments(told: dict[str, str], case: str) -> None:
    assert told[case] == "ok"


@over("case", ["truncated", "foreign"])
@pytest.mark.usefixtures("compiled")
def test_a_kept_library_that_is_not_what_was_kept_is_made_anew(told: dict[str, str], case: str) -> None:
    assert told[case] == "ok"


@over("case", ["writable_file", "writable_folder", "writable_above", "other_owner"])
@pytest.mark.usefixtures("compiled")
def test_what_others_may_write_is_not_loaded(told: dict[str, str], case: str) -> None:
    if case in AS_ROOT and case not in cases():
        pytest.skip("only root can give a file to somebody else")
    assert told[case] == "ok"


@over("case", ["a_file_in_the_way", "relative_home", "no_home"])
@pytest.mark.usefixtures("compiled")
def test_without_a_folder_to_keep_it_in_it_is_compiled_for_the_process(told: dict[str, str], case: str) -> None:
    if case in AS_ROOT and case not in cases():
        pytest.skip("only root can become a user without an entry")
    assert told[case] == "ok"


FORKED = """
import os, sys, signal, torch, surefoot
from surefoot.observe import layer_stats
from surefoot.optim import kernel

assert kernel.available()
torch.set_num_threads(2)

def made(numbers):  # in the parent: of large tensors, torch's own operations hang in a child
    w = torch.nn.Parameter(torch.ones(2, numbers // 2))
    w.grad = torch.ones_like(w)
    look = layer_stats.StepView(w.detach(), w.grad, torch.full_like(w, 1.1), True, 0.1, torch.ones(()))
    return w, surefoot.ClippyAdagrad([w], 0.1), [look]

def step(w, optimizer, looks):
    optimizer.step()
    layer_stats.layer_sums(looks), layer_stats.least_ratios(looks)
    return w[-1, -1].item()

several = [made(numbers) for numbers in (10, int(sys.argv[1]))]
before = [step(*each) for each in several]
child = os.fork()
if not child:
    signal.alarm(20)  # what hangs, hangs for good
    os._exit(0 if all(step(*each) < old for each, old in zip(several, before)) else 1)
print(os.waitpid(child, 0)[1])
"""


@over("numbers", [10, 200_000])
@pytest.mark.usefixtures("compiled")
def test_a_forked_process_steps_too(numbers: int) -> None:
    """Other threads are not in it, and none may be waited for."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(numbers)]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True, env=environment)
    status = int(done.stdout)
    assert not os.WIFSIGNALED(status), signal.Signals(os.WTERMSIG(status)).name
    assert os.WEXITSTATUS(status) == 0
