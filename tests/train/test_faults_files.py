"""Faults of files: a full disk, links, a removed folder, a second run, paths of any kind."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxclip.train import cli
from jaxclip.train.errors import RunError, UserError
from jaxclip.train.recording import files, metrics_file, run_folder
from jaxclip.train.recording.metrics_file import MetricsFile
from jaxclip.train.recording.run_folder import RunFolder
from jaxclip.train.reporting import terminal
from tests.train import runs

RECORDS = [{"kind": "step", "epoch": 0, "step": i} for i in range(3)]


def fails(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EIO])
def test_a_failed_write_leaves_the_old_file(call, number, tmp_path, monkeypatch):
    path = tmp_path / "work" / "summary.json"
    files.replace(path, b"old")
    monkeypatch.setattr(os, call, fails(number))
    with pytest.raises(RunError, match=os.strerror(number)):
        files.replace(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json"]


def test_bytes_that_the_system_takes_in_parts(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, view: write(file, view[:3]))
    files.replace(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


@pytest.mark.parametrize("name", ["summary.json", "summary.json.part"])
def test_a_link_is_replaced_not_followed(name, tmp_path):
    (tmp_path / "other").write_bytes(b"mine")
    (tmp_path / name).symlink_to(tmp_path / "other")
    files.replace(tmp_path / "summary.json", b"new")
    assert (tmp_path / "other").read_bytes() == b"mine"
    assert not (tmp_path / "summary.json").is_symlink()
    assert (tmp_path / "summary.json").read_bytes() == b"new"


@pytest.mark.parametrize("target", ["other", "missing"])
@pytest.mark.parametrize("name", [metrics_file.NAME, run_folder.LOCK])
def test_a_link_is_refused_for_a_file_that_grows(name, target, tmp_path):
    (tmp_path / "other").write_bytes(b"no line")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(tmp_path / target)
    with pytest.raises(RunError, match=f"{name}: is a symbolic link"):
        MetricsFile(out) if name == metrics_file.NAME else RunFolder(str(out))
    assert (tmp_path / "other").read_bytes() == b"no line"
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_records_end_with_a_whole_line_on_a_full_disk(number, tmp_path, monkeypatch):
    write = os.write

    def half(file, view):
        if len(view) < 60:
            raise OSError(number, os.strerror(number))
        return write(file, view[:-30])

    with MetricsFile(tmp_path) as metrics:
        metrics.write(RECORDS[0])
        before = (tmp_path / metrics_file.NAME).read_bytes()
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(RunError, match=f"{metrics_file.NAME}: .*{os.strerror(number)}"):
            metrics.write(*RECORDS)
    assert (tmp_path / metrics_file.NAME).read_bytes() == before


def test_an_unfinished_line_is_removed(tmp_path):
    for torn in ("", '{"kind": "st', '{"kind": "step"}'):
        with (tmp_path / metrics_file.NAME).open("a") as file:
            file.write(torn)
        with MetricsFile(tmp_path) as metrics:
            metrics.write(RECORDS[0])
    assert runs.records(tmp_path) == [RECORDS[0]] * 3


def test_one_run_at_a_time(tmp_path):
    with RunFolder(str(tmp_path)):
        with pytest.raises(UserError, match=rf"another run \(process {os.getpid()}\) writes"):
            RunFolder(str(tmp_path))
        RunFolder(str(tmp_path), lock=False)
    RunFolder(str(tmp_path)).__exit__()


def test_one_of_many_that_begin_at_once(tmp_path):
    for i in range(7):
        together = threading.Barrier(4)

        def begin(_, together=together, out=str(tmp_path / str(i))):
            together.wait()
            with contextlib.suppress(UserError):
                return RunFolder(out)

        with ThreadPoolExecutor(4) as pool:
            (one,) = filter(None, pool.map(begin, range(4)))
        one.__exit__()


def test_a_dead_process_holds_no_lock(tmp_path):
    path = tmp_path / run_folder.LOCK
    code = f"import fcntl; f = open({str(path)!r}, 'w'); fcntl.flock(f, 2); print(1, flush=True)"
    command = [sys.executable, "-S", "-c", f"{code}; input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match="another run"):
            RunFolder(str(tmp_path))
        process.kill()
        process.wait()
        RunFolder(str(tmp_path)).__exit__()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.fcntl, "flock", fails(errno.ENOLCK))
    with RunFolder(str(tmp_path)), RunFolder(str(tmp_path)):
        pass
    monkeypatch.setattr(run_folder, "fcntl", None)
    with RunFolder(str(tmp_path)), RunFolder(str(tmp_path)):
        pass


@pytest.mark.parametrize("again", [False, True])
def test_a_removed_folder_is_noticed(again, tmp_path):
    out = tmp_path / "out"
    with RunFolder(str(out)) as folder:
        folder.check()
        shutil.rmtree(out)
        if again:
            RunFolder(str(out)).__exit__()
        with pytest.raises(RunError, match="was removed or replaced"):
            folder.check()
    assert again or not out.exists()


def test_another_run_leaves_the_earlier_one_whole(tmp_path):
    tmp_path = tmp_path / "work"
    (tmp_path / "mine.txt").write_text("not of a run")
    (tmp_path / "target").write_text("kept")
    with RunFolder(str(tmp_path)) as folder:
        assert folder.set_aside() is None
        for number in (1, 2):
            (tmp_path / "checkpoints").mkdir()
            for name in ("metrics.jsonl", "config.json", "run.png"):
                (tmp_path / name).write_text(f"{number}")
            (tmp_path / "summary.json").symlink_to(tmp_path / "target")
            assert folder.set_aside() == tmp_path / f"earlier-{number}"
    for number in (1, 2):
        earlier = {entry.name for entry in (tmp_path / f"earlier-{number}").iterdir()}
        expected = {"checkpoints", "metrics.jsonl", "config.json", "run.png", "summary.json"}
        assert earlier == expected
        assert (tmp_path / f"earlier-{number}" / "config.json").read_text() == f"{number}"
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {run_folder.LOCK, "mine.txt", "target", "earlier-1", "earlier-2"}


def test_a_move_that_was_cut_off_is_completed(tmp_path):
    (tmp_path / "earlier-1.part").mkdir()
    (tmp_path / "earlier-1.part" / "metrics.jsonl").write_text("1")
    (tmp_path / "config.json").write_text("1")
    with RunFolder(str(tmp_path)) as folder:
        assert folder.set_aside() == tmp_path / "earlier-1"
        assert folder.set_aside() is None
    assert len(list((tmp_path / "earlier-1").iterdir())) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "~nosuch/x"],
        ["train", "--config", "~nosuch/x"],
        ["train", "explode", "--data-dir", "~nosuch/x"],
        ["train", "--resume", "--out", "~nosuch/x"],
    ],
)
def test_a_home_folder_that_does_not_exist(arguments, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.endswith("=~nosuch/x: no such home folder\n")
    assert cli.main([*arguments[:-1], ""]) == 2
    assert capsys.readouterr().err.endswith("=: empty, a path is needed\n")
    assert said.count("\n") == 1
    with pytest.raises(UserError, match="--out=~nosuch: no such home folder"):
        RunFolder("~nosuch")


@pytest.mark.parametrize("name", ["a[b]c", "[red]", "*", "a?b", "x\ny", "ü ñ", "[!a]"])
def test_a_path_is_printed_and_written_as_it_is(name, tmp_path, capsys):
    with RunFolder(str(tmp_path / name)) as folder:
        terminal.records(terminal.console(), name, {name: str(folder.path.name)})
    if "\n" not in name:
        assert capsys.readouterr().out.count(name) == 3
    assert (tmp_path / name / run_folder.LOCK).is_file()
