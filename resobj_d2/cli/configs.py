"""``resobj-d2 configs``: the configurations that come with the package."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Mapping, Sequence

from resobj_d2.command import CommandParser, add_import_option
from resobj_d2.config.difference import difference, plain_values
from resobj_d2.config.zoo import (
    ZooEntry,
    find_config,
    zoo_entries,
    zoo_names,
)
from resobj_d2.process import similar_names

__all__ = ["difference", "main"]


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status.

    Raises:
        FileNotFoundError: no configuration is called so.
        ValueError: none matches the pattern.
    """
    args = _parser().parse_args(argv)
    if args.show:
        print(_resolved(args.show, args.diff, args.imports), end="")
        return 0
    if args.parts:
        trainable = {entry.name for entry in zoo_entries()}
        print("\n".join(_select(set(zoo_names()) - trainable, args.pattern)))
        return 0
    by_name = {entry.name: entry for entry in zoo_entries()}
    print(_table([by_name[name] for name in _select(by_name, args.pattern)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="resobj-d2 configs",
        description="List the configurations that come with the package, with the AP that papers "
        "report; print one.",
        epilog='A yaml of your own builds on one with _BASE_: "resobj_d2://NAME".',
    )
    parser.add_argument(
        "pattern",
        nargs="?",
        default="",
        metavar="PATTERN",
        help="part of a name, or one with * and ?",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--show", metavar="NAME", help="print one, resolved: every key and value")
    what.add_argument(
        "--parts", action="store_true", help="list bases, methods and schedules to build on"
    )
    parser.add_argument(
        "--diff", action="store_true", help="with --show: only what differs from the defaults"
    )
    add_import_option(parser)
    return parser


def _select(names: Sequence[str] | Mapping | set, pattern: str) -> list[str]:
    wanted = pattern.lower().removeprefix("configs/")
    glob = wanted if set(wanted) & set("*?[") else f"*{wanted}*"
    # A pattern may leave out the folder, as a name may.
    found = [
        name
        for name in sorted(names)
        if fnmatch.fnmatchcase(name.lower(), glob)
        or fnmatch.fnmatchcase(name.lower().rpartition("/")[2], glob)
    ]
    if not found:
        stems = {name.rpartition("/")[2].removesuffix(".yaml"): name for name in names}
        similar = similar_names(pattern, stems, cutoff=0.5)
        hint = ": `resobj-d2 configs` lists all"
        if similar:
            hint = f". Did you mean {' or '.join(stems[stem] for stem in similar)}?"
        raise ValueError(f"no configuration matches '{pattern}'{hint}")
    return found


def _table(entries: Sequence[ZooEntry]) -> str:
    rows = [("name", "AP", "reported in", "method")]
    for entry in entries:
        ap, source = "-", "-"
        if entry.figures:
            first = entry.figures[0]
            ap = str(first)
            source = first.source + (f", {first.note}" if first.note else "")
        rows.append((entry.name, ap, source, entry.method))
    name, ap, source, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(f"{r[0]:<{name}}  {r[1]:>{ap}}  {r[2]:<{source}}  {r[3]}" for r in rows)


def _resolved(name: str, only_differences: bool, imports: Sequence[str]) -> str:
    from detectron2.config import get_cfg

    from resobj_d2.config import add_resobj_config
    from resobj_d2.config.imports import import_modules
    from resobj_d2.config.load import imports_of, merge_file

    path = str(find_config(name))
    import_modules([*imports_of(path, []), *imports])
    cfg = get_cfg()
    add_resobj_config(cfg)
    defaults = plain_values(cfg)
    # Merged and not loaded: the datasets need not be there.
    merge_file(cfg, path)
    values = plain_values(cfg)
    return _yaml(difference(values, defaults) if only_differences else values)


def _yaml(values: dict) -> str:
    """Without the aliases (``*id001``) that yaml writes for a list that occurs twice."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    return yaml.dump(values, Dumper=Dumper)
