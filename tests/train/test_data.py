"""Sources of images: each branch, their order and messages; no TensorFlow, no hang."""

import gzip
import shutil

import numpy as np
import pytest

from jaxclip.train import data
from jaxclip.train.config import presets
from jaxclip.train.data import cache, sources, tfds_mnist
from jaxclip.train.data import prepared as prepared_folders
from jaxclip.train.errors import UserError
from tests.train.conftest import read_without_tensorflow
from tests.train.folders import is_made_up, put_fashion, put_originals, put_stock

# The order of sources ----------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "mnist", "mnist/3.0.1"])
def test_prepared_folder_at_each_level(prepared, below):
    found = data.load(None, str(prepared / below))
    assert is_made_up(found)
    assert "prepared by tensorflow-datasets" in found.describe()
    assert "30 training and 10 test images" in found.describe()


def test_prepared_comes_before_originals(prepared, tmp_path):
    folder = put_originals(tmp_path / "both")
    shutil.copytree(prepared / "mnist", folder / "mnist")
    assert is_made_up(data.load("mnist", str(folder)))


def test_newest_version_is_read(prepared, tmp_path):
    for version in ("3.0.1", "3.0.0", "2.10.0"):
        shutil.copytree(prepared / "mnist" / "3.0.1", tmp_path / "mnist" / version)
    assert prepared_folders.find(tmp_path, "mnist") == tmp_path / "mnist" / "3.0.1"


def test_tfds_data_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    found = data.load()
    assert is_made_up(found)
    assert "TFDS_DATA_DIR" in found.source


def test_data_dir_comes_before_tfds_data_dir(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    with pytest.raises(UserError, match="neither a mnist folder"):
        data.load(None, str(tmp_path))


def test_tfds_data_dir_without_the_data_set_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    assert data.load().name == "digits (8x8)"


def test_folder_prepared_for_another_data_set_is_an_error(prepared):
    with pytest.raises(UserError, match="neither a fashion_mnist folder"):
        data.load("fashion_mnist", str(prepared))


def test_network_then_its_cache(prepared, monkeypatch, tmp_path):
    def download(name, cache, originals):
        assert (name, originals) == ("mnist", None)
        return shutil.copytree(prepared / "mnist", cache / "mnist") / "3.0.1"

    monkeypatch.setattr(sources, "connection_trouble", lambda url: None)
    monkeypatch.setattr(tfds_mnist, "prepare", download)
    assert "the network" in data.load().source
    monkeypatch.undo()
    monkeypatch.setenv("JAXCLIP_CACHE", str(tmp_path / "cache"))
    found = data.load("mnist")
    assert is_made_up(found)
    assert "the copy that an earlier run prepared" in found.source


def test_digits_only_if_no_data_set_was_named():
    found = data.load()
    assert "scikit-learn, because mnist is not available (no network in tests)" in found.source
    with pytest.raises(UserError, match=r"--dataset=mnist: .*no network.*--data-dir.*digits"):
        data.load("mnist")


def test_digits_by_name():
    found = data.load("digits")
    assert found.train_images.shape == (1437, 64)
    assert found.test_images.shape == (360, 64)
    everything = np.concatenate([found.train_images, found.test_images])
    assert everything.min() == 0
    assert everything.max() == 1
    assert set(found.train_labels) == set(found.test_labels) == set(range(10))
    np.testing.assert_array_equal(found.train_labels, data.load("digits").train_labels)


def test_data_sets_of_the_command_line():
    assert presets.DATASETS == sources.DATASETS


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_files_with_another_sha256_are_an_error(tmp_path, name):
    folder = put_originals(tmp_path / "altered")
    with pytest.raises(UserError, match=rf"^--data-dir={folder}: not the original {name} files: "):
        data.load(name, str(folder))


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    return put_fashion(tmp_path, monkeypatch)


def test_fashion_mnist_from_original_files(fashion):
    found = data.load("fashion_mnist", str(fashion))
    is_made_up(found)
    assert found.key == "fashion_mnist"
    assert "30 training and 10 test images" in found.describe()


def test_truncated_file_is_an_error(fashion):
    file = fashion / tfds_mnist.FILES[0]
    held = file.read_bytes()
    file.write_bytes(held[:-1])
    with pytest.raises(UserError, match=rf"{file.name} has {len(held) - 1:,} bytes instead of"):
        data.load("fashion_mnist", str(fashion))


def test_missing_files_are_named(tmp_path):
    folder = put_originals(tmp_path / "three")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"\(t10k-labels-idx1-ubyte.gz missing\)"):
        data.load("mnist", str(folder))


def test_broken_prepared_folder(prepared, tmp_path):
    shutil.copytree(prepared / "mnist", tmp_path / "mnist")
    (tmp_path / "mnist/3.0.1/mnist-train.array_record-00000-of-00001").unlink()
    with pytest.raises(UserError, match=r"cannot read mnist: mnist-train\.array_r.* is missing"):
        data.load("mnist", str(tmp_path))


@pytest.mark.parametrize(
    ("dataset", "data_dir", "message"),
    [
        (None, "/does/not/exist", "--data-dir=/does/not/exist: No such file"),
        (None, __file__, "Not a directory"),
        ("digits", "somewhere", "--data-dir=somewhere"),
        ("imagenet", None, "--dataset=imagenet: unknown"),
    ],
)
def test_errors_name_argument_and_value(dataset, data_dir, message):
    with pytest.raises(UserError, match=message):
        data.load(dataset, data_dir)


# Folders that TensorFlow prepared ----------------------------------------------------------------


def test_folder_that_the_stock_builder_prepared(prepared, tmp_path):
    put_stock(prepared, tmp_path)
    assert is_made_up(data.load("mnist", str(tmp_path)))


# The real files ----------------------------------------------------------------------------------


def idx(path, header):
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


@pytest.mark.slow
def test_real_files_are_read_exactly(mnist_folder, real_mnist):
    names = [mnist_folder / name for name in tfds_mnist.FILES]
    for found, path in zip(
        (real_mnist.train_images, real_mnist.test_images), names[::2], strict=True
    ):
        expected = idx(path, 16).reshape(-1, 784)
        np.testing.assert_array_equal(np.rint(found * 255).astype(np.uint8), expected)
        assert found.max() == 1
    for found, path in zip(
        (real_mnist.train_labels, real_mnist.test_labels), names[1::2], strict=True
    ):
        np.testing.assert_array_equal(found, idx(path, 8))
    assert "sha256 checked" in real_mnist.source


@pytest.mark.slow
def test_only_the_original_files_reach_the_cache(
    mnist_folder, real_mnist, session_cache, monkeypatch, tmp_path
):
    """A second run does not prepare again, and does not take the cache for an altered file."""
    monkeypatch.setenv("JAXCLIP_CACHE", str(session_cache))
    altered = shutil.copytree(mnist_folder, tmp_path / "altered")
    file = altered / "t10k-labels-idx1-ubyte.gz"
    file.chmod(0o644)
    labels = bytearray(gzip.decompress(file.read_bytes()))
    labels[8] ^= 1
    file.write_bytes(gzip.compress(bytes(labels)))
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz has "):
        data.load("mnist", str(altered))
    with pytest.raises(UserError, match="original fashion_mnist files"):
        data.load("fashion_mnist", str(mnist_folder))
    monkeypatch.setattr(cache, "prepare", None)
    again = data.load("mnist", str(mnist_folder))
    np.testing.assert_array_equal(again.test_labels, real_mnist.test_labels)


# No TensorFlow, no hang --------------------------------------------------------------------------


@pytest.mark.slow
def test_reading_needs_no_tensorflow(prepared, tmp_path):
    done = read_without_tensorflow(prepared, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.slow
def test_preparing_needs_no_tensorflow_and_prints_nothing(first_read):
    assert (first_read.returncode, first_read.stderr) == (0, "")
    assert len(first_read.stdout.splitlines()) == 1
