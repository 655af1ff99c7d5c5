"""MNIST and Fashion-MNIST through tensorflow-datasets, without TensorFlow.

The stock builders need TensorFlow to prepare a data set; the builders below do not.
tensorflow-datasets downloads the files, compares their sha256 with its records, and writes the
prepared folder, which `prepared` reads. `sources` decides where to look for files.
"""

import contextlib
import gzip
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxclip.train.errors import UserError

FILES = tuple(
    f"{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing; the original leaves an empty folder in /tmp if it finds no bucket."""


class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The stock data set `mnist`, its pixels stored as plain bytes."""

    VERSION = tfds.core.Version("3.0.1")
    # tensorflow-datasets records the sha256 of the files under this address.
    URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"

    def _info(self) -> tfds.core.DatasetInfo:
        pixels = tfds.features.Tensor(
            shape=(28, 28, 1), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        label = tfds.features.ClassLabel(num_classes=10)
        return _Info(
            builder=self,
            features=tfds.features.FeaturesDict({"image": pixels, "label": label}),
            # The published runs use the order of the files.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        train_x, train_y, test_x, test_y = dl_manager.download([self.URL + f for f in FILES])
        return {
            "train": self._generate_examples(train_x, train_y),
            "test": self._generate_examples(test_x, test_y),
        }

    def _generate_examples(self, images: Any, labels: Any) -> Iterator[tuple[int, Any]]:
        pixels = _idx(images, header=16).reshape(-1, 28, 28, 1)
        for i, (x, y) in enumerate(zip(pixels, _idx(labels, header=8), strict=True)):
            yield i, {"image": x, "label": int(y)}


class FashionMnist(Mnist, skip_registration=True):
    """The stock data set `fashion_mnist`: its files have the same names as those of `mnist`."""

    URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


BUILDERS: dict[str, type[Mnist]] = {"mnist": Mnist, "fashion_mnist": FashionMnist}


def _idx(path: Any, header: int) -> np.ndarray:
    """Reads a gzipped IDX file of bytes."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def on_record(name: str) -> dict[str, tuple[int, str]]:
    """Returns size and sha256 of each original file, which tensorflow-datasets has on record."""
    infos = tfds.builder_cls(name).url_infos or {}
    return {info.filename: (int(info.size), info.checksum) for info in infos.values()}


def check_originals(name: str, folder: Path) -> None:
    """Compares the four files in a folder with the record.

    Raises:
      UserError: if one is not the original.
      OSError: if one cannot be read.
    """
    record = on_record(name)
    for file in FILES:
        (size, sha256), path = record[file], folder / file
        problem = f"has {path.stat().st_size:,} bytes instead of {size:,}"
        if path.stat().st_size == size:
            with path.open("rb") as content:
                is_same = hashlib.file_digest(content, "sha256").hexdigest() == sha256
            problem = "" if is_same else "has another sha256"
        if problem:
            raise UserError(f"--data-dir={folder}: not the original {name} files: {file} {problem}")


def prepare(name: str, cache: Path, originals: Path | None) -> Path:
    """Prepares a data set in `cache` from the folder `originals`, or from the network if None."""
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(manual_dir=originals, force_checksums_validation=True)
    with contextlib.redirect_stdout(io.StringIO()):  # `Data.describe` is shorter
        builder = BUILDERS[name](data_dir=str(cache))
        builder.download_and_prepare(file_format="array_record", download_config=config)
    return Path(builder.data_path)
