"""The contract of a selector, as checks for selectors of your own."""

import copy
import inspect
import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.data import DataLoader, TensorDataset

from rholoss.data.candidate_loader import DrawRule
from rholoss.registry import build_selector
from rholoss.selector import Selector
from rholoss.store import IrreducibleLossStore

_N, _N_B, _FEATURES, _CLASSES = 99, 6, 5, 3  # 4 candidate batches of 24 at keep = 0.25, and 3 examples over


def check_selector(selector: str | Callable[..., Selector], **options: Any) -> None:
    """Check the contract of every selector on a small classification problem, with batches (x, y) and with dicts.

    The checks: batches of n_b with the rows of ``last``, everything kept at keep = 1 to the end of an epoch, mappings returned as
    mappings, no side effects on the model, the batch and random state, the same choices from the same seed, exact resume; and,
    with a ``draw_rule``, that it decides what is loaded, and decides without the model.

    Args:
        selector: a registered name, a ``Selector`` class, or a function ``(loader, model, **options)`` that builds one.
        **options: its options; a ``store``, ``proxy`` and ``irreducible_model`` are passed to selectors that take them.

    Raises:
        AssertionError: a check failed; the message says what to do.

    Examples:
        >>> from rholoss.testing import check_selector
        >>> check_selector("rho_loss")
    """
    if isinstance(selector, Selector):
        raise TypeError("check_selector builds the selector itself; pass its class, its name or a function that builds it")
    for check in (_draw_rule, _reading, _side_effects, _batches, _keep_all, _mappings, _seed, _resume):
        check(_Problem(selector, options))


class _Recorded(TensorDataset):
    """A dataset that records which examples are read."""

    read: list[int]

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        self.read.append(i)
        return tuple(tensor[i] for tensor in self.tensors)


class _Problem:
    """A dataset whose first feature is the index, networks with BatchNorm and dropout, and a way to build the selector."""

    def __init__(self, selector: str | Callable[..., Selector], options: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(_N, _FEATURES, generator=generator)
        x[:, 0] = torch.arange(_N) / _N
        self.data = _Recorded(x, torch.randint(_CLASSES, (_N,), generator=generator))
        self.data.read = []
        self.model, self.other = _net(0), _net(1)
        self.model.get_submodule("1").eval()  # a frozen BatchNorm, in a model that trains
        self.store = IrreducibleLossStore.from_model(self.other, self.data)
        self.selector, self.options = selector, options

    def build(self, keep: float = 0.25, loader: dict[str, Any] | None = None, **options: Any) -> Selector:
        made = {"store": self.store, "proxy": self.other, "irreducible_model": self.other, **self.options}
        wanted = {"dataset": self.data, "batch_size": _N_B, "drop_last": True, **(loader or {})}
        return build_selector(self.selector, DataLoader(**wanted), self.model, keep=keep, **made, **options)

    def index_of(self, x: Tensor) -> list[int]:
        return [round(value) for value in (x[:, 0] * _N).tolist()]


def _net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(_FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, _CLASSES))


def _batches(problem: _Problem) -> None:
    selector = problem.build()
    steps = 0
    for steps, (x, _) in enumerate(selector, 1):  # noqa: B007
        last = selector.last
        assert last is not None, "last must hold the selection of the current batch"
        assert len(x) == _N_B, f"every batch must have n_b = {_N_B} examples, got {len(x)}"
        n = len(last.candidate_index)
        positions = last.positions.tolist()
        assert positions == sorted(positions), f"positions must be in loader order, got {positions}"
        assert 0 <= positions[0] <= positions[-1] < n, f"positions must be from 0 to {n - 1}, got {positions}"
        assert last.weights is not None or len(set(positions)) == _N_B, f"positions must be distinct, got {positions}"
        assert torch.equal(last.index, last.candidate_index[last.positions]), "index must be that of the positions"
        assert problem.index_of(x) == last.index.tolist(), "the rows of the batch must be the examples of the index"
        assert last.scores.shape == (n,), f"there must be a score per candidate, shape ({n},), got {tuple(last.scores.shape)}"
    counts = len(selector), selector.step
    assert counts == (steps, steps), f"len(selector) and step must be the number of batches, {steps}, got {counts}"


def _keep_all(problem: _Problem) -> None:
    for drop_last in (True, False):
        selector = problem.build(keep=1.0, loader={"drop_last": drop_last})
        members = selector.draw_rule().members
        if members is not None and not (members() if callable(members) else members).all():
            continue  # it draws less than all
        plain, batches = list(selector.loader), [(batch, selector.last) for batch in selector]
        sizes, expected = [len(x) for (x, _), _ in batches], [len(x) for x, _ in plain]
        assert sizes == expected, f"with drop_last={drop_last} an epoch must end on {expected[-2:]} examples, got {sizes[-2:]}"
        assert len(selector) == len(expected), f"len(selector) must be {len(expected)}, got {len(selector)}"
        for (batch, last), whole in zip(batches, plain, strict=True):
            if last is not None and last.weights is None:
                assert _same(list(batch), list(whole)), "keep=1 must return the batches of the loader"


def _collate(examples: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    x, y = torch.utils.data.default_collate(examples)
    return {"x": x, "labels": y, "text": [str(round(float(value) * _N)) for value in x[:, 0]], "task": "toy"}


def _forward(model: Any, batch: Any) -> tuple[Any, Any]:
    return model(batch["x"]), batch["labels"]


def _mappings(problem: _Problem) -> None:
    selector = problem.build(loader={"collate_fn": _collate}, forward=_forward)
    for batch in selector:
        assert type(batch) is dict, f"a dict must be returned as a dict, got {type(batch).__name__}"
        texts = list(map(int, batch["text"]))
        assert selector.last is not None
        assert texts == problem.index_of(batch["x"]) == selector.last.index.tolist(), "all columns must be cut to the same rows"
        assert batch["task"] == "toy", "what belongs to the whole batch must stay as it is"


def _side_effects(problem: _Problem) -> None:
    cures = {
        "the model": "read candidates.outputs, or run a model with candidates.under(model)",
        "the candidate batches": "copy a batch before changing it",
        "global random state": "draw from candidates.rand() or candidates.generator",
    }
    for collate, forward in ((None, None), (_collate, _forward)):
        selector = problem.build(loader={"collate_fn": collate}, forward=forward)
        batches = list(selector.candidate_batches)
        before = (_state(problem.model), _named(copy.deepcopy(batches)), _random_states())
        for batch in batches:
            if len(batch.index) >= _N_B:
                selector.select(batch)
        after = (_state(problem.model), _named(batches), _random_states())
        for (what, cure), old, new in zip(cures.items(), before, after, strict=True):
            changed = _changes(old, new)
            assert not changed, f"selecting must leave {what} as before, but changed {', '.join(changed[:3])}; {cure}"
        assert torch.is_grad_enabled(), "selecting must leave grad mode as it was"


def _draw_rule(problem: _Problem) -> None:
    """What the draw rule decides is what is loaded, over two epochs: methods may go by the losses of the first."""
    data, selector = problem.data, problem.build()
    rule = selector.draw_rule()
    if rule.members is None and rule.prefilter is None:
        return
    loaded: list[Any] = []  # the indices that the rule lets in, of each candidate batch
    replaced = replace(rule, prefilter=_checked_prefilter(rule, loaded) if rule.prefilter else None)
    setattr(selector, "draw_rule", lambda: replaced)  # noqa: B010
    for epoch in range(2):
        selector.set_epoch(epoch)
        data.read = []  # set_epoch may read
        for x, _ in selector:
            read, data.read, last = data.read, [], selector.last
            _check_members(rule, read)
            decided = loaded[-1] if loaded else read
            what = f"exactly the examples that prefilter returns must be read, {decided}, got {read}"
            assert read == decided, f"{what}; decide by the index alone, and leave the reading to the loader"
            assert last is not None, "last must hold the selection of the current batch"
            strays = sorted(set(last.index.tolist()) - set(read))
            assert not strays, f"selected examples must be loaded in their own step, got {strays} besides; choose candidates only"
            selector.record_losses(x[:, 1].abs())


def _check_members(rule: DrawRule, read: list[int]) -> None:
    members = rule.members() if callable(rule.members) else rule.members
    if members is None:
        return
    got = members.dtype, tuple(members.shape)
    assert got == (torch.bool, (_N,)), f"members must be one bool per example, shape ({_N},), got {got[0]} of shape {got[1]}"
    strays = [i for i in read if not members[i]]
    assert not strays, f"only members may be read, but {strays[:3]} were too; change members in begin_epoch() only"


def _checked_prefilter(rule: DrawRule, loaded: list[Any]) -> Callable[[Tensor, int], Tensor | None]:
    def prefilter(index: Tensor, step: int) -> Tensor | None:
        assert rule.prefilter is not None
        found = rule.prefilter(index, step)
        what = "prefilter must return positions, an int64 tensor, or None for all"
        assert found is None or isinstance(found, Tensor), f"{what}, got {type(found).__name__}"
        positions = list(range(len(index))) if found is None else sorted(found.tolist())
        least, distinct = min(_N_B, len(index)), set(positions) & set(range(len(index)))
        assert len(distinct) == len(positions), f"prefilter must return distinct positions below {len(index)}, got {positions}"
        assert len(positions) >= least, f"prefilter must return at least n_b = {least} positions, got {len(positions)}"
        loaded.append(index[positions].tolist())
        return found

    return prefilter


def _reading(problem: _Problem) -> None:
    """With a draw rule, whatever is read of the selector neither runs a model nor moves random state."""
    selector = problem.build()
    with _idle("draw_rule()"):
        rule = selector.draw_rule()
    if rule.members is None and rule.prefilter is None:
        return
    for x, _ in selector:
        selector.record_losses(x[:, 1].abs())
    reads: list[tuple[str, Callable[..., Any], list[Any]]] = [("members()", _check_members, [rule, []])]
    reads += [("prefilter()", rule.prefilter, [torch.arange(4 * _N_B), selector.step])] if rule.prefilter else []
    for what, read, arguments in [*reads, ("len(selector)", len, [selector]), ("repr(selector)", repr, [selector])]:
        with _idle(what):
            read(*arguments)
    for name in dir(type(selector)):
        if isinstance(inspect.getattr_static(type(selector), name), (property, cached_property)):
            with _idle(f"the property {name}"), suppress(AttributeError, TypeError, ValueError):  # no value yet
                getattr(selector, name)


@contextmanager
def _idle(what: str) -> Iterator[None]:
    """A block in which no model may run and no global generator may move."""

    def refuse(module: nn.Module, inputs: Any) -> None:
        raise AssertionError(f"{what} must not run a model; score in begin_epoch() or after_select(), and only look up here")

    before, hook = _random_states(), register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()
    changed = _changes(before, _random_states())
    assert not changed, f"{what} must leave global random state as before, but changed {changed[0]}; draw from self.generator"


def _seed(problem: _Problem) -> None:
    first, second = ([i for _ in s for i in s.last.index.tolist()] for s in (problem.build(seed=4), problem.build(seed=4)))  # type: ignore[union-attr]
    assert first == second, "the same seed must give the same choices; draw from candidates.rand() or candidates.generator"


def _resume(problem: _Problem) -> None:
    def follow(state: io.BytesIO | None = None) -> Iterator[tuple[list[int], io.BytesIO]]:
        """The choices of what is left of three epochs, and the state after each."""
        shuffled = {"shuffle": True, "generator": torch.Generator().manual_seed(2)}
        selector = copy.deepcopy(problem.build(loader=shuffled))
        if state is not None:
            selector.load_state_dict(torch.load(io.BytesIO(state.getvalue()), weights_only=True))
        while selector.epoch < 3:
            for _ in selector:
                assert selector.last is not None
                torch.save(selector.state_dict(), saved := io.BytesIO())
                yield selector.last.index.tolist(), saved

    whole, at = list(islice(follow(), 16)), 5  # in the second epoch
    chosen, resumed = whole[at:], list(islice(follow(whole[at - 1][1]), 16))
    pairs = [(old, new) for (old, _), (new, _) in zip(chosen, resumed, strict=False)]
    assert len(pairs) > 2, "an epoch must yield batches after a resume as before"
    cure = "keep what the method remembers in extra_state"
    assert all(old == new for old, new in pairs), (
        f"after load_state_dict the choices must be those that would have followed; {cure}"
    )


def _state(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {f"the value of {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    state |= {f"the mode of module {name or 'model'}": module.training for name, module in model.named_modules()}
    return state | {f"the gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}


def _named(batches: list[Any]) -> dict[str, Any]:
    return {f"batch {i}": list(batch.items() if isinstance(batch, dict) else batch) for i, (_, batch) in enumerate(batches)}


def _random_states() -> dict[str, Any]:
    numpys = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    states = {"torch's generator": torch.get_rng_state(), "Python's random": random.getstate()}
    return {**states, "NumPy's np.random": (numpys["key"].tolist(), numpys["pos"])}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return [name for name in {**old, **new} if not (name in old and name in new and _same(old[name], new[name]))]


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, (list, tuple)):
        return len(old) == len(new) and all(map(_same, old, new))
    return torch.equal(old, new) if isinstance(old, Tensor) else bool(old == new)
