"""Datasets with mistakes in them."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_set(tmp_path):
    """Writes a COCO dataset; returns its entry of ``DATASETS.REGISTER``.

    Args: name, {file name: (width, height)} as the json says, and (file number from 0, class number
    from 0, x, y, width, height) for each object. Pictures are noise that depends on their name.
    """

    def write(name, pictures, objects, classes=("cell", "plate"), *, folder="images"):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        for file, (width, height) in pictures.items():
            if not (root / file).exists():
                noise(width, height, file).save(root / file)
        images = [
            {"id": number, "file_name": file, "width": size[0], "height": size[1]}
            for number, (file, size) in enumerate(pictures.items())
        ]
        annotations = [
            {"id": number, "image_id": image, "category_id": k + 1, "bbox": box}
            for number, (image, k, *box) in enumerate(objects, start=1)
        ]
        categories = [{"id": k, "name": label} for k, label in enumerate(classes, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(content))
        return {"name": name, "json": str(file), "images": str(root)}

    return write


def noise(width, height, seed):
    """A picture of random pixels."""
    random = np.random.default_rng(list(str(seed).encode()))
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
