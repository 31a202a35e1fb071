"""What decides the losses that come out: work that was begun is resumed by the same job only."""

import pytest
import torch
from conftest import CLASSES
from torch import nn
from torch.utils.data import TensorDataset

from rholoss import (
    IndexedSubset,
    IrreducibleLossStore,
)


def constant(value):
    def loss(outputs, targets):
        return outputs.sum(1) * 0 + value

    loss.__qualname__ = "loss"
    return loss


class TestWhatMadeIt:
    """At a path, and where stores are merged, other functions of the same name are other functions."""

    def hooks(self, temperature):
        def forward(model, batch):
            return model(batch[0]) / temperature, batch[1]

        return forward

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            ({"loss": lambda z, y: z.sum(1) * 0 + 1}, {"loss": lambda z, y: z.sum(1) * 0 + 2}, "loss"),
            ({"loss": constant(1)}, {"loss": constant(2)}, "forward or loss function"),
            ({}, {"forward": lambda model, batch: (model(batch[0]), batch[1])}, "forward"),
        ],
    )
    def test_another_function_is_refused(self, data, net, tmp_path, first, second, message):
        IrreducibleLossStore.from_model(net, data, path=tmp_path / "il.npz", **first)
        before = (tmp_path / "il.npz").read_bytes()
        with pytest.raises(ValueError, match=f"exists already, made with other .*{message}"):
            IrreducibleLossStore.from_model(net, data, path=tmp_path / "il.npz", **second)
        assert (tmp_path / "il.npz").read_bytes() == before
        part = {name: IndexedSubset(data, rows) for name, rows in (("one", range(50)), ("other", range(50, 100)))}
        one = IrreducibleLossStore.from_model(net, part["one"], **first)
        with pytest.raises(ValueError, match=f"another {message}"):
            one.merge(IrreducibleLossStore.from_model(net, part["other"], **second))

    def test_what_a_function_closes_over_counts(self, data, net, tmp_path):
        path = tmp_path / "il.npz"
        store = IrreducibleLossStore.from_model(net, data, path=path, forward=self.hooks(0.5))
        assert torch.equal(store.losses, IrreducibleLossStore.from_model(net, data, path=path, forward=self.hooks(0.5)).losses)
        with pytest.raises(ValueError, match="made with other .*forward or loss function"):
            IrreducibleLossStore.from_model(net, data, path=path, forward=self.hooks(1.0))

    def test_another_callable_is_another_model(self, data, net, tmp_path):
        IrreducibleLossStore.from_model(lambda x: net(x), data, path=tmp_path / "il.npz")
        with pytest.raises(ValueError, match="made with other models"):
            IrreducibleLossStore.from_model(lambda x: net(x) * 3, data, path=tmp_path / "il.npz")

    def test_other_layers_with_the_same_weights_are_another_model(self, data, tmp_path):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        second = nn.Sequential(first[0], nn.Tanh(), first[2])
        IrreducibleLossStore.from_model(first, data, path=tmp_path / "il.npz")
        with pytest.raises(ValueError, match="made with other models"):
            IrreducibleLossStore.from_model(second, data, path=tmp_path / "il.npz")


def test_work_is_kept_a_sixteenth_at_a_time(data, net, tmp_path):
    def kill(done, total):
        if done == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        IrreducibleLossStore.from_model(net, data, batch_size=5, path=tmp_path / "il.npz", progress=kill)
    seen = []
    options = {"batch_size": 5, "progress": lambda done, total: seen.append(done)}
    IrreducibleLossStore.from_model(net, data, path=tmp_path / "il.npz", **options)
    assert seen[:2] == [10, 20]
    assert len(seen) < 20, "what was done is not done again"


def test_labels_that_do_not_count_are_no_wrong_predictions():
    x = 9 * torch.eye(4).repeat(50, 1) - 1
    y = x.argmax(1)
    y[::5] = -100
    store = IrreducibleLossStore.from_model(torch.nn.Identity(), TensorDataset(x, y))
    assert store.meta.calibration.accuracy == 1
    assert int(store.meta.calibration.bins[:, 0].sum()) == 160
