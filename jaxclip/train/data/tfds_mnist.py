"""MNIST and Fashion-MNIST through tensorflow-datasets, without TensorFlow.

The stock builders need TensorFlow to prepare a data set; the builders below do not.
tensorflow-datasets still downloads the files, compares their sha256 with its records, and manages
the prepared folder. `sources` decides where to look for files.
"""

import contextlib
import gzip
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

FILES = tuple(
    f"{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)


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
        return tfds.core.DatasetInfo(
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


def prepare(name: str, cache: Path, originals: Path | None) -> Path:
    """Prepares a data set in `cache` from the folder `originals`, or from the network if None."""
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(manual_dir=originals, force_checksums_validation=True)
    with contextlib.redirect_stdout(io.StringIO()):  # `Data.describe` is shorter
        builder = BUILDERS[name](data_dir=str(cache))
        builder.download_and_prepare(file_format="array_record", download_config=config)
    return Path(builder.data_path)


def find_prepared(folder: Path, name: str) -> Path | None:
    """Returns the newest prepared version of `name` in `folder` or up to two levels below."""
    versions = [p.parent for p in _info_files(folder, name) if _prepared_name(p) == name]
    return max(versions, key=_version, default=None)


def _info_files(folder: Path, name: str) -> list[Path]:
    places = (folder, *folder.glob("*"), *(folder / name).glob("*"))
    return [p / "dataset_info.json" for p in places if (p / "dataset_info.json").is_file()]


def _prepared_name(info_file: Path) -> str | None:
    with contextlib.suppress(ValueError):
        return json.loads(info_file.read_text()).get("name")
    return None


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split(".") if part.isdigit())


def read(prepared: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split of a prepared folder: uint8 images of shape (n, 784), int32 labels."""
    builder = tfds.builder_from_directory(str(prepared))
    parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
    examples = map(parse, _records(builder, split))
    pixels, labels = [], []
    for example in examples:
        feature = example.features.feature
        pixels.append(_pixels(feature["image"].bytes_list.value[0]))
        labels.append(feature["label"].int64_list.value[0])
    images = np.frombuffer(b"".join(pixels), np.uint8).reshape(len(labels), -1)
    return images, np.asarray(labels, np.int32)


def _records(builder: Any, split: str) -> Iterator[bytes]:
    """Yields a split's serialized examples, read in one batch: ten times faster than singly."""
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        paths = builder.info.splits[split].filepaths
        return (record for path in paths for record in _tfrecords(Path(path)))
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split, deserialize_method=raw)
    return iter(source.__getitems__(range(len(source))))


def _tfrecords(path: Path) -> Iterator[bytes]:
    """Reads a TFRecord file: length, its checksum, the record, its checksum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += 16 + length


def _pixels(stored: bytes) -> bytes:
    """Returns an image's bytes; the stock builder stores them as PNG."""
    if not stored.startswith(b"\x89PNG"):
        return stored
    from PIL import Image  # matplotlib brings it; only folders prepared by TensorFlow need it

    return Image.open(io.BytesIO(stored)).tobytes()
