"""The fields of a protobuf message, by their numbers: enough to read a SentencePiece model.

The format: https://protobuf.dev/programming-guides/encoding. The ``protobuf`` package and generated classes
would be two further dependencies.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5


@dataclass(frozen=True)
class Fields:
    """Numbers and contents of a message's fields, in their order; of repeated ones the last counts."""

    found: list[tuple[int, int | bytes]]

    def all_bytes(self, number: int) -> list[bytes]:
        """The contents of a field of text, bytes or messages."""
        return [value for key, value in self.found if key == number and isinstance(value, bytes)]

    def last_bytes(self, number: int) -> bytes:
        """The content of a field of text, bytes or a message; empty where it is not given."""
        return next(iter(reversed(self.all_bytes(number))), b"")

    def last_int(self, number: int, default: int) -> int:
        """The value of a field of whole numbers, Booleans or an enumeration."""
        values = [value for key, value in self.found if key == number and isinstance(value, int)]
        return values[-1] if values else default

    def last_float(self, number: int) -> float:
        """The value of a ``float``; 0 where it is not given. Raises ``ValueError``."""
        content = self.last_bytes(number) or bytes(4)
        if len(content) != 4:
            raise ValueError(f"field {number} is no float")
        return struct.unpack("<f", content)[0]


def read_fields(content: bytes) -> Fields:
    """The fields of a message. Raises ``ValueError`` or ``IndexError`` for bytes that are none."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(content, at)
            found.append((number, value))
            continue
        if kind not in (_EIGHT, _LENGTH, _FOUR):
            raise ValueError(f"no field of a message at byte {at}")
        size = {_EIGHT: 8, _FOUR: 4}.get(kind)
        if size is None:
            size, at = _varint(content, at)
        if at + size > len(content):
            raise ValueError(f"ends within a field at byte {at}")
        found.append((number, content[at : at + size]))
        at += size
    return Fields(found)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, least first, and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
