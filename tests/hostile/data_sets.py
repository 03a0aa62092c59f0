"""Files of datasets that are broken or meant to do harm.

Each is a folder of files; the first is what is opened. ``SECRET`` in them stands for a path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

SECRET = "SECRET"
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}
IMAGE = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}


def coco(annotation: Mapping = BOX, image: Mapping = IMAGE, **other) -> str:
    """A json of one picture with one box."""
    content = {
        "images": [image],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "cat"}],
    }
    return json.dumps(content | other)


def _box(**changed) -> str:
    return coco({**BOX, **changed})


def _number(text: str, key: str = "area") -> str:
    """A json whose value of a key is written as ``text``."""
    return coco({**BOX, key: "NUMBER"}).replace('"NUMBER"', text)


JSONS = {
    "empty": "",
    "blanks": " " * 20_000_000,
    "null": "null",
    "a list": "[]",
    "a number": "1" * 10_000,
    "a file of escapes": coco(image={**IMAGE, "file_name": "\x1b[2J.png"}),
    "open": '{"images": [',
    "zero bytes": "\0" * 100_000,
    "deep lists": "[" * 100_000,
    "deep value": '{"info": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep mask": _number("[" * 500 + "]" * 500, "segmentation"),
    "deep annotation": _number('{"a": ' * 20_000 + "1" + "}" * 20_000),
    "a key twice": '{"images": [], "images": []}',
    "a long string": coco(image={**IMAGE, "file_name": "a" * 10_000_000}),
    "a name with zeros": coco(image={**IMAGE, "file_name": "a\0.png"}),
    "a name that leaves": coco(image={**IMAGE, "file_name": "../" * 50 + "etc/passwd"}),
    "a name of a device": coco(image={**IMAGE, "file_name": "/dev/zero"}),
    "half a surrogate": coco().replace("cat", "\\ud800"),
    "a huge picture": coco(image={**IMAGE, "width": 10**18, "height": 10**18}),
    "a picture of many digits": coco().replace('"width": 8', '"width": ' + "9" * 400),
    "many digits": _number("9" * 400),
    "too many digits": _number("9" * 10_000),
    "infinity": _number("Infinity"),
    "a large exponent": _number("1e999"),
    "boxes of many digits": _number("[1, 1, " + "9" * 400 + ", 4]", "bbox"),
    "boxes not finite": _number("[NaN, Infinity, -Infinity, 4]", "bbox"),
    "a box as a string": _box(bbox="1 1 4 4"),
    "a box of strings": _box(bbox=["1", "1", "4", "x"]),
    "a box as an object": _box(bbox={"x": 1}),
    "a box of boxes": _box(bbox=[[1, 1, 4, 4]] * 4),
    "an id as a list": _box(id=[1]),
    "an image as an object": _box(image_id={"a": 1}),
    "large ids": coco({**BOX, "id": 2**70, "image_id": 2**70}, {**IMAGE, "id": 2**70}),
    "a large category": coco(
        {**BOX, "category_id": 2**70}, categories=[{"id": 2**70, "name": "cat"}]
    ),
    "a category of many digits": _number("9" * 5_000, "category_id"),
    "a long run-length mask": _box(segmentation={"size": [8, 8], "counts": [2**62, 2**62]}),
    "a large run-length mask": _box(
        segmentation={"size": [10**9, 10**9], "counts": [10**18]}, iscrowd=1
    ),
    "a broken run-length string": _box(segmentation={"size": [8, 8], "counts": "\x7f" * 50}),
    "a negative run length": _box(segmentation={"size": [8, 8], "counts": [-1, 65]}),
    "keypoints of many digits": _number("[" + "9" * 400 + ", 1, 2]", "keypoints"),
    "a skeleton that leaves": coco(
        categories=[{"id": 1, "name": "cat", "keypoints": ["a"], "skeleton": [[10**30, -5]]}]
    ),
    "a name of escapes": coco(categories=[{"id": 1, "name": "\x1b]0;title\x07\x1b[31m"}]),
    "annotations as an object": coco(annotations={"a": BOX}),
    "images of numbers": coco(images=[1, 2, 3]),
}  # fmt: skip


def _laughs() -> str:
    """Entities that stand for 10**9 words."""
    lines = ['<!ENTITY e0 "ha">']
    lines += [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10)]
    return f"<!DOCTYPE annotation [{''.join(lines)}]>{_voc(name='&e9;')}"


def _voc(name: str = "cat", size: str = "8", xmin: str = "1", extra: str = "") -> str:
    return (
        f"<annotation><filename>a.png</filename><size><width>{size}</width><height>8</height>"
        f"</size><object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{xmin}</xmin>"
        f"<ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></object>{extra}</annotation>"
    )


XMLS = {
    "empty": "",
    "no xml": "cat 1 1 4 4",
    "a billion laughs": _laughs(),
    "quadratic entities": (
        f'<!DOCTYPE a [<!ENTITY e "{"x" * 100_000}">]>{_voc(name="&e;" * 20_000)}'
    ),
    "an entity of a file": (
        f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{SECRET}">]>{_voc(name="&e;")}'
    ),
    "a parameter entity": (
        f'<!DOCTYPE a [<!ENTITY % e SYSTEM "file://{SECRET}"> %e;]>{_voc(name="cat")}'
    ),
    "a DTD from the network": f'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">{_voc()}',
    "deep": "<annotation>" + "<part>" * 50_000 + "</part>" * 50_000 + "</annotation>",
    "deep and open": "<annotation>" + "<part>" * 50_000,
    "many attributes": "<annotation " + " ".join(f'a{i}="1"' for i in range(50_000)) + "/>",
    "an unknown encoding": '<?xml version="1.0" encoding="utf-99"?>' + _voc(),
    "a compressed encoding": '<?xml version="1.0" encoding="zlib"?>' + _voc(),
    "zero bytes": "<annotation>\0</annotation>",
    "a size of many digits": _voc(size="9" * 10_000),
    "a size with an exponent": _voc(size="1e300"),
    "a box of many digits": _voc(xmin="9" * 10_000),
    "a box that is not finite": _voc(xmin="nan"),
    "a box of underscores": _voc(xmin="1_0"),
    "a class of blanks": _voc(name="   "),
    "two sizes": _voc(extra="<size><width>9</width></size>"),
}  # fmt: skip
LABELS = {
    "long line": "0 " * 5_000_000,
    "many digits": "0 " + "9" * 10_000 + " .5 .2 .2",
    "not finite": "0 nan inf .2 .2",
    "a large class": "9" * 400 + " .5 .5 .2 .2",
    "a negative class": "-1 .5 .5 .2 .2",
    "other digits": "٠ .5 .5 .2 .2",
    "zero bytes": "\0" * 1000,
    "not text": "\udcff\udcfe 1",
}
TABLES = {
    "empty": "",
    "zero bytes": "filename,xmin\0,ymin,xmax,ymax,class\n",
    "an open quote": 'filename,xmin,ymin,xmax,ymax,class\n"a.png,1,1,4,4,cat' + "\nx" * 100_000,
    "a wide line": "filename,xmin,ymin,xmax,ymax,class\n" + "," * 1_000_000,
    "a long field": f"filename,xmin,ymin,xmax,ymax,class\na.png,1,1,4,4,{'x' * 1_000_000}",
    "many digits": f"filename,xmin,ymin,xmax,ymax,class\na.png,{'9' * 10_000},1,4,4,cat",
    "a formula": "filename,xmin,ymin,xmax,ymax,class\na.png,=1+1,1,4,4,cat",
    "a name that leaves": "filename,xmin,ymin,xmax,ymax,class\n../../../etc/passwd,1,1,4,4,cat",
    "the same column twice": "filename,xmin,xmin,ymin,xmax,ymax,class\na.png,1,1,1,4,4,cat",
}


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def all_data_sets() -> dict[str, dict[str, bytes]]:
    """Folders by name: contents by file; the first file, or its folder, is what is opened."""
    found: dict[str, dict[str, bytes]] = {}
    for name, text in JSONS.items():
        found[f"json, {name}"] = {"a.json": _encoded(text)}
    for name, text in XMLS.items():
        found[f"voc, {name}"] = {"Annotations/a.xml": _encoded(text)}
    yaml = b"train: images\nnames: [cat]\n"
    for name, text in LABELS.items():
        found[f"yolo, {name}"] = {"data.yaml": yaml, "labels/a.txt": _encoded(text)}
    for name, text in TABLES.items():
        found[f"csv, {name}"] = {"a.csv": _encoded(text)}
    return found
