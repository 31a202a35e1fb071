"""A small proxy that scores in the model's place, co-trained on the selected batches."""

import copy

import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore
from rholoss.selectors import ProxyRhoLossSelector


class TestCoTrainedProxy:
    def test_takes_one_step_on_each_selected_batch(self, loader, store):
        proxy = make_net(3).eval()
        twin = copy.deepcopy(proxy)
        optimizer, its = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (proxy, twin))
        selector = ProxyRhoLossSelector(loader, make_net(0), store, proxy, proxy_optimizer=optimizer, keep=0.25)
        for x, y in selector:
            its.zero_grad()
            nn.functional.cross_entropy(twin(x), y).backward()
            its.step()
            torch.testing.assert_close(proxy.state_dict(), twin.state_dict())
        assert selector.step > 2

    def test_resumes_as_it_would_have(self, store):
        def made():
            proxy = make_net(3)
            loader = DataLoader(make_data(320), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
            optimizer = torch.optim.AdamW(proxy.parameters(), lr=0.01)
            return ProxyRhoLossSelector(loader, make_net(0), store, proxy, proxy_optimizer=optimizer, keep=0.25)

        whole, stopped, resumed = made(), made(), made()
        expected = [whole.last.index.tolist() for _ in whole]
        for _ in stopped:
            if stopped.step == 4:
                state = copy.deepcopy(stopped.state_dict())
        resumed.load_state_dict(state)
        assert [resumed.last.index.tolist() for _ in resumed] == expected[4:]
        assert len(expected) > 6

    def test_the_gate_holds_for_a_proxy_too(self, loader):
        store = IrreducibleLossStore(torch.arange(320) % 2 * 5.0)
        selector = ProxyRhoLossSelector(loader, make_net(0), store, make_net(1), max_irreducible_loss=1.0, keep=0.25)
        for _ in selector:
            assert not (selector.last.index % 2).any()
            assert selector.last.notes["gated"] == 0.5
        with pytest.raises(ValueError, match="max_irreducible_loss must be a loss in nats above 0"):
            ProxyRhoLossSelector(loader, make_net(0), store, make_net(1), max_irreducible_loss=0)
