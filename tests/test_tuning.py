"""Timing the options for scoring: what is timed, what comes out, and that nothing of the run changes."""

import random

import numpy as np
import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector, build_selector
from rholoss.selectors import UniformSelector
from rholoss.tuning import Tuning


class Augmented(Dataset):
    """Images with noise from generators of all kinds, one of its own among them."""

    def __init__(self, n):
        self.x, self.y = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 4
        self.generator = torch.Generator().manual_seed(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        noise = torch.randn(1, generator=self.generator) + torch.randn(1) + random.random() + float(np.random.rand())  # noqa: NPY002
        return self.x[i] + noise, self.y[i]


def made(keep=0.1, **options):
    """A selector over augmented images, its model in train mode, after one step."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 4)]
    loader = DataLoader(Augmented(640), batch_size=8, shuffle=True)
    return RhoLossSelector(loader, nn.Sequential(*layers).train(), IrreducibleLossStore(torch.rand(640)), keep=keep, **options)


def seen(selector):
    """All that a run depends on: tensors, and what is compared by ``==``."""
    model = {name: value.clone() for name, value in selector.model.state_dict().items()}
    generators = [torch.get_rng_state(), selector.dataset.generator.get_state(), selector.generator.get_state()]
    modes = [module.training for module in selector.model.modules()]
    strides = [weight.stride() for weight in selector.model.parameters()]
    others = random.getstate(), np.random.get_state()[1:3]  # noqa: NPY002
    return [model, generators], [modes, strides, selector.scorer.passes.copy(), str(others)]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_run_goes_on_as_if_nothing_had_been_timed(mode):
    picks = []
    for tunes in (False, True):
        selector = made(mode=mode)
        batches = iter(selector)
        next(batches)
        before, state = seen(selector), selector.state_dict()
        if tunes:
            selector.tune()
            (tensors, others), (tensors_before, others_before) = seen(selector), before
            torch.testing.assert_close(tensors, tensors_before, rtol=0, atol=0)
            assert others == others_before
            assert str(selector.state_dict()) == str(state)
        picks.append([(x, selector.last.index) for x, _ in batches])
    torch.testing.assert_close(*picks, rtol=0, atol=0)


def test_what_is_timed_is_named_by_the_arguments_to_pass():
    tuning = made().tune()
    assert list(tuning.seconds)[:4] == ["as it is", "chunk_size=None", "chunk_size=16", "chunk_size=64"]
    assert [name.split(", chunk_size")[0] for name in list(tuning.seconds)[4:]] == [
        "dtype=torch.bfloat16",
        "forward=forwards.channels_last()",
        "forward=forwards.channels_last(), dtype=torch.bfloat16",
    ]
    assert tuning.n == 80
    assert tuning.same.keys() == tuning.seconds.keys() == tuning.choices.keys()
    assert tuning.same["chunk_size=16"] == 1
    assert all(seconds > 0 for seconds in tuning.seconds.values())
    for options in tuning.choices.values():
        next(iter(made(**options)))


def test_a_batch_may_be_given_and_has_to_be_for_streams():
    data = make_data(64)

    class Stream(IterableDataset):
        def __iter__(self):
            return ((x, y, i) for i, (x, y) in enumerate(data))

    loader = IndexedBatches(DataLoader(Stream(), batch_size=32), index=2)
    forward = lambda model, batch: (model(batch[0]), batch[1])  # noqa: E731
    selector = build_selector("train_loss", loader, make_net(0), batch_size=8, forward=forward)
    with pytest.raises(TypeError, match="tune.. cannot read a stream twice; pass it a candidate batch"):
        selector.tune()
    assert selector.tune((torch.arange(20), data[:20])).n == 20
    assert selector.tune(next(iter(selector.candidate_batches))).n == 32


def test_vectors_are_timed_without_orders_of_images():
    selector = build_selector("train_loss", DataLoader(make_data(64), batch_size=8), make_net(0), keep=0.5, chunk_size=None)
    assert not any("channels_last" in name for name in selector.tune().seconds)


@pytest.mark.parametrize("kind", ["a bound method", "a function"])
def test_a_model_may_be_any_callable(kind):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 4))
    model = net.forward if kind == "a bound method" else lambda x: net(x)
    seconds = build_selector("train_loss", DataLoader(Augmented(64), batch_size=8), model, keep=0.5).tune().seconds
    assert any("channels_last" in name for name in seconds) == (kind == "a bound method")
    assert net[0].weight.is_contiguous()


def test_a_selector_without_a_model_has_nothing_to_time():
    loader = DataLoader(TensorDataset(torch.zeros(32, 2)), batch_size=4)
    with pytest.raises(ValueError, match="this selector has no model; pass it as the second argument"):
        UniformSelector(loader).tune()


def tuning(**seconds):
    names = {"own": "as it is", "none": "chunk_size=None", "last": "forward=forwards.channels_last()"}
    choices = {"own": {}, "none": {"chunk_size": None}, "last": {"forward": len}}
    return Tuning(
        320,
        {names[name]: value for name, value in seconds.items()},
        {names[name]: 1.0 for name in seconds},
        {names[name]: choices[name] for name in seconds},
    )


def test_the_fastest_is_named_if_it_gains_5_percent():
    assert tuning(own=1.0, none=0.96).options == {}
    assert str(tuning(own=1.0, none=0.96)).endswith("no option is 5 % faster")
    assert tuning(own=1.0, none=0.94).options == {"chunk_size": None}
    text = str(tuning(own=0.2, none=0.15, last=0.1))
    assert "320 candidates" in text
    assert "chunk_size=None                        150 ms   0.75x  100%" in text
    assert text.endswith(
        "pass forward=forwards.channels_last() to the selector, after model.to(memory_format=torch.channels_last)"
    )
