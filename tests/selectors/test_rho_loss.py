"""The gate on the irreducible loss, and scores that are bounded."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from rholoss import (
    IrreducibleLossStore,
    RhoLossSelector,
)


def losses_under(model, data):
    return IrreducibleLossStore.from_model(model, data).losses


class TestGate:
    def selector(self, losses, model, data, **options):
        return RhoLossSelector(DataLoader(data, batch_size=100), model, IrreducibleLossStore(losses), batch_size=10, **options)

    def test_keeps_the_highest_reducible_losses_among_those_below(self, data, net):
        losses = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 4
        plain, gated = self.selector(losses, net, data), self.selector(losses, net, data, max_irreducible_loss=0.5)
        next(iter(plain)), next(iter(gated))
        allowed = losses <= 0.5
        order = plain.last.scores.masked_fill(~allowed, -math.inf).argsort(descending=True)[:10]
        assert set(gated.last.index.tolist()) == set(order.tolist()) != set(plain.last.index.tolist())
        assert gated.last.notes["gated"].item() == pytest.approx(1 - allowed.float().mean().item())

    def test_at_its_very_height_still_lets_pass(self, data, net):
        losses = torch.full((100,), 2.0)
        losses[50:60] = 1.0
        selector = self.selector(losses, net, data, max_irreducible_loss=1.0)
        next(iter(selector))
        assert selector.last.index.tolist() == list(range(50, 60))

    def test_fills_up_from_above_where_too_few_are_below(self, data, net):
        losses = torch.full((100,), 2.0)
        losses[[40, 70]] = 0.5
        selector = self.selector(losses, net, data, max_irreducible_loss=1.0)
        next(iter(selector))
        assert len(selector.last.index) == 10
        assert {40, 70} <= set(selector.last.index.tolist())

    def test_keeps_everything_at_keep_1(self, data, net):
        loader = DataLoader(data, batch_size=10)
        store = IrreducibleLossStore(torch.ones(100))
        selector = RhoLossSelector(loader, net, store, keep=1, max_irreducible_loss=0.5, bounded=True)
        for (x, y), (a, b) in zip(loader, selector, strict=True):
            assert torch.equal(x, a)
            assert torch.equal(y, b)

    def test_bounded_scores_are_differences_of_probability(self, data, net):
        losses = torch.rand(100) * 4
        selector = self.selector(losses, net, data, bounded=True)
        next(iter(selector))
        expected = torch.exp(-losses) - torch.exp(-losses_under(net, data))
        torch.testing.assert_close(selector.last.scores, expected)

    @pytest.mark.parametrize("highest", [0, -1.0, float("nan"), "2"])
    def test_that_is_no_loss_is_refused(self, data, net, highest):
        with pytest.raises(ValueError, match="max_irreducible_loss must be a loss in nats above 0, such as math.log"):
            self.selector(torch.ones(100), net, data, max_irreducible_loss=highest)
