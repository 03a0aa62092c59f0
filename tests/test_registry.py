import pytest

from resobj_d2.matching import SAMPLER_REGISTRY
from resobj_d2.registry import Registry


def test_unknown_name_lists_the_known_ones():
    fruit = Registry("FRUIT", base=object)
    pear, apple = type("Pear", (), {}), type("Apple", (), {})
    fruit.register(pear)
    fruit.register(apple)
    assert fruit.get("Pear") is pear
    with pytest.raises(KeyError, match="there is no FRUIT 'Plum'; choose one of Apple, Pear"):
        fruit.get("Plum")


def test_registries_of_the_slots_list_their_names():
    with pytest.raises(KeyError, match="no SAMPLER 'Nonsense'.*KeepAll.*RandomSampler"):
        SAMPLER_REGISTRY.get("Nonsense")
