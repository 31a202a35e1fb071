"""Scoring that survives a kill and that several processes share: each chunk of the data is saved when done."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rholoss.data.index import some
from rholoss.distributed import Ranks
from rholoss.files import read_json, write_json
from rholoss.irreducible.scoring_job import Scored, ScoringJob, made_today
from rholoss.states import digest
from rholoss.store.metadata import CalibrationCounts, StoreMetadata
from rholoss.store.predictions import Predictions
from rholoss.store.serialization import read_store, write_mapped, write_store

NAMES = {"code": "forward or loss function", "scoring": "scoring (batch size, dtype, seed or top_classes)"}
SETTINGS = "scoring.json"
Arrays = dict[str, np.ndarray]


class ScoringCheckpoint:
    """The chunks of one scoring run, each written whole or not at all, in a folder that any number of processes may share."""

    def __init__(self, path: str, job: ScoringJob) -> None:
        self.path = path
        self.job = job
        self.chunks = job.chunks()
        first = self.chunks[0]
        chunks = [len(self.chunks), None if first is None else len(first)]
        mine = json.loads(json.dumps({**job.settings, "chunks": chunks}))
        self._identity = digest(json.dumps(mine, sort_keys=True).encode())
        settings = os.path.join(path, SETTINGS)
        self._is_new = not os.path.exists(path)
        os.makedirs(path, exist_ok=True)
        if not os.path.exists(settings) or self._only_they_are_damaged(settings):
            write_json(settings, {**mine, **made_today()})
        self.meta = _read_settings(settings)
        different = [name for name in mine if self.meta.get(name) != mine[name]]
        if different:
            what = f"{path} holds an unfinished scoring with other {', '.join(different)}"
            raise ValueError(f"{what}; resume it with the same settings, or delete the folder to start from scratch")
        self.meta.pop("chunks")

    def _only_they_are_damaged(self, settings: str) -> bool:
        """Whether settings cannot be read, beside a chunk of this very scoring."""
        try:
            return not _read_settings(settings)
        except ValueError:
            return any(self._read(i) is not None for i in range(len(self.chunks)))

    def work(self, process: int, processes: int) -> bool:
        """Score this process's share of the missing or damaged chunks; returns whether the other shares are done as well."""
        try:
            return self._work(process, processes)
        except BaseException:  # a lone process that fails in its first chunk leaves no folder
            if self._is_new and processes == 1 and not any(os.path.exists(self._file(i)) for i in range(len(self.chunks))):
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def complete(self, i: int) -> None:
        """Score a chunk, if it is missing or damaged."""
        if self._read(i) is None:
            self._score(i)
        else:
            self.job.passed(self.chunks[i])

    def _work(self, process: int, processes: int) -> bool:
        for i in range(process, len(self.chunks), processes):
            self.complete(i)
        others = [i for i in range(len(self.chunks)) if i % processes != process]
        if not all(os.path.exists(self._file(i)) for i in others):
            return False
        for i in others:
            if self._read(i) is None:
                self._score(i)
        return True

    def scored(self) -> Iterator[Scored]:
        """The chunks in the order of the data; FileNotFoundError if one is missing or damaged."""
        for i in range(len(self.chunks)):
            scored = self._read(i)
            if scored is None:
                raise FileNotFoundError(f"{self._file(i)} is missing or damaged; run again to score its chunk again")
            yield scored

    def saved(self, mapped: bool) -> str:
        """Write the finished store into the folder, under a temporary name; returns its path."""
        whole = os.path.join(self.path, f"{secrets.token_hex(8)}.whole")
        if mapped and self.job.is_dense:
            calibration = sum((each.calibration for each in self.scored()), CalibrationCounts())
            pieces = ({"losses": each.losses.numpy(), **_beside(each.predictions)} for each in self.scored())
            write_mapped(whole, self.job.scorer.total or 0, pieces, self._metadata(calibration))
            return whole
        arrays, calibration = joined(list(self.scored()), self.job.scorer.view.dataset_length)
        meta = self._metadata(calibration)
        write_mapped(whole, len(arrays["losses"]), [arrays], meta) if mapped else write_store(whole, arrays, meta)
        return whole

    def _metadata(self, calibration: CalibrationCounts) -> dict[str, Any]:
        """The metadata as ``IrreducibleLossStore.save`` writes it, so that the file is the same."""
        return StoreMetadata.of({**self.meta, "calibration": calibration}).to_json()

    def _score(self, i: int) -> None:
        scored = self.job.score(self.chunks[i])
        arrays = {"losses": scored.losses.numpy(), "ids": scored.index.numpy(), **_beside(scored.predictions)}
        write_store(self._file(i), arrays, {"calibration": scored.calibration.to_json(), "chunk": [self._identity, i]})

    def _read(self, i: int) -> Scored | None:
        """A chunk; None if it is missing or damaged, or belongs to another scoring."""
        try:
            arrays, meta = read_store(self._file(i))
        except (FileNotFoundError, ValueError):
            return None
        if meta.get("chunk") != [self._identity, i]:
            return None
        index, losses = (torch.from_numpy(arrays[name]) for name in ("ids", "losses"))
        return Scored(index, losses, CalibrationCounts(**meta["calibration"]), Predictions.from_arrays(arrays))

    def _file(self, i: int) -> str:
        return os.path.join(self.path, f"{i:06d}.npz")


def score_in_memory(job: ScoringJob, ranks: Ranks | None = None) -> tuple[Arrays, dict[str, Any]]:
    """Score everything, or a share of it on each rank; returns the arrays and metadata of the store, on every rank."""
    chunks = job.chunks()
    mine: dict[int, Scored] = {}
    if ranks is None:
        mine = {i: job.score(rows) for i, rows in enumerate(chunks)}
    else:
        ranks.share(len(chunks), lambda i: mine.update({i: job.score(chunks[i])}))
        mine = {i: scored for share in ranks.all_gather_objects(mine) for i, scored in share.items()}
    arrays, calibration = joined([mine[i] for i in range(len(chunks))], job.scorer.view.dataset_length)
    return arrays, {**job.settings, **made_today(), "calibration": calibration.to_json()}


def score_on_disk(job: ScoringJob, path: str, mapped: bool, process: int = 0, processes: int = 1) -> bool:
    """Score one process's share in ``path.parts``, and save the store if all is done then; returns whether the store exists."""
    path = path.rstrip(os.sep)
    parts = f"{path}.parts"
    if not os.path.exists(path):
        try:
            checkpoint = ScoringCheckpoint(parts, job)
            if checkpoint.work(process, processes):
                os.replace(checkpoint.saved(mapped), path)
        except OSError:  # also if another process has just saved the store and removed the folder
            if not os.path.exists(path):
                raise
        if not os.path.exists(path):
            return False
    check_made(job, path)
    return True


def score_by_ranks(job: ScoringJob, path: str, mapped: bool, ranks: Ranks) -> None:
    """As ``score_on_disk`` for a share on each rank; an error of a rank is raised on all of them, and rank 0 saves the store."""
    path = path.rstrip(os.sep)
    if not bool(ranks.all_gather_numbers(os.path.exists(path))[:, 0].all()):
        with ranks.sharing_errors():
            checkpoint = ScoringCheckpoint(f"{path}.parts", job)
        ranks.share(len(checkpoint.chunks), checkpoint.complete)
        with ranks.sharing_errors():
            if ranks.rank == 0:
                os.replace(checkpoint.saved(mapped), path)
        ranks.all_gather_numbers()
    with ranks.sharing_errors():
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"rank {ranks.rank} does not see {path}, which rank 0 saved; pass a path that all ranks share"
            )
        check_made(job, path)
    ranks.all_gather_numbers()


def check_made(job: ScoringJob, path: str) -> None:
    """Raise a ValueError if the store at a path was made by something else; otherwise remove what is left of its making."""
    different = [NAMES.get(name, name) for name in _different(job, read_store(path)[1])]
    if different:
        what = f"{path} exists already, made with other {', '.join(different)}"
        raise ValueError(f"{what}; choose another path, or delete it to score again")
    _clear(job, f"{path}.parts")


def joined(scored: list[Scored], dataset_length: int | None) -> tuple[Arrays, CalibrationCounts]:
    """The arrays of a store, ids ascending and distinct, or without ids for a whole dataset; and the calibration."""
    index = torch.cat([each.index for each in scored])
    losses = torch.cat([each.losses for each in scored])
    calibration = sum((each.calibration for each in scored), CalibrationCounts())
    parts = [each.predictions for each in scored if each.predictions is not None]
    predictions = Predictions.joined(parts) if parts else None
    if bool((index[1:] <= index[:-1]).any()):
        index, order = index.sort(stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        if dataset_length is None:  # a dataset that is read by index has one example for each index
            _refuse_namesakes(index, losses[order], first)
        index, losses = index[first], losses[order][first]
        predictions = None if predictions is None else predictions.rows(order[first])
    whole = len(index) == dataset_length and int(index[0]) == 0 and int(index[-1]) == dataset_length - 1
    arrays = {"losses": losses.numpy()} if whole else {"losses": losses.numpy(), "ids": index.numpy()}
    return {**arrays, **_beside(predictions)}, calibration


def _beside(predictions: Predictions | None) -> Arrays:
    """The arrays that are saved beside the losses."""
    return {} if predictions is None else predictions.arrays()


def _refuse_namesakes(index: Tensor, losses: Tensor, first: Tensor) -> None:
    """Raise a ValueError if examples with one id have losses that differ by more than rounding explains."""
    of_first = losses[first][first.cumsum(0) - 1]
    other = index[~torch.isclose(losses, of_first, rtol=0.05, atol=0.05)].unique()
    if len(other):
        what = f"{len(other):,} ids were yielded more than once, with different losses: {some(other.tolist())}"
        cure = "add more to each id, such as the shard and the key of a tar file, and omit augmented copies"
        raise ValueError(f"{what}; an id must identify one example: {cure}")


def _clear(job: ScoringJob, parts: str) -> None:
    """Remove the folder of a finished scoring, unless it belongs to another one."""
    settings = os.path.join(parts, SETTINGS)
    try:
        is_ours = not os.path.exists(settings) or not _different(job, _read_settings(settings))
    except (OSError, ValueError):  # removed by another process, or damaged
        is_ours = True
    if is_ours:
        shutil.rmtree(parts, ignore_errors=True)


def _different(job: ScoringJob, meta: dict[str, Any]) -> list[str]:
    return [name for name, value in job.settings.items() if meta.get(name) != value]


def _read_settings(path: str) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete its folder to start from scratch") from error
