"""Uniform sampling below a limit on the irreducible loss, without scoring."""

import pytest
import torch
from conftest import make_learnable_data
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore
from rholoss.selectors import GatedUniformSelector

N = 640


@pytest.fixture
def data():
    return make_learnable_data(N)


@pytest.fixture
def loader(data):
    return DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0), drop_last=True)


class TestGatedUniform:
    def test_draws_at_random_below_the_limit(self, loader):
        store = IrreducibleLossStore(torch.arange(N) % 4 * 1.0)
        selector = GatedUniformSelector(loader, None, store, max_irreducible_loss=1.5, keep=0.25)
        chosen = torch.cat([selector.last.index for _ in selector])
        assert set((chosen % 4).tolist()) == {0, 1}
        assert selector.last.notes["gated"] == pytest.approx(0.5, abs=0.3)
        assert selector.cost().scored == 0

    def test_a_batch_is_full_though_too_few_are_below(self, loader):
        store = IrreducibleLossStore(torch.full((N,), 5.0))
        assert [len(y) for _, y in GatedUniformSelector(loader, None, store, max_irreducible_loss=1.0, keep=0.5)] == [8] * 40

    def test_refuses_a_limit_that_is_none(self, loader):
        with pytest.raises(ValueError, match="max_irreducible_loss must be a loss in nats above 0"):
            GatedUniformSelector(loader, None, IrreducibleLossStore(torch.zeros(N)), max_irreducible_loss=-1)
