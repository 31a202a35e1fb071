"""Chunks by default on a CPU: which batches are cut, that results change by rounding only, and what is scored whole."""

import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector, Selector
from rholoss.scoring import default_loss, rows_at_once

N = 240


class HardestSelector(Selector):
    def score(self, candidates):
        return candidates.loss


def network():
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 5))


def images(n=N):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 1, 8, 8, generator=generator), torch.randint(5, (n,), generator=generator))


class Counted:
    """A forward that remembers how many examples it was called with."""

    def __init__(self, outputs=lambda outputs: outputs):
        self.sizes, self.outputs = [], outputs

    def __call__(self, model, batch):
        self.sizes.append(len(batch[0]))
        return self.outputs(model(batch[0])), batch[1]


def sizes_of(model=None, data=None, kind=HardestSelector, **options):
    """Of three candidate batches of 80, the numbers of examples in each forward pass."""
    forward = options.pop("forward", Counted())
    loader = DataLoader(images() if data is None else data, batch_size=8)
    list(kind(loader, network() if model is None else model, keep=0.1, forward=forward, **options))
    return forward.sizes


CONVOLUTION, EMBEDDING, LINEAR = nn.Conv2d(3, 2, 3), nn.Embedding(9, 4), nn.Linear(64, 5)


@pytest.mark.parametrize(
    ("model", "batch", "rows"),
    [
        (CONVOLUTION, torch.zeros(320, 3, 32, 32), 20),
        (CONVOLUTION, torch.zeros(50, 3, 8, 8, dtype=torch.uint8), 17),  # in equal chunks
        (CONVOLUTION, torch.zeros(20, 3, 8, 8), None),
        (CONVOLUTION, torch.zeros(21, 3, 8, 8), 11),
        (CONVOLUTION, torch.zeros(32, 3, 128, 128), 8),
        (CONVOLUTION, torch.zeros(64, 3, 64, 64), 16),
        (LINEAR, torch.zeros(320, 3, 32, 32), None),
        (LINEAR, torch.zeros(320, 64), None),
        (nn.Conv1d(2, 2, 3), torch.zeros(320, 2, 500), 20),
        (EMBEDDING, torch.zeros(320, 32, dtype=torch.int64), 64),
        (EMBEDDING, torch.zeros(320, 128, dtype=torch.int64), 16),
        (EMBEDDING, torch.zeros(320, 31, dtype=torch.int64), None),
        (lambda x: x, torch.zeros(320, 3, 32, 32), None),
        (nn.LazyConv2d(2, 3), torch.zeros(320, 3, 32, 32), None),
    ],
)
def test_the_rule(model, batch, rows):
    assert rows_at_once(model, {"x": batch, "label": torch.zeros(len(batch)), "of all": 3}, len(batch)) == rows


def test_sharded_weights_and_accelerators_are_scored_whole():
    sharded = type("FSDPConv2d", (nn.Conv2d,), {"__module__": "torch.distributed.fsdp"})(3, 2, 3)
    batch = torch.zeros(320, 3, 32, 32)
    assert rows_at_once(nn.Sequential(CONVOLUTION, sharded), batch, 320) is None
    assert rows_at_once(nn.Conv2d(3, 2, 3, device="cuda"), batch, 320) is None if torch.cuda.is_available() else True


def test_chunks_are_checked_in_the_1st_and_the_2nd_pass():
    assert sizes_of() == [20] * 14  # three times 4, and 2 checks
    assert sizes_of(chunk_size=None) == [80, 80, 80]
    assert sizes_of(chunk_size=64) == [64] * 6
    assert sizes_of(mode="train") == [80, 80, 80]
    assert sizes_of(make_net(0), make_data(N)) == [80, 80, 80]


def contrasting(outputs, targets):
    """A loss that depends on the other rows."""
    return default_loss(outputs, targets) - default_loss(outputs, targets).mean()


@pytest.mark.parametrize(
    "options",
    [
        {"loss": contrasting},
        {"forward": Counted(lambda outputs: outputs + torch.randn_like(outputs))},
        {"forward": Counted(lambda outputs: outputs - outputs.mean(0))},
    ],
    ids=["a loss that compares rows", "random outputs", "outputs that depend on other rows"],
)
def test_what_is_not_the_same_in_chunks_is_scored_whole_with_the_results_of_one_pass(options):
    forward = options.get("forward", Counted())
    forward.sizes.clear()
    assert sizes_of(**{**options, "forward": forward}) == [20] * 5 + [80] * 3
    default, whole = (
        HardestSelector(DataLoader(images(), batch_size=8), network(), keep=0.1, **options, **more)
        for more in ({}, {"chunk_size": None})
    )
    for _ in zip(default, whole, strict=True):
        assert torch.equal(default.last.scores, whole.last.scores)


def test_outputs_that_cannot_be_joined_are_scored_whole():
    class Wrapped:
        def __init__(self, logits):
            self.logits = logits

    class Outputs(Selector):
        def score(self, candidates):
            return candidates.outputs.logits.sum(1)

    assert sizes_of(kind=Outputs, forward=Counted(Wrapped))[-2:] == [80, 80]


def test_outputs_whose_rows_are_not_the_examples_are_scored_whole():
    class Transposed(Selector):
        def score(self, candidates):
            assert candidates.outputs.shape == (5, 80)
            return candidates.outputs.sum(0)

    assert sizes_of(kind=Transposed, forward=Counted(torch.t))[-2:] == [80, 80]


def test_outputs_that_are_read_after_the_loss_take_no_second_pass():
    class Both(Selector):
        def score(self, candidates):
            loss = candidates.loss
            assert candidates.computed_pair is not None
            return loss + candidates.outputs.sum(1)

    assert sizes_of(kind=Both) == sizes_of()


def test_large_outputs_are_not_kept():
    def large(outputs):
        return outputs.repeat(1, 4000)

    class Held(Selector):
        def score(self, candidates):
            loss = candidates.loss
            assert candidates.computed_pair is None
            return loss

    assert sizes_of(kind=Held, forward=Counted(large))[-2:] == [20, 20]


def trained(seed, **options):
    """The sets that a run selects, with and without chunks beside each other."""
    data = images(960)
    store = IrreducibleLossStore(torch.rand(960, generator=torch.Generator().manual_seed(seed)))
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(seed))
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    selector = RhoLossSelector(loader, model, store, keep=0.1, **options)
    chosen = []
    for _ in range(3):
        for x, y in selector:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            chosen.append(set(selector.last.index.tolist()))
    return chosen, selector


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_selects_the_same_examples_as_in_one_pass(seed):
    torch.manual_seed(0)
    default, _ = trained(seed)
    torch.manual_seed(0)
    whole, _ = trained(seed, chunk_size=None)
    assert len(default) == 36
    assert default == whole


def test_a_state_is_that_of_any_chunk_size():
    _, default = trained(0)
    for other in (None, 7, "auto"):
        selector = RhoLossSelector(default.loader, default.model, default.store, keep=0.1, chunk_size=other)
        selector.load_state_dict(default.state_dict())
        assert selector.state_dict()["settings"] == default.state_dict()["settings"]


def test_a_label_that_is_none_is_named_by_its_index_in_every_chunk():
    data = images(80)
    data.tensors[1][57] = 9
    for size in ("auto", None, 30):
        with pytest.raises(ValueError, match="index 57"):
            next(iter(HardestSelector(DataLoader(data, batch_size=8), network(), keep=0.1, chunk_size=size)))


ORDERS = []  # whether the weights were in channels-last order, in each forward pass


class Watched(nn.Module):
    """Convolutions that note in which memory order their weights are."""

    def __init__(self, channels=4, out=4):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, out, 3, padding=1)
        self.last = nn.Linear(out * 64, 5)

    def forward(self, x):
        ORDERS.append(self.second.weight.is_contiguous(memory_format=torch.channels_last))
        return self.last(self.flat(self.second(self.first(x).relu())))

    def flat(self, x):
        return x.flatten(1)


class Viewed(Watched):
    """One that cannot go on from results in another memory order."""

    def flat(self, x):
        return x.view(len(x), -1)


class Broken(Watched):
    def flat(self, x):
        raise RuntimeError("the model's own")


def orders_of(model, keep=0.1, **options):
    """The order of each forward pass of one candidate batch of 80; the weights are as they were after it."""
    ORDERS.clear()
    own = [(weight, weight.data_ptr(), weight.stride(), weight.data.clone()) for weight in model.parameters()]
    list(HardestSelector(DataLoader(images(80), batch_size=8), model, keep=keep, **options))
    for (weight, pointer, strides, values), now in zip(own, model.parameters(), strict=True):
        assert now is weight
        assert (weight.data_ptr(), weight.stride()) == (pointer, strides)
        assert torch.equal(weight, values)
    return list(ORDERS)


class TestTheMemoryOrderOfWeights:
    def test_is_channels_last_in_chunks_by_default_and_as_it_is_in_the_check(self):
        assert orders_of(Watched()) == [True] * 4 + [False]

    @pytest.mark.parametrize("options", [{"chunk_size": 20}, {"chunk_size": None}, {"mode": "train"}, {"dtype": torch.bfloat16}])
    def test_stays_otherwise(self, options):
        assert not any(orders_of(Watched(), **options))

    def test_stays_under_autocast(self):
        with torch.autocast("cpu", torch.bfloat16):
            assert not any(orders_of(Watched()))

    def test_stays_for_a_model_that_cannot_go_on_from_another_and_it_is_scored_in_chunks_all_the_same(self):
        assert orders_of(Viewed()) == [True] + [False] * 5
        both = [HardestSelector(DataLoader(images(), batch_size=8), kind(), keep=0.1) for kind in (Watched, Viewed)]
        for _ in zip(*both, strict=True):
            torch.testing.assert_close(*(each.last.scores for each in both))

    def test_is_put_back_after_an_error(self):
        model = Broken()
        strides = model.second.weight.stride()
        with pytest.raises(RuntimeError, match="the model's own"):
            orders_of(model)
        assert model.second.weight.stride() == strides

    def test_stays_for_many_weights_and_for_compiled_networks(self):
        assert not any(orders_of(Watched(channels=1200, out=400)))
        model = Watched()
        model.first.compile(backend="eager")
        assert not any(orders_of(model))

    def test_a_pending_backward_pass_is_not_disturbed(self):
        x, y = images(8)[:]
        expected = Watched()
        nn.functional.cross_entropy(expected(x), y).backward()
        model = Watched()
        loss = nn.functional.cross_entropy(model(x), y)
        orders_of(model)
        loss.backward()
        for one, other in zip(expected.parameters(), model.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)
            assert one.grad.stride() == other.grad.stride()
