"""Yaml as data: read within limits, without running anything."""

from __future__ import annotations

import yaml

__all__ = ["YamlError", "parse_yaml"]

MAX_DEPTH = 50
MAX_NUMBER = 1000  # characters


class YamlError(ValueError):
    """A text that is no yaml, or more than is read; the message is one line."""


def parse_yaml(
    text: str, name: str, *, max_nodes: int = 20_000, aliases: bool = True, strings: bool = False
) -> object:
    """What a text holds; None where it is empty.

    Args:
        text: to read.
        name: of the file, which begins messages.
        max_nodes: keys, values and lists, when each alias is written out.
        aliases: whether a value may stand for another one.
        strings: whether all values stay as they are written: ``yes`` is then "yes", not True.

    Raises:
        YamlError: it is not valid yaml, has a tag that would run code, is nested too deeply, has
            more nodes, a key twice, or a value that cannot be read.
    """
    try:
        _check_events(text, name, aliases)
        return _construct(text, name, max_nodes, strings)
    except yaml.constructor.ConstructorError as error:
        raise YamlError(f"{name} is not valid yaml: {_constructor_text(error)}") from error
    except yaml.YAMLError as error:
        raise YamlError(f"{name} is not valid yaml: {_one_line(error)}") from error
    except RecursionError:
        raise YamlError(f"{name}: {_TOO_DEEP}") from None
    # "It has 5000 digits", "month must be in 1..12"
    except (ValueError, OverflowError, TypeError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(f"{name}: a value cannot be read: {error}") from error


_TOO_DEEP = f"it is nested too deeply, in more than {MAX_DEPTH} levels"


def _check_events(text: str, name: str, aliases: bool) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):  # slower the deeper it gets
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise YamlError(f"{name}: aliases (*) are refused: they may expand")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise YamlError(f"{name}: {_TOO_DEEP}")


def _construct(text: str, name: str, max_nodes: int, strings: bool) -> object:
    loader = yaml.BaseLoader(text) if strings else yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, name, {}, 0, max_nodes)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, name: str, known: dict[int, int], depth: int, max_nodes: int) -> int:
    """How many nodes there are when each alias is written out; ``known`` has those seen before."""
    if id(node) in known:
        if not known[id(node)]:
            raise YamlError(f"{name}: an alias stands inside what it means")
        return known[id(node)]
    if depth > MAX_DEPTH:
        raise YamlError(f"{name}: {_TOO_DEEP}")
    known[id(node)] = 0  # not yet known
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        _refuse_repeated(node, name)
        children = [child for pair in node.value for child in pair]
    elif node.tag != "tag:yaml.org,2002:str" and len(node.value) > MAX_NUMBER:
        place = _place(node.start_mark)
        raise YamlError(f"{name}: a number of more than {MAX_NUMBER} characters{place}")
    total = 1
    for child in children:
        total += _count(child, name, known, depth + 1, max_nodes)
        if total > max_nodes:
            raise YamlError(
                f"{name}: it has more than {max_nodes:,} values, each alias written out"
            )
    known[id(node)] = total
    return total


def _refuse_repeated(node: yaml.MappingNode, name: str) -> None:
    """Of two equal keys the first would be lost."""
    first: dict[tuple[str, str], yaml.Mark] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if (key.tag, key.value) in first:
            lines = f"lines {first[key.tag, key.value].line + 1} and {key.start_mark.line + 1}"
            raise YamlError(
                f"{name}: the key {key.value!r:.80} occurs twice, in {lines}: join them or take "
                "one out"
            )
        first[key.tag, key.value] = key.start_mark


def _constructor_text(error: yaml.constructor.ConstructorError) -> str:
    text = f"{error.problem}{_place(error.problem_mark)}"
    if "constructor for the tag" not in str(error.problem):
        return text
    return f"{text}. Tags that run code are refused: write the value out"


def _one_line(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return " ".join(f"{problem}{_place(getattr(error, 'problem_mark', None))}".split())


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f" in line {mark.line + 1}"
