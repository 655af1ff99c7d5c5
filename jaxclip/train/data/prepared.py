"""Reads a folder that tensorflow-datasets prepared; every checksum and count is verified.

tensorflow-datasets would import the classes that the folder's `features.json` names, and does not
verify the checksums of TFRecord files. So the folder is read here: nothing in it names code to run.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from jaxclip.train.data import tfrecords
from jaxclip.train.data.tfrecords import DamagedError
from jaxclip.train.errors import first_line

INFO = "dataset_info.json"
SIDE = 28  # of an image
CLASSES = 10
_MAX_INFO_BYTES = 1 << 20

Splits = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def find(folder: Path, name: str) -> Path | None:
    """Returns the newest prepared version of `name` in `folder` or up to two levels below.

    Raises:
      DamagedError: if there is none, but a description that cannot be read.
    """
    found, damaged = [], []
    for place in (folder, *folder.glob("*"), *(folder / name).glob("*")):
        if (place / INFO).is_file():
            try:
                if _info(place).get("name") == name:
                    found.append(place)
            except DamagedError as error:
                damaged.append(DamagedError(f"{place}: {error}"))
    if damaged and not found:
        raise damaged[0]
    return max(found, key=_version, default=None)


def _info(folder: Path) -> dict[str, Any]:
    try:
        with (folder / INFO).open("rb") as file:
            info = json.loads(file.read(_MAX_INFO_BYTES))
        if isinstance(info, dict):
            return info
    except OSError as error:
        raise DamagedError(f"{INFO}: {error.strerror}") from None
    except (ValueError, RecursionError):
        pass
    raise DamagedError(f"{INFO} is damaged: not a JSON object")


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split(".") if part.isdecimal())


def read(folder: Path) -> Splits:
    """Reads a prepared folder.

    Returns:
      The images for training, uint8 of shape (n, 784), and their labels, int32 of shape (n,); the
      same for testing.

    Raises:
      DamagedError: if it is not as it was written; the message names the file.
    """
    return *_split(folder, "train"), *_split(folder, "test")


def _split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = [], []
    for file, kind, count in _shards(folder, split):
        records = _records(file, kind)
        if len(records) != count:
            raise DamagedError(f"{file.name} has {len(records):,} images, {INFO} says {count:,}")
        for number, record in enumerate(records):
            try:
                image, label = _image_and_label(record)
            except Exception:  # of protobuf, of Pillow, or of a missing value
                problem = f"is not a {SIDE}x{SIDE} image with a label"
                raise DamagedError(f"{file.name}: record {number} {problem}") from None
            pixels.append(image)
            labels.append(label)
    if not labels:
        raise DamagedError(f"{INFO} names no images for {split}")
    images = np.frombuffer(b"".join(pixels), np.uint8).reshape(len(labels), -1)
    return images, np.asarray(labels, np.int32)


def _shards(folder: Path, split: str) -> Iterator[tuple[Path, str, int]]:
    """Returns the files of a split, their format, and the number of images in each."""
    info = _info(folder)
    try:
        (entry,) = [entry for entry in info["splits"] if entry["name"] == split]
        counts = [int(count) for count in entry["shardLengths"]]
        kind = info.get("fileFormat", "tfrecord")
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder,  # pyright: ignore[reportArgumentType]
            template=entry.get("filepathTemplate"),
            dataset_name=info["name"],
            split=split,
            filetype_suffix=kind,
        )
        files = [Path(path) for path in template.sharded_filepaths(len(counts))]
    except Exception:  # a missing or wrong field
        raise DamagedError(f"{INFO} is damaged: it does not say where {split} is") from None
    return zip(files, [kind] * len(files), counts, strict=True)


def _records(file: Path, kind: str) -> list[bytes]:
    if kind not in ("tfrecord", "array_record"):
        raise DamagedError(f"{INFO}: the format {kind!r} is neither tfrecord nor array_record")
    if not file.is_file():
        raise DamagedError(f"{file.name} is missing")
    try:
        return tfrecords.read(file.read_bytes()) if kind == "tfrecord" else _array_records(file)
    except OSError as error:
        raise DamagedError(f"{file.name}: {error.strerror}") from None
    except DamagedError as error:
        raise DamagedError(f"{file.name}: {error}") from None


def _array_records(file: Path) -> list[bytes]:
    """Reads all records at once: ten times faster than singly. The reader verifies checksums."""
    reader = ArrayRecordReader(str(file))
    try:
        records = reader.read_all() if reader.ok() else []
        reader.close()  # raises what was wrong
    except RuntimeError as error:
        raise DamagedError(first_line(error).partition(" (")[0]) from None
    return records


def _image_and_label(record: bytes) -> tuple[bytes, int]:
    example = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
    feature = example.features.feature
    pixels = _pixels(feature["image"].bytes_list.value[0])
    label = feature["label"].int64_list.value[0]
    if len(pixels) != SIDE**2 or not 0 <= label < CLASSES:
        raise ValueError
    return pixels, label


def _pixels(stored: bytes) -> bytes:
    """Returns an image's bytes; the stock builder stores them as PNG."""
    if not stored.startswith(b"\x89PNG"):
        return stored
    from PIL import Image  # matplotlib brings it; only folders prepared by TensorFlow need it

    image = Image.open(io.BytesIO(stored), formats=["PNG"])
    if image.size != (SIDE, SIDE) or image.mode != "L":
        raise ValueError
    return image.tobytes()
