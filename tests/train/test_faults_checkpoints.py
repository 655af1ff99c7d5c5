"""Faults of checkpoints: a damaged one is named and set aside, the newest sound one is taken."""

import gc
import itertools
import json
import resource
import shutil
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.train import cli
from jaxclip.train.config import presets
from jaxclip.train.errors import RunError, UserError
from jaxclip.train.recording import manifest, resuming
from jaxclip.train.recording.checkpoints import Checkpoint, Checkpoints, Position
from jaxclip.train.training.loop import State
from tests.train import runs

CONFIG = presets.get("explode")
TELEMETRY = {"loss": np.arange(3.0, dtype=np.float32), "guard/skipped": np.array([True, False])}
POSITION = {"epochs": 2, "steps": 23, "begun": 3}


def state(number):
    """A state of a few dtypes; `number` makes it another one."""
    kernel = jnp.linspace(-1, number, 300).reshape(20, 15)
    params = {"layers": {0: {"kernel": kernel, "bias": kernel[0].astype(jnp.bfloat16)}}}
    return State(params, {}, (jnp.int32(number), kernel > 0), jnp.arange(2, dtype=jnp.uint32))


def same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def save(folder, *numbers, config=CONFIG):
    with Checkpoints(folder, config) as kept:
        for number in numbers:
            kept.save(Checkpoint(state(number), Position(number, 10 * number)))
            kept.wait()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints 1, 2, and 2+3."""
    folder = tmp_path_factory.mktemp("two")
    save(folder, 1, 2)
    with Checkpoints(folder, CONFIG) as kept:
        kept.save(Checkpoint(state(3), Position(2, 23, 3), TELEMETRY, 1.5))
    assert resuming.names(folder) == ["2", "2+3"]
    return folder


@pytest.fixture
def folder(two, tmp_path):
    return shutil.copytree(two, tmp_path / "run")


def load(folder, *, aside=True, config=CONFIG):
    said = []
    with Checkpoints(folder, config) as kept:
        return kept.latest(state(0), said.append, aside=aside), said


def newest_files(folder):
    return sorted(p for p in (folder / "checkpoints" / "2+3").rglob("*") if p.is_file())


def test_content(folder):
    newest, said = load(folder)
    assert said == []
    assert same(newest.state, state(3))
    assert newest.position == Position(2, 23, 3)
    assert newest.seconds == 1.5
    assert newest.telemetry.keys() == TELEMETRY.keys()
    for key, values in TELEMETRY.items():
        np.testing.assert_array_equal(newest.telemetry[key], values, strict=True)


def assert_older_is_taken(folder):
    """The newest is damaged: named, set aside, and nothing else lost."""
    newest, said = load(folder)
    assert newest.position == Position(2, 20)
    assert same(newest.state, state(2))
    (line,) = said
    assert line.startswith("note: checkpoint 2+3 is damaged (")
    assert line.endswith("), now damaged-2+3; taking 2")
    assert (folder / "checkpoints" / "damaged-2+3").is_dir()
    assert load(folder)[1] == []
    return line


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def every_kind_of_file(folder):
    """The arrays' data, their descriptions, Orbax's files, the telemetry, the manifest."""
    return {path.name if path.name[0] in "._mt" else "data": path for path in newest_files(folder)}


@pytest.mark.parametrize("tries", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_flipped_bit(tries, two, tmp_path):
    drawn = np.random.default_rng(0)
    for i in range(tries):
        folder = shutil.copytree(two, tmp_path / f"run{i}")
        paths = newest_files(folder) if i % 2 else [*every_kind_of_file(folder).values()]
        path = paths[drawn.integers(len(paths))]
        flip(path, drawn.integers(8 * path.stat().st_size))
        assert path.name in assert_older_is_taken(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "emptied", "removed", "replaced by a folder"])
def test_a_file_is_not_whole(kind, two, tmp_path):
    paths = sorted(every_kind_of_file(two).values())
    for i, path in enumerate(path.relative_to(two) for path in paths):
        path = shutil.copytree(two, tmp_path / f"run{i}") / path
        content = path.read_bytes()
        path.unlink()
        if kind in ("truncated", "emptied"):
            path.write_bytes(content[: len(content) // 2 if kind == "truncated" else 0])
        elif kind != "removed":
            path.mkdir()
        assert path.name in assert_older_is_taken(tmp_path / f"run{i}")


@pytest.mark.parametrize(
    "change",
    [
        *({"position": POSITION | change} for change in ({"epochs": 1}, {"steps": 24})),
        *({"position": POSITION | change} for change in ({"begun": 0}, {"steps": -23})),
        *({"position": change} for change in (None, {"epochs": 9, "steps": 90, "begun": 0})),
        {"seconds": 2.5},
        {"config": None},
        {"files": {}},
        {"arrays": {}},
    ],
)
def test_an_altered_manifest(change, folder):
    path = folder / "checkpoints" / "2+3" / manifest.NAME
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    assert "manifest.json: SHA-256 differs" in assert_older_is_taken(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"sha256": 3}', "[" * 100_000])
def test_a_manifest_that_is_none(text, folder):
    (folder / "checkpoints" / "2+3" / manifest.NAME).write_text(text)
    assert "manifest.json" in assert_older_is_taken(folder)


def test_an_array_that_was_damaged_before_it_was_written(two, tmp_path, monkeypatch):
    """Files have the right sums; the array does not."""
    save(tmp_path, 1)
    sums = manifest.array_sums
    altered = lambda arrays: sums({name: _altered(x) for name, x in arrays.items()})  # noqa: E731
    monkeypatch.setattr(manifest, "array_sums", altered)
    save(tmp_path, 2)
    found, (line,) = load(tmp_path)
    assert found.position.epochs == 1
    assert "params.layers.0." in line
    assert "SHA-256 differs" in line


def _altered(x):
    return x + 1 if x.dtype == jnp.float32 else x


def test_all_damaged(folder, capsys):
    before = sorted((folder / "checkpoints").rglob("*"))
    for name in ("2", "2+3"):
        flip(folder / "checkpoints" / name / manifest.NAME, 8000)
    with pytest.raises(RunError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"all checkpoints in {folder} are damaged (2+3: manifest.json: SHA-256 differs; "
        "2: manifest.json: SHA-256 differs); without --resume the run starts anew, and keeps them"
    )
    assert sorted((folder / "checkpoints").rglob("*")) == before


def test_reading_alone_changes_nothing(folder):
    flip(folder / "checkpoints" / "2+3" / manifest.NAME, 8000)
    before = sorted(folder.rglob("*"))
    found, (line,) = load(folder, aside=False)
    assert found.position == Position(2, 20)
    assert line.endswith("differs); taking 2")
    assert sorted(folder.rglob("*")) == before


def test_a_name_that_was_set_aside_before(folder):
    (folder / "checkpoints" / "damaged-2+3").mkdir()
    flip(folder / "checkpoints" / "2+3" / manifest.NAME, 8000)
    assert load(folder)[1][0].endswith("now damaged-2+3-2; taking 2")


def test_none_at_all(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        load(tmp_path)


def test_a_checkpoint_of_another_run(folder):
    """`config.json` was edited, or another run's checkpoints are here."""
    with pytest.raises(UserError, match=r"the checkpoint in .* has --learning-rate=0.1, not 0.3"):
        load(folder, config=CONFIG.override({"learning_rate": 0.3}))
    with (
        pytest.raises(UserError, match="belongs to another network or chain"),
        Checkpoints(folder, CONFIG) as kept,
    ):
        kept.latest(state(0)._replace(opt_state=()), print)
    assert resuming.names(folder) == ["2", "2+3"]


@pytest.mark.parametrize("damage", [None, "{", "[]", '{"preset": "nope"}'])
def test_the_config_is_in_every_checkpoint(damage, folder):
    if damage:
        (folder / "config.json").write_text(damage)
    assert resuming.saved_config(str(folder), "--resume") == CONFIG
    flip(folder / "checkpoints" / "2+3" / manifest.NAME, 8000)
    assert resuming.saved_config(str(folder), "--resume") == CONFIG


@pytest.mark.parametrize("name", ["a[b]c", "[!x]", "* ?", "ü"])
def test_a_folder_of_any_name(name, tmp_path):
    (tmp_path / name).mkdir()
    save(tmp_path / name, 1, 2, 3)
    assert resuming.names(tmp_path / name) == ["2", "3"]
    assert same(load(tmp_path / name)[0].state, state(3))


def test_one_that_was_cut_off_is_removed(tmp_path):
    (tmp_path / "checkpoints" / "7.part" / "state").mkdir(parents=True)
    save(tmp_path, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 200])
def test_a_limit_on_the_size_of_files(limit, tmp_path):
    save(tmp_path, 1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(RunError, match=r"a checkpoint cannot be written \(File too large\)"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert same(load(tmp_path)[0].state, state(1))


def test_a_removed_folder_does_not_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: warnings.warn("never awaited", stacklevel=1))
    with pytest.raises(RunError, match=r"cannot be written \(No such file or directory\)"):
        save(tmp_path / "gone", 1)
    assert not (tmp_path / "gone").exists()


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "other")
    with pytest.raises(RunError, match="checkpoints: is a symbolic link, not written to"):
        save(tmp_path / "run", 1)
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("hours", [-1, 1, 24])
def test_a_clock_that_jumps(hours, tmp_path, monkeypatch):
    """Again and again: every other look at it."""
    looks, now = itertools.count(), time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours * (next(looks) % 2))
    save(tmp_path, 1, 2)
    assert same(load(tmp_path)[0].state, state(2))
    assert next(looks) > 9


@pytest.mark.slow
def test_resuming_from_the_older_of_two_ends_as_an_undisturbed_run(tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "[cut]"
    run = ["train", "explode", *runs.SMALL, "--epochs"]
    runs.train(*run, "3", "--out", str(whole))
    runs.train(*run, "2", "--out", str(cut))
    (cut / "config.json").write_text("{")
    last = cut / "checkpoints" / "2" / "state" / "key" / "0"
    flip(last, 9)
    assert cli.main(["train", "--resume", "--out", str(cut), "--epochs", "3"]) == 0
    assert "state/key/0: SHA-256 differs" in capsys.readouterr().out
    runs.assert_same_end(whole, cut)
