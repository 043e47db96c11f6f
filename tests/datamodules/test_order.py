from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader

from kdzoo.datamodules.order import EpochOrder


def walk(order, epoch):
    order.set_epoch(epoch)
    return list(order)


def test_order_is_a_function_of_seed_and_epoch():
    epochs = [walk(EpochOrder(50, seed=1), epoch) for epoch in range(3)]
    again = EpochOrder(50, seed=1)
    assert [walk(again, epoch) for epoch in range(3)] == epochs
    assert epochs[0] != epochs[1]
    assert walk(EpochOrder(50, seed=2), 0) != epochs[0]
    for epoch, pairs in enumerate(epochs):
        assert sorted(pairs) == [(position, epoch) for position in range(50)]
    torch.manual_seed(3)
    assert walk(EpochOrder(50, seed=1), 0) == epochs[0]


def test_views_repeat():
    order = EpochOrder(4, seed=0, shuffle=False, views=2)
    assert [walk(order, epoch)[0][1] for epoch in range(4)] == [0, 1, 0, 1]
    assert [position for position, _ in walk(order, 0)] == [0, 1, 2, 3]


def test_start_inside_an_epoch_once():
    whole, resumed = EpochOrder(20, seed=1), EpochOrder(20, seed=1, epoch=4, start=6)
    assert len(resumed) == 20
    resumed.set_epoch(3)  # Lightning, before it has noticed that epoch 3 is over
    assert list(resumed) == walk(whole, 4)[6:]
    assert walk(resumed, 5) == walk(whole, 5)
    assert walk(EpochOrder(20, seed=1, start=20), 0) == []


@pytest.mark.parametrize("size", [20, 22])
def test_ranks_share_the_order(size):
    whole = walk(EpochOrder(size, seed=1), 2)
    parts = [walk(EpochOrder(size, seed=1, rank=rank, world_size=3), 2) for rank in range(3)]
    assert [len(part) for part in parts] == [size // 3] * 3
    assert sorted(chain(*parts)) == sorted(whole[: size // 3 * 3])
    assert walk(EpochOrder(size, seed=1, rank=1, world_size=3, epoch=2, start=4), 2) == parts[1][4:]
    tests = [EpochOrder(size, seed=1, shuffle=False, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(chain(*tests)) == [(position, 0) for position in range(size)]
    assert sum(map(len, tests)) == size


def test_resume_through_a_loader():
    class Pairs(torch.utils.data.Dataset):
        def __getitem__(self, pair):
            return pair[0]

    def batches(start):
        order = EpochOrder(23, seed=0, epoch=1, start=start)
        return [batch.tolist() for batch in DataLoader(dataset=Pairs(), sampler=order, batch_size=4)]

    assert batches(8) == batches(0)[2:]
