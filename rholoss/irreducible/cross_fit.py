"""Irreducible losses without a holdout: models fitted on some folds score the others."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from rholoss.arguments import function, refuse_unknown, seed_of, whole
from rholoss.data.index import is_readable
from rholoss.data.loader_view import LoaderView
from rholoss.data.subset import IndexedSubset, checked_labels, labels_of, stratified_order
from rholoss.irreducible.models import as_models, describe
from rholoss.options import ScoringOptions
from rholoss.states import digest
from rholoss.store import CrossFit, IrreducibleLossStore


def cross_fit(
    data: Any,
    fit: Callable[[IndexedSubset], Any],
    folds: int | Tensor = 2,
    *,
    only: Iterable[int] | int | None = None,
    seed: int = 0,
    labels: Any = None,
    **options: Any,
) -> IrreducibleLossStore:
    """Score every example with models that did not train on it: for each fold, models fitted on the other folds.

    No holdout is needed: the model in training can train on all data. Processes may share the folds with ``only``; then merge.

    Args:
        data: a map-style dataset, a part of one, or a loader over one. Of a loader, the collate function and the workers are used
            for scoring, and only what its sampler may draw is divided into folds.
        fit: fits a new model on a part of the dataset and returns it, as a model, a ``Fit`` or several models, whose losses are
            averaged. Validation examples must come from that part as well.
        folds: number of folds, at least 2, stratified by label; or the fold of each example, shape (N,), integer. Related
            examples, such as copies or frames of one film, should share a fold.
        only: score these folds only; None for all.
        seed: seed of the folds.
        labels: labels to stratify by, shape (N,), integer; None: the dataset's own, where it shows them.
        **options: of ``IrreducibleLossStore.from_model``, except ``path``, ``mapped`` and ``distributed``.

    Returns:
        The store of all examples, or of those of the folds in ``only``.

    Raises:
        ValueError: a ``Fit`` has seen examples that it is to score, or a fold is empty.
        TypeError: the data cannot be read by index, or an option is not available.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from rholoss import cross_fit, fit_irreducible_model, split
        >>> def fit(part):
        ...     rest, training, validation = split(part, holdout=0.8, validation=0.19)
        ...     return fit_irreducible_model(torch.nn.Linear(5, 3), training, validation, epochs=2)
        >>> cross_fit(TensorDataset(torch.randn(200, 5), torch.randint(3, (200,))), fit)
        IrreducibleLossStore(200 examples, coverage=100.0%, device=cpu)

    References:
        Mindermann et al., ICML 2022, section 4, "irreducible loss model training without a holdout set", with two folds.
    """
    view = _checked_view(data, fit, options)
    fold_of = _folds(view, folds, seed := seed_of(seed), labels)
    count = int(fold_of.max()) + 1
    plan = digest(fold_of.numpy().astype("<i8").tobytes())
    stores: list[IrreducibleLossStore] = []
    earlier: list[Any] = []
    for fold in _checked_folds(only, count):
        is_scored = fold_of == fold
        training = torch.nonzero(~is_scored & (fold_of >= 0)).flatten()
        models = fit(IndexedSubset(view.dataset, training))
        if any(model is other for model in as_models(models) for other in earlier):
            what = f"fit returned the same model for fold {fold} as for another one, so that it trained on what it is to score"
            raise ValueError(f"{what}; start from a new model every time")
        earlier += as_models(models)
        batches = BatchSampler(torch.nonzero(is_scored).flatten().tolist(), view.batch_size or 256, drop_last=False)
        store = IrreducibleLossStore.from_model(models, view.redrawn(batches, batches.batch_size), **options)
        described = [describe(model) for model in as_models(models)]
        cross_fit = CrossFit(plan, count, seed, {str(fold): described}, {str(fold): store.meta.validation_loss})
        store.meta = replace(store.meta, models=None, examples=None, validation_loss=None, cross_fit=cross_fit)
        stores.append(store)
    return stores[0].merge(*stores[1:])


def _checked_view(data: Any, fit: Any, options: dict[str, Any]) -> LoaderView:
    """The view of the data, if all arguments are of the right kind."""
    refused = {"path", "mapped", "distributed"} & set(options)
    if refused:
        raise TypeError(f"cross_fit does not take {', '.join(sorted(refused))}; score folds with only=, and merge their stores")
    if not callable(fit) or isinstance(fit, nn.Module):
        what = "fit must be a function that fits a model on a part of the dataset and returns it"
        raise TypeError(f"{what}, got {type(fit).__name__}")
    function(fit, "fit", "(part) -> model")
    refuse_unknown(options, ScoringOptions.__annotations__, "cross_fit")
    can_view = isinstance(data, DataLoader) or is_readable(data)
    view = LoaderView.of_data(data, options.get("batch_size")) if can_view else None
    if view is None or not view.is_map_style or view.loader.batch_sampler is None:
        raise TypeError(f"cross_fit needs a dataset that is read by index, an example at a time, got {type(data).__name__}")
    return view


def _checked_folds(only: Any, count: int) -> list[int]:
    if only is None:
        return list(range(count))
    what = f"folds from 0 to {count - 1}, each once"
    several = isinstance(only, Iterable) and not isinstance(only, (str, bytes)) and getattr(only, "shape", (0,)) != ()
    given: list[Any] = list(only) if several else [only]
    wanted = [whole(fold, "only", what, 0, count - 1) for fold in given]
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"only must be {what}, got {wanted}")
    return wanted


def _folds(view: LoaderView, folds: int | Tensor, seed: int, labels: Any) -> Tensor:
    """The fold of each position of a loader's dataset, shape (n,), int64; -1 for positions that its sampler does not draw."""
    n = len(view.dataset)
    drawn = view.drawable_positions()
    positions = torch.arange(n) if drawn is None else drawn.unique()
    fold_of = torch.full((n,), -1, dtype=torch.int64)
    if isinstance(folds, (list, tuple)) or tuple(getattr(folds, "shape", ())):
        given = checked_labels(folds, n, "folds").long()
        if n and int(given.min()) < 0:
            raise ValueError(f"folds must be numbers from 0, got {int(given.min())}")
        fold_of[positions] = given[positions]
        count = int(given.max()) + 1 if n else 0
    else:
        what = f"the fold of each example, or how many, from 2 to the number of examples, {len(positions):,}"
        folds = whole(folds, "folds", what, 2, len(positions))
        labels = labels_of(view.dataset) if labels is None else checked_labels(labels, n)
        order = stratified_order(len(positions), None if labels is None else labels[positions], seed)
        for fold, part in enumerate(order.tensor_split(folds)):
            fold_of[positions[part]] = fold
        count = folds
    sizes = torch.bincount(fold_of[fold_of >= 0], minlength=count)
    if count < 2 or bool((sizes == 0).any()):
        raise ValueError(f"every fold needs examples, and there must be at least 2, got {sizes.tolist()}")
    return fold_of
