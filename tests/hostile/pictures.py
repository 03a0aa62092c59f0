"""Picture files that are broken or meant to do harm."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(size, bits=8, color=2, pixels=b"", before=b"") -> bytes:
    header = struct.pack(">IIBBBBB", *size, bits, color, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def zeros(count: int) -> bytes:
    """So many bytes, compressed a thousand times."""
    packer = zlib.compressobj(9)
    block = bytes(2**20)
    parts = [packer.compress(block) for _ in range(count // len(block))]
    return b"".join([*parts, packer.compress(bytes(count % len(block))), packer.flush()])


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def patched(data: bytes, position: int, new: bytes) -> bytes:
    return data[:position] + new + data[position + len(new) :]


def _loop_of_pages() -> bytes:
    """A TIFF whose first page is followed by itself."""
    data = encoded(Image.new("RGB", (8, 8)), "TIFF")
    first = struct.unpack("<I", data[4:8])[0]
    tags = struct.unpack("<H", data[first : first + 2])[0]
    return patched(data, first + 2 + 12 * tags, struct.pack("<I", first))


def small() -> Iterator[tuple[str, bytes]]:
    """Files of at most a few megabytes, of which nothing large is made."""
    row = zlib.compress(bytes(13 * 4))
    jpeg = encoded(Image.new("RGB", (8, 8)), "JPEG")
    gif = encoded(Image.new("P", (8, 8)), "GIF")
    yield "bomb.png", png((100_000, 100_000))
    yield "largest.png", png((2**31 - 1, 2**31 - 1))
    yield "no_width.png", png((0, 4), pixels=row)
    yield "wide.png", png((80_000_000, 1), color=0, pixels=zeros(80_000_001))
    yield "tall.png", png((1, 40_000_000), color=0, pixels=zeros(80_000_000))
    yield "text_bomb.png", png((4, 4), pixels=row, before=chunk(b"zTXt", b"a\0\0" + zeros(2**28)))
    yield "profile.png", png((4, 4), pixels=row, before=chunk(b"iCCP", b"a\0\0" + zeros(2**28)))
    yield "too_few_rows.png", png((400, 400), pixels=zeros(1000))
    yield "no_zlib.png", png((4, 4), pixels=b"\xff" * 100)
    yield "long_chunk.png", png((4, 4))[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(100)
    yield "huge.jpg", patched(jpeg, jpeg.index(b"\xff\xc0") + 5, b"\xff\xdc\xff\xdc")
    yield "huge.gif", patched(gif, 6, b"\xff\xff\xff\xff")
    yield (
        "script.eps",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    )
    yield "drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    yield "script.png", b"#!/bin/sh\nmkdir harm\n"
    yield "python.jpg", b"cos\nmkdir\n(S'harm'\ntR."
    yield "empty.png", b""
    yield "zeros.png", bytes(1000)


def harmless() -> Iterator[tuple[str, bytes]]:
    """Strange files whose picture can be read all the same."""
    row = zlib.compress(bytes(13 * 4))
    yield "too_many_rows.png", png((4, 4), pixels=zeros(2**28))
    yield "many_chunks.png", png((4, 4), pixels=row, before=chunk(b"tEXt", b"a\0b") * 20_000)
    yield "loop.tif", _loop_of_pages()


def at_the_limit() -> Iterator[tuple[str, bytes]]:
    """As many pixels as are read, from files of a few kilobytes."""
    side = 9400
    yield "limit.png", png((side, side), pixels=zeros((3 * side + 1) * side))
    yield "limit_16.png", png((side, side), 16, pixels=zeros((6 * side + 1) * side))
