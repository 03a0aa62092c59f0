"""Small datasets on disk."""

import json

import pytest
from PIL import Image


@pytest.fixture
def coco_content():
    """Three images, the last without boxes; category ids neither from 1 nor without gaps."""
    return {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30}
            for number in (1, 2, 3)
        ],
        "annotations": [
            _annotation(11, 1, 3, [1, 2, 10, 10]),
            _annotation(12, 1, 7, [5, 5, 20, 20]),
            _annotation(13, 2, 7, [0, 0, 40, 30]),
        ],
    }


def _annotation(identity, image, category, box):
    area = box[2] * box[3]
    return {
        "id": identity,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": area,
        "iscrowd": 0,
    }


@pytest.fixture
def write_coco(tmp_path):
    """Writes a json and its images; returns the registration entry."""

    def write(content, name="pets"):
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for image in content.get("images", []):
            if "file_name" in image:
                Image.new("RGB", (40, 30)).save(folder / image["file_name"])
        json_file = tmp_path / f"{name}.json"
        json_file.write_text(json.dumps(content))
        return {"name": name, "json": str(json_file), "images": str(folder)}

    return write


VOC_OBJECT = """<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>
<difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>
<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


@pytest.fixture
def write_voc(tmp_path):
    """Writes a VOC folder from {image id: [(class, difficult, (xmin, ymin, xmax, ymax)), ...]}."""

    def write(objects_of_images, split="train"):
        root = tmp_path / "voc"
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for identity, objects in objects_of_images.items():
            Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{identity}.jpg")
            body = "".join(
                VOC_OBJECT.format(name=name, difficult=difficult, box=box)
                for name, difficult, box in objects
            )
            size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
            xml_file = root / "Annotations" / f"{identity}.xml"
            xml_file.write_text(f"<annotation>{size}{body}</annotation>")
        lines = "".join(f"{identity}\n" for identity in objects_of_images)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
        return root

    return write
