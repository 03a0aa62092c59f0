"""A dataset mapper that says which data set an unreadable image belongs to."""

from __future__ import annotations

import os
from collections.abc import Callable


class ImageErrorMapper:
    """Wraps a Detectron2 dataset mapper and explains images that cannot be read.

    Args:
        mapper: the mapper to call, for instance Detectron2's ``DatasetMapper``.
    """

    def __init__(self, mapper: Callable[[dict], dict | None]):
        self.mapper = mapper

    def __call__(self, record: dict) -> dict | None:
        """Map one record of Detectron2's standard form.

        Raises:
            OSError: the image is missing, broken or not an image. The message names the data set
                (where the record knows it), the image's id and its absolute path.
        """
        try:
            return self.mapper(record)
        except OSError as error:
            path = os.path.abspath(record["file_name"])
            name = record.get("dataset_name")
            owner = f"dataset '{name}'" if name else "a dataset"
            missing = not os.path.exists(path)
            problem = "does not exist" if missing else f"cannot be read ({error})"
            raise OSError(
                f"{owner}: image {record.get('image_id')!r}, {path}, {problem}"
            ) from error
