"""Examples as a rehearsal reads them beforehand: some as a batch, the model's inputs, and the labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rholoss.arguments import map_style, shown
from rholoss.batches import move
from rholoss.data import LoaderView
from rholoss.data.fingerprint import spread
from rholoss.data.subset import index_of, labels_of
from rholoss.isolation import own_generators_kept, seeded
from rholoss.losses import LabelError, classes_of, refuse_other_classes
from rholoss.rehearsal.networks import tensors_of
from rholoss.scoring import Forward

_TIMED, _FAST = 64, 5e-4  # examples that are read to see how long it takes, and the seconds each that need no workers
_COMPARED = 8  # labels that a dataset shows, with those that the forward function returns


class Reader:
    """Reads examples as the training loader does, and shows them to a stand-in for the model; random states do not change.

    Args:
        loader_of: makes a loader over a dataset, with the training loader's collate function.
        forward: ``(model, batch) -> (outputs, targets)``.
        device: where the model is.
        seed: seed of augmentation.

    Attributes:
        stand_in: what is called in the model's place: a network, or a recorder of calls.
    """

    stand_in: nn.Module

    def __init__(self, loader_of: Callable[..., DataLoader[Any]], forward: Forward, device: torch.device, seed: int) -> None:
        self.loader_of, self.forward, self.device, self.seed = loader_of, forward, device, seed

    def batch(self, *examples: tuple[Any, Iterable[int]]) -> Any:
        """The examples at some positions of some datasets as one batch, on the device."""
        with seeded(self.seed, device=self.device):
            rows = []
            for data, positions in examples:
                with own_generators_kept(data):
                    rows += [data[int(i)] for i in positions]
            return move(self.loader_of(examples[0][0]).collate_fn(rows), self.device)

    def some(self, data: Any, most: int) -> Any:
        """A batch of so many examples of a dataset, spread evenly."""
        return self.batch((data, spread(len(data), most).tolist()))

    def call(self, batch: Any) -> tuple[dict[str, Tensor], Any, Any]:
        """The tensors that the model is called with for a batch, by place, the targets, and the stand-in's outputs."""
        found: dict[str, Tensor] = {}

        def record(_: nn.Module, inputs: Any, named: Any) -> None:
            found.update(tensors_of({**dict(enumerate(inputs)), **named}))

        handle = self.stand_in.register_forward_pre_hook(record, with_kwargs=True)
        try:
            with seeded(self.seed, device=self.device), torch.no_grad():
                outputs, targets = self.forward(self.stand_in, batch)
                return found, targets, outputs
        finally:
            handle.remove()

    def is_fast(self, data: Any) -> bool:
        """Whether examples are read so fast that workers would take longer to start, and nothing in them is drawn at random."""
        positions, began = spread(len(data), _TIMED).tolist(), time.perf_counter()
        k, batch = len(positions), self.batch((data, 2 * positions))
        seconds = (time.perf_counter() - began) / (2 * k)
        call, targets, _ = self.call(batch)
        is_same = all(torch.equal(each[:k], each[k:]) for each in (*call.values(), torch.as_tensor(targets)))
        return is_same and seconds < _FAST

    def labels(self, data: Any, most: int) -> Tensor:
        """Labels of some examples of a dataset, spread evenly; shape (m,), int64, on the CPU."""
        shown = self._shown(data)
        return self._read_most(data, most) if shown is None else shown[spread(len(data), most)]

    def check_proxy(self, network: Any, data: Any, classes: int) -> None:
        """Take a user's small network as stand-in; an error if it does not return what the model returns for two examples."""
        if not isinstance(network, nn.Module):
            raise TypeError(f"proxy must return a new small network, a torch.nn.Module, got {shown(network)}")
        self.stand_in = network.to(self.device).eval()
        batch = self.some(data, 2)
        try:
            _, targets, outputs = self.call(batch)
        except Exception as error:
            what = f"proxy must make networks that are called as the model is, got {type(error).__name__}: {error}"
            raise ValueError(what) from error
        if classes_of(outputs, targets) != classes:
            got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else shown(outputs)
            expected = f"logits of the model's {classes} classes, shape ({len(targets)}, {classes})"
            raise ValueError(f"proxy must make networks that return {expected} for {len(targets)} examples, got {got}")

    def most_labels(self, data: Any, most: int, need_all: Callable[[Tensor], bool]) -> Tensor:
        """All labels if the dataset shows them, or if some of them need it; else so many, as ``labels`` does."""
        shown = self._shown(data)
        labels = self._read_most(data, most) if shown is None else shown
        return self._read_most(data, len(data)) if shown is None and need_all(labels) else labels

    def refuse_not_finite(self, data: Any) -> None:
        """A ValueError that names the first example whose inputs hold NaN or infinite values, if there is one."""
        for at in torch.arange(len(data)).split(256):
            refuse_not_finite_call(self.call(self.batch((data, at.tolist())))[0], index_of(data, at))

    def _shown(self, data: Any) -> Tensor | None:
        """All labels, if the dataset shows them, and they are those that the forward function returns; else None."""
        shown, few = labels_of(data), spread(len(data), _COMPARED)
        if shown is None or not torch.equal(shown[few].long().cpu(), self._read_labels(data, few)):
            return None
        return shown.long().cpu()

    def _read_most(self, data: Any, most: int) -> Tensor:
        return torch.cat([self._read_labels(data, at) for at in spread(len(data), most).split(256)])

    def _read_labels(self, data: Any, positions: Tensor) -> Tensor:
        return torch.as_tensor(self.call(self.batch((data, positions.tolist())))[1]).reshape(-1).long().cpu()


def refuse_wrong_labels(labels: Tensor, classes: int, data: Any) -> None:
    """A ValueError that names the index of a label that is neither a class nor -100; labels of examples spread evenly."""
    try:
        refuse_other_classes(labels, classes)
    except LabelError as error:
        raise error.of(index_of(data, spread(len(data), len(labels)))) from None


def refuse_not_finite_inputs(inputs: Tensor, what: str, indices: list[int]) -> None:
    """A ValueError if inputs, one row per example, hold NaN or infinite values."""
    if len(inputs) != len(indices) or bool(torch.isfinite(inputs).all()):
        return
    row = int((~torch.isfinite(inputs.flatten(1) if inputs.ndim > 1 else inputs[:, None])).any(1).int().argmax())
    cure = "correct these values, or leave such examples out"
    raise ValueError(f"inputs must be finite, got NaN or infinite values in the {what} {indices[row]}; {cure}")


def refuse_not_finite_call(call: dict[str, Tensor], index: Tensor) -> None:
    """The same for all inputs of a call, for examples with these indices."""
    for inputs in call.values():
        refuse_not_finite_inputs(inputs, "example with index", index.tolist())


def classes_that_occur(labels: Tensor, n: int, classes: int) -> int:
    """How many of so many classes n examples have, at least 2: all that are seen, and as many unseen as are seen once.

    Args:
        labels: of all n examples, or of some of them, shape (m,), int64.
        n: number of examples.
        classes: C, of the model.

    References:
        Good, "The Population Frequencies of Species and the Estimation of Population Parameters", Biometrika 1953, for the
        unseen ones.
    """
    counts = labels.unique(return_counts=True)[1]
    unseen = int((counts == 1).sum()) if len(labels) < n else 0
    return max(2, min(classes, len(counts) + unseen))


def check_loader(loader: Any, model: Any) -> None:
    """Refuse, with the cure, what is no ``DataLoader`` that draws examples by index, and what is no model."""
    needed = "auto needs a DataLoader over a map-style dataset"
    if isinstance(loader, nn.Module) and not isinstance(model, nn.Module):
        raise TypeError(f"{needed}, and then the model, got the model first; swap the two")
    if not isinstance(loader, DataLoader):
        is_dataset = hasattr(loader, "__getitem__") and hasattr(loader, "__len__") and not isinstance(loader, (list, tuple))
        cure = "pass torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)"
        got = f"the dataset {type(loader).__name__}" if is_dataset else type(loader).__name__
        raise TypeError(f"{needed}, got {got}; {cure}")
    if not LoaderView(loader).draws_by_index:
        cure = "read its examples into a list, or a dataset with __getitem__ and __len__, or train as usual"
        raise TypeError(f"{needed}, got one over the stream {type(loader.dataset).__name__}; {cure}")
    if loader.batch_sampler is None:
        cure = "let the dataset return single examples, and give the loader a batch_size"
        raise TypeError(f"{needed}, got one with batch_size=None, whose dataset returns whole batches; {cure}")
    map_style(loader.dataset, "the loader's dataset", 1)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be the torch.nn.Module in training, got {shown(model)}")
