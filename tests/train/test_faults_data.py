"""Damaged folders of data, prepared or original: refused in one line that names the file."""

import gzip
import json
import os
import random
import shutil
import sys

import numpy as np
import pytest

from jaxclip.train import data
from jaxclip.train.data import tfds_mnist, tfrecords
from jaxclip.train.errors import UserError
from tests.train import runs
from tests.train.folders import example, framed, is_made_up, png, put_fashion, put_stock

INFO = "dataset_info.json"


@pytest.fixture
def stock(prepared, tmp_path):
    """A folder with TFRecord files, as TensorFlow prepares it."""
    return put_stock(prepared, tmp_path)


def refused(folder, *words, dataset="mnist"):
    """Asserts that a folder is refused in a line with these words."""
    with pytest.raises(UserError) as caught:
        data.load(dataset, str(folder))
    message = str(caught.value)
    assert message.startswith(f"--data-dir={folder}: ")
    assert [word for word in words if word not in message] == []
    assert len(message) < 700
    return message


def flip(content, choose):
    changed = bytearray(content)
    bit = choose.randrange(8 * len(changed))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# TFRecord ----------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_tfrecord_file(stock):
    choose = random.Random(0)
    for number in range(runs.tries(41, 4100)):
        file = stock / f"mnist-{('train', 'test')[number % 2]}.tfrecord-00000-of-00001"
        content = file.read_bytes()
        file.write_bytes(flip(content, choose))
        refused(stock, "cannot read mnist", f"{file.name}: ", "record ")
        file.write_bytes(content)
    assert is_made_up(data.load("mnist", str(stock)))


def test_every_bit_of_a_tfrecord_file_counts():
    content = framed([b"", b"ab", b"cde"])
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(tfrecords.DamagedError):
            tfrecords.read(bytes(changed))


def test_a_tfrecord_file_cut_anywhere(stock):
    file = stock / "mnist-test.tfrecord-00000-of-00001"
    content, whole = file.read_bytes(), framed(map(example, range(30, 35)))
    assert content.startswith(whole)
    cuts = [0, len(whole), len(whole) - 1, len(whole) + 7, len(content) // 2, len(content) - 1]
    choose = random.Random(0)
    for cut in cuts + [choose.randrange(len(content)) for _ in range(runs.tries(20, 2000))]:
        file.write_bytes(content[:cut])
        refused(stock, file.name)
    file.write_bytes(whole)
    refused(stock, f"{file.name} has 5 images, {INFO} says 10")
    file.write_bytes(content + whole)
    refused(stock, f"{file.name} has 15 images, {INFO} says 10")
    file.unlink()
    refused(stock, f"{file.name} is missing")
    os.mkfifo(file)
    refused(stock, f"{file.name} is missing")


def test_checksums_of_records_of_every_length():
    make = np.random.default_rng(0)
    records = [make.bytes(n) for n in [*range(40), 1000, 3, 5000, 0]]
    assert tfrecords.read(framed(records)) == records
    assert tfrecords.read(b"") == []
    # The check value of CRC-32C is that of "123456789", from RFC 3720.
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    content = framed([b"123456789"])
    assert content.endswith(b"123456789" + masked.to_bytes(4, "little"))
    assert tfrecords.read(content) == [b"123456789"]
    with pytest.raises(tfrecords.DamagedError, match="record 1 is cut off"):
        tfrecords.read(framed([b"", bytes(tfrecords.MAX_BYTES + 1)]))


WRONG_RECORDS = [
    b"no message",
    b"",
    example(3).replace(b"label", b"labes"),
    example(3).replace(b"image", b"imago"),
    example(3).replace(png(np.zeros(784, np.uint8))[:4], b"\x89PNX"),
]


@pytest.mark.parametrize("record", WRONG_RECORDS)
def test_a_sound_record_of_something_else(record, stock):
    file = stock / "mnist-test.tfrecord-00000-of-00001"
    file.write_bytes(framed([*map(example, range(30, 39)), record]))
    refused(stock, f"{file.name}: record 9 is not a 28x28 image with a label")


# ArrayRecord -------------------------------------------------------------------------------------


def is_refused(folder, file, whole):
    """Returns whether a folder is refused; otherwise the bit pads, and the images are whole."""
    try:
        found = data.load("mnist", str(folder))
    except UserError as error:
        return f"cannot read mnist: {file.name}: " in str(error)
    for part, expected in zip(found[2:], whole[2:], strict=True):
        np.testing.assert_array_equal(part, expected)
    return False


def test_a_flipped_bit_in_an_array_record_file(prepared, tmp_path):
    folder = shutil.copytree(prepared / "mnist/3.0.1", tmp_path / "mnist/3.0.1")
    choose, refusals, whole = random.Random(0), 0, data.load("mnist", str(folder))
    for number in range(runs.tries(24, 2400)):
        file = folder / f"mnist-{('train', 'test')[number % 2]}.array_record-00000-of-00001"
        content = file.read_bytes()
        file.write_bytes(flip(content, choose))
        refusals += is_refused(folder, file, whole)  # most of such a small file is padding
        file.write_bytes(content)
    assert refusals > 0
    for size in (0, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        refused(folder, file.name)


@pytest.mark.slow
def test_a_flipped_bit_in_the_real_images(real_mnist, session_cache, tmp_path):
    folder = shutil.copytree(session_cache / "mnist/3.0.1", tmp_path / "mnist/3.0.1")
    file, choose = folder / "mnist-train.array_record-00000-of-00001", random.Random(0)
    content, refusals, tries = file.read_bytes(), 0, runs.tries(24, 240)
    for _ in range(tries):
        file.write_bytes(flip(content, choose))
        refusals += is_refused(folder, file, real_mnist)
    assert refusals > 0.95 * tries


# Descriptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["array_record", "tfrecord"])
def test_nothing_that_a_folder_names_is_imported(container, prepared, stock, tmp_path, monkeypatch):
    if container == "array_record":
        shutil.rmtree(stock)
        shutil.copytree(prepared / "mnist/3.0.1", stock)
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((stock / "features.json").read_text())
    features["pythonClassName"] = features["type"] = "evil_module.Evil"
    features["featuresDict"]["features"]["image"]["pythonClassName"] = "evil_module.Evil"
    (stock / "features.json").write_text(json.dumps(features))
    info = json.loads((stock / INFO).read_text()) | {"moduleName": "evil_module"}
    (stock / INFO).write_text(json.dumps(info))
    assert is_made_up(data.load("mnist", str(stock)))
    assert "evil_module" not in sys.modules


NO_DESCRIPTION = [b"", b"{", b"\xff", b"[]", b"3", b"[" * 100_000, b'{"a":' * 100_000, b"0" * 5000]


@pytest.mark.parametrize("content", NO_DESCRIPTION, ids=lambda c: str(c[:6]))
def test_a_description_that_is_not_json(content, stock, tmp_path):
    (stock / INFO).write_bytes(content)
    refused(tmp_path, f"cannot read mnist: {stock}: {INFO} is damaged")


def altered(**fields):
    def alter(info):
        info.update(fields)

    return alter


def altered_test_split(**fields):
    return lambda info: info["splits"][1].update(fields)


DAMAGED_DESCRIPTIONS = [
    (altered(splits=None), "does not say where train is"),
    (altered(splits=[]), "does not say where train is"),
    (altered(splits=[3]), "does not say where train is"),
    (altered(fileFormat="parquet"), "'parquet' is neither tfrecord nor array_record"),
    (altered(fileFormat=3), "3 is neither tfrecord nor array_record"),
    (altered(fileFormat="array_record"), "array_record-00000-of-00001 is missing"),
    (altered_test_split(name="train"), "does not say where train is"),
    (altered_test_split(name="tess"), "does not say where test is"),
    (altered_test_split(shardLengths=["11"]), f"has 10 images, {INFO} says 11"),
    (altered_test_split(shardLengths=["-10"]), f"has 10 images, {INFO} says -10"),
    (altered_test_split(shardLengths=["1e1"]), "does not say where test is"),
    (altered_test_split(shardLengths=["9" * 5000]), "does not say where test is"),
    (altered_test_split(shardLengths=["5", "5"]), "00000-of-00002 is missing"),
    (altered_test_split(shardLengths=[]), "names no images for test"),
    (altered_test_split(shardLengths=3), "does not say where test is"),
    (altered_test_split(filepathTemplate="{X}"), "does not say where test is"),
    (altered_test_split(filepathTemplate="{SPLIT.x}"), "does not say where test is"),
    (altered_test_split(filepathTemplate="/dev/zero"), "zero is missing"),
    (altered_test_split(filepathTemplate="x\0y"), "y is missing"),
]


@pytest.mark.parametrize(("alter", "message"), DAMAGED_DESCRIPTIONS)
def test_a_description_that_is_wrong(alter, message, stock):
    info = json.loads((stock / INFO).read_text())
    alter(info)
    (stock / INFO).write_text(json.dumps(info))
    refused(stock, "cannot read mnist: ", message)


def test_another_folder_is_read_if_a_description_is_damaged(prepared, stock, tmp_path):
    (stock / INFO).write_bytes(b"")
    shutil.copytree(prepared / "mnist/3.0.1", tmp_path / "mnist/2.0.²")
    assert is_made_up(data.load("mnist", str(tmp_path)))


# Original files ----------------------------------------------------------------------------------


def replaced_by(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


BROKEN = {
    "a flipped bit": lambda path: path.write_bytes(flip(path.read_bytes(), random.Random(0))),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "emptied": lambda path: path.write_bytes(b""),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "another file": lambda path: path.write_bytes(gzip.compress(b"another")),
    "of another file": lambda path: shutil.copy(path.with_name(tfds_mnist.FILES[1]), path),
    "missing": lambda path: path.unlink(),
    "a folder": replaced_by(os.mkdir),
    "a pipe": replaced_by(os.mkfifo),
    "a broken link": replaced_by(lambda path: path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_originals_leave_nothing_in_the_cache(how, tmp_path, monkeypatch):
    folder = put_fashion(tmp_path, monkeypatch)
    file = folder / tfds_mnist.FILES[0]
    BROKEN[how](file)
    refused(folder, file.name, dataset="fashion_mnist")
    assert not (tmp_path / "cache").exists()


def test_an_original_that_cannot_be_read(tmp_path, monkeypatch):
    folder = put_fashion(tmp_path, monkeypatch)
    file = folder / tfds_mnist.FILES[0]

    def fail(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(file), "open", fail)
    refused(folder, f"{file}: Permission denied", dataset="fashion_mnist")
