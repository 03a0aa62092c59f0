import json
import os

import pytest

from resobj_d2.inference.json_list import JsonListWriter


def test_a_list_and_a_list_in_an_object(tmp_path):
    with JsonListWriter(tmp_path / "a.json") as a:
        a.add([{"x": 1}, "ü"])
        a.add([])
        a.add([None])
    assert json.loads((tmp_path / "a.json").read_text()) == [{"x": 1}, "ü", None]
    with JsonListWriter(tmp_path / "b.json", around={"info": {}, "n": 2}, key="images") as b:
        b.add([1, 2])
    expected = {"info": {}, "n": 2, "images": [1, 2]}
    assert json.loads((tmp_path / "b.json").read_text()) == expected


@pytest.mark.parametrize("around", [None, {}, {"info": {}}])
def test_nothing_added(tmp_path, around):
    with JsonListWriter(tmp_path / "a.json", around=around, key="items"):
        pass
    expected = [] if around is None else {**around, "items": []}
    assert json.loads((tmp_path / "a.json").read_text()) == expected


def test_items_are_on_disk_at_once_and_the_file_changes_at_the_end(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[0]")
    with JsonListWriter(path) as writer:
        for number in (1, 2):
            writer.add([{"number": number}])
            partial = (tmp_path / "a.json.partial").read_text()
            assert len(json.loads(partial + "]")) == number  # what a killed process leaves
            assert path.read_text() == "[0]"
    assert json.loads(path.read_text()) == [{"number": 1}, {"number": 2}]
    assert [x.name for x in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_keeps_what_was_added(tmp_path, error):
    with pytest.raises(error):
        with JsonListWriter(tmp_path / "a.json") as writer:
            writer.add([1])
            raise error
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


def test_a_disk_that_fails_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("[0]")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        with JsonListWriter(path) as writer:
            writer.add([1])
    assert path.read_text() == "[0]"
