"""Folders of made-up images: original files, and folders that TensorFlow prepared."""

import gzip
import hashlib
import io
import json
import shutil
import struct

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorboardX.record_writer import masked_crc32c
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.proto import tf_example_pb2

from jaxclip.train.data import tfds_mnist
from tests.train.conftest import made_up_image


def is_made_up(found):
    images = np.stack([made_up_image(i) for i in range(40)]) / 255
    np.testing.assert_allclose(np.concatenate([found.train_images, found.test_images]), images)
    labels = np.concatenate([found.train_labels, found.test_labels])
    np.testing.assert_array_equal(labels, np.arange(40) % 10)
    assert found.train_images.dtype == np.float32
    assert found.train_labels.dtype == np.int32
    return True


def put_originals(folder, content=b"not what LeCun wrote"):
    folder.mkdir()
    for name in tfds_mnist.FILES:
        (folder / name).write_bytes(gzip.compress(bytes(16) + content))
    return folder


def put_fashion(tmp_path, monkeypatch):
    """Writes made-up images as Fashion-MNIST's files, and puts their sha256 on record."""
    folder, images = tmp_path / "fashion", np.stack([made_up_image(i) for i in range(40)])
    folder.mkdir()
    for split, part in (("train", slice(30)), ("t10k", slice(30, 40))):
        pixels, labels = images[part].tobytes(), (np.arange(40) % 10).astype(np.uint8)[part]
        content = {"images-idx3": bytes(16) + pixels, "labels-idx1": bytes(8) + labels.tobytes()}
        for kind, data_of_kind in content.items():
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(data_of_kind))
    infos = {}
    for name in tfds_mnist.FILES:
        held = (folder / name).read_bytes()
        info = UrlInfo(len(held), hashlib.sha256(held).hexdigest(), name)
        infos[tfds_mnist.FashionMnist.URL + name] = info
    for builder in (tfds_mnist.FashionMnist, tfds.builder_cls("fashion_mnist")):
        monkeypatch.setattr(builder, "url_infos", infos)
    return folder


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.reshape(28, 28)).save(file, "PNG")
    return file.getvalue()


def example(i):
    message = tf_example_pb2.Example()
    message.features.feature["image"].bytes_list.value.append(png(made_up_image(i)))
    message.features.feature["label"].int64_list.value.append(i % 10)
    return message.SerializeToString()


def framed(records):
    """The bytes of a TFRecord file."""
    parts = (part for record in records for part in (struct.pack("<Q", len(record)), record))
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in parts)


def put_stock(prepared, data_dir):
    """Writes the made-up images as the stock builder does, with TensorFlow."""
    folder = data_dir / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    info = json.loads((prepared / "mnist/3.0.1/dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    shutil.copy(prepared / "mnist/3.0.1/features.json", folder)
    for split, numbers in (("train", range(30)), ("test", range(30, 40))):
        file = folder / f"mnist-{split}.tfrecord-00000-of-00001"
        file.write_bytes(framed(map(example, numbers)))
    return folder
