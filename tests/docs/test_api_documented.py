"""Every public name has a docstring."""

import importlib
import importlib.util
import re
import sys
import types

import pytest

from docs.generators.public_names import MODULES, public_names, undocumented
from resobj_d2.registry import Registry

# Modules that need a rarely installed package.
OPTIONAL = {"resobj_d2.inference.sahi": "sahi"}


def test_every_public_name_has_a_docstring(repository):
    modules = list(MODULES)
    for path in sorted((repository / "resobj_d2").rglob("*.py")):
        if re.search(r"^__all__", path.read_text(), re.M):
            parts = path.relative_to(repository).with_suffix("").parts
            modules.append(".".join(parts).removesuffix(".__init__"))
    for module, package in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            modules.remove(module)
    assert len(modules) > 50
    assert not undocumented(dict.fromkeys(modules))


def test_public_names_exist_and_are_listed_in_all():
    names = public_names(["resobj_d2.ops"])
    assert names == [f"resobj_d2.ops.{n}" for n in importlib.import_module("resobj_d2.ops").__all__]
    assert "resobj_d2.ops.match_anchors" in names


def test_a_module_without_all_is_an_error():
    with pytest.raises(AttributeError, match="__all__"):
        public_names(["resobj_d2.ops._checks"])


class Base:
    """What entries must do."""

    def described(self):
        """What it does."""


class Silent(Base):
    def described(self):
        pass

    def method(self):
        pass

    @property
    def attribute(self):
        return 1

    @classmethod
    def from_config(cls, node):
        pass

    def _private(self):
        pass


def test_what_counts_as_undocumented(monkeypatch):
    class Subclass(Base):  # the docstring of a base class is not its own
        pass

    module = types.ModuleType("silent")
    module.Silent, module.Subclass, module.function = Silent, Subclass, lambda: None
    module.bare, module.described = Registry("A", base=Subclass), Registry("B", base=Base)
    module.NUMBER = 3
    module.__all__ = ["Silent", "Subclass", "function", "bare", "described", "NUMBER"]
    monkeypatch.setitem(sys.modules, "silent", module)
    assert undocumented(["silent"]) == [
        "silent.Silent",
        "silent.Silent.attribute",
        "silent.Silent.method",
        "silent.Subclass",
        "silent.bare",
        "silent.function",
    ]
