"""Loads images from a prepared folder, the original files, the network, or scikit-learn's digits.

They are tried in that order, and `Data.describe` names the source. A data set or folder
that the user names is never replaced by another one: if it cannot be loaded, that is an error.
"""

import os
import threading
import urllib.request
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxclip.train.data import cache, prepared, tfds_mnist
from jaxclip.train.data.prepared import DamagedError, Splits
from jaxclip.train.errors import RunError, UserError, first_line, user_path

DATASETS = (*tfds_mnist.BUILDERS, "digits")
CONNECTION_TEST_SECONDS = 2.5


class Data(NamedTuple):
    """Flat images in [0, 1] as float32, their labels as int32, and their source in words."""

    name: str
    source: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def key(self) -> str:
        """The data set's name for `--dataset`."""
        return self.name.partition(" ")[0]

    def describe(self) -> str:
        """Returns the line that the program prints before it trains."""
        sizes = f"{len(self.train_labels):,} training and {len(self.test_labels):,} test images"
        return f"data: {self.name}, {sizes}, from {self.source}"


def load(dataset: str | None = None, data_dir: str | None = None) -> Data:
    """Loads a data set.

    Args:
      dataset: one of `DATASETS`; None for MNIST, or the digits if MNIST is not available.
      data_dir: a folder with a prepared data set, or with the four original files.

    Returns:
      The images as float32 in [0, 1], flattened, and the labels as int32.

    Raises:
      UserError: if the named data set or folder cannot be loaded.
    """
    if dataset not in (None, *DATASETS):
        raise UserError(f"--dataset={dataset}: unknown, choose from {', '.join(DATASETS)}")
    if dataset == "digits":
        if data_dir is not None:
            raise UserError(
                f"--data-dir={data_dir}: the digits come with scikit-learn, leave this out"
            )
        return digits("scikit-learn")
    name = dataset or "mnist"
    if data_dir is not None:
        return _from_folder(name, user_path(data_dir, "--data-dir"))
    return _from_shared_folder(name) or _from_network(name, fall_back=dataset is None)


def _from_folder(name: str, folder: Path) -> Data:
    """Reads the folder that the user named: a prepared data set, or the original files."""
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(f"--data-dir={folder}: {error.strerror}") from None
    if found := _from_prepared(name, folder, "--data-dir"):
        return found
    missing = [file for file in tfds_mnist.FILES if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"--data-dir={folder}: neither a {name} folder prepared by tensorflow-datasets nor its "
            f"four original files ({', '.join(missing)} missing)"
        )
    try:
        tfds_mnist.check_originals(name, folder)
    except OSError as error:
        raise UserError(f"--data-dir={folder}: {error.filename}: {error.strerror}") from None
    try:
        make = partial(tfds_mnist.prepare, name, originals=folder)
        _, splits = cache.read(name) or cache.prepare(name, make)
    except UserError:
        raise
    except Exception as error:  # the exceptions of tensorflow-datasets are not public
        problem = f"cannot prepare {name} from {folder}: {_reason(error)}"
        raise RunError(f"{problem}; {cache.VARIABLE} names another folder for it") from error
    return _data(name, f"the original files in {folder}, sha256 checked", splits)


def _from_prepared(name: str, folder: Path, flag: str) -> Data | None:
    """Reads a prepared data set, None if the folder holds none."""
    try:
        found = prepared.find(folder, name)
        splits = found and prepared.read(found)
    except DamagedError as error:
        problem = f"cannot read {name}: {error}; copy or prepare the folder again"
        raise UserError(f"{flag}={folder}: {problem}") from None
    place = f"the folder prepared by tensorflow-datasets, {found}"
    return splits and _data(name, place if flag == "--data-dir" else f"{flag}, {found}", splits)


def _from_shared_folder(name: str) -> Data | None:
    """Reads from TFDS_DATA_DIR if it is set and holds the data set."""
    shared = os.environ.get("TFDS_DATA_DIR")
    folder = user_path(shared, "TFDS_DATA_DIR") if shared else None
    return folder and _from_prepared(name, folder, "TFDS_DATA_DIR")


def _from_network(name: str, *, fall_back: bool) -> Data:
    """Reads an earlier copy, or downloads; if that fails, loads the digits or raises."""
    if kept := cache.read(name):
        place, splits = kept
        return _data(name, f"the copy that an earlier run prepared, {place}", splits)
    url = tfds_mnist.BUILDERS[name].URL + tfds_mnist.FILES[-1]
    try:
        if trouble := connection_trouble(url):
            raise OSError(trouble)
        make = partial(tfds_mnist.prepare, name, originals=None)
        _, splits = cache.prepare(name, make)
        return _data(name, f"the network, {url}", splits)
    except Exception as error:
        if not fall_back:
            files = ", ".join(tfds_mnist.FILES)
            raise UserError(
                f"--dataset={name}: not on this machine, and the download failed "
                f"({_reason(error)}); put its four original files ({files}) "
                "into a folder and name it by --data-dir, or use --dataset digits"
            ) from None
        return digits(f"scikit-learn, because {name} is not available ({_reason(error)})")


def connection_trouble(url: str, seconds: float = CONNECTION_TEST_SECONDS) -> str | None:
    """Returns None if `url` answers within `seconds`, else the problem.

    Without a network, the downloader of tensorflow-datasets hangs for minutes. The test runs in a
    thread because a name lookup has no timeout.
    """
    result: list[str | None] = [f"no answer within {seconds} s"]
    test = threading.Thread(target=_request, args=(url, seconds, result), daemon=True)
    test.start()
    test.join(seconds + 0.5)
    return result[0]


def _request(url: str, seconds: float, result: list[str | None]) -> None:
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=seconds).close()
        result[0] = None
    except Exception as error:
        result[0] = f"no connection: {getattr(error, 'reason', error)}"


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or first_line(error).rstrip(":")


def _data(name: str, source: str, splits: Splits) -> Data:
    x, y, test_x, test_y = splits
    return Data(name, source, _unit_interval(x), y, _unit_interval(test_x), test_y)


def _unit_interval(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(255)


def digits(source: str) -> Data:
    """Returns scikit-learn's 1,797 real 8x8 digits, four fifths of them for training.

    The split is random with a fixed seed: the file has each writer's digits in a block.
    """
    from sklearn.datasets import load_digits  # slow to import, and seldom needed

    images, labels = load_digits(return_X_y=True)
    images, labels = images.astype(np.float32) / np.float32(16), labels.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = np.split(order, [len(order) * 4 // 5])
    return Data("digits (8x8)", source, images[train], labels[train], images[test], labels[test])
