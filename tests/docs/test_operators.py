"""docs/operators.md lists every operator, and its examples print what the page says."""

import contextlib
import io
import re

import pytest
import torch

from resobj_d2 import ops

EXAMPLES = ["reassign_anchors", "soft_nms", "matrix_nms"]


@pytest.fixture
def page(repository):
    return (repository / "docs" / "operators.md").read_text()


def test_the_table_lists_every_operator(page):
    listed = re.findall(r"^\| `(\w+)` \|", page, re.M)
    functions = {name for name in ops.__all__ if name.islower()}
    assert sorted(listed) == sorted(
        functions - {"describe_operators", "expected_gradient", "native_status"}
    )


def test_the_table_says_which_operators_have_a_gradient(page):
    rows = [row.split("|") for row in page.splitlines() if row.startswith("| `")]
    without = {row[1].strip(" `") for row in rows if row[4].strip() == "none"}
    defined = torch._C._dispatch_get_all_op_names()
    with_backward = {name for name in ops.__all__ if f"resobj_d2::_{name}_backward" in defined}
    with_backward |= {"ciou_loss", "diou_loss"}  # by torch's operators
    assert without == {row[1].strip(" `") for row in rows} - with_backward


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_its_comments_say(page, name):
    (code,) = re.findall(rf"^## {name}\n.*?```python\n(.*?)```", page, re.M | re.S)
    assert f"ops.{name}(" in code
    expected = re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
    assert len(expected) == code.count("print(")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue().splitlines() == expected


def test_every_example_is_run(page):
    assert page.count("```python") == len(EXAMPLES)
