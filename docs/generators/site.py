"""Hooks of mkdocs.yml: what ``make docs`` does beyond rendering the Markdown files of docs/.

The pages are written to be read in the repository, so they link to files in the repository. Here
- pages outside docs/ (the README, the changelog, ...) get a place on the site,
- tutorials become pages (with their notebooks next to them for download),
- a source file that a page links to becomes a page that shows it,
- links between all of these become links within the site, so that MkDocs can check them,
- a public name without a docstring, or on no page, is a warning, and warnings fail the build.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Container, Iterable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from mkdocstrings import Inventory

from docs.generators.public_names import public_names, undocumented

__all__ = [
    "PAGES",
    "on_files",
    "on_page_markdown",
    "on_post_build",
    "on_pre_build",
    "rewrite_links",
    "site_path",
    "undescribed",
]

logger = logging.getLogger("mkdocs.hooks.site")
ROOT = Path(__file__).resolve().parents[2]
# Pages that are next to what they describe, and their place among the pages of docs/.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "configs/README.md": "configs.md",
    "csrc/README.md": "native.md",
}
_IMAGES = (".png", ".jpg", ".svg")
_LEXERS = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".h": "cpp", ".cpp": "cpp"}
# Code is skipped; the target of a link outside code is in `target`.
_LINKS = re.compile(
    r"(?P<code>^(?P<fence>```+|~~~+).*?^(?P=fence)|(?P<tick>`+)[^\n]*?(?P=tick))"
    r"|(?<=\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))",
    re.MULTILINE | re.DOTALL,
)


def site_path(path: str) -> str:
    """Where a file of the repository is on the site, in MkDocs's notation."""
    if path in PAGES:
        return PAGES[path]
    inside = path.removeprefix("docs/")
    if path != inside:
        if path.endswith(".ipynb"):
            return inside.removesuffix(".ipynb") + ".md"
        if path.endswith((".md", *_IMAGES)):
            return inside
    return f"source/{path}.md"


def rewrite_links(text: str, page: str) -> tuple[str, set[str]]:
    """Turn a page's links between files of the repository into links within the site.

    Args:
        text: Markdown.
        page: the page's path in the repository.

    Returns:
        The text, and the paths of the source files it links to. Links to files that do not exist
        are unchanged, so that MkDocs reports them.
    """
    sources = set()
    here = posixpath.dirname(site_path(page))

    def replaced(match: re.Match) -> str:
        target = match["target"]
        if target is None or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if not (ROOT / path).is_file():
            return match[0]
        place = site_path(path)
        if place.startswith("source/"):
            sources.add(path)
        return posixpath.relpath(place, here or ".") + (match["anchor"] or "")

    return _LINKS.sub(replaced, text), sources


def undescribed(names: Iterable[str], described: Container[str]) -> list[str]:
    """The public names that no page describes.

    An operator's module has the operator's name, and static analysis mistakes one for the other, so
    such a function is listed by its full path, ``resobj_d2.ops.nms.nms``.
    """
    return [
        name
        for name in names
        if name not in described and f"{name}.{name.rpartition('.')[2]}" not in described
    ]


def on_pre_build(config: MkDocsConfig) -> None:
    """Warn about public names without a docstring."""
    for name in undocumented():
        logger.warning("%s is public but has no docstring", name)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not Markdown files in docs/, and rewrite the links of all pages."""
    pages = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    pages |= {path: (ROOT / path).read_text() for path in PAGES}
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        pages[f"docs/{file.src_uri}"] = _notebook_page(file, files, config)
    sources: set[str] = set()
    for path, text in pages.items():
        text, linked = rewrite_links(text, path)
        sources |= linked
        _put(files, config, site_path(path), text)
    for path in sorted(sources):
        _put(files, config, site_path(path), _source_page(path), InclusionLevel.NOT_IN_NAV)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Make the search list pages of prose before those of the API."""
    if page.file.src_uri.startswith("api/"):
        page.meta["search"] = {"boost": 0.5}


def on_post_build(config: MkDocsConfig) -> None:
    """Warn about public names that no page describes."""
    with open(Path(config.site_dir, "objects.inv"), "rb") as file:
        described = Inventory.parse_sphinx(file)
    for name in undescribed(public_names(), described):
        logger.warning("%s is public but on no page of docs/api", name)


def _put(
    files: Files,
    config: MkDocsConfig,
    place: str,
    content: str | bytes,
    inclusion: InclusionLevel = InclusionLevel.INCLUDED,
) -> None:
    existing = files.get_file_from_path(place)
    if existing is not None:
        files.remove(existing)
    files.append(File.generated(config, place, content=content, inclusion=inclusion))


def _notebook_page(notebook: File, files: Files, config: MkDocsConfig) -> str:
    """The notebook as Markdown; its pictures are added to the files."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(notebook.abs_src_path)
    folder, name = posixpath.split(notebook.src_uri)
    stem = name.removesuffix(".ipynb")
    for output, content in resources["outputs"].items():
        text = text.replace(f"]({output})", f"]({stem}_{output})")
        _put(files, config, posixpath.join(folder, f"{stem}_{output}"), content)
    title, _, rest = text.partition("\n")
    note = f'This page is a notebook: <a href="{name}" download>download {name}</a>.'
    return f"{title}\n\n{note}\n{rest}"


def _source_page(path: str) -> str:
    """A page that shows a file of the repository, excluded from the search."""
    language = _LEXERS.get(posixpath.splitext(path)[1], "text")
    text = (ROOT / path).read_text()
    return (
        f"---\ntitle: {path}\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n"
        f"# `{path}`\n\n````{language}\n{text.rstrip()}\n````\n"
    )
