"""The public names of the package, and those without a docstring."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator

from resobj_d2.registry import Registry

__all__ = ["MODULES", "public_names", "undocumented"]

# The modules described in docs/api, in the order of its pages.
MODULES = (
    "resobj_d2.ops",
    "resobj_d2.losses",
    "resobj_d2.matching",
    "resobj_d2.modeling",
    "resobj_d2.config",
    "resobj_d2.data.register",
    "resobj_d2.data.record",
    "resobj_d2.data.notes",
    "resobj_d2.data.catalog",
    "resobj_d2.data.convert",
    "resobj_d2.data.scenes.dataset",
    "resobj_d2.data.pictures",
    "resobj_d2.inspection.check",
    "resobj_d2.inspection.anchors",
    "resobj_d2.inspection.suggestion",
    "resobj_d2.analysis.dump",
    "resobj_d2.analysis.dump_file",
    "resobj_d2.report.command",
    "resobj_d2.study.command",
    "resobj_d2.study.plan",
    "resobj_d2.study.results",
    "resobj_d2.study.statistics",
    "resobj_d2.evaluation",
    "resobj_d2.engine",
    "resobj_d2.inference.predictor",
    "resobj_d2.inference.detector",
    "resobj_d2.inference.predict",
    "resobj_d2.inference.drawing",
    "resobj_d2.export",
    "resobj_d2.export.check",
    "resobj_d2.checkpoint",
    "resobj_d2.acceleration",
    "resobj_d2.options",
    "resobj_d2.structures",
)

# Called by Detectron2, with arguments that Detectron2 documents.
_BY_CONTRACT = {"from_config"}


def public_names(modules: Iterable[str] = MODULES) -> list[str]:
    """``module.name`` for every name in the ``__all__`` of the modules.

    Raises:
        AttributeError: a module has no ``__all__``.
    """
    return [f"{m}.{name}" for m in modules for name in importlib.import_module(m).__all__]


def undocumented(modules: Iterable[str] = MODULES) -> list[str]:
    """Public classes, functions, registries, methods and properties without a docstring.

    A method described by a base class needs no docstring of its own. Constructors are described by
    their class.
    """
    result = []
    for name in public_names(modules):
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        if inspect.isclass(value):
            result += [f"{name}.{method}" for method in _undocumented_methods(value)]
        if inspect.isclass(value):
            described = vars(value).get("__doc__")  # not a base's
        elif isinstance(value, Registry):
            described = value.base.__doc__  # the contract of its entries
        else:
            described = not callable(value) or value.__doc__
        if not described:
            result.append(name)
    return sorted(result)


def _undocumented_methods(cls: type) -> Iterator[str]:
    for name, value in vars(cls).items():
        if name.startswith("_") or name in _BY_CONTRACT or not _is_method(value):
            continue
        if not any(getattr(vars(base).get(name), "__doc__", None) for base in cls.__mro__):
            yield name


def _is_method(value: object) -> bool:
    return isinstance(value, (property, classmethod, staticmethod)) or inspect.isroutine(value)
