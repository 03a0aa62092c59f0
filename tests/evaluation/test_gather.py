"""Predictions of several processes, a part at a time."""

import threading

import pytest

from resobj_d2.evaluation import gather
from resobj_d2.evaluation.gather import gather_in_parts


class Processes:
    """Detectron2's ``comm`` for threads that stand for processes; it counts what is sent."""

    def __init__(self, number):
        self.number, self.barrier = number, threading.Barrier(number)
        self.rank, self.sent, self.longest = threading.local(), {}, 0

    def get_world_size(self):
        return self.number

    def all_gather(self, data):
        self.sent[self.rank.value] = data
        self.barrier.wait(timeout=10)
        found = [self.sent[rank] for rank in range(self.number)]
        self.barrier.wait(timeout=10)
        return found

    def gather(self, data, dst):
        self.longest = max(self.longest, len(data))
        found = self.all_gather(data)
        return found if self.rank.value == dst else []


@pytest.mark.parametrize("lengths", [(5, 2, 0), (0, 0, 7), (0, 0, 0), (3, 3, 3)])
def test_main_process_has_all_in_order_and_no_part_is_large(monkeypatch, lengths):
    processes = Processes(len(lengths))
    monkeypatch.setattr(gather, "comm", processes)
    items = [[(rank, i) for i in range(length)] for rank, length in enumerate(lengths)]
    found = {}

    def work(rank):
        processes.rank.value = rank
        found[rank] = gather_in_parts(items[rank], size=2)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(lengths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert found == {0: sum(items, []), 1: [], 2: []}
    assert processes.longest <= 2


def test_one_process_has_its_own():
    assert gather_in_parts([1, 2, 3], size=2) == [1, 2, 3]
