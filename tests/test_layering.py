"""Imports point down: ops, losses and matching never reach for Detectron2."""

import ast
import subprocess
import sys

import pytest

# What each layer may import of this package, besides itself.
ALLOWED = {
    "structures": set(),
    "ops": set(),
    "options": set(),
    "registry": {"options"},
    "compat": set(),
    "data": set(),
    "plots": set(),
    "install_detectron2": set(),
    "acceleration": {"ops", "compat"},
    "doctor": {"ops", "install_detectron2"},
    "losses": {"structures", "ops", "options", "registry"},
    "matching": {"structures", "ops", "options", "registry"},
    "evaluation": {"data", "ops"},
    "modeling": {"structures", "ops", "losses", "matching", "compat", "options", "registry"},
    "config": {"data", "losses", "matching", "modeling", "options", "registry"},
    "checkpoint": {"modeling"},
    "engine": {"modeling", "compat", "checkpoint", "data", "evaluation", "plots"},
    "inference": {"config", "checkpoint", "data"},
    "analysis": {"config", "checkpoint", "data", "engine", "evaluation", "modeling"},
    "demo": {"config", "engine", "inference"},
}
WITHOUT_DETECTRON2 = ("structures", "ops", "options", "registry", "losses", "matching", "plots")


def modules_of(path):
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imports(path, package):
    """Absolute names of everything a file imports, at any depth of nesting."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("layer", ALLOWED)
def test_layer_imports_only_what_lies_below(repository, layer):
    root = repository / "resobj_d2"
    path = root / layer if (root / layer).is_dir() else root / f"{layer}.py"
    files = modules_of(path)
    assert files
    for file in files:
        package = list(file.relative_to(repository).parent.parts)
        for name in imports(file, package):
            parts = name.split(".")
            if parts[0] == "detectron2":
                assert layer not in WITHOUT_DETECTRON2, f"{file} imports {name}"
            if parts[0] == "resobj_d2" and len(parts) > 1 and parts[1] != layer:
                if (root / parts[1]).is_dir() or (root / f"{parts[1]}.py").is_file():
                    assert parts[1] in ALLOWED[layer], f"{file} imports {name}"


def test_every_layer_is_listed_after_those_it_imports(repository):
    root = repository / "resobj_d2"
    layers = {p.stem for p in root.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert layers - {"__init__"} == set(ALLOWED)
    order = list(ALLOWED)
    for layer, below in ALLOWED.items():
        assert all(order.index(name) < order.index(layer) for name in below), layer


@pytest.mark.parametrize("module", ["resobj_d2.ops", "resobj_d2.losses", "resobj_d2.matching"])
def test_import_without_detectron2(module):
    code = f"import sys, {module}; assert 'detectron2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
