"""Recording a plan during a run: columns are appended to files, which become one file when the run is finished."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from rholoss._version import __version__
from rholoss.arguments import file_of, flag
from rholoss.candidates import Candidates
from rholoss.data.fingerprint import fingerprint
from rholoss.files import StrPath, rest_checksum
from rholoss.irreducible.models import describe
from rholoss.plans.plan import SelectionPlan
from rholoss.plans.plan_file import column_type, write_plan
from rholoss.selection import Selection
from rholoss.states import flat, taken

SETTINGS = "plan.json"
_WAITING = 64  # steps that are kept before they are written


class PlanRecorder:
    """Records the selections of a run, to be replayed as a ``SelectionPlan``; listens to any selector over a map-style dataset.

    Selections are appended to files in ``path.recording`` during the run, and ``finish`` writes ``path``. After a kill, restore
    its state together with the selector's: the finished file has the same bytes as that of an uninterrupted run. On several
    processes, record on each to a path of its own.

    Args:
        path: the file to write; it must not exist yet.
        weights: record the weights of the selected examples too, of methods that weigh.
        scores: record the scores of the selected examples too.

    Attributes:
        meta: what makes the plan, as JSON values by name; entries of your own are compared when a recording is resumed.
        plan: the finished plan; None before.

    Examples:
        >>> import tempfile, torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss import PlanRecorder, build_selector
        >>> data = TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
        >>> selector = build_selector("uniform", DataLoader(data, batch_size=8), None, keep=0.5)
        >>> with PlanRecorder(tempfile.mkdtemp() + "/run.plan").attach(selector) as recorder:
        ...     for x, y in selector:
        ...         pass
        >>> recorder.plan
        SelectionPlan(4 steps of 8, 32 selections from 64 examples)
    """

    def __init__(self, path: StrPath, *, weights: bool = False, scores: bool = False) -> None:
        self.path = file_of(path)
        self.folder = f"{self.path}.recording"
        self.plan: SelectionPlan | None = None
        asked = {"weights": flag(weights, "weights"), "scores": flag(scores, "scores")}
        self._columns = ["index", "ends", *(name for name, is_asked in asked.items() if is_asked)]
        self._waiting: list[Selection] = []
        self._checksums = dict.fromkeys(self._columns, 0)
        self.meta: dict[str, Any] = {}
        self._steps = self._rows = 0
        self._is_open = False
        self._next: int | None = None  # the selector's step that comes next

    def attach(self, selector: Any) -> Self:
        """Listen to a selector from now on.

        Raises:
            ValueError: its examples cannot be read by index, so that an index may not be the same example in another run.
        """
        data = fingerprint(selector.loader)
        if data is None:
            what = "a plan needs a map-style dataset: in a stream, nothing says which example an index is in another run"
            raise ValueError(f"{what}; record over the stored examples")
        columns = ", ".join(self._columns)
        self.meta = {"data": data, "n_b": selector.n_b, "n_B": selector.n_B, "columns": columns, **described(selector)}
        selector.listeners.append(self)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.finish()

    def __call__(self, candidates: Candidates, selection: Selection) -> None:
        """Called by the selector."""
        if not self._is_open:
            self.open()
        if selection.step != (selection.step if self._next is None else self._next):
            what = f"expected step {self._next} of the run after {self._steps} recorded steps, got step {selection.step}"
            raise ValueError(f"{what}; restore the states of the selector and of its recorder together")
        if "scores" in self._columns and len(selection.positions) != len(selection.index):
            what = "this rank has no scores of examples that other ranks scored, and trains on some of them"
            raise ValueError(f"{what}; record without scores")
        self._next = selection.step + 1
        self._waiting.append(selection)
        if len(self._waiting) >= _WAITING:
            self._write()

    def finish(self) -> SelectionPlan:
        """Write the plan, whole or not at all, and open it; a ValueError if nothing was recorded."""
        self._write()
        if not self._steps:
            raise ValueError("nothing was selected yet: attach the recorder to a selector and iterate it before finish()")
        columns = {name: np.memmap(self._file(name), self._type(name), "r") for name in self._columns}
        write_plan(self.path, columns, self.meta)
        self.plan = SelectionPlan.load(self.path)
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.plan

    def state_dict(self) -> dict[str, Any]:
        """What was recorded until now, all of it on disk: numbers and strings."""
        self._write()
        return {
            "steps": self._steps,
            "rows": self._rows,
            "next": self._next,
            "checksums": dict(self._checksums),
            "meta": self.meta,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume a recording: what was written after the state is dropped.

        Raises:
            ValueError: the files are not those of the state, or the selector is not the one that was recorded.
        """
        different = self.differences(taken(state, "meta", dict))
        if different:
            raise ValueError(
                f"this recording was begun with other {', '.join(different)}; resume it as it was, or delete {self.folder}"
            )
        checksums, following = taken(state, "checksums", self._checksums), taken(state, "next", None, int)
        lengths = {name: taken(state, "steps" if name == "ends" else "rows", int, least=0) for name in self._columns}
        sizes = {name: length * self._type(name).itemsize for name, length in lengths.items()}
        for name, size in sizes.items():
            with open(self._file(name), "rb") as file:
                is_whole = os.fstat(file.fileno()).st_size >= size and rest_checksum(file, size) == checksums[name]
            if not is_whole:
                raise ValueError(f"{self.folder} does not hold what this state recorded; delete it, and record again")
        self._waiting, self._is_open = [], True
        for name, size in sizes.items():
            os.truncate(self._file(name), size)
        self._steps, self._rows, self._next = lengths["ends"], lengths["index"], following
        self._checksums, self.meta = dict(checksums), dict(state["meta"])

    def differences(self, meta: Mapping[str, Any]) -> list[str]:
        """What another recording was made with, by name, that differs from the selector attached; the weights may."""
        mine, its = (flat(json.loads(json.dumps({**each, "model": None}))) for each in (self.meta, meta))
        return sorted({name.removeprefix("settings.") for name in mine.keys() | its.keys() if mine.get(name) != its.get(name)})

    def open(self) -> None:
        """Begin the recording: make its folder; a ValueError if there is a plan or an unfinished recording already."""
        for place in (self.path, self.folder):
            if os.path.exists(place):
                cure = "choose another path" if place == self.path else "load the state of that recording"
                raise ValueError(f"{place} exists already; {cure}, or delete it")
        os.makedirs(self.folder)
        for name in self._columns:
            open(self._file(name), "xb").close()
        self._is_open = True

    def _write(self) -> None:
        """Append what is waiting; one copy from the device for many steps."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        sizes = [len(selection.index) for selection in waiting]
        columns = {"index": torch.cat([selection.index for selection in waiting])}
        if "weights" in self._columns:
            columns["weights"] = torch.cat([_weights(selection) for selection in waiting])
        if "scores" in self._columns:
            columns["scores"] = torch.cat([selection.scores[selection.positions] for selection in waiting])
        arrays = {name: column.cpu().numpy() for name, column in columns.items()}
        arrays["ends"] = self._rows + np.cumsum(sizes)
        for name, array in arrays.items():
            content = np.ascontiguousarray(array, dtype=self._type(name)).tobytes()
            with open(self._file(name), "ab") as file:
                file.write(content)
                os.fsync(file.fileno())
            self._checksums[name] = zlib.crc32(content, self._checksums[name])
        self._steps += len(sizes)
        self._rows += sum(sizes)

    def _type(self, name: str) -> np.dtype[Any]:
        return column_type(name, self.meta["data"]["length"])

    def _file(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.bin")


def described(selector: Any) -> dict[str, Any]:
    """The method of a selector, the settings that decide what it selects, and its model as the recording begins."""
    settings = selector.settings()
    model = {} if selector.model is None else {"model": describe(selector.model)}
    versions = {"rholoss": __version__, "torch": str(torch.__version__)}
    return {"method": settings["selector"], "settings": settings, "versions": versions, **model}


def _weights(selection: Selection) -> Tensor:
    return torch.ones(len(selection.index), device=selection.index.device) if selection.weights is None else selection.weights
