"""The reader of pictures against pixels known beforehand, for each mode, orientation and damage."""

import io
import logging
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from PIL import Image

from resobj_d2.data import picture_pixels, pictures
from resobj_d2.data.pictures import ImageError, picture_to_rgb, read_picture

ORIENTATION = 0x0112


@pytest.fixture
def noise():
    """(6, 8, 3) uint8, no two rows or columns alike."""
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def write(tmp_path):
    """A function: bytes, an array or a Pillow image to the path of a file."""

    def build(content, name="x.png", **options):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            picture = content if isinstance(content, Image.Image) else Image.fromarray(content)
            picture.save(path, **options)
        return path

    return build


def grey(values):
    return np.repeat(np.asarray(values, dtype=np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.tif", "x.ppm", "x.webp"])
def test_lossless_formats_give_the_pixels_that_were_written(noise, write, name):
    options = {"lossless": True} if name == "x.webp" else {}
    image = read_picture(write(noise, name, **options))
    assert image.dtype == np.uint8 and image.flags.writeable and image.flags.c_contiguous
    assert np.array_equal(image, noise)


def test_same_pixels_as_detectron2_where_it_is_right(noise, write):
    for mode, name in [("RGB", "x.jpg"), ("L", "y.png"), ("RGBA", "z.png"), ("P", "p.png")]:
        path = write(Image.fromarray(noise).convert(mode), name)
        assert np.array_equal(read_picture(path), read_image(str(path), format="RGB")), mode


def test_grey_black_and_white_and_palette(write):
    values = [[0, 100, 255]]
    assert np.array_equal(read_picture(write(np.uint8(values))), grey(values))
    assert np.array_equal(read_picture(write(np.array([[True, False]]))), grey([[255, 0]]))
    palette = Image.new("P", (3, 1))
    palette.putpalette([9, 8, 7, 10, 20, 30])
    palette.putdata([1, 0, 1])
    expected = [[[10, 20, 30], [9, 8, 7], [10, 20, 30]]]
    assert read_picture(write(palette)).tolist() == expected
    # One palette entry is transparent: its colour counts all the same.
    assert read_picture(write(palette, transparency=1)).tolist() == expected


def test_alpha_is_left_out_and_the_colours_under_it_count(write):
    rgba = np.uint8([[[10, 20, 30, 0], [40, 50, 60, 128]]])
    assert read_picture(write(rgba)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    grey_alpha = Image.merge("LA", [Image.new("L", (1, 1), 77), Image.new("L", (1, 1), 0)])
    assert read_picture(write(grey_alpha)).tolist() == [[[77, 77, 77]]]
    # Premultiplied: 100 under an alpha of 51 (a fifth) is stored as 20.
    straight = Image.new("RGBA", (1, 1), (100, 200, 50, 51))
    for mode in ("RGBA", "RGBa"):
        pixel = picture_to_rgb(straight.convert(mode))[0, 0].astype(int)
        assert np.abs(pixel - [100, 200, 50]).max() <= 2
    grey_alpha = Image.merge("LA", [Image.new("L", (1, 1), 100), Image.new("L", (1, 1), 51)])
    assert abs(int(picture_to_rgb(grey_alpha.convert("La"))[0, 0, 0]) - 100) <= 2


def test_cmyk_and_ycbcr(write):
    cmyk = Image.new("CMYK", (1, 1), (0, 255, 255, 0))  # magenta and yellow ink: red
    assert read_picture(write(cmyk, "x.tif")).tolist() == [[[255, 0, 0]]]
    assert picture_to_rgb(Image.new("YCbCr", (1, 1), (90, 128, 128))).tolist() == [[[90] * 3]]
    assert picture_to_rgb(Image.new("HSV", (1, 1), (0, 255, 200))).tolist() == [[[200, 0, 0]]]


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(write, name):
    values = np.uint16([[0, 255, 256, 32768, 65535]])
    path = write(values, name)
    assert np.array_equal(read_picture(path), grey([[0, 0, 1, 128, 255]]))
    assert read_image(str(path), format="RGB")[0, 2].tolist() == [255] * 3  # what it is not


def test_sixteen_bit_colour_is_scaled_like_sixteen_bit_grey(write):
    # Pillow cannot write it: one row of a PNG of 16-bit RGB by hand.
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    row = b"\0" + struct.pack(">6H", 255, 256, 32768, 65535, 0, 511)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert read_picture(write(png)).tolist() == [[[0, 1, 128], [255, 0, 1]]]
    turn = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0")
    turned = png.replace(chunk(b"IEND", b""), turn + chunk(b"IEND", b""))  # by 180 degrees
    assert read_picture(write(turned)).tolist() == [[[255, 0, 1], [0, 1, 128]]]


def test_sixteen_bits_are_scaled_by_the_picture_s_own_range_which_is_said_once(write, caplog):
    picture_pixels._said[:] = bytes(2)
    path = write(np.uint16([[0, 1000, 4095]]))  # of a camera with 12 bits
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(read_picture(path), grey([[0, 62, 255]]))
        # 256 steps of equal width: 256 * (v - 7000) // 2001.
        thermal = write(np.uint16([[7000, 8000, 9000]]), "thermal.tif")
        assert np.array_equal(read_picture(thermal), grey([[0, 127, 255]]))
    assert len(caplog.records) == 1
    assert f"{path}: 16-bit pixels are scaled by the picture's own range" in caplog.text
    assert "here 0..4095 to 0..255" in caplog.text
    # Eight bits in a file of sixteen are what they were; one value alone has no range.
    assert np.array_equal(read_picture(write(np.uint16([[0, 77, 255]]))), grey([[0, 77, 255]]))
    assert np.array_equal(read_picture(write(np.uint16([[40000, 40000]]))), grey([[156, 156]]))


def test_only_the_first_frame_is_said_once(write, caplog):
    picture_pixels._said[:] = bytes(2)
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    with caplog.at_level(logging.WARNING):
        for name in ("x.tif", "y.gif", "z.png"):
            path = write(frames[0], name, save_all=True, append_images=frames[1:])
            assert (read_picture(path) == [255, 0, 0]).all()
        read_picture(write(frames[0], "one.gif"))
    assert caplog.text.count("only the first of its frames or pages is read") == 1


def test_postscript_is_not_run(write, monkeypatch):
    """Pillow would start Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it ran"))
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("x.eps", "x.jpg"):
        with pytest.raises(ImageError, match="not an image in a format"):
            read_picture(write(text, name))


@pytest.mark.parametrize("limit, pixels", [(47, 48), (40, 48), (20, 48)])
def test_the_limit_of_pixels_is_pillows(write, noise, monkeypatch, limit, pixels):
    """Pillow itself warns up to twice its limit."""
    path = write(noise)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with (
        warnings.catch_warnings(),
        pytest.raises(ImageError, match=f"^{path}: .*pixels.*raise PIL.Image.MAX_IMAGE_PIXELS"),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        read_picture(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    assert np.array_equal(read_picture(path), noise)


@pytest.mark.parametrize("ending", ["webp", "jp2"])
def test_the_limit_of_formats_with_large_decoders_is_half_of_it(
    noise, tmp_path, monkeypatch, ending
):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(noise).save(path, lossless=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 95)
    with pytest.raises(ImageError, match=f"^{path}: 8x6 pixels are more than 47; if"):
        read_picture(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96)
    assert np.array_equal(read_picture(path), noise)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.float32([[0, 0.5, 1]]), "floating-point pixels have no defined white"),
        (np.int32([[0, 70000]]), "32-bit pixels from 0 to 70000 have no defined white"),
        (np.int32([[-1, 3]]), "32-bit pixels from -1 to 3"),
        (Image.new("LAB", (2, 2)), r"colours in L\*a\*b\* are not supported"),
    ],
)
def test_pixels_without_a_white_are_refused_in_one_line(write, pixels, message):
    path = write(pixels, "x.tif")
    with pytest.raises(ImageError, match=f"^{path}: {message}") as error:
        read_picture(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
def test_every_exif_orientation(noise, write, name, orientation):
    """By the definition of the tag: where row 0 and column 0 of the stored picture belong."""
    upright = {
        1: noise,
        2: noise[:, ::-1],
        3: noise[::-1, ::-1],
        4: noise[::-1],
        5: noise.swapaxes(0, 1),
        6: noise[::-1].swapaxes(0, 1),
        7: noise[::-1, ::-1].swapaxes(0, 1),
        8: noise[:, ::-1].swapaxes(0, 1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {
        "x.tif": {"tiffinfo": {ORIENTATION: orientation}},
        "x.png": {"exif": exif},
        "x.webp": {"exif": exif, "lossless": True},
    }
    assert np.array_equal(read_picture(write(noise, name, **options[name])), upright)


def test_broken_exif_does_not_lose_the_picture(noise, write, caplog):
    path = write(noise, exif=b"Exif\0\0no TIFF header")
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(read_picture(path), noise)
    assert f"{path}: its EXIF data cannot be read" in caplog.text


def test_damage_in_the_middle_of_a_png_is_seen(write):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    good = write(pixels).read_bytes()
    for position in range(60, len(good) - 12, 997):  # pixels only
        bad = bytearray(good)
        bad[position] ^= 4
        path = write(bytes(bad), "bad.png")
        with pytest.raises(ImageError, match=f"^{path}: damaged"):
            read_picture(path)
    # The adler sum and the size are right, and one stored byte is not: the checksum alone tells.
    stored = write(pixels, "stored.png", compress_level=0).read_bytes()
    bad = bytearray(stored)
    bad[len(bad) // 2] ^= 4
    with pytest.raises(ImageError, match="damaged"):
        read_picture(write(bytes(bad), "bad.png"))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.bmp", "x.tif", "x.webp"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_cut_files_are_refused_by_name(write, name, share):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = write(pixels, name).read_bytes()
    path = write(data[: int(share * len(data))], f"cut_{name}")
    with pytest.raises(ImageError, match=f"^{path}: ") as error:
        read_picture(path)
    assert "\n" not in str(error.value) and "BytesIO" not in str(error.value)


def test_what_is_not_an_image(write, tmp_path):
    for path, message in [
        (tmp_path / "absent.png", "there is no such file"),
        (write(b"", "empty.png"), "the file is empty"),
        (write(b"text", "text.png"), "not an image in a format"),
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "it is not a file"),
    ]:
        with pytest.raises(ImageError, match=f"^{path}: {message}"):
            read_picture(path)


def test_a_decompression_bomb_says_what_to_raise(write, noise, monkeypatch):
    path = write(noise)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ImageError, match=f"{path}: .*48 pixels.*raise PIL.Image.MAX_IMAGE_PIXELS"):
        read_picture(path)


def test_files_and_sides_beyond_any_picture_are_refused_unread(write, tmp_path):
    """Pillow reads a chunk of a PNG whole, and keeps a pointer for each row."""
    path = write(b"\x89PNG\r\n\x1a\n\x7f\xff\xff\xffzzZz", "sparse.png")
    with path.open("r+b") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(ImageError, match=f"^{path}: a file of more than [0-9]+ bytes"):
        read_picture(path)
    header = struct.pack(">IIBBBBB", 1, 2**18 + 1, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + bytes(4)
    with pytest.raises(ImageError, match="1x262145 pixels have a side of more than 262144"):
        read_picture(write(data, "tall.png"))


def test_a_png_of_countless_chunks_is_refused(write, noise, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PNG_CHUNKS", 10)
    data = write(noise).read_bytes()
    text = struct.pack(">I", 1) + b"tEXta" + struct.pack(">I", zlib.crc32(b"tEXta"))
    path = write(data[:33] + 5 * text + data[33:], "few.png")
    assert np.array_equal(read_picture(path), noise)
    path = write(data[:33] + 20 * text + data[33:], "many.png")
    with pytest.raises(ImageError, match="many.png: a PNG of more than 10 chunks"):
        read_picture(path)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "P", "LA", "I;16"])
def test_bands_of_rows_make_the_whole_picture(write, noise, mode, monkeypatch):
    grey = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    picture = grey if mode == "I;16" else Image.fromarray(noise).convert(mode)
    whole = picture_to_rgb(picture)
    monkeypatch.setattr(picture_pixels, "_BAND", 17)  # two rows of eight
    assert np.array_equal(picture_to_rgb(picture), whole)


def test_first_frame_of_an_animation(write):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    path = write(frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert (read_picture(path) == [255, 0, 0]).all()


def test_a_picture_in_memory_is_turned_and_named(noise):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise).save(buffer, "PNG", exif=exif)
    buffer.seek(0)
    assert np.array_equal(picture_to_rgb(Image.open(buffer)), noise[::-1].swapaxes(0, 1))
    with pytest.raises(ImageError, match="^images.3.: floating-point"):
        picture_to_rgb(Image.new("F", (2, 2)), name="images[3]")
    closed = Image.open(io.BytesIO(buffer.getvalue()[: len(buffer.getvalue()) // 2]))
    with pytest.raises(ImageError, match="^the picture: "):
        picture_to_rgb(closed)


def messages_of(paths):
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("resobj_d2.data.pictures").addHandler(handler)
    for path in paths:
        read_picture(path)
    logging.getLogger("resobj_d2.data.pictures").removeHandler(handler)
    return heard


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers that are spawned say it each")
def test_workers_say_it_once_together(write):
    picture_pixels._said[:] = bytes(2)
    path = write(np.uint16([[0, 1000, 4095]]))

    def of_worker():
        loader = torch.utils.data.DataLoader(
            [path], num_workers=1, collate_fn=messages_of, multiprocessing_context="fork"
        )
        return list(loader)

    (first,) = of_worker()
    assert len(first) == 1 and "16-bit pixels are scaled" in first[0]
    assert of_worker() == [[]]
    assert messages_of([path]) == []
