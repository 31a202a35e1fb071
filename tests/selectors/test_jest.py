"""JEST: batches that are drawn jointly."""

import pytest
import torch
from conftest import make_data, make_net
from torch.utils.data import DataLoader

from rholoss import functional
from rholoss.selectors import JestSelector
from rholoss.testing import check_selector


class TestJest:
    def build(
        self, loader, model, chunks=3, pair_losses=lambda model, outputs: functional.sigmoid_pair_losses(outputs, outputs), **o
    ):
        return JestSelector(loader, model, make_net(1), pair_losses=pair_losses, chunks=chunks, **o)

    @pytest.mark.parametrize("chunks", [1, 3, 100])
    def test_it_keeps_the_contract(self, chunks):
        def build(loader, model, **options):
            return JestSelector(loader, model, model, pair_losses=lambda model, z: z @ z.T, chunks=chunks, **options)

        check_selector(build)

    def test_an_example_is_drawn_for_what_it_is_worth_together_with_others(self):
        scores = torch.zeros(6, 6)
        scores[0, 0] = 50.0  # drawn first
        scores[4, 0] = 25.0  # and this one for its sake, from either side
        scores[0, 2] = 25.0
        for seed in range(20):
            uniform = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed))
            assert functional.jest_choice(scores, 3, 3, uniform).tolist() == [0, 2, 4]
        assert functional.jest_choice(scores, 6, 2, uniform).tolist() == list(range(6))

    def test_what_makes_no_sense_is_refused(self):
        loader = DataLoader(make_data(40), batch_size=4)
        with pytest.raises(ValueError, match="chunks must be how many parts to draw a batch in, at least 1, got 0"):
            self.build(loader, make_net(0), chunks=0)
        selector = self.build(loader, make_net(0), pair_losses=lambda model, outputs: outputs, keep=0.25)
        with pytest.raises(ValueError, match=r"one loss per pair, shape \(16, 16\), got \(16, 4\) and \(16, 4\)"):
            next(iter(selector))
