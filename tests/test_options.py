"""Options declared on constructors, and what registries make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pytest
from fvcore.common.config import CfgNode

from resobj_d2.options import NO_DEFAULT, Option, Part, arguments_from, build, options_of
from resobj_d2.registry import Registry


@dataclass(kw_only=True)
class Inner:
    kind: Annotated[str, Option("which", key="LOSS")] = "ce"
    gamma: Annotated[float, Option("exponent", source="Paper, Eq. 1", only={"kind": ("gf",)})] = 2.0


class Owner:
    def __init__(
        self,
        *,
        size: int,
        inner: Annotated[Inner, Part()],
        weights: Annotated[Sequence[float], Option("factors")] = (1.0, 2.0),
        width: Annotated[int | None, Option("width; 0 for the input's", none=0)] = None,
        factor: Annotated[float, Option("factor", key="BELOW.FACTOR")] = 1.0,
    ) -> None:
        self.arguments = (size, inner, weights, width, factor)


def test_declared_keys_by_hand():
    declared = {o.key: (o.type, o.default, o.source) for o in options_of(Owner)}
    assert declared == {
        "LOSS": ("str", "ce", ""),
        "GAMMA": ("float", 2.0, "Paper, Eq. 1"),
        "WEIGHTS": ("list[float]", [1.0, 2.0], ""),
        "WIDTH": ("int", 0, ""),
        "BELOW.FACTOR": ("float", 1.0, ""),
    }
    assert {o.key: o.only for o in options_of(Owner) if o.only} == {"GAMMA": {"LOSS": ("gf",)}}


def node(**other):
    values = {"LOSS": "gf", "GAMMA": 3.0, "WEIGHTS": [4.0], "WIDTH": 0, "BELOW": {"FACTOR": 5.0}}
    return CfgNode({**values, **other})


def test_an_owner_is_built_from_its_node_and_its_context():
    owner = build(Owner, node(), size=7)
    assert owner.arguments == (7, Inner(kind="gf", gamma=3.0), [4.0], None, 5.0)
    assert build(Owner, node(WIDTH=6), size=7).arguments[3] == 6
    assert arguments_from(Inner, node(LOSS="ce")) == {"kind": "ce"}  # which does not read GAMMA


class Derived(Owner):
    def __init__(
        self,
        *,
        width: Annotated[int, Option("its own width")] = 9,
        depth: Annotated[int, Option("layers")] = 1,
        **others,
    ) -> None:
        super().__init__(width=width, **others)
        self.depth = depth


class Closed(Owner):
    def __init__(self, *, depth: Annotated[int, Option("layers")] = 1) -> None:
        super().__init__(size=1, inner=Inner())
        self.depth = depth


def test_a_class_that_passes_arguments_on_has_the_options_of_the_class_above():
    declared = {o.key: (o.meaning, o.default) for o in options_of(Derived)}
    assert list(declared) == ["LOSS", "GAMMA", "WEIGHTS", "WIDTH", "BELOW.FACTOR", "DEPTH"]
    assert declared["WIDTH"] == ("its own width", 9) and declared["DEPTH"] == ("layers", 1)
    owner = build(Derived, node(DEPTH=2, WIDTH=3), size=7)
    assert owner.arguments == (7, Inner(kind="gf", gamma=3.0), [4.0], 3, 5.0)
    assert owner.depth == 2
    assert [o.key for o in options_of(Closed)] == ["DEPTH"]


class Contract:
    pass


def registry_with(*entries):
    registry = Registry("THING", base=Contract)
    for entry in entries:
        registry.register(entry)
    return registry


class First(Contract):
    def __init__(self, *, size: Annotated[int, Option("size")] = 3) -> None:
        self.size = size


class Other(Contract):
    def __init__(self, *, size: Annotated[int, Option("size")] = 4) -> None:
        self.size = size


class Following(Contract):
    def __init__(self, *, size: Annotated[int, Option("size", follows=True)] = 4) -> None:
        self.size = size


def test_entries_of_a_slot_agree_on_the_default_of_a_shared_key():
    with pytest.raises(ValueError, match="THING Other: the option SIZE has the default 4, but 3"):
        registry_with(First, Other)
    assert options_of(Following)[0].default is NO_DEFAULT
    assert registry_with(First, Following).get("Following")().size == 4


def test_registries_take_what_keeps_the_contract_once():
    with pytest.raises(TypeError, match="THING int must be a subclass of Contract"):
        registry_with(int)
    with pytest.raises(ValueError, match="there already is a THING First"):
        registry_with(First, First)
    with pytest.raises(KeyError, match="no THING 'Frist'; choose one of First"):
        registry_with(First).get("Frist")
