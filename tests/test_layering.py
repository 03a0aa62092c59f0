"""Imports point down: ops, losses and matching never reach for Detectron2. The files of an operator
carry its name."""

import ast
import re
import subprocess
import sys

import pytest
import torch

from tests.ops.operator_cases import WITHOUT_KERNELS

# What each layer may import of this package, besides itself.
ALLOWED = {
    "structures": set(),
    "copies": set(),
    "precision": set(),
    "ops": {"copies"},
    "process": set(),
    "command": {"ops", "process"},
    "options": set(),
    "registry": {"options"},
    "compat": set(),
    "launch": {"process"},
    "weight_files": {"process"},
    "data": {"command", "process"},
    "plots": {"command", "process"},
    "install_detectron2": set(),
    "acceleration": {"ops", "compat"},
    "doctor": {"copies", "ops", "command", "install_detectron2"},
    "losses": {"structures", "ops", "options", "precision", "registry"},
    "matching": {"structures", "ops", "options", "precision", "registry"},
    "evaluation": {"data", "ops", "process"},
    "modeling": {
        "structures", "ops", "losses", "matching", "compat", "options", "precision", "registry",
        "weight_files",
    },
    "config": {"data", "losses", "matching", "modeling", "options", "process", "registry"},
    "checkpoint": {"data", "modeling", "process", "weight_files"},
    "engine": {
        "checkpoint", "compat", "config", "data", "evaluation", "launch", "losses", "modeling",
        "ops", "plots", "process",
    },
    "inference": {"command", "config", "checkpoint", "data", "modeling", "ops", "process"},
    "export": {
        "command", "compat", "inference", "matching", "modeling", "ops", "process", "structures",
    },
    "inspection": {
        "command", "config", "data", "inference", "matching", "modeling", "ops", "options",
        "process",
    },
    "analysis": {
        "command", "compat", "config", "checkpoint", "data", "engine", "evaluation", "inference",
        "inspection", "modeling", "ops", "plots", "process", "structures",
    },
    "report": {"analysis", "command", "data", "inference", "plots", "process"},
    "study": {
        "command", "config", "data", "engine", "evaluation", "plots", "process", "registry",
        "report",
    },
    "demo": {"command", "config", "engine", "inference", "ops", "process", "report"},
    # Its table names the modules of all commands; these it imports itself.
    "cli": {"command", "config", "engine", "launch", "process", "report"},
    "__main__": {"cli"},
}  # fmt: skip
WITHOUT_DETECTRON2 = (
    "structures", "copies", "precision", "ops", "command", "process", "options", "registry",
    "losses", "matching", "plots",
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


def test_every_layer_is_listed_after_those_it_imports(repository):
    root = repository / "resobj_d2"
    layers = {p.stem for p in root.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert layers - {"__init__"} == set(ALLOWED)
    order = list(ALLOWED)
    for layer, below in ALLOWED.items():
        assert all(order.index(name) < order.index(layer) for name in below), layer


@pytest.mark.parametrize("module", ["resobj_d2", "resobj_d2.cli"])
def test_import_without_torch(module):
    code = f"import sys, {module}; assert not {{'torch', 'detectron2'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Each in a process of its own that has imported torch, which takes most of the time.
IMPORT_EACH = """
import importlib, os, sys, torch
for module in sys.argv[1:]:
    child = os.fork()
    if not child:
        importlib.import_module(module)
        assert "detectron2" not in sys.modules, module
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0, module
"""


def test_import_without_detectron2():
    modules = ["resobj_d2.ops", "resobj_d2.losses", "resobj_d2.matching"]
    subprocess.run([sys.executable, "-c", IMPORT_EACH, *modules], check=True)


# These share their Python files and their host functions.
NMS = {"batched_nms", "batched_nms_padded", "soft_nms", "soft_nms_padded", "matrix_nms"}
# The files of an operator, and what shows that they are this operator's.
OPERATOR_FILES = {
    "resobj_d2/ops/_schemas.py": r"[\"']{op}\(",
    "resobj_d2/ops/{family}.py": r'"{op}",$',  # define_op
    "resobj_d2/ops/reference/{family}.py": r"^def {op}\(",
    "csrc/include/resobj/{family}_host.h": r"^(auto|Tensor|std::tuple<.*>) {kernel}\(",
    "csrc/cpu/{kernel}.cpp": r'm\.impl\("{op}",',
    "csrc/cuda/{kernel}.cu": r'm\.impl\("{op}",',
    "tests/ops/test_{kernel}.py": r"\b(impl|ops)\.{op}\(",
}
# In the same folders: what an operator's files may also be called, and what no single one owns.
OTHER_FILES = {
    "resobj_d2/ops": (
        "{family}",
        "__init__ _checks _library _native _one_pass _reduction _schemas distance_iou_loss",
    ),
    "resobj_d2/ops/reference": ("{family}", "__init__ _box_pairs"),
    "csrc/include/resobj": (
        "{family}_host {family}_math",
        "bce_math bits box_checks box_math box_pairs candidate_keys huge_pages macros "
        "tensor_checks",
    ),
    "csrc/cpu": (
        "{kernel} {family}",
        "anchor_matcher box_lanes class_index cpu_backend instruction_sets logit_blocks loss_sum "
        "residual_steps schemas streaming",
    ),
    "csrc/cuda": ("{kernel}", "anchor_matcher class_groups cuda_utils loss_sum"),
    "tests/ops": (
        "test_{kernel} test_{kernel}_by_hand",
        "called_operators conftest fuzz fuzz_arguments nms_inputs operator_cases test_compiled "
        "test_cuda_emulation test_distance_iou_loss test_edges test_every_operator test_fuzz "
        "test_native test_one_pass test_reductions test_registration test_transforms "
        "without_kernels",
    ),
}


def defined_operators():
    from resobj_d2 import ops  # noqa: F401

    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    return {op for library, _, op in names if library == "resobj_d2" and not op.startswith("_")}


def stems_of(op):
    kernel = op.removesuffix("_padded")
    return {"op": op, "kernel": kernel, "family": "nms" if op in NMS else op}


@pytest.mark.parametrize("op", sorted(defined_operators()))
def test_the_files_of_an_operator_carry_its_name(repository, op):
    for path, content in OPERATOR_FILES.items():
        if op in WITHOUT_KERNELS and path.startswith("csrc"):
            continue
        file = repository / path.format(**stems_of(op))
        assert file.is_file(), f"{op} has no {file.relative_to(repository)}"
        assert re.search(content.format(**stems_of(op)), file.read_text(), re.M), f"{op}: {file}"


@pytest.mark.parametrize("folder", OTHER_FILES)
def test_no_other_file_stands_beside_them(repository, folder):
    names, shared = OTHER_FILES[folder]
    allowed = {name for op in defined_operators() for name in names.format(**stems_of(op)).split()}
    suffixes = (".py", ".h", ".cpp", ".cu")
    files = {path.stem for path in (repository / folder).iterdir() if path.suffix in suffixes}
    assert files - allowed == set(shared.split())
