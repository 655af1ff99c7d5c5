"""The cache of prepared data: damaged, shared by several processes at once, or not writable."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from jaxclip.train import data
from jaxclip.train.data import cache, tfds_mnist
from jaxclip.train.errors import RunError, UserError
from tests.train import runs
from tests.train.folders import is_made_up, put_fashion

NAME = "fashion_mnist"


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    return put_fashion(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """The folder of the cache."""
    return tmp_path / "cache"


def load(fashion):
    assert is_made_up(data.load(NAME, str(fashion)))


def content(folder):
    return sorted(entry.name for entry in folder.iterdir())


# Damage ------------------------------------------------------------------------------------------

FILES = [
    "dataset_info.json",
    *(f"{NAME}-{s}.array_record-00000-of-00001" for s in ("train", "test")),
]
DAMAGE = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other": lambda path: path.write_bytes(path.read_bytes().replace(b"1", b"2", 40)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_copy_is_set_aside_and_prepared_anew(how, file, fashion, folder, capsys):
    load(fashion)
    assert capsys.readouterr() == ("", "")
    DAMAGE[how](folder / NAME / "3.0.1" / file)
    load(fashion)
    said = capsys.readouterr()
    first, second = said.err.splitlines()
    assert first.startswith(f"jaxclip: note: the copy of {NAME} in {folder} is damaged (")
    aside = folder / f"{NAME}.damaged"
    assert second.startswith(f"jaxclip: note: the damaged copy of {NAME} is now {aside}; {NAME} ")
    assert said.out == ""
    assert content(folder) == [NAME, aside.name, f"{NAME}.lock"]
    load(fashion)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["file", "link", "empty folder", "another data set"])
def test_something_else_in_the_place_of_a_copy(kind, fashion, folder, prepared, capsys):
    folder.mkdir()
    place = folder / NAME
    {
        "file": place.touch,
        "link": partial(place.symlink_to, "nowhere"),
        "empty folder": place.mkdir,
        "another data set": partial(shutil.copytree, prepared / "mnist", place),
    }[kind]()
    for aside in (1, 2):
        load(fashion)
        assert len(capsys.readouterr().err.splitlines()) == (2 if aside == 1 else 0)


def test_a_second_damaged_copy_takes_the_place_of_the_first(fashion, folder):
    for _ in range(3):
        load(fashion)
        (folder / NAME / "3.0.1" / FILES[0]).unlink()
    assert content(folder) == [NAME, f"{NAME}.damaged", f"{NAME}.lock"]


def test_a_damaged_download_without_network(folder, capsys):
    (folder / "mnist").mkdir(parents=True)
    assert "because mnist is not available" in data.load().source
    with pytest.raises(UserError, match="the download failed"):
        data.load("mnist")
    said = capsys.readouterr().err
    assert said == f"jaxclip: note: the copy of mnist in {folder} is damaged (no mnist in it)\n" * 2
    assert content(folder) == ["mnist"]


# Several processes -------------------------------------------------------------------------------


def at_once(make, count=4):
    """Prepares the data set in `count` threads, each with its own hold on the files."""
    barrier = threading.Barrier(count)

    def one(_):
        barrier.wait()
        return cache.read("mnist") or cache.prepare("mnist", make)

    with ThreadPoolExecutor(count) as pool:
        return [splits for _, splits in pool.map(one, range(count))]


@pytest.mark.parametrize("locks", [pytest.param(True, marks=pytest.mark.slow), False])
def test_several_prepare_at_once(locks, prepared, tmp_path, monkeypatch):
    if not locks:
        monkeypatch.setattr(cache, "fcntl", None)
    for number in range(runs.tries(16, 400)):
        monkeypatch.setenv(cache.VARIABLE, str(tmp_path / f"{number}"))
        made = []

        def make(place, made=made):
            shutil.copytree(prepared / "mnist", place / "mnist")
            made.append(place)

        for splits in at_once(make):
            assert [len(part) for part in splits] == [30, 30, 10, 10]
        assert len(made) == 1 or not locks
        assert content(tmp_path / f"{number}") == ["mnist", "mnist.lock"]


@pytest.mark.slow
def test_two_processes_prepare_at_once(mnist_folder, tmp_path):
    code = f"from jaxclip.train import data; print(data.load('mnist', {str(mnist_folder)!r}).name)"
    for number in range(runs.tries(1, 16)):
        environment = os.environ | {cache.VARIABLE: str(tmp_path / f"{number}")}
        start = partial(
            subprocess.Popen,
            [sys.executable, "-W", "error", "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes = [start() for _ in range(2)]
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert (process.returncode, out) == (0, "mnist\n"), err
            assert {line[:22] for line in err.splitlines()} <= {"jaxclip: note: waiting"}
        assert content(tmp_path / f"{number}") == ["mnist", "mnist.lock"]


@pytest.fixture
def held(folder):
    """The lock, held by another process as it were."""
    folder.mkdir()
    with (folder / f"{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def test_a_process_that_was_stopped_is_not_waited_for_forever(
    held, fashion, folder, monkeypatch, capsys
):
    monkeypatch.setattr(cache, "WAIT_SECONDS", 0.1)
    (folder / f"{NAME}-other.part").mkdir()
    load(fashion)
    said = capsys.readouterr().err
    assert (
        said == f"jaxclip: note: waiting for another process, which prepares {NAME} in {folder}\n"
    )
    assert f"{NAME}-other.part" in content(folder)


def test_a_file_system_without_locks(fashion, folder, monkeypatch, capsys):
    def fail(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    load(fashion)
    assert capsys.readouterr().err == ""


def test_what_a_killed_process_left_is_removed(fashion, folder):
    (folder / f"{NAME}-abc.part" / "x").mkdir(parents=True)
    load(fashion)
    assert content(folder) == [NAME, f"{NAME}.lock"]


# The place of the cache --------------------------------------------------------------------------


def test_the_cache_is_in_one_place(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(prepared / "mnist", tmp_path / ".cache/jaxclip/mnist")
    assert data.load().key == "digits"
    monkeypatch.setenv(cache.VARIABLE, "")
    assert is_made_up(data.load())
    monkeypatch.setenv(cache.VARIABLE, "~/.cache/jaxclip")
    assert is_made_up(data.load())


# A cache that cannot be written ------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["", "file/x", "~nosuch"])
def test_no_cache_leaves_nothing_behind(variable, fashion, tmp_path, monkeypatch, capsys):
    (tmp_path / "work" / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv(cache.VARIABLE, variable)
    load(fashion)
    assert content(tmp_path / "temporary") == []
    assert capsys.readouterr() == ("", "")


def test_no_folder_at_all(fashion, tmp_path, monkeypatch):
    def fail(**options):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv(cache.VARIABLE, "/dev/null")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", fail)
    with pytest.raises(RunError, match=r"No usable temporary directory found; JAXCLIP_CACHE names"):
        data.load(NAME, str(fashion))


def test_a_copy_in_a_folder_that_cannot_be_written_is_read(fashion, folder, monkeypatch):
    load(fashion)
    monkeypatch.setattr(cache, "_writable", None)
    load(fashion)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk(number, fashion, folder, monkeypatch):
    def fail(name, place, originals):
        (place / "begun").write_bytes(b"x")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tfds_mnist, "prepare", fail)
    with pytest.raises(RunError) as caught:
        data.load(NAME, str(fashion))
    reason = f"cannot prepare {NAME} from {fashion}: {os.strerror(number)}; JAXCLIP_CACHE names"
    assert str(caught.value).startswith(reason)
    assert content(folder) == [f"{NAME}.lock"]


def test_a_copy_that_is_damaged_as_soon_as_it_is_there(fashion, folder, monkeypatch):
    monkeypatch.setattr(
        tfds_mnist, "prepare", lambda name, place, originals: (place / name).mkdir()
    )
    with pytest.raises(RunError, match=f"{folder}/{NAME}: no {NAME} in it; the same command tries"):
        data.load(NAME, str(fashion))


def test_shared_folder_of_a_home_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~nosuch/x")
    with pytest.raises(UserError, match=r"^TFDS_DATA_DIR=~nosuch/x: no such home folder$"):
        data.load()
