"""Losses by name, the default one among them, and what they mean: which formula is applied to which targets."""

import functools
import hashlib
import inspect
import types
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rholoss.devices import recorded

IGNORED = -100  # the class of what does not count, as in PyTorch
_ROWS = 256  # that are looked at


class LabelError(ValueError):
    """A class that is none: ``row`` of the ``n`` rows that a loss was computed of."""

    def __init__(self, message: str, row: int, n: int) -> None:
        super().__init__(message)
        self.row, self.n = row, n

    def of(self, index: Tensor) -> ValueError:
        """The same error with the index of the example, if the rows are all those of the indices, shape (n,), int64."""
        return ValueError(f"{self} (the example with index {int(index[self.row])})") if len(index) == self.n else self


class NotFiniteError(ValueError):
    """A loss that is NaN or infinite along a fit."""


def default_loss(outputs: Any, targets: Any) -> Tensor:
    """Cross-entropy for integer targets, squared error for floating ones, one value per example, in float32.

    Args:
        outputs: logits, shape (n, C) or, for sequences, (n, T, C); or predictions, any shape (n, ...).
        targets: classes, shape (n,) or (n, T), integer, where -100 is ignored; or values, floating, of the shape of ``outputs``.
            Soft labels and floating 0/1 labels are treated as values, with a warning: pass ``loss=rholoss.soft_cross_entropy``
            or ``loss=rholoss.binary_cross_entropy`` for them.

    Returns:
        Shape (n,). Cross-entropy in nats, for sequences the mean over the tokens that are not ignored (0 without any); or the
        squared error, averaged over all dimensions but the first.

    Raises:
        TypeError: outputs or targets are not tensors; pass ``loss``.
        ValueError: their shapes do not fit, or a class is not from 0 to C - 1.
    """
    _check_tensors(outputs, targets)
    return squared_error(outputs, targets) if targets.is_floating_point() else cross_entropy(outputs, targets)


def squared_error(outputs: Any, targets: Any) -> Tensor:
    """Squared error of predictions for floating targets of their shape, (n, ...), averaged to shape (n,), in float32."""
    _check_tensors(outputs, targets)
    if outputs.shape != targets.shape:
        got = f"{tuple(outputs.shape)} and {tuple(targets.shape)}; reshape one of them in forward=, or pass loss="
        classes, binary = "classes, pass them as integers, targets.long()", "0 or 1, pass loss=rholoss.binary_cross_entropy"
        meant = classes if outputs.shape[-1:] != (1,) else binary
        hint = f"; if the targets are {meant}" if outputs.ndim == targets.ndim + 1 else ""
        raise ValueError(f"outputs and floating targets must have one shape, got {got}{hint}")
    return _mean((outputs.float() - targets.float()).square())


def cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """Cross-entropy of logits (n, C), or (n, T, C), for classes (n,), or (n, T), integer: shape (n,), in nats, in float32.

    For sequences, the mean over the tokens whose class is not -100, 0 without any.
    """
    _check_tensors(outputs, targets)
    if outputs.ndim not in (2, 3) or outputs.shape[-1] == 1 or outputs.shape[:-1] != targets.shape:
        expected = "expected logits (n, C) with classes (n,), or (n, T, C) with (n, T), where C is at least 2"
        got = f"got outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
        binary = "rholoss.binary_cross_entropy for one logit per label, or " if outputs.numel() == targets.numel() else ""
        raise ValueError(f"{expected}, {got}; pass loss={binary}(outputs, targets) -> (n,)")
    classes = targets.long()
    try:
        losses = F.cross_entropy(outputs.float().flatten(0, -2), classes.flatten(), reduction="none", ignore_index=IGNORED)
    except (IndexError, RuntimeError):
        refuse_other_classes(classes, outputs.shape[-1])
        raise
    if outputs.ndim == 2:
        return losses
    return losses.reshape(classes.shape).sum(1) / (classes != IGNORED).sum(1).clamp(min=1)


def binary_cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """Binary cross-entropy of logits, one per label, averaged over the labels of an example.

    Args:
        outputs: logits, shape (n,) or (n, 1) for one label; (n, L), or any (n, ...), for several.
        targets: 0, 1, or a probability between them, floating, integer or bool, of the shape of ``outputs``; (n,) and (n, 1) fit
            each other.

    Returns:
        Shape (n,), in nats, float32.

    Raises:
        TypeError: outputs or targets are not tensors.
        ValueError: their shapes do not fit.

    Examples:
        >>> import torch
        >>> losses = binary_cross_entropy(torch.tensor([[0.0, 4.0], [0.0, -4.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        >>> losses.round(decimals=2)
        tensor([0.3600, 2.3600])
    """
    _check_tensors(outputs, targets)
    is_column = outputs.numel() == targets.numel() and {outputs.shape[1:], targets.shape[1:]} == {(), (1,)}
    if outputs.shape != targets.shape and not is_column:
        got = f"got {tuple(outputs.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"outputs and targets must have one shape, one logit per label, {got}; reshape one of them in forward=")
    values = targets.reshape(outputs.shape).float()
    return _mean(F.binary_cross_entropy_with_logits(outputs.float(), values, reduction="none"))


def soft_cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """Cross-entropy of logits for soft labels: a probability for each class, as of label smoothing, annotators or a teacher.

    Args:
        outputs: logits, shape (n, C) or, for sequences, (n, T, C).
        targets: probabilities, floating, of the same shape; they sum to 1 along the last dimension.

    Returns:
        Shape (n,), in nats, float32; for sequences the mean over the tokens.

    Raises:
        TypeError: outputs or targets are not tensors.
        ValueError: their shapes do not fit, or the targets are not floating.

    Examples:
        >>> import torch
        >>> soft_cross_entropy(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.8, 0.1, 0.1]]))
        tensor([0.6395])
    """
    _check_tensors(outputs, targets)
    if outputs.shape != targets.shape or outputs.ndim < 2 or not targets.is_floating_point():
        got = f"got outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}, {targets.dtype}"
        cure = "for integer classes, use the default loss, or F.one_hot(targets, C).float()"
        raise ValueError(f"expected logits (n, C) and a probability for each class, (n, C), floating, {got}; {cure}")
    return _mean(-(outputs.float().log_softmax(-1) * targets.float()).sum(-1))


def classes_of(outputs: Any, targets: Any) -> int:
    """C of a classifier, which returns logits (n, C), C at least 2, for classes (n,), integer; 0 for anything else."""
    are_tensors = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if not are_tensors or outputs.ndim != 2 or outputs.shape[1] < 2 or targets.is_floating_point():
        return 0
    return outputs.shape[1] if targets.shape == outputs.shape[:1] else 0


def _mean(losses: Tensor) -> Tensor:
    return losses if losses.ndim == 1 else losses.flatten(1).mean(1)


def _check_tensors(outputs: Any, targets: Any) -> None:
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        what = f"expected tensors, got outputs {type(outputs).__name__} and targets {type(targets).__name__}"
        raise TypeError(f"{what}; let forward= return tensors, or pass loss=(outputs, targets) -> (n,)")


def refuse_other_classes(classes: Tensor, C: int, ignored: bool = True) -> None:
    """Raise a ``LabelError`` if classes, shape (n,) or (n, T), int64, are neither from 0 to C - 1 nor, if ``ignored``, -100."""
    wrong = classes[((classes < 0) & ~(ignored & (classes == IGNORED))) | (classes >= C)]
    if len(wrong):
        value = int(wrong.min() if int(wrong.min()) < 0 else wrong.max())
        row = int(torch.nonzero(classes == value)[0, 0])
        message = f"expected classes from 0 to {C - 1}, got {value} at row {row}; {_class_cure(classes, C, value)}"
        raise LabelError(message, row, len(classes))


def _class_cure(classes: Tensor, C: int, value: int) -> str:
    """What to do about classes, int64, of which a value is not from 0 to C - 1."""
    if int(classes.min()) >= 1 and value == C:
        return "these begin at 1: subtract 1"
    if value == IGNORED:
        return "leave these rows out"
    mark = f"if {value} marks what does not count, leave it out, or let the default loss read {IGNORED}"
    return f"{mark}; else correct these labels, or give the model an output for every class"


_MEANT = {"cross_entropy": "cross-entropies of integer classes", "squared_error": "squared errors of floating targets"}


class LossCheck:
    """Whether the losses of one run mean one thing: one formula for its batches and its store, and outputs of the right kind.

    Formulas are compared for the default loss, which chooses by the targets. Values are looked at in the first batch alone.

    Args:
        waits: look at the values on an accelerator at once; otherwise when a copy has arrived at the host, some batches later,
            and without the check of the classes.
    """

    def __init__(self, waits: bool = True) -> None:
        self.formula = ""  # "cross_entropy" or "squared_error"; empty if unknown
        self._waits = waits
        self._looked = False
        self._arriving: tuple[Any, Any, Tensor, Tensor] | None = None  # the event after two copies, and what is copied

    def expect(self, formula: str) -> None:
        """Compare a formula of the default loss, of a batch or of a store, with the one before; a ValueError if they differ."""
        if formula and self.formula not in ("", formula):
            both = " and ".join(sorted(_MEANT[each] for each in (formula, self.formula)))
            cure = "pass one loss= to from_model, with this loader, and to the selector, such as rholoss.soft_cross_entropy"
            raise ValueError(
                f"the default loss would be {both} in one run, in the store or in other batches: their difference means nothing; "
                f"{cure} for soft labels, or mix and soften labels after the selection"
            )
        self.formula = self.formula or formula

    def meet(self, loss: Any, outputs: Any, targets: Any) -> None:
        """Check what a loss is about to be computed of; values that look wrong get a warning, once."""
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            return
        if loss is default_loss:
            self.expect("squared_error" if targets.is_floating_point() else "cross_entropy")
        if self._arriving is not None and self._arriving[0].query():
            (_, *arrived), self._arriving = self._arriving, None
            _look(*arrived)
        if not self._looked:
            self._looked = True
            self._look(loss, outputs.detach(), targets.detach())

    def _look(self, loss: Any, outputs: Tensor, targets: Tensor) -> None:
        on_cpu = outputs.device.type == "cpu"
        is_classes = loss in (default_loss, cross_entropy) and not targets.is_floating_point()
        if self._waits and is_classes and outputs.ndim in (2, 3) and not on_cpu:  # where a wrong class would end the process
            refuse_other_classes(targets.long(), outputs.shape[-1])
        if not (self._waits or on_cpu):
            copies = [each[:_ROWS].to("cpu", non_blocking=True) for each in (outputs, targets)]
            event = recorded(outputs.device)
            if event is not None:
                self._arriving = event, loss, *copies
                return
        _look(loss, outputs, targets)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arriving": None}


def _look(loss: Any, outputs: Tensor, targets: Tensor) -> None:
    is_classes = loss in (default_loss, cross_entropy) and not targets.is_floating_point()
    try:
        wrong = _wrong_targets(loss, targets)
        doubt = "" if wrong else _doubt(loss, outputs, targets, is_classes)
    except Exception:  # tensors of a kind that has no minimum or sum
        return
    if wrong:
        raise ValueError(f"{loss.__name__} expects {wrong}")
    if doubt:
        warnings.warn(doubt, stacklevel=3)


def _wrong_targets(loss: Any, targets: Tensor) -> str:
    """What this loss expects of its targets, if they are something else."""
    if loss not in (binary_cross_entropy, soft_cross_entropy) or not targets.numel():
        return ""
    low, high = float(targets.min()), float(targets.max())
    if low < 0 or high > 1:
        return f"targets from 0 to 1, got {low:.4g} to {high:.4g}; bring them to this range in forward="
    if loss is binary_cross_entropy:
        return ""
    rows = targets.flatten(0, -2)[:_ROWS]
    is_labelled = rows.any(1)  # a row of zeros, such as padding, has no label: its loss is 0
    if bool(is_labelled.any()) and not are_distributions(rows[is_labelled]):
        sums = rows.double().sum(1)
        row = int((is_labelled & ((sums - 1).abs() >= 0.01)).int().argmax())
        several = "for several labels at once pass loss=rholoss.binary_cross_entropy"
        return f"targets that sum to 1, got {float(sums[row]):.4g} in row {row}; {several}"
    return ""


def _doubt(loss: Any, outputs: Tensor, targets: Tensor, is_classes: bool) -> str:
    """What looks wrong about a batch's outputs for its targets, and what to do; an empty string if nothing does."""
    looks = "expected logits, got outputs that look like probabilities"
    if is_classes or loss in (soft_cross_entropy, F.cross_entropy) or isinstance(loss, nn.CrossEntropyLoss):
        rows = outputs[:, 0] if outputs.ndim == 3 else outputs
        scale = probability_scale(rows) if rows.ndim == 2 else 0
        cure = "take the softmax out of the model, or return the logarithm of the probabilities in forward="
        return f"{looks}: none is negative, and rows sum to {scale}; {cure}" if scale else ""
    if loss not in (default_loss, binary_cross_entropy) or outputs.shape != targets.shape or not targets.numel():
        return ""
    is_within = float(outputs.min()) >= 0 and float(outputs.max()) <= 1
    if loss is binary_cross_entropy:
        cure = "take the sigmoid out of the model, or return torch.logit(probabilities) in forward="
        return f"{looks}: all are from 0 to 1; {cure}" if is_within and outputs.numel() >= 32 else ""
    low, high = float(targets.min()), float(targets.max())
    if is_within or low < 0 or high > 1:
        return ""
    is_soft = are_distributions(targets)
    is_binary = low < high and bool(((targets == 0) | (targets == 1)).all())
    what, name = ("rows of probabilities", "soft_cross_entropy") if is_soft else ("0 or 1", "binary_cross_entropy")
    same = "or loss=rholoss.losses.squared_error for what the default loss computes of them"
    cure = f"pass loss=rholoss.{name}, {same}"
    return f"the floating targets are {what}, and the outputs look like logits: {cure}" if is_soft or is_binary else ""


def are_distributions(values: Tensor) -> bool:
    """Whether values, shape (..., C), are probabilities of at least 2 classes, to within rounding; of many, the first few."""
    return values.ndim > 1 and probability_scale(values if values.ndim == 2 else values.flatten(0, -2)) == 1


def probability_scale(rows: Tensor) -> int:
    """1 for rows (n, C) of probabilities, 100 for percentages, to within rounding, else 0; of many, the first few are read."""
    rows = rows[:_ROWS].double()
    if not rows.numel() or rows.shape[1] < 2 or bool((rows < 0).any()):
        return 0
    sums = rows.sum(1)
    return next((scale for scale in (1, 100) if bool(((sums / scale - 1).abs() < 0.01).all())), 0)


def callable_name(function: Any) -> str:
    """The name of a function, module or other callable, such as the loss that made a store, with the options that it holds.

    Lambdas and functions inside functions, which may share a name, also get a digest of their code; what they close over, and
    their defaults, come after the word ``with``.
    """
    if isinstance(function, functools.partial):
        given = {**{str(i): value for i, value in enumerate(function.args)}, **function.keywords}
        return f"{callable_name(function.func)}({_options(given)})"
    if isinstance(function, nn.Module):
        own = {name: value for name, value in vars(function).items() if name[0] != "_" and name != "training"}
        parts = {**own, **dict(function.named_buffers(recurse=False)), **dict(function.named_children())}
        return f"{type(function).__name__}({_options(parts)})"
    name = str(getattr(function, "__qualname__", type(function).__name__))
    if "<" not in name or not isinstance(function, types.FunctionType):
        return name
    held = closed_over(function)
    defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    held |= {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
    return f"{name} {_short(repr(_code(function.__code__)).encode())}" + (f" with {_options(held)}" if held else "")


def closed_over(function: types.FunctionType) -> dict[str, Any]:
    """What a function closes over, by name; without what is not assigned yet."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}


def _code(code: types.CodeType) -> Any:
    """What code does, the same in every process: not where it is, nor sets of constants, whose order varies."""
    consts = [_code(each) if isinstance(each, types.CodeType) else each for each in code.co_consts]
    return code.co_code, code.co_names, [each for each in consts if not isinstance(each, frozenset)]


def _options(values: Mapping[str, Any]) -> str:
    """Options in a form that is the same in every process; objects, functions and models by what they are called."""
    return ", ".join(f"{name}={_option(value)}" for name, value in sorted(values.items()))


def _option(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return str(value)
    if isinstance(value, functools.partial) or (isinstance(value, nn.Module) and next(value.parameters(), None) is None):
        return callable_name(value)
    if isinstance(value, Tensor) and value.device.type != "meta" and not value.is_complex():
        return f"{list(value.shape)} {_short(value.detach().cpu().double().contiguous().numpy().tobytes())}"
    return str(getattr(value, "__qualname__", type(value).__name__))


def _short(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=4).hexdigest()
