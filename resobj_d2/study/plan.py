"""``STUDY.yaml``: which methods, seeds and datasets are compared."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from resobj_d2.process import did_you_mean
from resobj_d2.process.yaml_text import YamlError, parse_yaml

__all__ = ["Part", "Plan", "StudyError", "read_plan"]

_KEYS = ("name", "seeds", "baseline", "metric", "config", "options", "datasets", "methods")
_PART_KEYS = ("config", "options")
_METHOD_KEYS = (*_PART_KEYS, "seeds")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")  # of folders
_MAX_BYTES = 2**17
_LARGEST_SEED = 2**31 - 1


class StudyError(ValueError):
    """A study that cannot be run, and why; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A method, a dataset, or what all runs share.

    Attributes:
        name: "" of what all share.
        configs: yamls or names, merged in this order.
        options: values by key with dots, as ``{"SOLVER.MAX_ITER": 400}``.
        seeds: of a method that does not have all of the study's; else empty.
    """

    name: str
    configs: tuple[str, ...]
    options: Mapping[str, object]
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study.

    Attributes:
        name: of the study.
        file: that it was read from.
        seeds: all different.
        baseline: the method that the others are compared with.
        metric: a result, as ``TEST.BEST_METRIC``.
        common: what all runs share.
        datasets, methods: each at least one.
    """

    name: str
    file: Path
    seeds: tuple[int, ...]
    baseline: str
    metric: str
    common: Part
    datasets: tuple[Part, ...]
    methods: tuple[Part, ...]


def read_plan(path: str | os.PathLike) -> Plan:
    """Read and check a study.

    Raises:
        FileNotFoundError: there is no such file.
        StudyError: it is no study; the message says what is wrong where.
    """
    file = Path(path).expanduser()
    content = _read(file)
    _check_keys(content, _KEYS, str(file))
    for key in ("seeds", "methods", "datasets"):
        if content.get(key) in (None, "", [], {}):
            raise StudyError(f"{file}: there are no {key}")
    seeds = _seeds(content["seeds"], f"{file}: seeds")
    methods = _parts(content["methods"], f"{file}: methods", keys=_METHOD_KEYS)
    for method in methods:
        for seed in method.seeds:
            if seed not in seeds:
                raise StudyError(
                    f"{file}: methods: {method.name}: seed {seed} is none of the study's seeds, "
                    "which the baseline has"
                )
    datasets = _parts(content["datasets"], f"{file}: datasets")
    names = [method.name for method in methods]
    baseline = content.get("baseline", names[0])
    if baseline not in names:
        hint = did_you_mean(str(baseline), names) or f". There are {', '.join(names)}"
        raise StudyError(f"{file}: the baseline {baseline!r:.80} is none of the methods{hint}")
    own = methods[names.index(baseline)].seeds
    if own and set(own) != set(seeds):
        raise StudyError(
            f"{file}: methods: {baseline}: the baseline needs all seeds of the study, since the "
            "others are compared with it seed by seed"
        )
    metric = content.get("metric", "AP")
    if not isinstance(metric, str) or not metric:
        raise StudyError(f"{file}: metric must be the name of a result, got {metric!r:.80}")
    return Plan(
        name=_name(content.get("name", file.stem), f"{file}: name"),
        file=file,
        seeds=seeds,
        baseline=baseline,
        metric=metric,
        common=_part("", {k: content[k] for k in _PART_KEYS if k in content}, str(file)),
        datasets=datasets,
        methods=methods,
    )


def _read(file: Path) -> dict:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no study {file.absolute()}") from None
    if len(data) > _MAX_BYTES:
        raise StudyError(f"{file} is not a study: it has {len(data):,} bytes")
    try:
        content = parse_yaml(data.decode("utf-8-sig"), str(file))
    except UnicodeDecodeError:
        raise StudyError(f"{file} is not a study: it is not UTF-8 text") from None
    except YamlError as error:
        raise StudyError(str(error)) from error
    if not isinstance(content, dict):
        raise StudyError(f"{file} is not a study: it needs {', '.join(_KEYS[:2])}, methods, ...")
    return content


def _check_keys(content: Mapping, known: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; there are {', '.join(known)}"
            raise StudyError(f"{where}: there is no key {key!r:.80}{hint}")


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise StudyError(
            f"{where}: {value!r:.80} is no name: it must be text of letters, digits and ._+- "
            "that begins with a letter or digit, as it becomes the name of a folder"
        )
    return value


def _seeds(value: object, where: str) -> tuple[int, ...]:
    seeds = value if isinstance(value, list) else [value]
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= _LARGEST_SEED:
            raise StudyError(f"{where} must be whole numbers from 0 on, got {seed!r:.80}")
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise StudyError(f"{where} has {seed} twice")
    return tuple(seeds)


def _parts(value: object, where: str, keys: tuple[str, ...] = _PART_KEYS) -> tuple[Part, ...]:
    if not isinstance(value, Mapping):
        raise StudyError(f"{where} must be NAME: CONFIG, a line for each, got {value!r:.80}")
    return tuple(
        _part(_name(name, where), content, f"{where}: {name}", keys)
        for name, content in value.items()
    )


def _part(name: str, value: object, where: str, keys: tuple[str, ...] = _PART_KEYS) -> Part:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        value = {"config": value}
    _check_keys(value, keys, where)
    configs = value.get("config", [])
    configs = configs if isinstance(configs, list) else [configs]
    if not all(isinstance(one, str) and one for one in configs):
        raise StudyError(f"{where}: config must name one yaml or several, got {configs!r:.80}")
    options = value.get("options", {})
    if not isinstance(options, Mapping):
        raise StudyError(f"{where}: options must be KEY: VALUE, got {options!r:.80}")
    pairs = list(_flat(options))
    flat = dict(pairs)
    if len(flat) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise StudyError(f"{where}: option {twice} is there twice, with dots and nested")
    for key in ("SEED", "OUTPUT_DIR"):
        if key in flat:
            raise StudyError(f"{where}: {key} is set by the study, so it cannot be an option")
    seeds = _seeds(value["seeds"], f"{where}: seeds") if "seeds" in value else ()
    if "seeds" in value and not seeds:
        raise StudyError(f"{where}: there are no seeds")
    return Part(name=name, configs=tuple(configs), options=flat, seeds=seeds)


def _flat(options: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
