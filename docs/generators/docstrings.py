"""A griffe extension: docstrings are written for ``help()``, the site wants Markdown."""

from __future__ import annotations

import ast
import inspect
import re

import griffe

__all__ = ["MarkdownDocstrings", "assigned_docstrings", "to_markdown"]


def to_markdown(text: str) -> str:
    """Sphinx roles become code, and the ``::`` in front of a block of code a colon."""
    text = re.sub(r":(?:class|func|meth|mod|data|attr):`[~.]?([^`]+)`", r"`\1`", text)
    return re.sub(r"(?<=\S)::$", ":", re.sub(r"^::$", "", text, flags=re.M), flags=re.M)


def assigned_docstrings(module: ast.AST) -> dict[str, str]:
    """Texts of statements ``NAME.__doc__ = "..."``, the way registries get theirs."""
    return {
        target.value.id: inspect.cleandoc(statement.value.value)
        for statement in getattr(module, "body", [])
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Attribute)
        and target.attr == "__doc__"
        and isinstance(target.value, ast.Name)
    }


class MarkdownDocstrings(griffe.Extension):
    """Converts each docstring when it is read."""

    def on_module_members(self, *, node: ast.AST, mod: griffe.Module, **_: object) -> None:
        """Called by griffe when it has read a module."""
        if isinstance(node, griffe.ObjectNode):  # an imported module, which has no statements
            return
        for name, text in assigned_docstrings(node).items():
            member = mod.members[name]
            member.docstring = griffe.Docstring(to_markdown(text), parent=member)

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
