"""The changelog's table of moves is correct, and its newest version is the package's."""

import importlib.util
import re

import pytest

import resobj_d2


@pytest.fixture
def changelog(repository):
    return (repository / "CHANGELOG.md").read_text()


def exists(module):
    try:
        spec = importlib.util.find_spec(module)
        return spec is not None and spec.origin is not None  # an empty folder has no origin
    except ModuleNotFoundError:  # a parent package is missing
        return False


def test_modules_are_where_the_table_says(changelog):
    moves = re.findall(r"^\| `(resobj_d2[\w.]+)` \| `(resobj_d2[\w.]+)` \|$", changelog, re.M)
    assert len(moves) >= 28
    assert [new for _, new in moves if not exists(new)] == []
    assert [old for old, _ in moves if exists(old)] == []


def test_the_newest_version_is_the_packages(changelog):
    (newest, *_) = re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.M)
    assert newest == resobj_d2.__version__
