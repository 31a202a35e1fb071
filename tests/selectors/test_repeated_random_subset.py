"""Each epoch trains on another random part."""

import torch
from conftest import make_data
from torch.utils.data import DataLoader

from rholoss import build_selector


class TestRepeatedRandomSubset:
    def parts(self, loader, epochs=3, **options):
        selector, parts = build_selector("repeated_random_subset", loader, **options), []
        for _ in range(epochs):
            parts.append([i for _ in selector for i in selector.last.index.tolist()])
            assert len(selector) == -(-len(parts[-1]) // loader.batch_size)
        return parts

    def test_each_epoch_trains_on_another_part_of_the_size_that_was_asked_for(self):
        parts = self.parts(DataLoader(make_data(50), batch_size=4, shuffle=True), epochs=200, keep=0.3)
        assert all(len(part) == len(set(part)) == 15 for part in parts)
        assert len({frozenset(part) for part in parts}) == 200
        counts = torch.tensor([i for part in parts for i in part]).bincount(minlength=50)
        assert 35 < int(counts.min()) < int(counts.max()) < 90  # 60 times each on average

    def test_the_part_is_of_what_the_loader_may_draw(self):
        parts = self.parts(DataLoader(make_data(50), batch_size=4, sampler=range(10, 40)), keep=0.5)
        assert all(len(part) == 15 and set(part) <= set(range(10, 40)) for part in parts)
        assert all(part == sorted(part) for part in parts)  # in the sampler's order

    def test_the_seed_says_which(self):
        loader = DataLoader(make_data(50), batch_size=4)
        assert self.parts(loader, keep=0.5, seed=1) == self.parts(loader, keep=0.5, seed=1)
        assert self.parts(loader, keep=0.5, seed=1) != self.parts(loader, keep=0.5, seed=2)
        assert [len(part) for part in self.parts(loader)] == [25] * 3
