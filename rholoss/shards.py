"""Scoring that survives being killed, and that several processes share: a stretch of the data at a time, each kept on disk."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rholoss.fingerprint import digest
from rholoss.ids import some
from rholoss.making import Making, Scored, made_today
from rholoss.storefile import read_store, write_mapped, write_store, written_whole
from rholoss.tally import Tally

NAMES = {"code": "forward or loss function", "scoring": "scoring (batch size, dtype or seed)"}
SETTINGS = "scoring.json"
Arrays = dict[str, np.ndarray]


class Shards:
    """The stretches of one scoring of a dataset, in a folder: those that are done, and room for the others.

    Any number of processes may work in it. A stretch comes out the same whoever scores it, and appears whole or not at all.

    Args:
        path: the folder; made if it is not there.
        making: what is scored, and how.

    Raises:
        ValueError: the folder holds another scoring; the message says in what it differs.
    """

    def __init__(self, path: str, making: Making) -> None:
        self.path = path
        self.making = making
        self.stretches = making.stretches()
        first = self.stretches[0]
        stretches = [len(self.stretches), None if first is None else len(first)]
        mine = json.loads(json.dumps({**making.settings, "stretches": stretches}))
        self._identity = digest(json.dumps(mine, sort_keys=True).encode())
        settings = os.path.join(path, SETTINGS)
        self._is_new = not os.path.exists(path)
        os.makedirs(path, exist_ok=True)
        if not os.path.exists(settings):
            with written_whole(settings) as file:
                file.write(json.dumps({**mine, **made_today()}).encode())
        self.meta = _read_settings(settings)
        different = [name for name in mine if self.meta.get(name) != mine[name]]
        if different:
            raise ValueError(
                f"{path} holds an unfinished scoring with other {', '.join(different)}; go on with what it was begun with, or "
                "delete the folder to begin anew"
            )
        self.meta.pop("stretches")

    def work(self, process: int, processes: int) -> bool:
        """Score this process's share of what is missing or damaged; whether the other shares are done as well.

        A lone process that fails in its first stretch leaves nothing behind.
        """
        try:
            return self._work(process, processes)
        except BaseException:
            if self._is_new and processes == 1 and not any(os.path.exists(self._file(i)) for i in range(len(self.stretches))):
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def _work(self, process: int, processes: int) -> bool:
        for i, rows in enumerate(self.stretches):
            if i % processes == process:
                if self._read(i) is None:
                    self._score(i)
                else:
                    self.making.passed(rows)
        others = [i for i in range(len(self.stretches)) if i % processes != process]
        if not all(os.path.exists(self._file(i)) for i in others):
            return False
        for i in others:
            if self._read(i) is None:
                self._score(i)
        return True

    def scored(self) -> Iterator[Scored]:
        """The stretches in the order of the data.

        Raises:
            FileNotFoundError: one is not there, or not whole.
        """
        for i in range(len(self.stretches)):
            scored = self._read(i)
            if scored is None:
                raise FileNotFoundError(f"{self._file(i)} is missing or damaged; run again to score its stretch anew")
            yield scored

    def saved(self, mapped: bool) -> str:
        """Where in the folder the finished store lies, under a name of its own, to be renamed."""
        whole = os.path.join(self.path, f"{secrets.token_hex(8)}.whole")
        if mapped and self.making.is_dense:
            tally = sum((each.tally for each in self.scored()), Tally())
            pieces = ({"losses": each.losses.numpy()} for each in self.scored())
            write_mapped(whole, self.making.sweep.total or 0, pieces, {**self.meta, "tally": tally.state()})
            return whole
        arrays, tally = joined(list(self.scored()), self.making.sweep.dataset_length)
        meta = {**self.meta, "tally": tally.state()}
        write_mapped(whole, len(arrays["losses"]), [arrays], meta) if mapped else write_store(whole, arrays, meta)
        return whole

    def _score(self, i: int) -> None:
        scored = self.making.score(self.stretches[i])
        arrays = {"losses": scored.losses.numpy(), "ids": scored.index.numpy()}
        write_store(self._file(i), arrays, {"tally": scored.tally.state(), "stretch": [self._identity, i]})

    def _read(self, i: int) -> Scored | None:
        """A stretch; None where it is not there, its file is damaged, or it is another scoring's."""
        try:
            arrays, meta = read_store(self._file(i))
        except (FileNotFoundError, ValueError):
            return None
        if meta.get("stretch") != [self._identity, i]:
            return None
        return Scored(torch.from_numpy(arrays["ids"]), torch.from_numpy(arrays["losses"]), Tally(**meta["tally"]))

    def _file(self, i: int) -> str:
        return os.path.join(self.path, f"{i:06d}.npz")


def in_memory(making: Making, distributed: bool) -> tuple[Arrays, dict[str, Any]]:
    """Score everything, or on each rank a share of it; the arrays and the metadata of the store, on every rank."""
    process, processes = rank() if distributed else (0, 1)
    stretches = making.stretches()
    mine = {i: making.score(rows) for i, rows in enumerate(stretches) if i % processes == process}
    if distributed:
        gathered: list[dict[int, Scored]] = [{} for _ in range(processes)]
        dist.all_gather_object(gathered, mine)
        mine = {i: scored for share in gathered for i, scored in share.items()}
    arrays, tally = joined([mine[i] for i in range(len(stretches))], making.sweep.dataset_length)
    return arrays, {**making.settings, **made_today(), "tally": tally.state()}


def on_disk(making: Making, path: str, mapped: bool, process: int = 0, processes: int = 1) -> bool:
    """Score one process's share, and save the store if nothing is missing after that; whether it is there.

    All that is written until the store is whole lies in one folder, which is removed in the end, so that nothing is left of a
    run that was killed once another is through.
    """
    path = path.rstrip(os.sep)
    parts = f"{path}.parts"
    if not os.path.exists(path):
        try:
            shards = Shards(parts, making)
            if shards.work(process, processes):
                os.replace(shards.saved(mapped), path)
        except OSError:  # also where another process, done at the same moment, has saved the store and cleared up
            if not os.path.exists(path):
                raise
        if not os.path.exists(path):
            return False
    _refuse_other(making, path)
    _clear(making, parts)
    return True


def joined(scored: list[Scored], dataset_length: int | None) -> tuple[Arrays, Tally]:
    """The arrays of a store, ids ascending and each once, or none where the examples are all of a dataset; and the tally."""
    index = torch.cat([each.index for each in scored])
    losses = torch.cat([each.losses for each in scored])
    tally = sum((each.tally for each in scored), Tally())
    if bool((index[1:] <= index[:-1]).any()):
        index, order = index.sort(stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        if dataset_length is None:  # a data set that is read by index has one example of each, however it is drawn and augmented
            _refuse_namesakes(index, losses[order], first)
        index, losses = index[first], losses[order][first]
    whole = len(index) == dataset_length and int(index[0]) == 0 and int(index[-1]) == dataset_length - 1
    return {"losses": losses.numpy()} if whole else {"losses": losses.numpy(), "ids": index.numpy()}, tally


def _refuse_namesakes(index: Tensor, losses: Tensor, first: Tensor) -> None:
    """Raise a ValueError if examples of one id have irreducible losses that rounding does not explain."""
    of_first = losses[first][first.cumsum(0) - 1]
    other = index[~torch.isclose(losses, of_first, rtol=0.05, atol=0.05)].unique()
    if len(other):
        raise ValueError(
            f"{len(other):,} ids were yielded more than once, with different losses: {some(other.tolist())}; an id must mean one "
            "example. Let it say more, such as the shard and the key of a tar file; and leave out copies that are augmented"
        )


def rank() -> tuple[int, int]:
    """This process's rank and how many there are.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialized.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "distributed=True needs torch.distributed to be initialized; call init_process_group first, or leave it out"
        )
    return dist.get_rank(), dist.get_world_size()


def _refuse_other(making: Making, path: str) -> None:
    """Raise a ValueError if the store at a path was made by something else."""
    _, meta = read_store(path)
    different = [NAMES.get(name, name) for name in _different(making, meta)]
    if different:
        raise ValueError(
            f"{path} is there already, made with other {', '.join(different)}; name another path, or delete it to make it anew"
        )


def _clear(making: Making, parts: str) -> None:
    """Remove the folder of a scoring that is through, unless it is another's."""
    settings = os.path.join(parts, SETTINGS)
    try:
        is_ours = not os.path.exists(settings) or not _different(making, _read_settings(settings))
    except (OSError, ValueError):  # cleared by another process, or damaged
        is_ours = True
    if is_ours:
        shutil.rmtree(parts, ignore_errors=True)


def _different(making: Making, meta: dict[str, Any]) -> list[str]:
    return [name for name, value in making.settings.items() if meta.get(name) != value]


def _read_settings(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            settings: dict[str, Any] = json.load(file)
        if not isinstance(settings, dict):
            raise ValueError("it is no mapping")
        return settings
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete its folder to begin anew") from error
