"""Selectors for faster training without further choices: a small network does the scoring."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from rholoss.arguments import options_of, refuse_unknown
from rholoss.batches import move
from rholoss.data.subset import dataset_of, split
from rholoss.irreducible import cross_fit, fit_irreducible_model
from rholoss.isolation import derived_seed, device_of, fork_rng, preserve_state, seeded
from rholoss.options import SelectorOptions
from rholoss.scoring import Task
from rholoss.selector import Selector
from rholoss.selectors import GatedUniformSelector, ProxyRhoLossSelector, RhoLossSelector
from rholoss.store import IrreducibleLossStore
from rholoss.wrappers import PayoffGatedSelector

_EPOCHS, _BATCH, _LR = 8, 128, 3e-3  # of the fit of the small network


def fast_rho_loss(
    loader: DataLoader[Any],
    model: nn.Module,
    holdout: Any = None,
    validation: Any = None,
    *,
    proxy: Callable[[], nn.Module] | Literal["model"] | None = None,
    store: IrreducibleLossStore | None = None,
    cost: float | None = None,
    **options: Unpack[SelectorOptions],
) -> Selector:
    """RHO-LOSS at about the cost of plain training, for a classifier: a small network scores for the large one.

    One small network is fitted on the holdout for the irreducible losses; another one, co-trained from scratch, scores in place
    of the model. Examples with an irreducible loss above the chance level log(C) rank last. With validation examples, the
    selector measures from step 100 on whether selection pays, see ``PayoffGatedSelector``; if not, it samples uniformly, with or
    without the same limit.

    Args:
        loader: a ``DataLoader`` over the training data, a map-style dataset.
        model: the model in training, a classifier with logits (n, C) as outputs.
        holdout: a dataset of examples with trusted labels that the model is not trained on; None to cross-fit on the training
            data in two halves.
        validation: more such examples, to measure the payoff and, with a holdout, to choose the small network's weights; None to
            split off a tenth of the holdout for the weights, and not to measure.
        proxy: returns a new small network; None for a default that suits images (c, h, w) and vectors. ``"model"``: the model in
            training scores, and only irreducible losses come from such a network. That suits models whose forward pass is a
            small part of a step, such as most without convolutions at n_b = 32, with ``keep=0.25``.
        store: existing irreducible losses; None to compute them.
        cost: see ``PayoffGatedSelector``. By default, scoring by a small network counts as free; pass it if the model is small,
            or if loading the candidates takes longer than training.
        **options: see ``Selector``.

    Raises:
        TypeError: the inputs are neither images nor vectors (pass ``proxy``), the model is not a classifier with logits (n, C)
            and classes (n,), or the holdout is not a dataset.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss import fast_rho_loss, split
        >>> data = TensorDataset(torch.randn(600, 8), torch.randint(3, (600,)))
        >>> training, holdout, validation = split(data, holdout=200, validation=100, seed=0)
        >>> model = torch.nn.Linear(8, 3)
        >>> loader = fast_rho_loss(DataLoader(training, batch_size=10), model, holdout, validation, keep=0.1)
        >>> [len(y) for x, y in loader]
        [10, 10, 10]
    """
    refuse_unknown(options, [*options_of(fast_rho_loss), *SelectorOptions.__annotations__], "fast_rho_loss")
    holdout, validation = found = [dataset_of(data) for data in (holdout, validation)]
    if any(isinstance(data, (list, tuple)) and data and not isinstance(data[0], tuple) for data in found):
        raise TypeError("holdout and validation must be datasets of examples, got lists of batches")
    shape, classes = _shapes(loader, model, options)
    networks = _Networks(_factory(proxy, store, shape, classes), device_of(model), options.get("seed", 0))
    if store is None:
        store = _make_store(loader, holdout, validation, networks, _task(options))
    limit = math.log(classes)
    network = None if proxy == "model" else networks.fresh("proxy")
    method = _method(loader, model, store, network, {"max_irreducible_loss": limit, **options})
    if validation is None:
        return method
    otherwise = GatedUniformSelector(loader, None, store, max_irreducible_loss=limit, **options)
    return PayoffGatedSelector(loader, model, method, validation, otherwise=otherwise, cost=cost, **options)


def small_network(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A cheap classifier for inputs of a shape: (c, h, w), images of at least 12 x 12, or (d,), vectors."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, classes))
    convolutions = (nn.Conv2d(shape[0], 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Dropout(0.3), nn.Linear(800, classes))


def up_and_down(steps: int) -> Callable[[int], float]:
    """Learning rate factors by step: linearly up to 1 in three tenths of the steps, then linearly down to almost 0."""
    top = max(1, round(0.3 * steps))
    return lambda step: min((step + 1) / top, max(steps - step, 0) / max(steps - top, 1), 1.0)


class _Networks(NamedTuple):
    """How to make small networks, on the device of the model in training."""

    make: Callable[[], nn.Module]
    device: torch.device | None
    seed: int

    def fresh(self, *parts: int | str) -> nn.Module:
        """A new network, whose weights depend on the seed and on what it is for."""
        device = self.device or torch.device("cpu")
        with fork_rng(device, derived_seed("fast", self.seed, *parts)):
            return self.make().to(device)


def _factory(proxy: Any, store: IrreducibleLossStore | None, shape: tuple[int, ...], classes: int) -> Callable[[], nn.Module]:
    """What makes a small network: ``proxy``, or the default for inputs of a shape."""
    if not (proxy is None or proxy == "model" or callable(proxy)):
        raise TypeError(f"proxy must be a function that makes a network, 'model' or None, got {proxy!r}")
    is_needed = proxy is None or (proxy == "model" and store is None)
    if is_needed and (len(shape) not in (1, 3) or min(shape[1:], default=12) < 12):
        what = "images (c, h, w) of at least 12 x 12 or vectors (d,)"
        raise TypeError(f"a small network can be made for {what}, got shape {shape}; pass proxy=")

    def channels_last() -> nn.Module:  # halves the time of convolutions on a CPU
        return small_network(shape, classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    return proxy if callable(proxy) else channels_last


def _method(loader: Any, model: nn.Module, store: IrreducibleLossStore, network: Any, options: dict[str, Any]) -> Selector:
    """RHO-LOSS scored by a co-trained network, or by the model in training if that is None."""
    if network is None:
        return RhoLossSelector(loader, model, store, **options)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    return ProxyRhoLossSelector(loader, model, store, network, proxy_optimizer=optimizer, **options)


def _shapes(loader: DataLoader[Any], model: nn.Module, options: SelectorOptions) -> tuple[tuple[int, ...], int]:
    """The shape of one input, and the number of classes, from one example."""
    device = device_of(model)
    with seeded(0, device=device), preserve_state(model, device):
        batch = loader.collate_fn([loader.dataset[0]])
        outputs, targets = _task(options).forward(model, move(batch, device) if device is not None else batch)
    is_one = isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1
    if not (is_one and isinstance(targets, Tensor) and not targets.is_floating_point()):
        got = [f"{v.dtype} {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in (outputs, targets)]
        expected = "the fast preset is for classifiers, with logits (n, C) and classes (n,)"
        raise TypeError(f"{expected}, got {' and '.join(got)}; use RhoLossSelector")
    inputs = batch[0] if isinstance(batch, (tuple, list)) else None
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) and inputs.is_floating_point() else ()
    return shape, outputs.shape[1]


def _make_store(loader: DataLoader[Any], holdout: Any, validation: Any, networks: _Networks, task: Task) -> IrreducibleLossStore:
    seed = networks.seed

    def fit(network: nn.Module, training: Any, chosen_by: Any) -> Any:
        optimizer = partial(torch.optim.AdamW, lr=_LR)
        scheduler = partial(LambdaLR, lr_lambda=up_and_down(_EPOCHS * math.ceil(len(training) / _BATCH)))
        own = {name: getattr(loader, name) for name in ("collate_fn", "num_workers", "worker_init_fn")}
        data = (DataLoader(part, batch_size=_BATCH, **own) for part in (training, chosen_by))
        how: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler, "task": task, "progress": False}
        return fit_irreducible_model(network, *data, epochs=_EPOCHS, seed=seed, **how)

    def halves(part: Any) -> Any:
        _, training, chosen_by = split(part, holdout=0.9, validation=0.1, seed=seed)
        return fit(networks.fresh("fold", int(part.indices[0])), training, chosen_by)

    # Without the dtype of the task: small networks score in their own precision.
    how: dict[str, Any] = {"forward": task.forward, "loss": task.loss, "batch_size": 256, "progress": False}
    if holdout is None:
        return cross_fit(loader, halves, folds=2, seed=seed, **how)
    if validation is None:
        _, holdout, validation = split(holdout, holdout=0.9, validation=0.1, seed=seed)
    return IrreducibleLossStore.from_model(fit(networks.fresh("holdout"), holdout, validation), loader, **how)


def _task(options: SelectorOptions) -> Task:
    return Task.of(options.get("task"), options.get("forward"), options.get("loss"))
