"""Cheaper forward passes: smaller inputs, first layers."""

import copy

import pytest
import torch
from conftest import make_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import build_selector, forwards
from rholoss.selectors import ProxyRhoLossSelector


class TestSmallerInputs:
    def test_images_are_scored_at_a_lower_resolution_and_handed_back_whole(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        seen = []
        net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
        data = TensorDataset(torch.randn(40, 3, 8, 8), torch.randint(4, (40,)))
        selector = build_selector(
            "train_loss", DataLoader(data, batch_size=4), net, forward=forwards.lower_resolution(0.5), keep=0.25
        )
        x, _ = next(iter(selector))
        assert seen == [(16, 3, 4, 4)]
        assert x.shape == (4, 3, 8, 8)

    def test_the_mean_of_each_square_is_what_is_left(self):
        x = torch.arange(16.0).reshape(1, 1, 4, 4)
        outputs, _ = forwards.lower_resolution(0.5)(lambda x: x, (x, torch.zeros(1)))
        assert outputs.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]

    def test_sequences_are_cut_and_labels_of_sentences_are_not(self):
        batch = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6).bool(), "labels": torch.ones(2)}
        seen = {}

        def model(**inputs):
            seen.update(inputs)
            return inputs["input_ids"]

        outputs, labels = forwards.shorter(4)(model, batch)
        assert outputs.tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
        assert seen["attention_mask"].shape == (2, 4)
        assert labels.shape == (2,)

    def test_the_order_in_memory_changes_no_value(self):
        x = torch.randn(2, 3, 4, 5)
        outputs, _ = forwards.channels_last()(lambda x: x, (x, torch.zeros(2)))
        assert outputs.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(outputs, x)

    def test_one_hook_may_hand_over_to_another(self):
        def forward(model, batch):
            return model(batch["image"]), batch["class"]

        batch = {"image": torch.ones(2, 1, 8, 8), "class": torch.zeros(2)}
        chained = forwards.lower_resolution(0.5, forwards.channels_last(forward))
        assert chained(lambda x: x, batch)[0].shape == (2, 1, 4, 4)
        assert batch["image"].shape == (2, 1, 8, 8)

    def test_a_compiled_forward_pass_is_the_same_to_the_last_bits(self, loader):
        forward = forwards.compiled(backend="eager")
        one, other = (build_selector("train_loss", loader, make_net(0), forward=f, chunk_size=16) for f in (None, forward))
        for _ in zip(one, other, strict=True):
            torch.testing.assert_close(one.last.scores, other.last.scores)

    @pytest.mark.parametrize(
        ("make", "value"), [(forwards.lower_resolution, 0), (forwards.lower_resolution, 2), (forwards.shorter, 0)]
    )
    def test_refuses_what_is_out_of_range(self, make, value):
        with pytest.raises(ValueError, match=f"must be .*, got {value}"):
            make(value)


class TestShallowExit:
    def test_scores_through_the_first_layers_and_trains_the_head_alone(self, loader, store):
        model = make_net(0)
        proxy = forwards.ShallowExit(model[:3], nn.Linear(16, 4))
        optimizer = torch.optim.SGD(proxy.head.parameters(), lr=0.1)
        before, head = copy.deepcopy(model.state_dict()), copy.deepcopy(proxy.head.state_dict())
        selector = ProxyRhoLossSelector(loader, model, store, proxy, proxy_optimizer=optimizer, keep=0.25)
        next(iter(selector))
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert model.training
        assert not torch.equal(proxy.head.weight, head["weight"])

    def test_follows_the_network(self, loader, store):
        model = make_net(0)
        proxy = forwards.ShallowExit(model[:3], nn.Linear(16, 4))
        x = torch.randn(5, 6)
        before = proxy.eval()(x)
        with torch.no_grad():
            model[0].weight.mul_(2)
        assert not torch.allclose(proxy(x), before)
