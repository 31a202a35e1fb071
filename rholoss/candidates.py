"""What a method scores: a candidate batch, and the model's outputs and losses, computed when they are read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rholoss.batches import Rows, cut, version_of
from rholoss.cost import ScoredCounts
from rholoss.devices import to_device
from rholoss.isolation import Mode, device_of
from rholoss.losses import LabelError
from rholoss.scoring import Forward, Scorer


class Candidates:
    """A candidate batch of n_B examples. Outputs and losses are computed on first access, without a gradient.

    Attributes:
        device: the scoring device.
        index: indices of the examples in the dataset, shape (n_B,), int64, on the scoring device.
        loader_index: the same, where the loader left them.
        batch: the candidate batch, of the user's own type, where the loader left it.
        step: how many batches were selected before this one.
        epoch: which pass over the data this is, from 0.
        generator: the selector's own random generator, on the CPU.
        notes: scalar tensors that a method leaves in ``selector.last.notes``.
        memory: what a method computes in ``score`` and needs again in ``choose``.
        scored: how many examples were scored, by which models.
    """

    def __init__(
        self,
        index: Tensor,
        batch: Any,
        model: Any,
        scorer: Scorer,
        device: torch.device,
        when: tuple[int, int],
        generator: torch.Generator,
    ) -> None:
        self.loader_index = index
        self.index = to_device(index, device)
        self.batch = batch
        self.device = self.index.device
        self.step, self.epoch = when
        self.generator = generator
        self.notes: dict[str, Tensor] = {}
        self.memory: dict[Any, Any] = {}
        self.scored = ScoredCounts()
        self._n = len(index)  # len(tensor) is slow
        self._model = self._own_model = model
        self._scorer = scorer
        self._mode = scorer.mode
        self._pair: tuple[Any, Any] | None = None
        self._loss: Tensor | None = None
        self._others: dict[tuple[int, Mode | None], Candidates] = {}

    def __len__(self) -> int:
        return self._n

    @property
    def outputs(self) -> Any:
        """The model's outputs, as ``forward`` returns them: for a classifier logits, shape (n_B, C).

        A method that needs the loss too reads this first: the loss is then computed from it, also with a ``chunk_size``.
        """
        return self._outputs_and_targets()[0]

    @property
    def targets(self) -> Any:
        """The targets, as ``forward`` returns them: for a classifier classes, shape (n_B,)."""
        return self._outputs_and_targets()[1]

    @property
    def loss(self) -> Tensor:
        """The model's loss of each candidate, shape (n_B,), float32, in nats for a likelihood."""
        if self._loss is None:
            self._scorer.refuse_causal(self._model)
            self._loss = to_device(self.per_example(self.losses_of), self.device)
        return self._loss

    def per_example(self, fn: Callable[[Any, Any, int], Tensor]) -> Tensor:
        """``fn(outputs, targets, n)`` for the n examples of each chunk, joined to shape (n_B, ...): for large outputs."""
        if self._pair is not None:
            around = self._scorer.around(self._model, self._mode, self._seed(self._mode))
            with around, self._scorer.lent(self._pair) as (outputs, targets):  # a loss may work in place
                return fn(outputs, targets, len(self))

        def keeping(outputs: Any, targets: Any, n: int) -> Any:
            versions = [version_of(part) for part in (outputs, targets) if isinstance(part, Tensor)]
            result = fn(outputs, targets, n)
            unchanged = versions == [version_of(part) for part in (outputs, targets) if isinstance(part, Tensor)]
            keeps = n == len(self) or self._scorer.keeps((outputs, targets), n)  # if whole, held anyway until the pass is over
            return (result, outputs, targets) if keeps and unchanged else (result, None, None)

        keeping.__wrapped__ = fn  # type: ignore[attr-defined]
        result, outputs, targets = self._run(keeping)
        if outputs is not None:
            self._pair = outputs, targets
        return result

    def sampled(self, fn: Callable[[Any, Any, int], Tensor], passes: int) -> Tensor:
        """``fn(outputs, targets, n)`` for each of several passes with dropout, shape (passes, n_B, ...).

        Every module is in train mode, except those that keep running statistics (BatchNorm); buffers and modes are restored.
        """
        return torch.stack([self._run(fn, "dropout") for _ in range(passes)])

    def under(self, model: Any, mode: Mode | None = None) -> Candidates:
        """The same candidates under another model, with the same forward and loss; in ``mode``, or that of the selector."""
        key = (id(model), mode)
        if key not in self._others:
            other = self._fresh()
            other._model, other._mode = model, mode or self._mode
            other.index = to_device(self.index, device_of(model) or self.device)
            other.device = other.index.device
            self._others[key] = other
        return self._others[key]

    def read_with(self, forward: Forward) -> Candidates:
        """The same candidates under another forward, for a method that needs more of the model than the loss does."""
        other = self._fresh()
        other._scorer = replace(self._scorer, task=replace(self._scorer.task, forward=forward))
        return other

    def _fresh(self) -> Candidates:
        """A copy in which nothing is computed."""
        other = copy.copy(self)
        other._pair, other._loss, other._others, other.memory = None, None, {}, {}
        return other

    def apart(self, seed: int) -> Candidates:
        """The same candidates, with what is computed, and with a generator and notes of their own: for listeners."""
        return self._apart(torch.Generator().manual_seed(seed), {})

    def _apart(self, generator: torch.Generator, notes: dict[str, Tensor]) -> Candidates:
        other = copy.copy(self)
        other.generator, other.notes, other.memory = generator, notes, {}
        other._others = {key: under._apart(generator, notes) for key, under in self._others.items()}
        return other

    def at(self, positions: Tensor) -> Candidates:
        """Some of the candidates, by their positions in this batch, shape (m,), int64, with nothing computed."""
        rows = Rows(positions)
        index, batch = self.loader_index[rows.on(self.loader_index.device)], cut(self.batch, rows, len(self))
        other = Candidates(index, batch, self._own_model, self._scorer, self.device, (self.step, self.epoch), self.generator)
        other.notes, other.scored = self.notes, self.scored
        is_same = self._model is self._own_model and self._mode == self._scorer.mode
        return other if is_same else other.under(self._model, self._mode)

    def losses_of(self, outputs: Any, targets: Any, n: int) -> Tensor:
        """The selector's loss for the outputs of n examples, shape (n,)."""
        return self._scorer.losses(outputs, targets, n)

    def expect_formula(self, formula: str) -> None:
        """Compare the default loss's formula with the one that a store was made with, in this batch and later ones."""
        self._scorer.check.expect(formula)

    def rand(self, n: int | None = None) -> Tensor:
        """Random numbers in [0, 1) from the selector's generator, shape (n_B,) or (n,), float32: the same on every device."""
        return to_device(torch.rand(len(self) if n is None else n, generator=self.generator), self.device)

    @property
    def computed_loss(self) -> Tensor | None:
        """The loss if it was read, else None."""
        return self._loss

    @property
    def computed_pair(self) -> tuple[Any, Any] | None:
        """Outputs and targets if they were read, or kept on the way to the loss; else None."""
        return self._pair

    def _outputs_and_targets(self) -> tuple[Any, Any]:
        if self._pair is None:
            self._pair = self._run(lambda outputs, targets, _: (outputs, targets))
        return self._pair

    def _run(self, fn: Callable[[Any, Any, int], Any], mode: Mode | None = None) -> Any:
        if self._model is None:
            raise ValueError("a loss or outputs need a model; pass it as the second argument, after the loader")
        mode = mode or self._mode
        self.scored.add(len(self), by_model=self._model is self._own_model)
        try:
            return self._scorer.run(self._model, self.batch, len(self), fn, mode, self._seed(mode))
        except LabelError as error:
            raise error.of(self.loader_index) from error

    def _seed(self, mode: Mode) -> int | None:
        """A seed for the forward pass, from the selector's generator; eval mode draws nothing."""
        return None if mode == "eval" else int(torch.randint(2**62, (), generator=self.generator))
