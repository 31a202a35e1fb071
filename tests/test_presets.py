"""The preset that combines the ways to score for less."""

import math

import pytest
import torch
from conftest import CLASSES, FEATURES, make_data, make_learnable_data, make_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector, fast_rho_loss, split
from rholoss.presets import small_network, up_and_down
from rholoss.selectors import ProxyRhoLossSelector
from rholoss.wrappers import PayoffGatedSelector

N = 640


@pytest.fixture
def data():
    return make_learnable_data(N)


@pytest.fixture
def loader(data):
    return DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0), drop_last=True)


@pytest.fixture
def validation():
    return make_learnable_data(160, seed=7)


def with_wrong_labels(data, share):
    x, y = data.tensors
    wrong = torch.rand(N, generator=torch.Generator().manual_seed(3)) < share
    return TensorDataset(x, torch.where(wrong, (y + 1) % CLASSES, y)), wrong


class TestFastPreset:
    def test_makes_all_that_it_needs_of_a_holdout(self, data, validation):
        training, holdout, held = split(data, holdout=200, validation=80, seed=0)
        model = make_net(0)
        loader = DataLoader(training, batch_size=8, drop_last=True)
        selector = fast_rho_loss(loader, model, holdout, held, keep=0.2)
        assert isinstance(selector, PayoffGatedSelector)
        for _, y in selector:
            assert len(y) == 8
        assert selector.cost().scored == 0
        assert len(selector.method.store) == 360

    def test_without_a_holdout_all_of_the_data_are_scored_by_halves(self, data, loader):
        selector = fast_rho_loss(loader, make_net(0), keep=0.2)
        assert isinstance(selector, ProxyRhoLossSelector)
        assert selector.store.coverage == 1
        assert selector.formula.max_irreducible_loss == pytest.approx(math.log(CLASSES))

    def test_a_proxy_and_a_store_of_ones_own_are_used(self, loader):
        made = []

        def make():
            made.append(nn.Linear(FEATURES, CLASSES))
            return made[-1]

        store = IrreducibleLossStore(torch.zeros(N))
        selector = fast_rho_loss(loader, make_net(0), proxy=make, store=store, keep=0.2)
        assert selector.store is store
        assert [selector.proxy] == made

    def test_the_model_itself_may_score(self, data, validation):
        training, holdout, held = split(data, holdout=200, validation=80, seed=0)
        model = make_net(0)
        selector = fast_rho_loss(DataLoader(training, batch_size=8), model, holdout, proxy="model", keep=0.25)
        assert type(selector) is RhoLossSelector
        assert selector.model is model
        assert selector.formula.max_irreducible_loss == pytest.approx(math.log(CLASSES))
        next(iter(selector))
        assert selector.cost().scored == 32
        measured = fast_rho_loss(DataLoader(training, batch_size=8), model, holdout, held, proxy="model", keep=0.25)
        assert type(measured.method) is RhoLossSelector
        with pytest.raises(TypeError, match="proxy must be a function that makes a network, 'model' or None, got 'small'"):
            fast_rho_loss(DataLoader(training, batch_size=8), model, holdout, proxy="small")

    def test_the_small_network_is_fitted_at_a_rate_that_rises_and_falls(self):
        rates = [up_and_down(20)(step) for step in range(21)]
        top = rates.index(1.0)
        assert rates[:top] == sorted(rates[:top])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert 0 < rates[0] < 0.2
        assert 0 < rates[19] < 0.1
        assert rates[20] == 0
        assert up_and_down(1)(0) == 1

    def test_is_the_same_from_the_same_seed_and_leaves_the_global_one(self, data):
        def run(seed):
            state = torch.get_rng_state()
            loader = DataLoader(data, batch_size=8)
            selector = fast_rho_loss(loader, make_net(0), keep=0.2, seed=seed)
            assert torch.equal(torch.get_rng_state(), state)
            return [selector.last.index.tolist() for _ in selector]

        assert run(1) == run(1) != run(2)

    def test_images_and_the_loaders_own_batches(self):
        x = torch.randn(200, 3, 16, 20)
        data = TensorDataset(x, torch.arange(200) % 3)

        def collate(examples):
            x, y = torch.utils.data.default_collate(examples)
            return {"image": x, "labels": y}

        def forward(model, batch):
            return model(batch["image"]), batch["labels"]

        model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
        loader = DataLoader(data, batch_size=4, collate_fn=collate)
        with pytest.raises(TypeError, match=r"at least 12 x 12 or vectors \(d,\), got shape \(\); pass proxy="):
            fast_rho_loss(loader, model, forward=forward)
        selector = fast_rho_loss(loader, model, forward=forward, proxy=lambda: small_network((3, 16, 20), 3))
        assert next(iter(selector))["image"].shape == (4, 3, 16, 20)

    def test_refuses_what_is_no_classifier(self):
        data = TensorDataset(torch.randn(64, 6), torch.randn(64))
        with pytest.raises(TypeError, match=r"classes \(n,\), got torch.float32 \(1,\) and torch.float32 \(1,\)"):
            fast_rho_loss(DataLoader(data, batch_size=8), nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)))

    def test_finds_the_wrong_labels(self, data, validation):
        noisy, wrong = with_wrong_labels(data, 0.4)
        x, _ = make_data(400, seed=9).tensors
        holdout = TensorDataset(x, x[:, :CLASSES].argmax(1))
        selector = fast_rho_loss(DataLoader(noisy, batch_size=8, drop_last=True), make_net(0), holdout, keep=0.2)
        share = torch.cat([wrong[selector.last.index].float() for _ in selector]).mean()
        assert share < 0.25

    def test_only_what_the_loader_may_draw_is_scored(self, data):
        sampler = torch.utils.data.SubsetRandomSampler(list(range(400)))
        holdout = torch.utils.data.Subset(data, range(400, 600))
        selector = fast_rho_loss(DataLoader(data, batch_size=8, sampler=sampler), make_net(0), holdout, keep=0.2)
        assert len(selector.store) == 400 or selector.store.coverage == 400 / N
        assert len(next(iter(selector))[1]) == 8

    def test_lists_of_batches_and_small_images_are_refused(self, data, loader):
        with pytest.raises(TypeError, match="must be datasets of examples, got lists of batches"):
            fast_rho_loss(loader, make_net(0), None, [data.tensors[0]], keep=0.2)
        images = TensorDataset(torch.randn(40, 1, 8, 8), torch.arange(40) % 2)
        with pytest.raises(TypeError, match=r"at least 12 x 12 .* got shape \(1, 8, 8\)"):
            fast_rho_loss(DataLoader(images, batch_size=4), nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))

    def test_small_networks_take_any_size(self):
        for shape in ((1, 28, 28), (3, 64, 48)):
            assert small_network(shape, 5)(torch.randn(2, *shape)).shape == (2, 5)
        assert small_network((7,), 5)(torch.randn(2, 7)).shape == (2, 5)
