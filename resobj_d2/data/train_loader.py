"""Training batches that depend on the seed and on the iteration, and on nothing else.

So a resumed run goes on with the images that it would have had, augmented alike: no state of a
sampler, of a worker or of what was loaded ahead has to be kept.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ["TrainLoader", "local_randomness"]

# (index of the record, its place in the stream that all processes share)
Item = tuple[int, int]
MOST_ATTEMPTS = 100
MANY_IMAGES = 1_000_000  # whose order takes a while

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def local_randomness(*key: int) -> Iterator[None]:
    """Inside, the generators of Python, NumPy and torch's CPU depend on ``key``.

    Afterwards they are as they were before.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    state = np.random.SeedSequence(key).generate_state(4)
    random.seed(state.tobytes())
    np.random.seed(state)
    # Not torch.manual_seed, which would seed the GPUs as well.
    torch.default_generator.manual_seed(int.from_bytes(state[:2].tobytes(), "little"))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class TrainLoader:
    """Endless batches of mapped records, for one process of a training.

    The n-th place of the stream that the processes share has one record and one augmentation,
    drawn from ``(seed, n)``, whichever worker maps it. To the model's random numbers it does not
    matter how many workers there are.

    Args:
        records: of Detectron2's standard form.
        mapper: from a record to an input of the model. Where it returns None, another record that
            is drawn at random takes the place.
        make_sampler: from records and seed to this process's indices into them, endlessly.
        batch_size: images of this process in one batch.
        num_workers: processes that map; 0 for none.
        group_by_shape: batches are of images that are all wider than high, or all not.
        rank: of this process.
        world_size: number of processes.

    Attributes:
        seed: None draws one from torch's generator when the first batch is asked for.
        start: batches that are left out at the beginning, for a run that goes on.
    """

    def __init__(
        self,
        records: Sequence[dict],
        *,
        mapper: Callable[[dict], Any],
        make_sampler: Callable[[Sequence[dict], int], Iterable[int]],
        batch_size: int,
        num_workers: int = 0,
        group_by_shape: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.mapper = mapper
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.seed: int | None = None
        self.start = 0
        # Packed into one array, which the workers share.
        self._records = DatasetFromList(list(records), copy=False)
        self._is_wide = (
            [record.get("width", 0) > record.get("height", 0) for record in records]
            if group_by_shape
            else [False] * len(records)
        )

    def __iter__(self) -> Iterator[list]:
        # A generator: nothing is loaded before the first batch is asked for, when a run that goes
        # on has set ``seed`` and ``start``.
        seed = int(torch.randint(2**31, ())) if self.seed is None else self.seed
        if self.start * self.batch_size >= MANY_IMAGES:
            logger.info(
                "Finding the place in the order of the images: %d batches are left out, which "
                "takes about a second for a million images",
                self.start,
            )
        items = itertools.chain.from_iterable(
            itertools.islice(self._batches_of_items(seed), self.start, None)
        )
        loader = DataLoader(
            _SeededRecords(self._records, self.mapper, seed),
            sampler=_Order(items),
            batch_size=None,  # single images: they are ready sooner than whole batches
            collate_fn=_unchanged,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # or it would draw from the model's
        )
        images = iter(loader)
        while True:
            yield list(itertools.islice(images, self.batch_size))

    def _batches_of_items(self, seed: int) -> Iterator[list[Item]]:
        buckets: dict[bool, list[Item]] = {False: [], True: []}
        for i, index in enumerate(self.make_sampler(self._records, seed)):
            bucket = buckets[self._is_wide[index]]
            bucket.append((index, self.rank + i * self.world_size))
            if len(bucket) == self.batch_size:
                yield list(bucket)
                bucket.clear()


class _Order(Sampler):
    """Items in the order in which they are handed out."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Item]:
        return self._items


class _SeededRecords(Dataset):
    """Mapped records; each mapping has random numbers of its own."""

    def __init__(self, records: Dataset, mapper: Callable[[dict], Any], seed: int) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = seed

    def __getitem__(self, item: Item) -> Any:
        index, place = item
        with local_randomness(self._seed, place):
            for _ in range(MOST_ATTEMPTS):
                mapped = self._mapper(self._records[index])
                if mapped is not None:
                    return mapped
                index = random.randrange(len(self._records))
        raise ValueError(
            f"the dataset mapper returned None for {MOST_ATTEMPTS} records in a row: it must "
            "return an input of the model for most of them"
        )


def _unchanged(x: Any) -> Any:
    return x
