"""A state says what made it: it loads into its like, whole, or it is refused and nothing has changed."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SubsetRandomSampler, TensorDataset

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector, Selector, build_selector, functional, selector_names
from rholoss.diagnostics import ComparisonLog, SelectionLog
from rholoss.schedules import Linear
from rholoss.selectors import (
    BoltzmannRhoLossSelector,
    OnlineRhoLossSelector,
    TrainLossSelector,
    UniformSelector,
)
from rholoss.states import described, different, flat
from rholoss.wrappers import GlobalSelector, KeepScheduleSelector, PayoffGatedSelector, StaleSelector, SwitchSelector

N, FEATURES, CLASSES = 48, 5, 3


def examples(seed=0, n=N):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, FEATURES, generator=generator), torch.randint(CLASSES, (n,), generator=generator))


def shuffled(dataset=None, **options):
    generator = torch.Generator().manual_seed(5)
    return DataLoader(dataset or examples(), **{"batch_size": 4, "shuffle": True, "generator": generator, **options})


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.2), nn.Linear(8, CLASSES))


def losses(seed=1):
    return IrreducibleLossStore(torch.rand(N, generator=torch.Generator().manual_seed(seed)))


def method(name, loader=None, **options):
    given = {"store": losses(), "proxy": net(2), "irreducible_model": net(1), "keep": 0.5}
    more = {"from_step": 1} if name == "rho_loss_then_uniform" else {}
    return build_selector(name, loader or shuffled(), net(), **{**given, **more, **options})


def online(loader=None):
    loader, other = loader or shuffled(), net(1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    return OnlineRhoLossSelector(loader, net(), other, irreducible_optimizer=optimizer, keep=0.5)


def wrapped(build):
    loader, model = shuffled(), net()
    return build(loader, model, RhoLossSelector(loader, model, losses(), keep=0.5))


WRAPPERS = {
    "switch": lambda: wrapped(lambda b, m, part: SwitchSelector(b, m, {0: part, 1: UniformSelector(b)}, unit="step", keep=0.5)),
    "stale": lambda: wrapped(lambda b, m, part: StaleSelector(b, m, part, keep=0.5)),
    "keep schedule": lambda: wrapped(lambda b, m, part: KeepScheduleSelector(b, m, part, Linear(0.5, 1.0, 3), keep=0.5)),
    "payoff gate": lambda: wrapped(
        lambda b, m, part: PayoffGatedSelector(b, m, part, examples(3), every=1, batches=2, cost=2.0, keep=0.5)
    ),
    "global": lambda: wrapped(lambda b, m, part: GlobalSelector(b, m, part, keep=0.5)),
    "co-training": online,
}
EVERY = {**{name: functools.partial(method, name) for name in selector_names()}, **WRAPPERS}


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    """One rank, for the global selector."""
    where = f"file://{tmp_path_factory.mktemp('ranks')}/meet"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def same(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def begun(selector, steps=2):
    """An iteration after some steps, in mid-epoch."""
    batches = iter(selector)
    for _ in range(steps):
        x, _ = next(batches)
        selector.record_losses(x[:, 0].abs())
    return batches


def after(selector, steps=2):
    """The state after some steps."""
    batches = begun(selector, steps)
    state = selector.state_dict()
    batches.close()
    return state


def refused(selector, state, **options):
    """The words with which a state is refused; the selector does not change."""
    before = selector.state_dict()
    with pytest.raises(ValueError, match=r"^this state .*; ") as caught:
        selector.load_state_dict(state, **options)
    assert same(selector.state_dict(), before)
    return str(caught.value)


# What a state may hold in place of what was saved.
HARMLESS = {
    *(("loader", name, "None") for name in ("position", "told", "labels", "N")),
    *(("extra", name, "None") for name in ("subset_of", "weights")),
    *(("extra", name, "shorter") for name in ("history", "gains", "_worth")),
}


def mutations(value):
    yield "None", None
    yield "a word", "word"
    yield "a negative number", -7
    if isinstance(value, torch.Tensor):
        yield "another dtype", value.to(torch.float16)
    if isinstance(value, (torch.Tensor, list)) and len(value if isinstance(value, list) else value.flatten()):
        yield "shorter", value.flatten()[:-1] if isinstance(value, torch.Tensor) else value[:-1]
    if isinstance(value, dict):
        yield "empty", {} if value else {"more": 1}


def damaged(state):
    """The same state with one entry missing, or another in its place, each with the names of what was done."""
    for part in (None, "loader", "extra", "settings"):
        entries = state if part is None else state[part]
        for name, value in entries.items():
            for what, other in [("gone", None), *mutations(value)]:
                changed = {key: each for key, each in entries.items() if what != "gone" or key != name}
                changed |= {} if what == "gone" else {name: other}
                if what == "gone" or not same(other, value):
                    yield (part, name, what), changed if part is None else {**state, part: changed}


@pytest.mark.parametrize("name", EVERY)
def test_a_damaged_state_is_refused_in_words_and_changes_nothing(name):
    state = after(EVERY[name]())
    selector = EVERY[name]()
    batches = begun(selector, 1)
    for what, other in damaged(state):
        if what not in HARMLESS:
            try:
                refused(selector, other)
            except BaseException as error:
                raise AssertionError(f"{what}: {error}") from error
    assert len(batches_left := list(batches)) == len(selector) - 1, batches_left
    selector.load_state_dict(state)
    assert same(selector.state_dict(), state)


# A state of another run.


def squared(outputs, targets):
    return (outputs[:, 0] - targets).square()


def times(k):
    return lambda outputs, targets: k * squared(outputs, targets)


def rho(loader=None, store=None, **options):
    return RhoLossSelector(loader or shuffled(), net(), store or losses(), **{"keep": 0.5, **options})


def boltzmann(temperature):
    return BoltzmannRhoLossSelector(shuffled(), net(), losses(), temperature=temperature, keep=0.5)


def subset(indices):
    sampler = SubsetRandomSampler(indices, generator=torch.Generator().manual_seed(5))
    return shuffled(shuffle=None, sampler=sampler)


OTHERS = {
    "store": (rho, lambda: rho(store=losses(2)), "store"),
    "ids": (rho, lambda: rho(store=IrreducibleLossStore(losses().losses, ids=range(N))), "store"),
    "gate": (rho, lambda: rho(max_irreducible_loss=0.5), "max_irreducible_loss"),
    "another gate": (lambda: rho(max_irreducible_loss=0.4), lambda: rho(max_irreducible_loss=0.5), "max_irreducible_loss"),
    "bounded": (rho, lambda: rho(bounded=True), "bounded"),
    "mode": (rho, lambda: rho(mode="train"), "mode"),
    "loss": (rho, lambda: rho(loss=squared), "loss"),
    "lambda": (lambda: rho(loss=lambda o, t: 1 * squared(o, t)), lambda: rho(loss=lambda o, t: 2 * squared(o, t)), "loss"),
    "closure": (lambda: rho(loss=times(1)), lambda: rho(loss=times(2)), "loss"),
    "loss module": (
        lambda: rho(loss=nn.CrossEntropyLoss(reduction="none")),
        lambda: rho(loss=nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)),
        "loss",
    ),
    "forward": (rho, lambda: rho(forward=lambda model, batch: (model(batch[0]), batch[1])), "forward"),
    "dtype": (rho, lambda: rho(dtype=torch.bfloat16), "dtype"),
    "seed": (rho, lambda: rho(seed=1), "seed"),
    "n_b": (rho, lambda: rho(shuffled(batch_size=3)), "n_b"),
    "keep": (rho, lambda: rho(keep=0.25), "n_B"),
    "batch_size": (rho, lambda: rho(shuffled(batch_size=8), keep=None, batch_size=4), "redraws"),
    "drop_last": (rho, lambda: rho(drop_last=True), "drop_last"),
    "sampler": (rho, lambda: rho(shuffled(shuffle=False)), "loader"),
    "replacement": (
        rho,
        lambda: rho(shuffled(shuffle=None, sampler=RandomSampler(range(N), replacement=True))),
        "loader[1].replacement",
    ),
    "subset": (lambda: rho(subset(range(24))), lambda: rho(subset(range(24, 48))), "loader[1].indices"),
    "temperature": (lambda: boltzmann(1.0), lambda: boltzmann(2.0), "temperature"),
    "schedule": (lambda: boltzmann(Linear(2.0, 1.0, 9)), lambda: boltzmann(Linear(2.0, 1.5, 9)), "temperature.end"),
    "a method's number": (
        functools.partial(method, "prefiltered_rho_loss", share=0.5),
        functools.partial(method, "prefiltered_rho_loss", share=0.75),
        "share",
    ),
    "a share of an epoch": (
        functools.partial(method, "repeated_random_subset", keep=0.5),
        functools.partial(method, "repeated_random_subset", keep=0.25),
        "share",
    ),
    "a part's option": (
        lambda: wrapped(lambda b, m, part: StaleSelector(b, m, part, keep=0.5)),
        lambda: wrapped(
            lambda b, m, part: StaleSelector(b, m, RhoLossSelector(b, m, losses(), bounded=True, keep=0.5), keep=0.5)
        ),
        "parts[0].bounded",
    ),
    "a part's store": (
        lambda: wrapped(lambda b, m, part: StaleSelector(b, m, RhoLossSelector(b, m, losses(1)), keep=0.5)),
        lambda: wrapped(lambda b, m, part: StaleSelector(b, m, RhoLossSelector(b, m, losses(2)), keep=0.5)),
        "parts[0].store",
    ),
    "another schedule": (
        lambda: wrapped(lambda b, m, part: KeepScheduleSelector(b, m, part, Linear(0.5, 1.0, 3), keep=0.5)),
        lambda: wrapped(lambda b, m, part: KeepScheduleSelector(b, m, part, Linear(0.5, 1.0, 4), keep=0.5)),
        "schedule.steps",
    ),
    "the model of a method": (
        lambda: method("proxy_rho_loss"),
        lambda: method("proxy_rho_loss", proxy=nn.Linear(FEATURES, CLASSES)),
        "proxy",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_state_of_another_run_is_refused_by_name_and_loads_where_that_may_differ(what):
    build, other, place = OTHERS[what]
    state = after(build())
    message = refused(other(), state)
    name = place.split(".")[-1] if place.startswith("parts") else place.split(".")[0].split("[")[0]
    assert f"this state cannot be loaded: expected {place}" in message
    assert f"build the selector as it was, or pass allow=['{name}']" in message
    build().load_state_dict(state)
    selector, allow = other(), [name, "loader"] if what == "batch_size" else [name]
    if name == "n_b":
        allow.append("n_B")
    selector.load_state_dict(state, allow=allow)
    assert selector.step == 2
    if name in ("n_b", "n_B", "redraws", "drop_last", "loader"):
        assert f"allow=['{name}'] to load the state all the same, from the next epoch on" in message
        assert selector.next_epoch == 1
        assert len(list(selector)) == len(selector)
    else:
        assert selector.next_epoch == 0
        assert len(list(selector)) == len(selector) - 2


@pytest.mark.parametrize("labels", [examples(7).tensors[1], torch.cat([examples().tensors[1]] * 2)], ids=["other", "more"])
def test_a_state_in_mid_epoch_of_other_data_is_refused_also_without_a_store(labels):
    state = after(TrainLossSelector(shuffled(), net(), keep=0.5))
    other = TensorDataset(torch.zeros(len(labels), FEATURES), labels)
    selector = TrainLossSelector(shuffled(other), net(), keep=0.5)
    assert "saved in mid-epoch over a dataset" in refused(selector, state)
    selector.load_state_dict(state, allow="data")
    assert (selector.next_epoch, len(list(selector))) == (1, len(selector))


def test_what_decides_nothing_may_differ():
    state = after(rho(loss=times(2), chunk_size=4))
    store = IrreducibleLossStore(losses().losses.flip(0).flip(0))
    other = rho(shuffled(num_workers=1), store, loss=times(2), chunk_size=3, device="cpu", max_irreducible_loss=None)
    other.load_state_dict(state)
    assert other.step == 2


class CountsCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, outputs, targets):
        self.calls += 1
        return nn.functional.cross_entropy(outputs, targets, reduction="none")


def counting():
    calls = 0

    def forward(model, batch):
        nonlocal calls
        calls += 1
        return model(batch[0]), batch[1]

    return forward


@pytest.mark.parametrize("hooks", [lambda: {"loss": CountsCalls()}, lambda: {"forward": counting()}], ids=["loss", "forward"])
def test_a_loss_or_a_forward_that_counts_its_calls_is_the_same_when_a_run_resumes(hooks):
    first, second = (RhoLossSelector(shuffled(), net(), losses(), keep=0.5, **hooks()) for _ in range(2))
    batches = iter(first)
    next(batches)
    second.load_state_dict(first.state_dict())
    assert len(list(second)) == len(list(batches)) == N // 8 - 1


def test_a_mapped_store_is_the_same_store(tmp_path):
    losses().save(tmp_path / "mapped", mapped=True)
    mapped = IrreducibleLossStore.load(tmp_path / "mapped")
    assert mapped.is_mapped
    assert mapped.digest == losses().digest == losses().to("cpu").digest != losses(2).digest
    state = after(rho())
    rho(store=mapped).load_state_dict(state)


class Stream(IterableDataset):
    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        first, by = (0, 1) if info is None else (info.id, info.num_workers)
        return iter([(i, torch.zeros(FEATURES), i % CLASSES) for i in range(first, N, by)])


def test_a_stream_read_by_other_workers_is_another_order_and_refused():
    def make(workers):
        return UniformSelector(IndexedBatches(DataLoader(Stream(), 8, num_workers=workers), index=0), batch_size=4)

    state = make(0).state_dict()
    assert "expected loader[0] = 'stream of 2 workers', got 'stream of 0 workers'" in refused(make(2), state)


def test_names_that_may_differ_are_names_of_settings():
    with pytest.raises(ValueError, match=r"allow must name settings that may differ, from \['bounded', 'data', .*\['size'\]"):
        rho().load_state_dict(after(rho()), allow=["size"])


def test_a_method_of_ones_own_that_fails_half_way_is_put_back():
    class Own(Selector):
        def __init__(self, loader, model=None, strength=1.0, **options):
            super().__init__(loader, model, **options)
            self.one, self.two = 0, torch.zeros(2)

        def score(self, candidates):
            return candidates.rand()

        def extra_state(self):
            return {"one": self.one, "two": self.two}

        def load_extra_state(self, state):
            self.one = state["one"]
            self.two = self.two + (1 / 0 if self.one else 0)

    selector = Own(shuffled(), keep=0.5)
    state = {**selector.state_dict(), "step": 7}
    state["extra"]["one"] = 5
    with pytest.raises(ValueError, match=r"this state cannot be loaded \(ZeroDivisionError.*; pass what state_dict"):
        selector.load_state_dict(state)
    assert (selector.step, selector.one) == (0, 0)
    assert selector.settings()["strength"] == 1.0
    assert Own(shuffled(), None, 2.0, keep=0.5).settings()["strength"] == 2.0


# Logs.


def log_of(kind):
    selector = rho()
    if kind == "comparison":
        other = TrainLossSelector(selector.loader, selector.model)
        log = ComparisonLog({"train_loss": other}, lambda: SelectionLog(N), every=1).attach(selector)
    else:
        log = SelectionLog(N, {"even": torch.arange(N) % 2 == 0}, ids=range(N), correct=True).attach(selector)
    begun(selector)
    return log


@pytest.mark.parametrize("load", ["load_state_dict", "merge"])
@pytest.mark.parametrize("kind", ["selection", "comparison"])
def test_a_damaged_log_is_refused_in_words_and_changes_nothing(kind, load):
    log = log_of(kind)
    state = log.state_dict()
    for name, value in state.items():
        for what, other in [("gone", None), *mutations(value)]:
            changed = {key: each for key, each in state.items() if what != "gone" or key != name}
            changed |= {} if what == "gone" else {name: other}
            if (name, what) in {("notes", "empty"), ("uniform_overlap", "a negative number")}:
                continue
            try:
                with pytest.raises(ValueError, match="this state cannot be loaded"):
                    getattr(log, load)(changed)
                assert same(log.state_dict(), state)
            except BaseException as error:
                raise AssertionError(f"{name}, {what}: {error}") from error
    getattr(log, load)(state)
    assert log.summary()["batches"] == (2 if load == "load_state_dict" else 4)


# How values are described.


def test_settings_differ_by_place():
    one, other = {"a": {"b": [1, 2]}, "c": 1}, {"a": {"b": [1, 3]}, "d": None}
    assert flat(one) == {"a.b[0]": 1, "a.b[1]": 2, "c": 1}
    assert different(one, other) == {"a.b[1]": (2, 3), "c": (1, "nothing"), "d": ("nothing", None)}


def holding(weight):
    return lambda outputs: outputs * weight


def by_default(factor):
    return lambda outputs, *, factor=factor: outputs * factor


def test_what_is_alike_is_described_alike_and_what_is_not_is_not():
    alike = [
        (torch.arange(3.0), torch.arange(3.0)),
        (functools.partial(times, 2), functools.partial(times, 2)),
        (times(2), times(2)),
        (Linear(0.0, 1.0, 3), Linear(0.0, 1.0, 3)),
    ]
    for one, other in alike:
        assert described(one) == described(other)
    numbers = [1, "1", 1.5, None, torch.arange(3), torch.arange(3.0), torch.zeros(3), [1, 2], list(range(20)), list(range(21))]
    functions = [times, functional.top, times(2), times(3), functools.partial(times, 2), functools.partial(times, 3)]
    objects = [Linear(0.0, 1.0, 3), Linear(0.0, 1.0, 4), nn.Linear(2, 2), nn.NLLLoss(), nn.NLLLoss(ignore_index=1)]
    objects += [
        nn.CrossEntropyLoss(weight=torch.ones(2)),
        nn.CrossEntropyLoss(weight=torch.zeros(2)),
        nn.Sequential(nn.NLLLoss()),
    ]
    functions += [holding(torch.ones(2)), holding(torch.zeros(2)), by_default(1), by_default(2)]
    unlike = [*numbers, *functions, *objects, torch.float16, {"a": 1}, {"a": 2}]
    words = [repr(described(value)) for value in unlike]
    assert len(set(words)) == len(words)
