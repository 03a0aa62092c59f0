"""Make ``import detectron2`` work in the interpreter that runs this file.

A Detectron2 that can be imported is left untouched, whatever its version. Otherwise the source
package ``detectron2-cdo==0.5`` is downloaded with pip, checked against a pinned hash, patched with
the replacements listed below and installed::

    python resobj_d2/install_detectron2.py            # or python -m resobj_d2.install_detectron2
    python resobj_d2/install_detectron2.py --check    # only print what would be done
    python resobj_d2/install_detectron2.py --wheel whl   # only put a wheel into the folder whl
    pip uninstall detectron2-cdo                      # remove it again

That package is Detectron2 0.5 with unchanged Python code and without its C++/CUDA sources. It was
written for the numpy, Pillow and setuptools of 2021; each replacement names the later removal that
it works around. No compiler is needed: ``detectron2._C`` becomes a Python module that raises a
clear error if a compiled operation (deformable convolution, rotated boxes) is used.

Imports only the standard library, because it runs before anything else is installed.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = "detectron2-cdo"
VERSION = "0.5"
SDIST_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"
# Shown by `pip list`, so that a patched installation cannot be mistaken for the original.
MENDED_VERSION = f"{VERSION}+resobj.1"


class InstallError(RuntimeError):
    """Detectron2 cannot be installed; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """One change of the downloaded source: ``old``, found exactly ``count`` times, becomes ``new``.

    ``path`` is relative to the top of the source package; ``why`` completes "patched because".
    """

    path: str
    old: str
    new: str
    why: str
    count: int = 1


NUMPY_ALIASES = "numpy 1.24 removed np.bool, np.int, np.float and np.str"
SETUPTOOLS = "setuptools 81 removed pkg_resources"
PILLOW = "Pillow 10 removed Image.LINEAR, an alias of Image.BILINEAR"
MESHGRID = "torch warns that meshgrid will need its indexing argument"
NO_COMPILED_CODE = "the package ships no C++ sources"
CAFFE2 = "only the export to caffe2 used it, which torch no longer contains"


def _numpy_alias(path: str, alias: str, count: int) -> Replacement:
    """Replace every ``np.<alias>`` in a file by the builtin type that it stood for."""
    return Replacement(path=path, old=f"np.{alias}", new=alias, why=NUMPY_ALIASES, count=count)


REPLACEMENTS = (
    Replacement(
        path="detectron2/data/transforms/transform.py",
        old="interp=Image.LINEAR",
        new="interp=Image.BILINEAR",
        why=PILLOW,
    ),
    _numpy_alias("detectron2/data/build.py", "int", 2),
    _numpy_alias("detectron2/data/datasets/pascal_voc.py", "str", 1),
    _numpy_alias("detectron2/evaluation/pascal_voc_evaluation.py", "bool", 2),
    Replacement(
        path="detectron2/evaluation/sem_seg_evaluation.py",
        old="dtype=np.int)",
        new="dtype=int)",
        why=NUMPY_ALIASES,
        count=2,
    ),
    _numpy_alias("detectron2/evaluation/sem_seg_evaluation.py", "float", 5),
    _numpy_alias("detectron2/structures/masks.py", "bool", 2),
    _numpy_alias("detectron2/utils/visualizer.py", "bool", 3),
    _numpy_alias("detectron2/utils/video_visualizer.py", "bool", 1),
    Replacement(
        path="detectron2/model_zoo/model_zoo.py",
        old="import pkg_resources\n",
        new="",
        why=SETUPTOOLS,
    ),
    Replacement(
        path="detectron2/model_zoo/model_zoo.py",
        old='pkg_resources.resource_filename(\n        "detectron2.model_zoo", '
        'os.path.join("configs", config_path)\n    )',
        new='os.path.join(os.path.dirname(__file__), "configs", config_path)',
        why=SETUPTOOLS,
    ),
    Replacement(
        path="detectron2/modeling/anchor_generator.py",
        old="torch.meshgrid(shifts_y, shifts_x)",
        new='torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        why=MESHGRID,
    ),
    Replacement(
        path="projects/Panoptic-DeepLab/panoptic_deeplab/post_processing.py",
        old="device=offsets.device),\n    )\n",
        new='device=offsets.device),\n        indexing="ij",\n    )\n',
        why=MESHGRID,
    ),
    Replacement(
        path="detectron2/layers/nms.py",
        old="    return torch.ops.detectron2.nms_rotated(",
        new="    from detectron2 import _C\n\n    return _C.nms_rotated(",
        why=NO_COMPILED_CODE + "; _C says so, torch.ops only reports an unknown name",
    ),
    Replacement(
        path="detectron2/evaluation/coco_evaluation.py",
        old="from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        new="\nCOCOeval_opt = COCOeval  # the faster one is compiled code, which is not there\n\n",
        why=NO_COMPILED_CODE + ", so the evaluator's default takes pycocotools'",
    ),
    Replacement(
        path="detectron2/export/__init__.py",
        old="from .api import *\n",
        new="",
        why=CAFFE2 + "; the module's TorchScript part needs no caffe2",
    ),
    Replacement(
        path="setup.py",
        old="import torch\nfrom torch.utils.cpp_extension import CUDA_HOME, CppExtension, "
        'CUDAExtension\n\ntorch_ver = [int(x) for x in torch.__version__.split(".")[:2]]\n'
        'assert torch_ver >= [1, 7], "Requires PyTorch >= 1.7"\n',
        new="",
        why=NO_COMPILED_CODE + ", so nothing is built against torch",
    ),
    Replacement(
        path="setup.py",
        old="    ext_modules=get_extensions(),\n"
        '    cmdclass={"build_ext": torch.utils.cpp_extension.BuildExtension},\n',
        new="",
        why=NO_COMPILED_CODE,
    ),
    Replacement(
        path="setup.py",
        old='package_data={"detectron2.model_zoo": get_model_zoo_configs()}',
        new='package_data={"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]}',
        why="the package keeps its configs inside detectron2/, where setup.py does not look",
    ),
    Replacement(
        path="setup.py",
        old="    version=get_version(),\n",
        new=f'    version="{MENDED_VERSION}",\n',
        why="`pip list` must show that this is not the original",
    ),
    Replacement(
        path="setup.py",
        old='"black==21.4b2"',
        new='"black>=21.4b2"',
        why="black 21.4 fails to import with click 8.1 and later; the one function used is stable",
    ),
    Replacement(path="setup.py", old='        "future",  # used by caffe2\n', new="", why=CAFFE2),
    Replacement(
        path="setup.py", old='        "pydot",  # used to save caffe2 SVGs\n', new="", why=CAFFE2
    ),
)

# Installed as detectron2/_C.py, the place of Detectron2's compiled module.
PLACEHOLDER_PATH = "detectron2/_C.py"
PLACEHOLDER_SOURCE = '''"""Stands in for Detectron2's compiled operations, which were not built."""


def get_compiler_version():
    return "compiled operations not built"


def get_cuda_version():
    return "compiled operations not built"


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"detectron2._C.{name} is a compiled operation (deformable convolution or rotated boxes), "
        "and this Detectron2 was installed without compiled code by resobj_d2. To get it: "
        "`pip uninstall detectron2-cdo`, then build Detectron2 from "
        "https://github.com/facebookresearch/detectron2"
    )
'''

# Runs in a fresh interpreter, because a failed import of torch or detectron2 can leave traces.
_PROBE = """
import json, sys
from importlib import metadata
found = {"error": None, "version": None, "origin": None, "package": None}
try:
    import detectron2
    found["origin"] = detectron2.__file__
    found["version"] = getattr(detectron2, "__version__", "unknown")
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        found["error"] = repr(error)
except Exception as error:
    found["error"] = repr(error)
for name in ("detectron2", "detectron2-cdo"):
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue
    # An editable installation, or a folder on PYTHONPATH, is not where pip puts packages.
    if found["origin"] in (None, str(package.locate_file("detectron2/__init__.py"))):
        found["package"] = f"{name} {package.version}"
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class FoundDetectron2:
    """The result of ``import detectron2``: where it comes from, or the error it raised.

    ``package`` is its name and version according to pip; None if imported from a source folder.
    """

    version: str | None
    origin: str | None
    package: str | None
    error: str | None

    @property
    def is_absent(self) -> bool:
        """True if there is nothing named detectron2 (a folder without code does not count)."""
        return self.error is None and self.origin is None


def find_detectron2() -> FoundDetectron2:
    """Import detectron2 in a fresh process of this interpreter and report the result."""
    with tempfile.TemporaryDirectory() as elsewhere:  # a folder ./detectron2 must not count
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], cwd=elsewhere, capture_output=True, text=True
        )
    if probe.returncode != 0:
        raise InstallError(f"Looking for detectron2 failed:\n{probe.stderr.strip()}")
    return FoundDetectron2(**json.loads(probe.stdout.splitlines()[-1]))


def verify_hash(sdist: Path, expected: str = SDIST_SHA256) -> None:
    """Raise InstallError unless the file's SHA-256 is the expected one."""
    actual = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{sdist.name} is not the file this program was written for: its SHA-256 is {actual}, "
            f"expected {expected}. Nothing was installed. Download {DISTRIBUTION}=={VERSION} again "
            "or install Detectron2 yourself."
        )


def apply_replacements(root: Path, replacements: Sequence[Replacement] = REPLACEMENTS) -> None:
    """Patch the source tree at ``root``; raise InstallError if the source does not match."""
    for change in replacements:
        if not (file := root / change.path).is_file():
            raise InstallError(f"Cannot patch {change.path}: the source package has no such file.")
        text = file.read_text(encoding="utf-8")
        count = text.count(change.old)
        if count != change.count:
            raise InstallError(
                f"Cannot patch {change.path}: expected {change.count}, but found {count} "
                f"occurrences of\n{change.old}\nIt should be replaced because {change.why}. "
                "Nothing was installed."
            )
        file.write_text(text.replace(change.old, change.new), encoding="utf-8")


def write_placeholder(root: Path) -> None:
    """Write the placeholder ``detectron2._C`` into the source tree at ``root``."""
    (root / PLACEHOLDER_PATH).write_text(PLACEHOLDER_SOURCE, encoding="utf-8")


def _run_pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    if subprocess.run(command).returncode != 0:
        raise InstallError(f"command failed, see its output above: {' '.join(command)}")


def _require_build_tools() -> None:
    """pip runs the downloaded setup.py, which imports torch, in this very environment."""
    for module in ("pip", "setuptools", "wheel", "torch"):
        probe = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True)
        if probe.returncode != 0:
            raise InstallError(
                f"{module} cannot be imported by {sys.executable}. Install torch first (the build "
                "for your machine), then `pip install 'setuptools<81' wheel`, then try again."
            )


def download(folder: Path) -> Path:
    """Download the pinned source package with pip's own settings and return its path."""
    _require_build_tools()
    pin = folder / "pin.txt"
    pin.write_text(f"{DISTRIBUTION}=={VERSION} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    options = "--quiet --no-deps --no-build-isolation --no-binary :all: --require-hashes".split()
    _run_pip("download", *options, "--dest", str(folder), "--requirement", str(pin))
    (sdist,) = folder.glob("detectron2*.tar.gz")
    return sdist


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the source package into ``folder`` and return its top directory."""
    with tarfile.open(sdist) as archive:
        # The hash has been checked; still, refuse paths outside the folder if Python can.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safely)
    (setup_file,) = folder.glob("*/setup.py")
    return setup_file.parent


def install(
    *, sdist: Path | None = None, constraint: Path | None = None, wheel: Path | None = None
) -> None:
    """Fetch (unless ``sdist`` is given), check, patch and install Detectron2 0.5.

    ``constraint`` is a pip constraints file for Detectron2's own dependencies. With ``wheel``, a
    folder, nothing is installed: a wheel for any Python is put there.
    """
    with tempfile.TemporaryDirectory(prefix="detectron2-") as temporary:
        folder = Path(temporary)
        if sdist is None:
            print(f"Downloading the source of {DISTRIBUTION}=={VERSION} ...", flush=True)
            sdist = download(folder)
        verify_hash(sdist)
        root = unpack(sdist, folder)
        apply_replacements(root)
        write_placeholder(root)
        what = ["install"] if wheel is None else ["wheel", "--no-deps", "--wheel-dir", str(wheel)]
        print(f"Now pip {what[0]}, with {len(REPLACEMENTS)} replacements ...", flush=True)
        constrained = ["--constraint", str(constraint)] if constraint else []
        _run_pip(*what, "--quiet", "--no-build-isolation", *constrained, str(root))


def _describe_plan() -> str:
    lines = [f"Would download {DISTRIBUTION}=={VERSION} (SHA-256 {SDIST_SHA256}), patch"]
    lines += [f"  {change.path}: {change.why}" for change in REPLACEMENTS]
    lines += [f"  {PLACEHOLDER_PATH}: {NO_COMPILED_CODE}, so this file explains what is missing"]
    return "\n".join(lines + [f"and pip-install it as {DISTRIBUTION} {MENDED_VERSION}."])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make detectron2 importable.", allow_abbrev=False)
    parser.add_argument("--sdist", type=Path, help="use this downloaded source package")
    parser.add_argument("--constraint", type=Path, help="pip constraints for the dependencies")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--check", action="store_true", help="only print what would be done")
    instead.add_argument("--wheel", type=Path, metavar="FOLDER", help="only put a wheel there")
    return parser.parse_args(arguments)


def _report(detectron2: FoundDetectron2) -> None:
    """Print a working Detectron2; raise InstallError for a broken one."""
    if detectron2.error is not None or detectron2.origin is None:
        raise InstallError(
            f"detectron2 ({detectron2.package or 'not installed by pip'}) is installed but cannot "
            f"be imported: {detectron2.error}. It was left untouched. Repair it, or remove it "
            "(`pip uninstall detectron2 detectron2-cdo`) and run this again."
        )
    package = detectron2.package or "from a source folder"
    print(f"Detectron2 {detectron2.version} ({package}) at {detectron2.origin}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parse(arguments)
    try:
        if options.wheel:
            install(sdist=options.sdist, wheel=options.wheel)
        elif not (detectron2 := find_detectron2()).is_absent:
            _report(detectron2)
            print("It can be imported and is used as is; nothing to install.")
        elif options.check:
            print("detectron2 is not installed for this interpreter.")
            print(_describe_plan())
        else:
            install(sdist=options.sdist, constraint=options.constraint)
            _report(find_detectron2())
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
