"""TFRecord files, read without TensorFlow, each checksum verified.

A record is framed as in TensorFlow's `record_writer.h`: its length (8 bytes, little-endian), a
checksum of these bytes, the record, a checksum of the record. A checksum is a CRC-32C (RFC 3720,
appendix B.4), rotated by 15 bits, plus a constant.
"""

import numpy as np

MAX_BYTES = 1 << 16  # of a record: a 28x28 image, stored in any way, has less than 2,000


class DamagedError(Exception):
    """A file is not as it was written; the message says where."""


def read(content: bytes) -> list[bytes]:
    """Splits a TFRecord file into its records.

    Raises:
      DamagedError: if a checksum differs, or the file ends within a record.

    >>> read(bytes.fromhex("0100000000000000 0175de41 41 b3ad603e"))
    [b'A']
    """
    starts, lengths, at = [], [], 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        if length > MAX_BYTES or at + 16 + length > len(content):
            raise DamagedError(f"record {len(starts)} is cut off, or its length is damaged")
        starts.append(at + 12)
        lengths.append(length)
        at += 16 + length
    first, sizes = np.array(starts, int), np.array(lengths, int)
    octets = np.frombuffer(content, np.uint8)
    for begin, size in ((first - 12, np.full_like(sizes, 8)), (first, sizes)):
        stored = octets[(begin + size)[:, None] + np.arange(4)].view("<u4")[:, 0]
        if (bad := np.flatnonzero(_checksums(octets, begin, size) != stored)).size:
            raise DamagedError(f"the checksum of record {bad[0]} differs")
    return [content[i : i + n] for i, n in zip(starts, lengths, strict=True)]


def _checksums(octets: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the masked CRC-32C of each slice, computed for a byte of all slices at a time."""
    order = np.argsort(-lengths, kind="stable")
    starts, ends = starts[order], -lengths[order]
    table, crc = _table(), np.full(len(order), 0xFFFFFFFF, np.uint32)
    for i in range(-ends[0] if len(order) else 0):
        n = np.searchsorted(ends, -i)  # the slices that have a byte `i`
        crc[:n] = table[(crc[:n] ^ octets[starts[:n] + i]) & 0xFF] ^ (crc[:n] >> 8)
    result = np.empty_like(crc)
    result[order] = ~crc
    return ((result >> 15) | (result << 17)) + np.uint32(0xA282EAD8)


def _table() -> np.ndarray:
    """Returns the remainder of every byte by the polynomial, both with their bits reversed."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table
