"""Reference losses of tokens on disk, by the index of the example: one ``.npz`` file, without pickle."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import IO, Any

import torch
from torch import Tensor

from rholoss.arguments import path_of
from rholoss.data.index import as_index, some
from rholoss.files import check_kind, explained, open_npz, open_regular, write_npz
from rholoss.progress import Progress, watched

FORMAT = 1
KIND = "rholoss.ReferenceLossCache"
FIELDS: dict[str, tuple[str, ...]] = {"index": ("<i8",), "offsets": ("<i8",), "values": ("<f2", "<f4")}


class ReferenceLossCache:
    """The reference loss of every token of every example, for examples of different lengths.

    Args:
        index: indices of the examples, shape (N,), int64, distinct, in any order.
        lengths: tokens in each example, shape (N,), int64.
        values: reference losses in nats, one example after another, shape (sum of lengths,), float32 or float16.
        meta: how they were made: JSON values by string, saved with them.

    Raises:
        ValueError: the shapes do not match, an index repeats, or a loss is NaN or infinite.

    Examples:
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> losses = torch.tensor([[0.0, 1.5, 2.0], [0.0, 0.5, 0.0]])
        >>> cache = ReferenceLossCache.from_batches([(torch.tensor([70, 8]), losses, mask)])
        >>> cache[torch.tensor([8, 70])]
        tensor([[0.0000, 0.5000, 0.0000],
                [0.0000, 1.5000, 2.0000]])
        >>> cache.lookup(torch.tensor([8]), torch.tensor([[False, False, True, True]]))  # padded on the left
        tensor([[0.0000, 0.0000, 0.0000, 0.5000]])
    """

    def __init__(self, index: Tensor, lengths: Tensor, values: Tensor, *, meta: Mapping[str, Any] | None = None) -> None:
        index, lengths, values = as_index(index).cpu(), lengths.long().cpu(), values.cpu()
        if index.shape != lengths.shape or values.ndim != 1 or (lengths < 0).any():
            shapes = ", ".join(str(tuple(each.shape)) for each in (index, lengths, values))
            raise ValueError(f"expected index (N,), lengths (N,), at least 0, and values (sum of lengths,), got {shapes}")
        if values.dtype not in (torch.float32, torch.float16):
            raise ValueError(f"values must be float32 or float16, got {values.dtype}")
        if int(lengths.sum()) != len(values):
            raise ValueError(f"lengths add up to {int(lengths.sum()):,}, but there are {len(values):,} values, one per token")
        self.index, self.lengths, self.values, self.meta = index, lengths, values, dict(meta or {})
        self._starts = lengths.cumsum(0) - lengths
        self._sorted, self._order = index.sort()
        if (twice := self._sorted[1:] == self._sorted[:-1]).any():
            raise ValueError(f"every example must be there once, got more of indices {some(self._sorted[1:][twice].tolist())}")
        if not values.isfinite().all():
            bad = int((~values.isfinite()).sum())
            raise ValueError(f"reference losses must be finite in {values.dtype}, got {bad:,} that are NaN or infinite")

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def from_batches(
        cls,
        batches: Iterable[tuple[Any, Tensor, Tensor]],
        *,
        dtype: torch.dtype = torch.float32,
        meta: Mapping[str, Any] | None = None,
        progress: Progress = None,
    ) -> ReferenceLossCache:
        """A cache of the losses that a loop over the data computes.

        Args:
            batches: (index, losses, mask) of each batch: indices, shape (n,), int64; their ``reference_losses``, shape (n, T);
                and which positions are tokens rather than padding, shape (n, T), such as an attention mask.
            dtype: ``torch.float16`` takes half the space, with a relative error of at most 1 in 2,000.
            meta: see ``ReferenceLossCache``.
            progress: see ``rholoss.progress.Progress``; counts batches.
        """
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for which, losses, mask in watched(batches, progress, "batch", "reference losses"):
            index, own = as_index(which).cpu(), mask.bool()
            if losses.ndim != 2 or losses.shape != own.shape or len(losses) != len(index):
                expected, got = f"({len(index)}, T) for {len(index)} indices", f"{tuple(losses.shape)} and {tuple(own.shape)}"
                raise ValueError(f"losses and mask must have shape {expected}, got {got}")
            parts.append((index, own.sum(1).cpu(), losses.detach()[own].to(dtype).cpu()))
        if not parts:
            raise ValueError("there must be at least one batch of (index, losses, mask), got none")
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)), meta=meta)

    def __getitem__(self, index: Any) -> Tensor:
        """The reference losses of some examples from position 0 on, padded with zeros, shape (n, T), float32."""
        lengths = self.lengths[self._rows(index)]
        longest = int(lengths.max()) if len(lengths) else 0
        return self.lookup(index, torch.arange(longest) < lengths[:, None])

    def lookup(self, index: Any, mask: Tensor) -> Tensor:
        """The reference losses of some examples at their positions in a batch, shape (n, T), float32, 0 elsewhere.

        The result is on the device of the mask; an accelerator is synchronized.

        Args:
            index: indices of the examples, shape (n,), int64.
            mask: which positions of the batch are tokens rather than padding, on either side, shape (n, T).

        Raises:
            KeyError: an example is not in the cache.
            ValueError: an example has a different number of positions in the batch than losses in the cache.
        """
        rows = self._rows(index)
        own = mask.bool().cpu()
        if own.ndim != 2 or len(own) != len(rows):
            raise ValueError(f"mask must have shape ({len(rows)}, T) for {len(rows)} indices, got {tuple(mask.shape)}")
        there, here = own.sum(1), self.lengths[rows]
        if (differ := there != here).any():
            first, n_there, n_here = (int(of[differ][0]) for of in (self.index[rows], there, here))
            what = f"{int(differ.sum())} of {len(rows)} examples have another length than in the cache"
            such = f"index {first} has {n_there} positions in the batch and {n_here} in the cache"
            raise ValueError(f"{what}: {such}; tokenize, truncate and pack as for the cache, or make it again")
        found = torch.zeros(own.shape)
        steps = own.cumsum(1) - 1
        found[own] = self.values[(self._starts[rows][:, None] + steps)[own]].float()
        return found.to(mask.device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` file, atomically: on an OSError, an earlier file stays as it was."""
        header = {"format": FORMAT, "kind": KIND, "meta": self.meta}
        offsets = torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])
        write_npz(path_of(path), header, {"index": self.index.numpy(), "offsets": offsets.numpy(), "values": self.values.numpy()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReferenceLossCache:
        """Read a saved cache.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            ValueError: it is not a cache, is damaged, or has a newer format.
        """
        path = path_of(path)
        cure = "expected a .npz file written by ReferenceLossCache.save; copy it again, or make it again"
        with explained(path, "a cache", cure), open_regular(path) as file:
            header, index, offsets, values = _read(file)
            lengths = offsets[1:] - offsets[:-1]
            if len(offsets) != len(index) + 1 or offsets[0] != 0:
                raise ValueError("its offsets do not fit")
            return cls(index, lengths, values, meta=header["meta"])

    def _rows(self, index: Any) -> Tensor:
        """Positions of the examples in ``self.index``, shape (n,)."""
        wanted = as_index(index).cpu()
        place = torch.searchsorted(self._sorted, wanted).clamp(max=max(len(self) - 1, 0))
        missing = self._sorted[place] != wanted if len(self) else torch.ones_like(wanted, dtype=torch.bool)
        if missing.any():
            what = f"{int(missing.sum())} of {len(wanted)} examples are not in the cache of {len(self):,}"
            cure = "score them too, or look up indices of the dataset that it was made of"
            raise KeyError(f"{what}: indices {some(wanted[missing].tolist())}; {cure}")
        return self._order[place]


def _read(file: IO[bytes]) -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
    """The header and the checked arrays of a file."""
    header, npz = open_npz(file)
    check_kind(header.get("kind"), KIND)
    if header["format"] > FORMAT:
        raise ValueError(f"its format is {header['format']}, this rholoss reads up to {FORMAT}")
    if {*npz} != {*FIELDS, "header"}:
        raise ValueError(f"it holds {', '.join(npz)}, expected {', '.join(FIELDS)}")
    arrays = {name: npz[name] for name in FIELDS}
    for name, array in arrays.items():
        if array.dtype.str not in FIELDS[name] or array.ndim != 1:
            raise ValueError(f"field {name!r} has dtype {array.dtype} and shape {array.shape}")
    index, offsets, values = (torch.from_numpy(array) for array in arrays.values())
    return header, index, offsets, values
