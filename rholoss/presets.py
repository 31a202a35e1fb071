"""Selectors for those who want no more than faster training: a small network does the scoring."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from rholoss.batches import move
from rholoss.crossfit import cross_fit
from rholoss.fitting import fit_irreducible_model
from rholoss.guest import derived_seed, device_of, forked_rng, untouched
from rholoss.options import Options
from rholoss.parts import split
from rholoss.scoring import default_forward
from rholoss.selector import Selector
from rholoss.selectors import GatedUniformSelector, ProxyRhoLossSelector, WhileItPaysSelector
from rholoss.store import IrreducibleLossStore

_EPOCHS, _LR = 8, 3e-3  # of the small network's fit


def fast_rho_loss(
    loader: DataLoader[Any],
    model: nn.Module,
    holdout: Any = None,
    validation: Any = None,
    *,
    proxy: Callable[[], nn.Module] | None = None,
    store: IrreducibleLossStore | None = None,
    cost: float | None = None,
    **options: Unpack[Options],
) -> Selector:
    """RHO-LOSS at about the price of plain training, for a classifier: a small network scores for the large one.

    Irreducible losses come from a small network that was fitted on the holdout; another one, fresh, scores in place of the model
    and learns along on what is selected. What the irreducible-loss model finds less probable than a guess is never selected. With
    validation examples, selection stops while it does not pay, see ``WhileItPaysSelector``; then examples are drawn at random,
    below the same limit.

    Args:
        loader: a ``DataLoader`` over the training data, a map-style dataset.
        model: the model in training, a classifier with logits (n, C) as outputs.
        holdout: labelled examples that the model is not trained on, with labels that can be trusted; None to cross-fit on the
            training data in two halves.
        validation: more of them, to choose the small network's weights by and to measure by; None to set a tenth of the holdout
            apart, and not to measure.
        proxy: makes a small network, with the weights drawn anew by each call; None for one that suits images (c, h, w) or
            vectors.
        store: irreducible losses made before; None to make them.
        cost: see ``WhileItPaysSelector``; by default scoring counts for nothing here, which is right for a large model, and not
            where loading the candidates takes longer than training.
        **options: see ``Selector``.

    Raises:
        TypeError: the inputs are neither images nor vectors, or the outputs are not logits (n, C): pass ``proxy``.

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
    seed = options.get("seed", 0)
    shape, classes = _shapes(loader, model, options)
    if proxy is None and len(shape) not in (1, 3):
        raise TypeError(f"a small network can be made for images (c, h, w) or vectors (d,), got shape {shape}; pass proxy=")
    make = proxy or (lambda: small_network(shape, classes))
    device = device_of(model) or torch.device("cpu")

    def fresh(*parts: int | str) -> nn.Module:
        with forked_rng(device, derived_seed("fast", seed, *parts)):
            return make().to(device)

    if store is None:
        store = _make_store(loader, holdout, validation, fresh, seed, options)
    limit = math.log(classes)
    network = fresh("proxy")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    method = ProxyRhoLossSelector(loader, model, store, network, proxy_optimizer=optimizer, max_irreducible_loss=limit, **options)
    if validation is None:
        return method
    otherwise = GatedUniformSelector(loader, None, store, max_irreducible_loss=limit, **options)
    return WhileItPaysSelector(loader, model, method, validation, otherwise=otherwise, cost=cost, **options)


def small_network(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A classifier that costs next to nothing: two convolutions for images (c, h, w), a layer of 256 for vectors (d,).

    Args:
        shape: of one input.
        classes: how many.
    """
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, classes))
    convolutions = (nn.Conv2d(shape[0], 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Dropout(0.3), nn.Linear(800, classes))


def _shapes(loader: DataLoader[Any], model: nn.Module, options: Options) -> tuple[tuple[int, ...], int]:
    """The shape of one input, and the number of classes, from one example."""
    batch = loader.collate_fn([loader.dataset[0]])
    device = device_of(model)
    forward = options.get("forward") or default_forward
    with untouched(model, device):
        outputs, _ = forward(model, move(batch, device) if device is not None else batch)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TypeError(f"the fast preset is for classifiers, with outputs (n, C), got {got}; use RhoLossSelector")
    inputs = batch[0] if isinstance(batch, (tuple, list)) else None
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) and inputs.is_floating_point() else ()
    return shape, outputs.shape[1]


def _make_store(
    loader: DataLoader[Any], holdout: Any, validation: Any, fresh: Callable[..., nn.Module], seed: int, options: Options
) -> IrreducibleLossStore:
    how: dict[str, Any] = {"forward": options.get("forward"), "loss": options.get("loss")}

    def fit(network: nn.Module, training: Any, chosen_by: Any) -> Any:
        def optimizer(parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.AdamW(parameters, lr=_LR)

        data = (DataLoader(part, batch_size=128, collate_fn=loader.collate_fn) for part in (training, chosen_by))
        return fit_irreducible_model(network, *data, epochs=_EPOCHS, optimizer=optimizer, seed=seed, progress=False, **how)

    def halves(part: Any) -> Any:
        _, training, chosen_by = split(part, holdout=0.9, validation=0.1, seed=seed)
        return fit(fresh("fold", int(part.indices[0])), training, chosen_by)

    data = DataLoader(loader.dataset, batch_size=256, collate_fn=loader.collate_fn)
    if holdout is None:
        return cross_fit(data, halves, folds=2, seed=seed, progress=False, **how)
    if validation is None:
        _, holdout, validation = split(holdout, holdout=0.9, validation=0.1, seed=seed)
    return IrreducibleLossStore.from_model(fit(fresh("holdout"), holdout, validation), data, progress=False, **how)
