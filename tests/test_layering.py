"""Imports point down: ops, losses and matching never reach for Detectron2."""

import ast
import subprocess
import sys

import pytest

# What each layer may import of this package, besides itself.
ALLOWED = {
    "structures": set(),
    "ops": set(),
    "registry": set(),
    "losses": {"structures", "ops", "registry"},
    "matching": {"structures", "ops", "registry"},
    "config": {"modeling", "config_backbones"},
    "config_backbones": set(),
    "compat": set(),
    "acceleration": {"ops", "compat"},
    "vgg_weights": set(),
    "darknet_weights": set(),
    "yolo_weights": {"darknet_weights", "modeling"},
    "checkpoint": {"darknet_weights", "vgg_weights", "yolo_weights"},
    "data": set(),
    "modeling": {"structures", "ops", "losses", "matching", "compat", "registry"},
    "evaluation": {"data", "ops"},
    "engine": {
        "modeling", "config", "compat", "checkpoint", "data", "evaluation", "analysis",
    },
}  # fmt: skip
WITHOUT_DETECTRON2 = (
    "structures", "ops", "registry", "losses", "matching", "config", "config_backbones",
)  # fmt: skip


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


@pytest.mark.parametrize("module", ["resobj_d2.ops", "resobj_d2.losses", "resobj_d2.matching"])
def test_import_without_detectron2(module):
    code = f"import sys, {module}; assert 'detectron2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
