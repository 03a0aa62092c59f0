"""The json reader hands on what json.loads gives, whatever the chunks, and says where it fails."""

import json
import random
import subprocess
import sys
import textwrap

import pytest

from resobj_d2.data import json_stream
from resobj_d2.data.json_stream import read_object


def read(path, *keys):
    items = {key: [] for key in keys}
    sinks = {key: lambda item, position, key=key: items[key].append(item) for key in keys}
    return read_object(path, sinks), items


@pytest.fixture(params=[1, 2, 7, 1 << 20])
def chunk(request, monkeypatch):
    """Characters that are read at once."""
    monkeypatch.setattr(json_stream, "_CHUNK", request.param)
    return request.param


def test_items_are_those_of_json(tmp_path, chunk):
    content = {
        "info": {"a": [1, 2, {"b": None}]},
        "list": [{"x": 12345678.5, "t": 'quote " and \\ and ü \u2028'}, [], 1e300, -17, "z", None],
        "empty": [],
        "number": 1234567890123,
        "object": {},
        "other": [[[True, False]]],
    }
    for indent, ascii_only in ((None, True), (2, False)):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), "utf-8-sig")
        kinds, items = read(path, "list", "empty", "object", "absent")
        assert items == {"list": content["list"], "empty": [], "object": [], "absent": []}
        assert list(kinds) == list(content)
        assert kinds["list"] == kinds["other"] == "list" and kinds["object"] == "dict"
        assert kinds["number"] == "int"


def test_large_items_in_small_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 64)
    draw = random.Random(0)
    text = "".join(draw.choice('ab"\\\n€') for _ in range(5000))
    (tmp_path / "a.json").write_text(json.dumps({"list": [text, {"k": [text] * 3}, 1.5]}))
    assert read(tmp_path / "a.json", "list")[1]["list"] == [text, {"k": [text] * 3}, 1.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value: line 1 column 1"),
        ('{"a": [1, 2\n, x]}', "Expecting value: line 2 column 3"),
        ('{"a": [1 2]}', "Expecting ',' or ']' delimiter: line 1 column 10"),
        ('{"a": [1,', "Expecting value: line 1 column 10"),
        ('{"a": [{"b": "c', "Unterminated string starting at: line 1 column 14"),
        ('{"a": 1} x', "Extra data: line 1 column 10"),
        ("{1: 2}", "Expecting property name enclosed in double quotes: line 1 column 2"),
        ('{"a" 1}', "Expecting ':' delimiter"),
        ('{"a": [], "a": []}', "the key 'a' occurs twice"),
        ('{"a": [{"b": 1, "c": 2, "b": 3}]}', "the key 'b' occurs twice in one object"),
        ('{"b": ' + "[" * 200_000, "nested too deeply"),
        ('{"a": [' + '{"b":' * 200_000, "nested too deeply"),
        ('{"a": [' + "9" * 10_000 + "]}", "Exceeds the limit"),
        ('{"a": ["\\u12', "Invalid"),
    ],
)
def test_what_is_no_json(tmp_path, chunk, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "a.json", "a")
    if chunk > 1000:
        assert message in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": ["\xff\xfe"]}')
    with pytest.raises(ValueError, match="can't decode byte 0xff"):
        read(tmp_path / "a.json", "a")


@pytest.mark.parametrize(
    ("text", "name"), [("[]", "list"), ('"a"', "str"), ("null", "NoneType"), ("12", "int")]
)
def test_what_is_no_object(tmp_path, text, name):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(TypeError, match=f"^{name}$"):
        read(tmp_path / "a.json", "a")


MEASURE = """
    import json, random, resource, sys, time
    from pathlib import Path
    from PIL import Image

    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    draw = random.Random(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480}
              for i in range(number // 10)]
    for image in images[:3]:
        Image.new("RGB", (640, 480)).save(folder / image["file_name"])
    with open(folder / "a.json", "w") as file:
        file.write('{"images": ' + json.dumps(images) + ', "annotations": [')
        for i in range(number):
            size = draw.uniform(5, 200), draw.uniform(5, 200)
            box = [draw.uniform(0, 640 - size[0]), draw.uniform(0, 480 - size[1]), *size]
            entry = {"id": i, "image_id": draw.randrange(len(images)), "iscrowd": 0,
                     "category_id": draw.randrange(80), "bbox": [round(v, 2) for v in box],
                     "area": round(size[0] * size[1], 2)}
            file.write(("," if i else "") + json.dumps(entry))
        categories = [{"id": i, "name": str(i)} for i in range(80)]
        file.write('], "categories": ' + json.dumps(categories) + "}")
    from resobj_d2.data.register import register_datasets
    from resobj_d2.data.catalog import dataset_record

    start = time.process_time()
    register_datasets([{"name": "a", "json": str(folder / "a.json"), "images": str(folder)}])
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps([len(dataset_record("a").annotations), seconds, peak]))
"""


@pytest.mark.slow
def test_a_million_annotations_register_in_time_and_memory(tmp_path):
    """At most 25 s of one core, and 1.5 GiB with torch in it; it takes about 6 s and 1.1 GiB."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(MEASURE), str(tmp_path)]
    done = subprocess.run([*command, "1000000"], check=True, capture_output=True, text=True)
    number, seconds, peak = json.loads(done.stdout.splitlines()[-1])
    print(f"{number} annotations: {seconds:.1f} s of one core, {peak:.2f} GiB at most")
    assert number == 1_000_000 and seconds <= 25 and peak <= 1.5
