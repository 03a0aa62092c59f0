"""Every configuration key in the docs, and in the advice that is printed, exists as it stands."""

import ast
import re

import pytest
from detectron2.config import get_cfg

from resobj_d2.config import add_resobj_config

_KEY = re.compile(r"(?<![\w./$*])[A-Z][A-Z0-9_]*(?:\.[A-Z][A-Z0-9_]*)+(?![\w(.*])")
_TABLE = re.compile(r"\| key of `([A-Z_.]+)` \|")
# Placeholders, and the key of an entry that the tutorial registers.
_OTHERS = {"A.B", "MODEL.DENSE.CLS_LOSS.POLY_EPSILON"}
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def _all_keys(node, prefix=""):
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _all_keys(value, f"{prefix}{name}.")


@pytest.fixture(scope="module")
def known():
    cfg = get_cfg()
    add_resobj_config(cfg)
    return {*_all_keys(cfg), *_OTHERS}


def unknown_keys(text, known):
    """Keys that do not exist, with their line; rows of a table of keys of a node are below it."""
    node, found = "", []
    for number, line in enumerate(text.splitlines(), 1):
        node = "" if not line.startswith("|") else node
        table = _TABLE.match(line)
        node = f"{table[1]}." if table else node
        found += [
            (number, key)
            for key in _KEY.findall(line)
            if key not in known and not (node and node + key in known)
        ]
    return found


def test_what_is_no_key_is_found(known):
    text = "`OBJECTNESS.STEPS` of `MODEL.DENSE.OBJECTNESS.STEPS`\nMODEL.NO_KEY, see README.md\n"
    assert unknown_keys(text, known) == [(1, "OBJECTNESS.STEPS"), (2, "MODEL.NO_KEY")]
    rows = "| key of `MODEL.RESOBJ_ROI` | a |\n|---|\n| `SAMPLER.NAME` | b |\n"
    assert unknown_keys(rows, known) == []
    assert unknown_keys(f"{rows}\nSAMPLER.NAME\n", known) == [(5, "SAMPLER.NAME")]


def test_keys_in_the_docs_exist(repository, known):
    files = [*repository.glob("*.md"), *(repository / "configs").rglob("*.md")]
    files += [*(repository / "docs").rglob("*.md"), *(repository / "docs").rglob("*.ipynb")]
    wrong = {
        file.relative_to(repository).as_posix(): found
        for file in files
        if file.name != "CHANGELOG.md" and (found := unknown_keys(file.read_text(), known))
    }
    assert not wrong and len(files) > 20


def test_keys_in_printed_advice_exist(repository, known):
    """What stands between backticks in a message or a page is meant to be copied."""
    found, wrong = set(), []
    for file in (repository / "resobj_d2").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for code in _CODE.findall(node.value):
                    keys = _KEY.findall(code)
                    found.update(keys)
                    wrong += [(file.name, node.lineno, key) for key in keys if key not in known]
    assert not wrong
    assert "MODEL.DENSE.BOX_LOSS.NAME" in found
