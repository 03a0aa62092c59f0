"""Loading of the kernel libraries: allowed dependencies, and behaviour without them."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops import _native, _schemas
from resobj_d2.ops._native import library_path
from resobj_d2.ops._schemas import SCHEMAS
from tests.ops.operator_cases import ON_THE_CPU_ALONE, WITHOUT_KERNELS

# Each program runs in a fresh process, because operators are registered once per process.
LOADING_FAILS = """
import torch
def fail(path):
    raise OSError("no such symbol")
torch.ops.load_library = fail
"""
GRADIENT_ON_THE_FALLBACK = """
import torch
from resobj_d2 import ops
print(ops.native_status()["cpu"])
logits = torch.tensor([[2.0, -1.0, 0.0]], requires_grad=True)
labels = torch.tensor([[1, 1, 0]], dtype=torch.int8)
output = ops.residual_objectness_bce(logits, torch.zeros(1, 1, 3), labels)
output.losses[0].backward()
print([round(value, 4) for value in logits.grad[0].tolist()], output.counts.tolist())
"""


@pytest.fixture
def run(warm_python):
    """A function that runs a program which imports the operators."""

    def start(program, *arguments, cwd=None, **environment):
        return warm_python.run(
            [sys.executable, "-c", program, *arguments],
            cwd=cwd,
            env={**os.environ, "RESOBJ_REQUIRE_NATIVE": "", **environment},
        )

    return start


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_status_agrees_with_the_dispatcher(backend):
    """ "native" if every operator has a kernel of that backend, a reason if none has."""
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas()}
    operators = {name for name in schemas if name.startswith("resobj_d2::")}
    missing = WITHOUT_KERNELS | (ON_THE_CPU_ALONE if backend == "cuda" else set())
    operators -= {f"resobj_d2::{name}" for name in missing}
    assert len(operators) > 10
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    native = {name for name in operators if has_kernel(name, backend.upper())}
    status = ops.native_status()[backend]
    if library_path(backend).is_file() and (backend == "cpu" or torch.version.cuda):
        assert status == "native", "built, but not used"
    if status == "native":
        assert native == operators
    else:
        assert native == set()
        assert re.fullmatch(r"(not built|not loaded|failed to load .*): .+", status)


def test_the_reference_is_used_if_a_library_fails_to_load(run):
    if not library_path("cpu").is_file():
        pytest.skip("the cpu kernels are not built")
    result = run(LOADING_FAILS + GRADIENT_ON_THE_FALLBACK)
    assert result.returncode == 0, result.stderr
    status, values = result.stdout.splitlines()
    assert status.startswith("failed to load ") and status.endswith("no such symbol")
    assert values == "[-0.1192, -0.7311, 0.5] [3, 3]"


def test_a_library_of_another_interface_is_not_loaded(native_backend, monkeypatch):
    monkeypatch.setattr(_schemas, "INTERFACE", 0)
    status = _native._load(native_backend)
    assert status.startswith("not loaded: ") and status.endswith("rebuild it")


DEFINED = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
assert "resobj_d2" not in sys.modules
schemas = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("resobj_d2::")]
operators = [getattr(torch.ops.resobj_d2, s.name.partition("::")[2]).default for s in schemas]
has_tag = all(torch.Tag.pt2_compliant_tag in operator.tags for operator in operators)
print(json.dumps([[str(schema) for schema in schemas], has_tag]))
"""
DEFINED_OTHERWISE = """
import sys, torch
library = torch.library.Library("resobj_d2", "FRAGMENT")
library.define("giou_loss(Tensor pred) -> Tensor")
torch.ops.load_library(sys.argv[1])
from resobj_d2 import ops
"""
WRITTEN = {name: str(torch._C.parse_schema(f"resobj_d2::{s}")) for name, s in SCHEMAS.items()}
OPERATORS = [getattr(torch.ops.resobj_d2, name).default for name in SCHEMAS]


def test_every_operator_has_the_schema_that_is_written_for_it():
    assert {operator._opname: str(operator._schema) for operator in OPERATORS} == WRITTEN


def test_the_cpu_library_defines_the_operators_by_itself_and_that_of_cuda_does_not(
    native_backend, run
):
    library = _native._loaded[native_backend]
    result = run(DEFINED, str(library))
    assert result.returncode == 0, result.stderr
    schemas, has_tag = json.loads(result.stdout)
    assert sorted(schemas) == sorted(WRITTEN.values() if native_backend == "cpu" else ())
    # The stable ABI of older versions has no tags. Only Dynamo's only_allow_pt2_compliant_ops asks.
    assert has_tag or torch.__version__ < "2.12"


def test_operators_of_another_version_are_an_import_error(run):
    if ops.native_status()["cpu"] != "native":
        pytest.skip("the cpu kernels are not built")
    result = run(DEFINED_OTHERWISE, str(_native._loaded["cpu"]))
    assert result.returncode == 1  # and not the end of the process while it is loaded
    assert "ImportError: a kernel library of another version of resobj_d2" in result.stderr
    assert "defines giou_loss otherwise" in result.stderr


@pytest.mark.parametrize(
    "required, message",
    [
        ("cpu", "requires the cpu kernels: "),
        pytest.param("gpu", "names 'gpu'; it takes cpu and cuda", marks=pytest.mark.slow),
    ],
)
def test_missing_required_kernels_are_an_import_error(required, message, run):
    result = run(LOADING_FAILS + "\nimport resobj_d2.ops", RESOBJ_REQUIRE_NATIVE=required)
    assert result.returncode == 1
    assert "ImportError: RESOBJ_REQUIRE_NATIVE " in result.stderr and message in result.stderr


@pytest.mark.slow
def test_available_required_kernels_are_accepted(native_backend, run):
    result = run("import resobj_d2.ops", RESOBJ_REQUIRE_NATIVE=native_backend)
    assert result.returncode == 0, result.stderr


def test_libraries_use_the_stable_abi_and_no_python(native_backend):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    lines = subprocess.run(
        ["nm", "-D", "--undefined-only", library_path(native_backend)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    symbols = dict(reversed(line.split()) for line in lines)
    assert "torch_library_impl" in symbols
    # Symbols of the system's libraries have a version (exp@GLIBC_2.29) and weak ones ("w") may be
    # missing. All others must be torch's stable C interface: C++ symbols of at::, c10:: or torch::
    # change with every release, and Python's with every build.
    of_torch = [s for s, kind in symbols.items() if "@" not in s and kind != "w"]
    assert [s for s in of_torch if not s.startswith(("aoti_torch_", "torch_"))] == []
    versions = {s.rpartition("@")[2].partition("_")[0] for s in symbols if "@" in s}
    assert versions <= {"GLIBC", "GLIBCXX", "CXXABI", "GCC"}


STATUS = """
import json
from resobj_d2 import ops
print(json.dumps([ops.native_status(), ops.describe_operators()]))
"""


@pytest.fixture
def bare_clone(tmp_path):
    """The sources of the operators without libraries, in a separate folder."""
    package = tmp_path / "clone" / "resobj_d2"
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(_native._FOLDER, package / "ops", ignore=skip)
    for name in ("__init__.py", "copies.py"):
        shutil.copy(_native._FOLDER.parent / name, package)
    return package


@pytest.fixture
def installed(bare_clone, tmp_path):
    """Another copy on Python's path that has the libraries."""
    if ops.native_status()["cpu"] != "native":
        pytest.skip("the cpu kernels are not built")
    package = tmp_path / "site" / "resobj_d2"
    shutil.copytree(bare_clone, package)
    for library in _native._loaded.values():
        shutil.copy(library, package / "ops")
    (package / "_build.json").write_text('{"compiler": "c++ 99", "cuda_not_built": "no nvcc"}')
    return package


@pytest.fixture
def status_of(run):
    def read(*packages):
        path = os.pathsep.join(str(package.parent) for package in packages)
        result = run(STATUS, cwd=packages[0].parents[1], PYTHONPATH=path)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return read


def test_a_clone_without_libraries_uses_the_installed_ones(bare_clone, installed, status_of):
    status, line = status_of(bare_clone, installed)
    assert status["cpu"] == "native"
    assert status["cuda"] == ops.native_status()["cuda"] or status["cuda"] == "not built: no nvcc"
    assert status["build"] == {"borrowed from": str(installed), "compiler": "c++ 99"}
    assert line.startswith("operators: ") and line.endswith(f" (libraries of {installed})")


def test_libraries_of_another_interface_are_not_borrowed(bare_clone, installed, status_of):
    source = bare_clone / "ops" / "_schemas.py"
    text = source.read_text()
    source.write_text(text.replace(f"INTERFACE = {_schemas.INTERFACE}", "INTERFACE = 99"))
    status, line = status_of(bare_clone, installed)
    assert status["cpu"] == f"not built: {_native.NEVER_BUILT}"
    assert line.startswith(
        "operators: slower pure torch, no native kernels: this source folder was never built: run"
    )


def test_an_empty_build_says_why_and_borrows_nothing(bare_clone, installed, status_of):
    (bare_clone / "_build.json").write_text('{"cpu_not_built": "no C++ compiler found"}')
    status, line = status_of(bare_clone, installed)
    assert status["cpu"] == "not built: no C++ compiler found"
    assert status["build"] == {}
    assert "no C++ compiler found" in line


@pytest.mark.parametrize(
    "cpu, cuda, line",
    [
        ("native", "native", "native CPU (avx2), native CUDA"),
        ("native", "not built: no nvcc", "native CPU (avx2), no CUDA kernels: no nvcc"),
        ("not built: x", "native", "native CUDA, slower pure torch on the CPU: x"),
        ("not built: x", "not built: x", "slower pure torch, no native kernels: x"),
        ("failed to load a: b", "not built: x",
         "slower pure torch, no native kernels: failed to load a: b; x"),
    ],
)  # fmt: skip
def test_describe_operators_is_one_line(cpu, cuda, line, monkeypatch):
    monkeypatch.setattr(_native, "_status", {"cpu": cpu, "cuda": cuda})
    monkeypatch.setattr(_native, "_loaded", {})
    monkeypatch.setattr(_native, "cpu_capability", lambda: "avx2")
    assert ops.describe_operators() == f"operators: {line}"


DIGESTS = """
import hashlib, numpy, torch
from resobj_d2 import ops
from resobj_d2.ops import _one_pass
from resobj_d2.ops._native import cpu_capability
_one_pass.MIN_ELEMENTS = 0
print(cpu_capability())
random = numpy.random.RandomState(0)
def rand(*shape):  # torch's depends on the vector instructions
    return torch.from_numpy(random.rand(*shape)).float()
def number(low, high, *shape):
    return torch.from_numpy(random.randint(low, high, shape))
R = 3001
corner = rand(R, 2) * 100
boxes = torch.cat((corner, corner + 1 + rand(R, 2) * 20), dim=1)
logits, residuals = rand(2, R) * 4 - 2, rand(2, 2, R) - 0.5
labels = number(-1, 2, 2, R).to(torch.int8)
classes, scores, idxs = (rand(R, 7) * 4 - 2).requires_grad_(), rand(R), number(0, 3, R)
def with_gradient(loss, *inputs):
    total = loss()
    with ops.expected_gradient(0.3):
        same = loss()
    assert torch.equal(total, same)
    one, two = (torch.autograd.grad(x, inputs, torch.full_like(x, 0.3)) for x in (same, total))
    assert all(map(torch.equal, one, two))
    return [total, *one]
class_labels = number(-1, 8, R)
moved = (boxes + 1).requires_grad_()
learned = [x.clone().requires_grad_() for x in (logits, residuals)]
gts = boxes[:9] + 1, [4, 5]
rule = {"thresholds": [0.4, 0.5], "labels": [0, -1, 1], "allow_low_quality": True}
results = {
    "giou": [ops.pairwise_box_iou(boxes[:9], boxes, "giou")],
    "match": ops.match_anchors(boxes, *gts, **rule),
    "reassign": ops.reassign_anchors(boxes, rand(2, R, 4), *gts, **rule),
    "objectness": ops.residual_objectness_bce(logits, residuals, labels),
    "focal": with_gradient(lambda: ops.sigmoid_focal_loss(classes, class_labels), classes),
    "giou loss": with_gradient(lambda: ops.giou_loss(moved, boxes), moved),
    "balanced": with_gradient(lambda: ops.balanced_l1_loss(moved, boxes.flip(0)), moved),
    "objectness gradients": with_gradient(
        lambda: ops.residual_objectness_bce(*learned, labels).losses, *learned
    ),
    "nms": [ops.batched_nms(boxes, scores, idxs, 0.5)],
    "matrix": [ops.matrix_nms(boxes, scores, idxs)],
}
for name, tensors in results.items():
    data = b"".join(x.detach().numpy().tobytes() for x in tensors)
    print(name, hashlib.sha256(data).hexdigest())
"""


@pytest.mark.slow
def test_results_do_not_depend_on_the_vector_instructions():
    if ops.native_status()["cpu"] != "native":
        pytest.skip("the cpu kernels are not built")
    digests_of = {}
    for limit in ("default", "avx2", "avx512"):
        # A new interpreter: torch may read the limit while it is imported.
        result = subprocess.run(
            [sys.executable, "-c", DIGESTS], env={**os.environ, "ATEN_CPU_CAPABILITY": limit},
            capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        capability, *digests = result.stdout.splitlines()
        digests_of[capability] = digests
    if len(digests_of) == 1:
        pytest.skip("this processor has no AVX2")
    assert len(set(map(tuple, digests_of.values()))) == 1, digests_of
