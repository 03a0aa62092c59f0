"""The hooks of `make docs`: links within the repository become links within the site."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("mkdocs", reason="`make docs` installs MkDocs")
pytest.importorskip("mkdocstrings", reason="`make docs` installs MkDocs")

import griffe

from docs.generators.docstrings import MarkdownDocstrings, add_arguments, to_markdown
from docs.generators.site import PAGES, rewrite_links, site_path, undescribed


@pytest.mark.parametrize(
    "path, place",
    [
        ("README.md", "index.md"),
        ("configs/README.md", "configs.md"),
        ("docs/methods.md", "methods.md"),
        ("docs/api/ops.md", "api/ops.md"),
        ("docs/images/steps.jpg", "images/steps.jpg"),
        ("docs/tutorials/a.ipynb", "tutorials/a.md"),
        ("docs/examples/squares.py", "source/docs/examples/squares.py.md"),
        ("configs/Base-Dense.yaml", "source/configs/Base-Dense.yaml.md"),
        ("LICENSE", "source/LICENSE.md"),
    ],
)
def test_every_file_has_a_place(path, place):
    assert site_path(path) == place


def test_pages_outside_docs_exist(repository):
    assert all((repository / page).is_file() for page in PAGES)


def test_links_between_files_become_links_of_the_site():
    text, sources = rewrite_links(
        "[m](../docs/methods.md#together) [b](Base-Dense.yaml) ![p](../docs/images/steps.jpg)",
        "configs/README.md",
    )
    assert text == (
        "[m](methods.md#together) [b](source/configs/Base-Dense.yaml.md) ![p](images/steps.jpg)"
    )
    assert sources == {"configs/Base-Dense.yaml"}


def test_links_go_up_from_a_folder_of_the_site():
    text, _ = rewrite_links("[r](../../README.md) [t](../training.md)", "docs/api/ops.md")
    assert text == "[r](../index.md) [t](../training.md)"


@pytest.mark.parametrize(
    "text",
    [
        "[d](https://example.org/docs/methods.md) [a](#anchor) [m](mailto:someone@example.org)",
        "[missing](docs/no_such_page.md)",  # MkDocs must report it
        "`[code](LICENSE)`",
        "```\n[code](LICENSE)\n```",
        "text\n\n````markdown\n```\n[code](LICENSE)\n```\n````\n",
    ],
)
def test_other_links_and_code_are_unchanged(text):
    assert rewrite_links(text, "README.md") == (text, set())


def test_links_after_code_are_found():
    text, sources = rewrite_links("```\ncode\n```\n\n`a` [l](LICENSE) `b`", "README.md")
    assert text.endswith("`a` [l](source/LICENSE.md) `b`") and sources == {"LICENSE"}


def test_a_function_is_found_under_its_module_of_the_same_name():
    names = ["ops.nms", "ops.iou", "ops.lost"]
    assert undescribed(names, {"ops.nms.nms", "ops.iou", "ops.other"}) == ["ops.lost"]


def test_docstrings_become_markdown():
    text = "See :class:`~a.B` and :func:`.c`; :meth:`d`::\n\n    code\n\n::\n\n    more"
    expected = "See `a.B` and `c`; `d`:\n\n    code\n\n\n\n    more"
    assert to_markdown(text) == expected


def test_class_attributes_are_a_section_of_googles_style():
    assert to_markdown("A.\n\nClass attributes:\n    a: b.") == "A.\n\nAttributes:\n    a: b."


def test_options_become_arguments_of_the_docstring(tmp_path):
    (tmp_path / "loss.py").write_text(
        """
from typing import Annotated

class Loss:
    \"\"\"A loss.\"\"\"

    def __init__(
        self,
        a: Annotated[
            float, Option("what it is, "
                          "and how", source="Eq. 1")
        ] = 1.0,
        b: Annotated[int, Option("more", key="OTHER")] = 2,
        c: Annotated[Thing, Part()] = None,
        d: str = "",
    ): ...
"""
    )
    extensions = griffe.load_extensions(MarkdownDocstrings)
    loss = griffe.load("loss", search_paths=[str(tmp_path)], extensions=extensions)["Loss"]
    assert loss.docstring.value == (
        "A loss.\n\nArgs:\n    a: what it is, and how (``A``; Eq. 1).\n    b: more (``OTHER``)."
    )
    types = [str(p.annotation) for p in loss["__init__"].parameters][1:]
    assert add_arguments(
        "A.\n\nArgs:\n    a: x.\n\nRaises:\n    E: y.", ["    a: z", "    b: z."]
    ) == ("A.\n\nArgs:\n    b: z.\n    a: x.\n\nRaises:\n    E: y.")
    assert types == ["float", "int", "Thing", "str"]


@pytest.mark.slow
def test_a_broken_link_fails_the_build(repository, tmp_path):
    config = (repository / "mkdocs.yml").read_text()
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text("# Page\n\n[there](other.md) [anchor](#nothing)\n")
    # The rules for links are those of the real file; hooks and API are tested separately.
    rules = config[config.index("validation:") : config.index("hooks:")]
    (tmp_path / "mkdocs.yml").write_text("site_name: t\nstrict: true\n" + textwrap.dedent(rules))
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "other.md" in run.stderr and "#nothing" in run.stderr
