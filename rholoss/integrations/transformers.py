"""Selection in the ``Trainer`` of Hugging Face transformers, with the state of the selector in its checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from rholoss.files import explained, open_regular, read_torch, write_torch
from rholoss.selector import Selector
from rholoss.states import OF_THE_POSITION


class SelectionMixin:
    """Makes a ``Trainer`` train on the batches of a selector; name it before the ``Trainer`` among the bases.

    A subclass writes ``make_selector``. The training arguments keep their meaning. Each batch is chosen when the Trainer asks for
    it, with the current weights; under gradient accumulation, the batches of an update are chosen together before it. A
    checkpoint holds the selector's state, one file per process, and ``train(resume_from_checkpoint=...)`` resumes exactly; with
    ``ignore_data_skip=True`` it begins an epoch instead, also with another batch size, as a ``Trainer`` does.

    Attributes:
        selector: the selector of the latest call of ``train``; None before it.

    Examples:
        A trainer with RHO-LOSS, where ``store`` has the irreducible losses of its training set::

            class RhoTrainer(SelectionMixin, Trainer):
                def make_selector(self, loader):
                    return RhoLossSelector(loader, self.model, store, keep=0.1)
    """

    selector: Selector | None = None
    _checkpoint: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        first = next(base for base in cls.__mro__ if "get_train_dataloader" in vars(base))
        if not issubclass(first, SelectionMixin):
            why = f"{cls.__name__} would train on what {first.__name__} loads, without selection"
            cure = f"expected SelectionMixin before it, as in class {cls.__name__}(SelectionMixin, {first.__name__})"
            raise TypeError(f"{why}: {cure}")

    def make_selector(self, loader: DataLoader[Any]) -> Selector:
        """The selector around the Trainer's own training loader, which Accelerate has prepared; called by each ``train``."""
        expected = "expected a method make_selector(loader) that returns one, such as RhoLossSelector(loader, self.model, store)"
        raise NotImplementedError(f"{type(self).__name__} has no selector: {expected}")

    def get_train_dataloader(self) -> DataLoader[Any]:
        made = self.make_selector(super().get_train_dataloader())  # type: ignore[misc]
        if not isinstance(made, Selector):
            raise TypeError(f"make_selector must return a Selector, got {type(made).__name__}")
        self.selector, at = made, (0, 0)
        if self._checkpoint is not None:
            at = self._resume(made, _file(self._checkpoint, self))
        return SelectedBatches(made, *at)

    def num_examples(self, dataloader: Any) -> int:
        """Examples in an epoch: with a selector, those that all processes train on."""
        if isinstance(dataloader, SelectedBatches):
            return len(dataloader) * dataloader.selector.n_b * int(self.args.world_size)  # type: ignore[attr-defined]
        return super().num_examples(dataloader)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        args: Any = self.args  # type: ignore[attr-defined]
        if _internal_call and self.selector is not None and not args.save_only_model:  # called for a checkpoint
            path = _file(output_dir or args.output_dir, self)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_torch(path, self.selector.state_dict())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        checkpoint: Any = resume_from_checkpoint or None
        if checkpoint is True:
            from transformers.trainer_utils import get_last_checkpoint

            checkpoint = get_last_checkpoint(self.args.output_dir)  # type: ignore[attr-defined,no-untyped-call]
        self._checkpoint = checkpoint
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._checkpoint = None

    def _resume(self, selector: Selector, path: Path) -> tuple[int, int]:
        """Load the state of a selector; returns ``passed`` and ``first`` of ``SelectedBatches``."""
        if not path.exists():
            what = f"this checkpoint holds no state of a selector: expected {path}"
            cure = f"resume from one that {type(self).__name__} saved, with as many processes"
            raise FileNotFoundError(f"{what}; {cure}, or start a new run from its weights")
        from transformers.trainer_utils import has_length

        args: Any = self.args  # type: ignore[attr-defined]
        with explained(path, "the state of a selector", "resume from another checkpoint"), open_regular(path) as file:
            state = read_torch(file)
        if args.ignore_data_skip:
            selector.load_state_dict(state, allow=OF_THE_POSITION)
            selector.set_epoch(selector.epoch + 1)  # abandons the epoch in progress
            return 0, 0
        try:
            selector.load_state_dict(state)
        except ValueError as error:
            cure = "with another batch size, loader or data, pass TrainingArguments(ignore_data_skip=True), as without selection"
            raise ValueError(f"{error}. {cure}") from error
        if has_length(selector):
            return state["loader"]["position"] or 0, 0
        # A Trainer that does not know the length of an epoch counts all of them as its first.
        steps = json.loads((path.parent / "trainer_state.json").read_text())["global_step"]
        return steps * args.gradient_accumulation_steps, selector.next_epoch


class SelectedBatches(DataLoader[Any]):
    """The selected batches of an epoch as a ``DataLoader``, in which a ``Trainer`` can skip batches.

    The first iteration yields None for each of the ``passed`` batches, which the Trainer trained on before the checkpoint and
    skips: they are neither read nor chosen again. ``first`` is the selector's epoch when the Trainer counts 0.
    """

    def __init__(self, selector: Selector, passed: int = 0, first: int = 0) -> None:
        self.selector, self.first = selector, first
        self.dataset: _Selected
        own = torch.Generator()  # a DataLoader draws a seed when it is iterated; this keeps that off the global generator
        super().__init__(_Selected(selector, passed), batch_size=None, collate_fn=lambda batch: batch, generator=own)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch of the Trainer, or resume it if it is in progress."""
        if self.first + epoch != self.selector.epoch:
            self.dataset.passed = 0
        self.selector.set_epoch(self.first + epoch)


class _Selected(IterableDataset[Any]):
    def __init__(self, selector: Selector, passed: int) -> None:
        self.selector, self.passed = selector, passed

    def __iter__(self) -> Iterator[Any]:
        passed, self.passed = self.passed, 0
        yield from [None] * passed
        yield from self.selector

    def __len__(self) -> int:
        return len(self.selector)


def _file(folder: str, trainer: Any) -> Path:
    return Path(folder) / f"selector_{trainer.args.process_index}.pt"
