"""One file has the same pixels in training, evaluation and prediction, whatever its format.

The files are generated. Where a format is lossless the pixels are known beforehand; the others
are compared with each other.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import nn

from resobj_d2.data.mapper import ImageErrorMapper, build_test_mapper, build_train_mapper
from resobj_d2.inference import Predictor

HEIGHT, WIDTH = 30, 20
RGB = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ORIENTATION = 0x0112


@dataclass
class Case:
    """A file of the zoo.

    Attributes:
        data: its bytes.
        pixels: (H, W, 3) that it has, None where the format loses some.
    """

    data: bytes
    pixels: np.ndarray | None = None


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def three(grey):
    return np.repeat(np.asarray(grey, dtype=np.uint8)[..., None], 3, axis=-1)


def upright(orientation):
    """By the definition of the tag: where row 0 and column 0 of the stored picture belong."""
    return {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1],
        5: RGB.swapaxes(0, 1), 6: RGB[::-1].swapaxes(0, 1),
        7: RGB[::-1, ::-1].swapaxes(0, 1), 8: RGB[:, ::-1].swapaxes(0, 1),
    }[orientation]  # fmt: skip


def png(color_type, bits, rows, extra=b""):
    """A PNG by hand, for what Pillow cannot write. rows: (H, bytes of a row) uint8."""

    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color_type, 0, 0, 0)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(body))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def tif(values, order, compression=1):
    """A TIFF of 16-bit colour by hand; values: (H, W, 3 or 4), order: "<" or ">"."""
    channels = values.shape[2]
    body = values.astype(f"{order}u2").tobytes()
    body = zlib.compress(body) if compression == 8 else body
    tags = {
        256: WIDTH, 257: HEIGHT, 258: None, 259: compression, 262: 2, 273: 8, 277: channels,
        278: HEIGHT, 279: len(body),
    }  # fmt: skip
    if channels == 4:
        tags[338] = 2  # the fourth is alpha
    bits = 8 + len(body)
    data = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", bits + 8) + body
    data += struct.pack(f"{order}4HH", *[16] * 4, len(tags))
    for tag, value in tags.items():
        if value is None:
            data += struct.pack(f"{order}HHII", tag, 3, channels, bits)
        else:
            data += struct.pack(f"{order}HHII", tag, 4, 1, value)
    return data + struct.pack(f"{order}I", 0)


def lossless():
    for name, kind, options in [
        ("png", "PNG", {}), ("png_stored", "PNG", {"compress_level": 0}), ("bmp", "BMP", {}),
        ("tif", "TIFF", {}), ("tif_lzw", "TIFF", {"compression": "tiff_lzw"}),
        ("tif_deflate", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("ppm", "PPM", {}), ("tga", "TGA", {}), ("pcx", "PCX", {}), ("sgi", "SGI", {}),
        ("dib", "DIB", {}), ("webp", "WEBP", {"lossless": True}),
        ("jp2", "JPEG2000", {"irreversible": False}),
    ]:  # fmt: skip
        yield name, Case(encoded(RGB, kind, **options), RGB)
    for name, kind in [("grey_png", "PNG"), ("grey_tif", "TIFF"), ("pgm", "PPM")]:
        yield name, Case(encoded(GREY, kind), three(GREY))
    bits = GREY > 127
    for name, kind in [("bits_png", "PNG"), ("bits_tif", "TIFF"), ("pbm", "PPM")]:
        yield name, Case(encoded(bits, kind), three(255 * bits.astype(np.uint8)))
    yield "grey_gif", Case(encoded(GREY, "GIF"), three(GREY))
    nibbles = GREY >> 4
    rows = nibbles[:, ::2] << 4 | nibbles[:, 1::2]
    yield "grey_4_bits", Case(png(0, 4, rows), three(17 * nibbles))


def alpha():
    mask = Image.fromarray(GREY)
    rgba, grey_alpha = Image.fromarray(RGB), Image.fromarray(GREY)
    rgba.putalpha(mask)
    grey_alpha.putalpha(mask)
    for name, kind in [("rgba_png", "PNG"), ("rgba_tif", "TIFF")]:
        yield name, Case(encoded(rgba, kind), RGB)
    yield "rgba_webp", Case(encoded(rgba, "WEBP", lossless=True, exact=True), RGB)
    yield "grey_alpha_png", Case(encoded(grey_alpha, "PNG"), three(GREY))
    yield "rgb_transparent", Case(encoded(RGB, "PNG", transparency=(1, 2, 3)), RGB)
    yield "grey_transparent", Case(encoded(GREY, "PNG", transparency=3), three(GREY))


def palettes():
    numbers = GREY % 7
    colors = np.random.default_rng(6).integers(0, 256, (7, 3), dtype=np.uint8)
    picture = Image.fromarray(numbers)
    picture.putpalette(colors.tobytes())
    expected = colors[numbers]
    for name, kind, options in [
        ("palette_png", "PNG", {}), ("palette_gif", "GIF", {}), ("palette_bmp", "BMP", {}),
        ("palette_tif", "TIFF", {}),
        ("palette_transparent", "PNG", {"transparency": 3}),
        ("palette_alphas", "PNG", {"transparency": bytes([0, 50, 100, 150, 200, 250, 255])}),
        ("gif_transparent", "GIF", {"transparency": 3}),
    ]:  # fmt: skip
        yield name, Case(encoded(picture, kind, **options), expected)


def sixteen_bits():
    full = GREY.astype(np.uint16) * 257
    full[0, :2] = 0, 65535
    for name, kind in [("16_bits_png", "PNG"), ("16_bits_tif", "TIFF"), ("16_bits_pgm", "PPM")]:
        yield name, Case(encoded(full, kind), three(full >> 8))
    twelve = full >> 4
    yield "12_bits_tif", Case(encoded(twelve, "TIFF"), three(twelve >> 4))
    color = RGB.astype(np.uint16) * 256 + 99
    color[0, 0] = 0, 65535, 99
    twelve = color >> 4
    for name, values, shift in [("16_bits", color, 8), ("12_bits", twelve, 4)]:
        expected = (values >> shift).astype(np.uint8)
        rows = values.reshape(HEIGHT, -1).astype(">u2").view(np.uint8)
        yield f"{name}_color_png", Case(png(2, 16, rows), expected)
        for order in "<>":
            yield f"{name}_color_tif{order}", Case(tif(values, order), expected)
    alpha = np.dstack((twelve, twelve[..., :1]))
    yield "12_bits_rgba_tif", Case(tif(alpha, "<", compression=8), (twelve >> 4).astype(np.uint8))
    yield "32_bits_of_16", Case(encoded(full.astype(np.int32), "TIFF"), three(full >> 8))


def turned():
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        pixels = upright(orientation)
        yield f"exif_{orientation}_png", Case(encoded(RGB, "PNG", exif=exif), pixels)
        yield f"exif_{orientation}_jpg", Case(encoded(RGB, "JPEG", exif=exif), None)
    tag = {"tiffinfo": {ORIENTATION: 6}}
    yield "exif_6_tif", Case(encoded(RGB, "TIFF", **tag), upright(6))
    yield "exif_broken", Case(encoded(RGB, "PNG", exif=b"Exif\0\0nothing"), RGB)


def several():
    frames = [Image.fromarray(255 - RGB)]
    for name, kind in [("pages_tif", "TIFF"), ("frames_png", "PNG")]:
        options = {"save_all": True, "append_images": frames}
        yield name, Case(encoded(RGB, kind, **options), RGB)


def lossy():
    picture = Image.fromarray(RGB)
    for name, data in [
        ("jpg", encoded(picture, "JPEG")),
        ("jpg_progressive", encoded(picture, "JPEG", progressive=True)),
        ("jpg_grey", encoded(GREY, "JPEG")),
        ("jpg_cmyk", encoded(picture.convert("CMYK"), "JPEG")),  # inverted, as Adobe's are
        ("jpg_444", encoded(picture, "JPEG", subsampling=0)),
        ("webp_lossy", encoded(picture, "WEBP")),
        ("mpo", encoded(picture, "MPO", save_all=True, append_images=[picture])),
    ]:
        yield name, Case(data)
    if features.check("avif"):
        yield "avif", Case(encoded(picture, "AVIF"))
    cmyk = np.dstack((255 - RGB, np.zeros((HEIGHT, WIDTH), np.uint8)))
    yield "cmyk_tif", Case(encoded(Image.fromarray(cmyk, "CMYK"), "TIFF"), RGB)


ZOO = dict(
    case
    for group in (lossless, alpha, palettes, sixteen_bits, turned, several, lossy)
    for case in group()
)


class Seen(nn.Module):
    """A model that keeps what it is given."""

    num_steps = 0

    def forward(self, batch):
        self.batch = batch
        raise InterruptedError


def predicted(cfg, path):
    """The pixels that a predictor hands to its model."""
    predictor = Predictor(cfg, Seen())
    with pytest.raises(InterruptedError):
        predictor(path)
    return predictor.model.batch[0]["image"]


@pytest.fixture(scope="module")
def configs(tiny_cfg):
    """By name: as they are in the file; resized; through this package's own augmentations."""

    def build(size, *opts):
        sizes = ["INPUT.MIN_SIZE_TRAIN", f"({size},)", "INPUT.MIN_SIZE_TEST", size]
        return tiny_cfg(*sizes, "INPUT.RANDOM_FLIP", "none", "DATASETS.TEST", "()", *opts)

    return {
        "as it is": build(0),
        "RGB": build(0, "INPUT.FORMAT", "RGB"),
        "resized": build(64),
        "stretched": build(0, "INPUT.FIXED_SIZE", "[40, 24]"),
    }


def test_the_zoo_is_large():
    assert len(ZOO) >= 40
    assert len({case.data for case in ZOO.values()}) == len(ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_training_evaluation_and_prediction_see_the_same_pixels(name, configs, tmp_path, caplog):
    case = ZOO[name]
    path = tmp_path / f"{name}.picture"  # formats are told by the content
    path.write_bytes(case.data)
    record = {"file_name": str(path), "image_id": 1, "annotations": []}
    images = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of Pillow's
        for kind, cfg in configs.items():
            trained = ImageErrorMapper(build_train_mapper(cfg))(record)["image"]
            evaluated = ImageErrorMapper(build_test_mapper(cfg))(record)["image"]
            assert torch.equal(trained, evaluated), kind
            assert torch.equal(predicted(cfg, path), evaluated), kind
            images[kind] = evaluated
    assert ("EXIF data cannot be read" in caplog.text) == (name == "exif_broken")
    rgb = images["RGB"].permute(1, 2, 0).numpy()
    assert torch.equal(images["RGB"].flip(0), images["as it is"])
    if case.pixels is not None:
        assert np.array_equal(rgb, case.pixels)
    elif not name.startswith("exif"):
        assert rgb.shape == (HEIGHT, WIDTH, 3)
        luma = np.corrcoef(rgb.mean(axis=2).ravel(), RGB.mean(axis=2).ravel())[0, 1]
        assert luma > 0.5  # upright and not inverted
