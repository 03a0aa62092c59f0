"""Batches that are a function of the seed and the iteration."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler

from resobj_d2.data import train_loader
from resobj_d2.data.train_loader import TrainLoader, local_randomness

SHAPES = [(20, 10), (10, 20), (20, 10), (10, 20), (10, 10)]  # width, height


def records():
    return [{"id": i, "width": w, "height": h} for i, (w, h) in enumerate(SHAPES)]


def draw(record):
    """The record and a number from each generator that an augmentation may use."""
    return record["id"], random.random(), np.random.rand(), torch.rand(()).item()


def in_order(records, seed):
    return itertools.cycle(range(len(records)))


def shuffled(records, seed):
    return TrainingSampler(len(records), seed=seed)


def loader(*, start=0, seed=7, mapper=draw, make_sampler=shuffled, **options):
    made = TrainLoader(
        records(), mapper=mapper, make_sampler=make_sampler, **{"batch_size": 3, **options}
    )
    made.seed, made.start = seed, start
    return made


def first(count, batches):
    return list(itertools.islice(batches, count))


def test_goes_on_where_it_was():
    whole = first(6, loader())
    assert first(2, loader(start=4)) == whole[4:]
    assert len({number for batch in whole for number in batch}) == 18  # no augmentation twice
    assert {number[0] for batch in whole for number in batch} == {0, 1, 2, 3, 4}
    assert first(2, loader(seed=8)) != whole[:2]


def test_workers_make_no_difference():
    whole = first(6, loader())
    assert first(6, loader(num_workers=2)) == whole
    assert first(2, loader(num_workers=1, start=4)) == whole[4:]


def test_grouped_batches_are_of_one_shape_and_go_on_as_well():
    """Of 0 1 2 3 4 0 1 2 ... the wide are 0 and 2, all others are not."""
    batches = [
        [item[0] for item in batch]
        for batch in first(5, loader(group_by_shape=True, make_sampler=in_order))
    ]
    assert batches == [[1, 3, 4], [0, 2, 0], [1, 3, 4], [2, 0, 2], [1, 3, 4]]
    whole = first(7, loader(group_by_shape=True))
    assert first(4, loader(group_by_shape=True, start=3)) == whole[3:]


def test_processes_share_one_stream():
    """Two of them have together what one has, with the same augmentations."""

    def part(rank):
        def every_second(records, seed):
            return itertools.islice(in_order(records, seed), rank, None, 2)

        return loader(make_sampler=every_second, rank=rank, world_size=2)

    both = [item for rank in (0, 1) for batch in first(5, part(rank)) for item in batch]
    alone = [item for batch in first(10, loader(make_sampler=in_order)) for item in batch]
    assert sorted(both) == sorted(alone)


def test_the_generators_of_the_process_are_left_alone():
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = state()
    first(2, loader())
    assert state() == before
    with pytest.raises(KeyError), local_randomness(1, 2):
        draw({"id": 0})
        raise KeyError
    assert state() == before


def test_a_record_that_the_mapper_leaves_out_is_replaced_alike():
    def odd(record):
        return draw(record) if record["id"] % 2 else None

    whole = first(6, loader(mapper=odd))
    assert {item[0] for batch in whole for item in batch} == {1, 3}
    assert first(2, loader(mapper=odd, start=4)) == whole[4:]
    with pytest.raises(ValueError, match="mapper returned None for 100 records"):
        next(iter(loader(mapper=lambda record: None)))


def test_without_a_seed_it_draws_one():
    torch.manual_seed(0)
    batches = [first(2, loader(seed=None)) for _ in range(2)]
    assert batches[0] != batches[1]
    torch.manual_seed(0)
    assert first(2, loader(seed=None)) == batches[0]


def test_a_place_that_takes_a_while_to_find_is_said(monkeypatch, caplog):
    monkeypatch.setattr(train_loader, "MANY_IMAGES", 30)
    with caplog.at_level("INFO", logger="resobj_d2"):
        first(1, loader(start=9))
        assert not [record for record in caplog.records if record.name.startswith("resobj_d2")]
        first(1, loader(start=10))
    assert "10 batches are left out" in caplog.text
