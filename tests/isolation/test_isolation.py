"""No side effects in the user's run: keep=1 is plain training bit for bit, and scoring puts everything back."""

import functools
import random
import threading
import time
import types

import numpy as np
import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector, Selector, build_selector
from rholoss.isolation import own_generators_kept, preserve_state


class HardestSelector(Selector):
    def score(self, candidates):
        return candidates.loss


def train(loader, model, epochs=2, optimizer_seed=1):
    torch.manual_seed(optimizer_seed)  # dropout and shuffling draw from here
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()]), torch.get_rng_state()


@pytest.mark.parametrize("method", ["uniform", "rho_loss", "bald"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_keeping_everything_is_plain_training_bit_for_bit(method, workers, drop_last):
    data = make_data(90)
    store = IrreducibleLossStore.from_model(make_net(9), data)

    def loader():
        return DataLoader(data, batch_size=16, shuffle=True, num_workers=workers, drop_last=drop_last)

    plain, plain_rng = train(loader(), make_net(0))
    model = make_net(0)
    mine, my_rng = train(build_selector(method, loader(), model, store=store, keep=1), model)
    assert torch.equal(plain, mine)
    assert torch.equal(plain_rng, my_rng)


def test_the_uniform_selector_at_the_same_batches_is_plain_training_bit_for_bit():
    data = make_data(96)
    model, plain_model = make_net(0), make_net(0)
    plain, _ = train(DataLoader(data, batch_size=16, shuffle=True), plain_model)
    selector = build_selector("uniform", DataLoader(data, batch_size=16, shuffle=True), model, batch_size=16)
    mine, _ = train(selector, model)
    assert torch.equal(plain, mine)


class Counting(nn.Module):
    """A module with everything that scoring could disturb."""

    def __init__(self):
        super().__init__()
        self.norm, self.frozen_norm = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.dropout, self.out = nn.Dropout(0.5), nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls = self.calls + 1  # a new tensor in the buffer's place
        return self.out(self.dropout(self.frozen_norm(self.norm(x))))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("method", ["train_loss", "bald"])
def test_scoring_leaves_modes_buffers_gradients_and_random_state_as_they_were(mode, method):
    model = Counting()
    model.train()
    model.frozen_norm.eval()
    model(torch.randn(8, 6)).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    calls = model.calls
    selector = build_selector(method, DataLoader(make_data(64), batch_size=8), model, keep=0.25, mode=mode)
    candidates = next(iter(selector.candidate_batches))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    selector.select(candidates)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True))
    assert model.calls is calls
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled()


def test_everything_is_put_back_also_when_scoring_fails():
    model = Counting().train()

    def forward(model, batch):
        model(batch[0])
        raise RuntimeError("out of memory")

    selector = HardestSelector(DataLoader(make_data(64), batch_size=8), model, forward=forward, mode="train")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of memory"):
        next(iter(selector))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_scoring_never_calls_train_or_eval_which_may_do_more_than_set_a_flag():
    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("train() was called")

    model = Merging(6, 4)
    next(iter(HardestSelector(DataLoader(make_data(64), batch_size=8), model)))
    assert model.training


class Guarded(nn.Linear):
    """Its mode is not a plain attribute."""

    @property
    def training(self):
        return self.mode

    @training.setter
    def training(self, flag):
        object.__setattr__(self, "mode", flag)


NOTED = []


class Noting(nn.Linear):
    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        NOTED.append((name, value))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_mode_is_set_in_the_way_of_its_module():
    model = nn.Sequential(Guarded(4, 4), Noting(4, 4), torch.jit.script(nn.Dropout(0.5)), nn.Dropout(0.5))
    with preserve_state(model, None):
        assert [module.training for module in model] == [False] * 4
        assert NOTED[-1] == ("training", False)
        assert torch.equal(model[2](torch.ones(9)), torch.ones(9))
    assert [module.training for module in model] == [True] * 4
    assert NOTED[-1] == ("training", True)


def test_eval_mode_scores_with_running_statistics_and_without_dropout():
    model = make_net(0).train()
    data = make_data(32)
    model(data.tensors[0])  # running statistics
    selector = HardestSelector(DataLoader(data, batch_size=8), model, keep=0.25)
    next(iter(selector))
    model.eval()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1], reduction="none")
    torch.testing.assert_close(selector.last.scores, expected)


def test_train_mode_scores_with_the_batch_statistics_and_leaves_a_frozen_norm_frozen():
    model = make_net(0).train()
    model[3].p = 0.0
    data = make_data(32)
    selector = HardestSelector(DataLoader(data, batch_size=8), model, keep=0.25, mode="train")
    next(iter(selector))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1], reduction="none")
    torch.testing.assert_close(selector.last.scores, expected)


def test_selecting_inside_autocast_does_not_cut_the_gradient_of_the_training_step():
    model = nn.Linear(6, 4)
    selector = HardestSelector(DataLoader(make_data(64), batch_size=8), model)
    candidates = next(iter(selector.candidate_batches))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, y = selector.select(candidates)
        nn.functional.cross_entropy(model(x), y).backward()
    assert model.weight.grad is not None
    assert model.weight.grad.abs().sum() > 0


def test_scoring_under_an_autocast_dtype_runs_the_model_in_it():
    seen = []

    class Watching(nn.Linear):
        def forward(self, x):
            outputs = super().forward(x)
            seen.append(outputs.dtype)
            return outputs

    selector = HardestSelector(DataLoader(make_data(64), batch_size=8), Watching(6, 4), dtype=torch.bfloat16)
    next(iter(selector))
    assert seen == [torch.bfloat16]
    assert selector.last.scores.dtype == torch.float32


def test_what_is_not_read_is_not_computed():
    class Untouchable(nn.Module):
        def forward(self, x):
            raise AssertionError("forward was called")

    data = make_data(64)
    store = IrreducibleLossStore(torch.zeros(64))
    for method in ("uniform", "irreducible_loss"):
        list(build_selector(method, DataLoader(data, batch_size=8), Untouchable(), store=store))
        list(build_selector(method, DataLoader(data, batch_size=8), store=store))


def test_the_model_runs_once_for_outputs_and_loss_together():
    calls = []

    class Both(Selector):
        def score(self, candidates):
            assert candidates.outputs.shape == (32, 4)
            assert candidates.targets.shape == (32,)
            return candidates.loss + candidates.outputs.sum(1) + candidates.loss

    def forward(model, batch):
        calls.append(len(batch[0]))
        return model(batch[0]), batch[1]

    for chunk_size, expected in ((None, [32]), (10, [10] * 4)):
        calls.clear()
        next(iter(Both(DataLoader(make_data(64), batch_size=8), make_net(0), keep=0.25, forward=forward, chunk_size=chunk_size)))
        assert calls == expected


@pytest.mark.parametrize("chunk_size", [1, 7, 31, 32, 33])
def test_chunks_change_memory_and_not_the_scores(chunk_size):
    data, model = make_data(64), make_net(0)
    store = IrreducibleLossStore.from_model(make_net(1), data)
    whole = RhoLossSelector(DataLoader(data, batch_size=8), model, store, keep=0.25)
    chunked = RhoLossSelector(DataLoader(data, batch_size=8), model, store, keep=0.25, chunk_size=chunk_size)
    next(iter(whole)), next(iter(chunked))
    torch.testing.assert_close(whole.last.scores, chunked.last.scores)
    assert torch.equal(whole.last.index, chunked.last.index)


def test_every_chunk_has_one_shape_so_that_a_compiled_model_compiles_once():
    shapes = []

    def forward(model, batch):
        shapes.append(tuple(batch[0].shape))
        return model(batch[0]), batch[1]

    next(iter(HardestSelector(DataLoader(make_data(64), batch_size=8), make_net(0), keep=0.25, chunk_size=12, forward=forward)))
    assert shapes == [(12, 6)] * 3


def test_a_compiled_model_compiles_once_to_be_scored_and_once_to_be_trained():
    compiled = []

    def backend(graph, inputs):
        compiled.append(torch.is_grad_enabled())
        return graph.forward

    model = torch.compile(make_net(0), backend=backend)
    selector = HardestSelector(DataLoader(make_data(88), batch_size=8, shuffle=True), model, keep=0.25, chunk_size=12)
    for _ in range(2):
        assert [len(selector.last.candidate_index) for x, _ in selector if model(x).sum().backward() is None] == [32, 32, 24]
    assert compiled == [False, True]


def test_a_gradient_scaler_and_autocast_leave_the_choice_as_it_is_and_are_left_as_they_are():
    chosen, weights = [], []
    for enabled in (False, True):
        model = make_net(0)
        scaler, optimizer = (
            torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled),
            torch.optim.SGD(model.parameters(), 0.1),
        )
        selector = HardestSelector(DataLoader(make_data(64), batch_size=8), model, keep=0.25, dtype=torch.bfloat16)
        torch.manual_seed(2)
        for x, y in selector:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            chosen.append(selector.last.index.tolist())
        weights.append([parameter.detach() for parameter in model.parameters()])
        assert scaler.get_scale() == (1024 if enabled else 1)
    assert chosen[:2] == chosen[2:]
    assert all(map(torch.equal, *weights))


def test_nothing_yielded_or_kept_carries_a_gradient():
    selector = HardestSelector(DataLoader(make_data(64), batch_size=8), make_net(0))
    x, _ = next(iter(selector))
    assert not x.requires_grad
    assert not selector.last.scores.requires_grad


def test_a_selector_iterated_inside_no_grad_gives_grad_mode_back():
    with torch.no_grad():
        next(iter(HardestSelector(DataLoader(make_data(64), batch_size=8), make_net(0))))
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_untouched_takes_any_callable_for_a_model():
    with preserve_state(lambda x: x, None):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel], ids=["itself", "wrapped"])
def test_threads_that_score_one_model_take_turns_and_leave_it_in_its_mode(wrap):
    model, inside, most = make_net(0), [], []
    other = wrap(model)

    def score(scored):
        for _ in range(20):
            with preserve_state(scored, None), preserve_state(scored, None):
                inside.append(1)
                time.sleep(0.0005)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=score, args=(scored,)) for scored in (model, other, model)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert all(module.training for module in other.modules())


def test_threads_that_score_different_models_do_not_wait_for_each_other():
    meet = threading.Barrier(2, timeout=20)

    def score(model):
        with preserve_state(model, None):
            meet.wait()

    threads = [threading.Thread(target=score, args=(make_net(0),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not meet.broken


def test_generators_that_an_object_holds_are_put_back_also_those_of_what_it_holds():
    generators = {
        "torch": torch.Generator().manual_seed(1),
        "numpy": np.random.default_rng(1),
        "old": np.random.RandomState(1),
        "python": random.Random(1),
    }

    def draw():
        numbers = torch.rand(1, generator=generators["torch"]).item(), generators["numpy"].random()
        return [*numbers, generators["old"].rand(), generators["python"].random()]

    holder = types.SimpleNamespace(transform=[types.SimpleNamespace(rng=generators)])
    holder.itself = holder
    with own_generators_kept(holder):
        first = draw()
    assert draw() == first


def test_a_partial_of_a_model_is_scored_in_eval_mode_and_left_in_train_mode():
    model = make_net(0).train()
    selector = HardestSelector(DataLoader(make_data(16), batch_size=8), functools.partial(model), keep=0.5)
    x, y = make_data(16).tensors
    next(iter(selector))
    assert model.training
    with torch.no_grad():
        torch.testing.assert_close(selector.last.scores, nn.functional.cross_entropy(model.eval()(x), y, reduction="none"))
