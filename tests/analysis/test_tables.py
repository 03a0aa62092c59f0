"""Tables as text, and as files that are whole or not there."""

import pytest

from resobj_d2.analysis.tables import markdown, write_json


def test_text_by_hand():
    rows = [
        {"name": "a|b", "n": 3, "AP": 1.26, "known": True},
        {"name": "c", "n": None, "AP": -0.01, "known": None},
        {"name": "d", "n": 1, "AP": None, "known": False},
    ]
    assert markdown(rows, limit=2).splitlines() == [
        "| name   |   n |   AP | known   |",
        "|--------|-----|------|---------|",
        "| a\\|b   |   3 |  1.3 | yes     |",
        "| c      |   - |  0.0 | -       |",
        "",
        "... and 1 more (--json has all)",
    ]
    assert markdown([]) == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_file_keeps_what_was_there(tmp_path, error, monkeypatch):
    path = tmp_path / "out.json"
    write_json(path, {"a": [1]})
    before = path.read_text()

    def dump(content, file, **options):
        file.write('{"half')
        raise error

    monkeypatch.setattr("resobj_d2.analysis.tables.json.dump", dump)
    with pytest.raises(error):
        write_json(path, {"a": [2]})
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "out.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())
