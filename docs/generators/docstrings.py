"""A griffe extension: docstrings are written for ``help()``, but the site needs Markdown."""

from __future__ import annotations

import ast
import re

import griffe

__all__ = ["MarkdownDocstrings", "add_arguments", "option_lines", "to_markdown"]


def to_markdown(text: str) -> str:
    """Turns Sphinx roles into code, and ``::`` before a code block into a colon.

    "Class attributes:" becomes "Attributes:", the section name in Google's style.
    """
    text = text.replace("Class attributes:\n", "Attributes:\n")
    text = re.sub(r":(?:class|func|meth|mod|data|attr):`[~.]?([^`]+)`", r"`\1`", text)
    return re.sub(r"(?<=\S)::$", ":", re.sub(r"^::$", "", text, flags=re.M), flags=re.M)


def option_lines(node: ast.ClassDef) -> list[str]:
    """One line of ``Args:`` for each argument or field annotated by an ``Option``."""
    lines = []
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign):
            lines.append(_option_line(ast.unparse(statement.target), statement.annotation))
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            arguments = statement.args.args + statement.args.kwonlyargs
            lines += [_option_line(x.arg, x.annotation) for x in arguments]
    return [line for line in lines if line]


def _option_line(name: str, annotation: ast.expr | None) -> str | None:
    for call in ast.walk(annotation) if annotation is not None else ():
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Option":
            given = {x.arg: x.value for x in call.keywords}
            meaning = ast.literal_eval(call.args[0])
            key = ast.literal_eval(given["key"]) if "key" in given else name.upper()
            source = f"; {ast.literal_eval(given['source'])}" if "source" in given else ""
            return f"    {name}: {meaning} (``{key}``{source})."
    return None


def add_arguments(text: str, lines: list[str]) -> str:
    """The docstring with those lines added to ``Args:`` that it does not have itself."""
    described = {
        name
        for names in re.findall(r"^    (\w[\w, ]*)(?: \(.*\))?:", text, re.MULTILINE)
        for name in names.split(", ")
    }
    lines = [line for line in lines if line.split(":")[0].strip() not in described]
    if not lines:
        return text
    if "Args:\n" not in text:
        text += "\n\nArgs:\n"
    return text.replace("Args:\n", "\n".join(["Args:", *lines, ""]), 1).rstrip("\n")


class MarkdownDocstrings(griffe.Extension):
    """Converts docstrings, and moves options from argument types into them."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def on_class_members(self, *, node: object, cls: griffe.Class, **_: object) -> None:
        """Called by griffe after reading a class with its members."""
        if isinstance(node, ast.ClassDef) and cls.docstring:
            cls.docstring.value = add_arguments(cls.docstring.value, option_lines(node))
        arguments = list(getattr(cls.members.get("__init__"), "parameters", ()))
        for owner in arguments + [x for x in cls.members.values() if x.is_attribute]:
            kind = owner.annotation
            if isinstance(kind, griffe.ExprSubscript) and str(kind.left) == "Annotated":
                owner.annotation = kind.slice.elements[0]
