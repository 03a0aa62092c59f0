"""Finding pictures and their sizes, without reading their pixels."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

__all__ = ["PICTURE_ENDINGS", "PictureFolder", "picture_size"]

PICTURE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm",
)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag
_TIFF_SIZE = (256, 257)  # tags of width and height
_LYING = (5, 6, 7, 8)  # orientations in which width and height change places


class PictureFolder:
    """A folder whose pictures are found by name, whatever their ending and its case.

    Args:
        path: the folder; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_stem: dict[str, list[Path]] | None = None

    def find(self, stem: str, file_name: str = "") -> Path:
        """The picture called ``stem``; where there is none, ``file_name``, else ``stem``.jpg.

        Among several the usual endings come first.
        """
        usual = self.path / f"{stem}.jpg"
        if usual.is_file():
            return usual
        found = self._index().get(stem, [])
        if found:
            return min(found, key=lambda path: PICTURE_ENDINGS.index(path.suffix.lower()))
        named = self.path / Path(file_name.replace("\\", "/")).name
        return named if file_name and named.is_file() else usual

    def _index(self) -> dict[str, list[Path]]:
        if self._by_stem is None:
            self._by_stem = {}
            files = sorted(self.path.iterdir()) if self.path.is_dir() else []
            for path in files:
                if path.suffix.lower() in PICTURE_ENDINGS:
                    self._by_stem.setdefault(path.stem, []).append(path)
        return self._by_stem


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture turned upright, from its header.

    Raises:
        ValueError: it is no picture.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            lying = picture.getexif().get(_ORIENTATION) in _LYING
            if lying and picture.format == "TIFF":  # which newer Pillow has turned already
                lying = (width, height) == tuple(picture.tag_v2.get(tag) for tag in _TIFF_SIZE)
    except Exception as error:  # Pillow raises almost anything on a broken file
        raise ValueError(f"{path}: its size cannot be read: {error}") from None
    return (height, width) if lying else (width, height)
