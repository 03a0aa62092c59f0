"""Files of weights, read without running what they hold, and told from damaged ones."""

from __future__ import annotations

import os
import pickle
import re
import zipfile

import torch

from resobj_d2.process.pickles import UnsafePickleError, read_pickle

__all__ = [
    "CheckpointError",
    "DamagedCheckpointError",
    "check_archive",
    "read_model_zoo_pickle",
    "read_safetensors",
    "read_tensors",
    "torch_reason",
    "why_unreadable",
]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, and why."""


class DamagedCheckpointError(CheckpointError):
    """A file that is not, or no longer, a checkpoint."""


def read_model_zoo_pickle(path: str) -> dict:
    """A ``.pkl`` of Detectron2's model zoo, or of Detectron's and Caffe2's.

    Raises:
        CheckpointError: it holds more than arrays and containers; nothing of it has run.
    """
    try:
        content = read_pickle(path)
    except UnsafePickleError as error:
        raise DamagedCheckpointError(str(error)) from error
    if not isinstance(content, dict):
        raise DamagedCheckpointError(f"{path} holds a {type(content).__name__}, not weights")
    if "model" in content and "__author__" in content:
        return content
    weights = content.get("blobs", content)  # of detectors; ImageNet's models have none
    if not isinstance(weights, dict):
        raise DamagedCheckpointError(f"{path}: its blobs are a {type(weights).__name__}")
    weights = {str(k): v for k, v in weights.items() if not str(k).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def read_safetensors(path: str) -> dict:
    """A ``.safetensors`` file, whose names must be the model's.

    Raises:
        CheckpointError: the package safetensors is not installed, or cannot read the file.
    """
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError(f"{path}: pip install safetensors, which reads it") from None
    try:
        return {"model": safetensors.torch.load_file(path)}
    except Exception as error:  # its own class, and Python's for what it cannot map
        raise DamagedCheckpointError(f"{path} is damaged or not of safetensors: {error}") from error


def read_tensors(path: str) -> dict[str, torch.Tensor]:
    """The named tensors of a ``.pth`` or ``.safetensors`` file.

    Raises:
        CheckpointError: it is missing, damaged, or holds anything else.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: there is no such file")
    if path.endswith(".safetensors"):
        return read_safetensors(path)["model"]
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise DamagedCheckpointError(torch_reason(path, error)) from error
    for name in ("model", "state_dict"):  # as training scripts wrap them
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    odd = [k for k, v in content.items() if not (isinstance(k, str) and torch.is_tensor(v))]
    if odd:
        raise CheckpointError(f"{path} holds more than named tensors: {odd[0]!r:.40}")
    return content


def check_archive(path: str) -> None:
    """Check what ``torch.load`` does not: checksums, and that a file is as large as it says.

    Files of torch before 1.6 have neither, and pass.

    Raises:
        DamagedCheckpointError: a wrong checksum, or compressed content, which torch never writes
            and which can fill any memory.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise DamagedCheckpointError(
                    f"{path} is a program of TorchScript, not a checkpoint: save its state_dict()"
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise DamagedCheckpointError(f"{path} is compressed, which checkpoints never are")
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
    if broken is not None:
        raise DamagedCheckpointError(f"{path} is damaged: the checksum of {broken} is wrong")


def why_unreadable(path: str, *, of_run: bool = False) -> str:
    """What is wrong with a checkpoint of torch; "" where it can be read.

    Args:
        path: of the file.
        of_run: it has to be of a run, not weights alone.
    """
    try:
        check_archive(path)
        in_place = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=in_place)
    except CheckpointError as error:
        return str(error)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        return torch_reason(path, error)
    if not isinstance(content, dict):
        return f"{path} holds a {type(content).__name__}, not weights"
    if of_run and "iteration" not in content:
        return f"{path} has no iteration to go on from (for its weights alone, set MODEL.WEIGHTS)"
    return ""


def torch_reason(path: str, error: Exception) -> str:
    """In one line why ``torch.load`` refuses a file."""
    path = os.path.abspath(path)
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in text:
        match = re.search(r"GLOBAL ([\w.]+)", text)
        what = f" ({match[1]})" if match else ""
        return (
            f"{path} holds Python objects besides tensors{what}, which could run code; if you "
            "trust the file, load it with torch.load(..., weights_only=False) and save its tensors"
        )
    size = os.path.getsize(path)
    return (
        f"cannot read checkpoint {path} ({size} bytes): it is truncated or no checkpoint "
        f"({type(error).__name__})"
    )
