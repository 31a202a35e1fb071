"""The file of a rehearsal: written after each fit, for a second run, and for one that was killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

from rholoss.rehearsal.rehearsal import Rehearsal, Round
from rholoss.store import IrreducibleLossStore

Asked = dict[str, Any]  # what decides the outcome, as JSON
_MEANT = {  # the words of a message for each
    "data": "training data",
    "trusted": "trusted examples",
    "only_trusted_classes": "only_trusted_classes=",
    "force": "force=",
    "seed": "seed=",
    "steps": "steps=, or batch size",
    "network": "inputs or classes of the model, or proxy=",
}


class RehearsalFile:
    """The irreducible losses of a rehearsal, with what was asked and found in the metadata; nothing is written without a path.

    Args:
        path: the file, or None.
        ask: returns what decides the outcome.

    Raises:
        ValueError: the file is damaged, or of a rehearsal that was asked otherwise.
    """

    def __init__(self, path: str | None, ask: Callable[[], Asked]) -> None:
        self.path, self._ask = path, ask
        self.held = self._load(path) if path is not None and os.path.exists(path) else None

    @cached_property
    def asked(self) -> Asked:
        return self._ask()

    def finished(self) -> tuple[IrreducibleLossStore, Rehearsal] | None:
        """What an earlier rehearsal saved at its end; None if there is none."""
        found = None if self.held is None else self.held.meta.extra["rehearsal"].get("found")
        return None if self.held is None or found is None else (self.held, Rehearsal.of_json(found))

    def begun(self) -> tuple[IrreducibleLossStore, int, list[Round]] | None:
        """The losses of the parts that a killed one scored, how many parts, and the fits; None if there are none."""
        if self.held is None:
            return None
        about = self.held.meta.extra.pop("rehearsal")
        return self.held, about["scored"], [Round(**each) for each in about["fits"]]

    def save_part(self, store: IrreducibleLossStore, scored: int, fits: list[Round]) -> None:
        """Write the losses so far, of so many parts of the data."""
        self._save(store, {"scored": scored, "fits": [each._asdict() for each in fits]})
        del store.meta.extra["rehearsal"]

    def save(self, store: IrreducibleLossStore, rehearsal: Rehearsal) -> None:
        """Write what was found, and note it in the store's metadata."""
        self._save(store, {"found": rehearsal.to_json()})

    def _save(self, store: IrreducibleLossStore, about: dict[str, Any]) -> None:
        store.meta.extra["rehearsal"] = {"asked": self.asked, **about}
        if self.path is not None:
            store.save(self.path)

    def _load(self, path: str) -> IrreducibleLossStore:
        try:
            store = IrreducibleLossStore.load(path)
        except ValueError as error:
            raise ValueError(f"{error}; or delete {path}, and auto makes it again") from error
        held = store.meta.extra.get("rehearsal")
        if not isinstance(held, dict) or held.get("asked") != self.asked:
            differ = self._difference(held.get("asked", {})) if isinstance(held, dict) else ""
            raise ValueError(f"{path} holds irreducible losses of another rehearsal{differ}; delete it, or choose another path")
        return store

    def _difference(self, saved: Asked) -> str:
        names = [_MEANT[name] for name in self.asked if saved.get(name) != self.asked[name]]
        return f", with other {', '.join(names)}" if names else ""
