"""Scoring in processes that are killed, fail, meet or share.

irreducible/test_resume.py runs it in a process of its own, which forks cheaply.

Each run prints what it saw as JSON. The chunks are a few examples long, so that a small data set has many.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from conftest import CLASSES, FEATURES, make_net
from forks import fork, status
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

from rholoss import IrreducibleLossStore
from rholoss.irreducible import scoring_job

MUTATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "fsync"}


class Augmented(Dataset):
    """Examples that differ with each reading, by all three of the usual generators."""

    def __init__(self, n):
        self.x = torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + torch.randn(FEATURES) + np.random.randn() + random.random(), i % CLASSES  # noqa: NPY002


class Plain(Augmented):
    def __getitem__(self, i):
        return self.x[i], i % CLASSES


CASES = {
    "npz": (Plain, {}, {}),
    "mapped": (Plain, {}, {"mapped": True}),
    "views": (Augmented, {}, {"views": 3, "seed": 5}),
    "mapped-views": (Augmented, {}, {"views": 2, "mapped": True}),
    "workers": (Augmented, {"num_workers": 2}, {"views": 2}),
    "part": (Plain, {"sampler": SubsetRandomSampler(range(3, 90, 2))}, {}),
    "mapped-part": (Plain, {"sampler": SubsetRandomSampler(range(3, 90, 2))}, {"mapped": True}),
}


def arguments(case, n):
    dataset, loader, options = CASES[case]
    return [make_net(0), make_net(1)], DataLoader(dataset(n), batch_size=4, **loader), dict(options)


def score(path, case="npz", n=96, **more):
    models, loader, options = arguments(case, n)
    return IrreducibleLossStore.from_model(models, loader, path=path, **options, **more)


def share(path, process, processes, case="npz", n=96):
    models, loader, options = arguments(case, n)
    return IrreducibleLossStore.score_share(models, loader, path, process=process, processes=processes, **options)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def expected(folder, case, n=96):
    """What is saved of a scoring in memory: what all others have to come to."""
    models, loader, options = arguments(case, n)
    mapped = options.pop("mapped", False)
    os.makedirs(folder)
    IrreducibleLossStore.from_model(models, loader, **options).save(f"{folder}/il", mapped=mapped)
    return content(folder)


def kills(folder, case, times, n=96):
    """Kill a scoring at a random moment and let another go on, many times."""
    right, n = expected(f"{folder}/right", case, int(n)), int(n)
    score(f"{folder}/first", case, n)
    began = time.perf_counter()
    assert status(fork(score, f"{folder}/timed", case, n)) == 0
    duration = time.perf_counter() - began
    rng, wrong, at = random.Random(0), [], []
    for i in range(int(times)):
        os.makedirs(here := f"{folder}/{i}")
        for _ in range(rng.choice([1, 1, 2])):
            pid = fork(score, f"{here}/il", case, n)
            time.sleep(duration * rng.random())
            os.kill(pid, signal.SIGKILL)
            status(pid)
            with contextlib.suppress(ProcessLookupError):  # a worker that was starting may wait for ever, holding the output open
                os.killpg(pid, signal.SIGKILL)
            at.append(-1 if os.path.exists(f"{here}/il") else len(list(Path(here).glob("il.parts/*.npz"))))
        if status(fork(score, f"{here}/il", case, n)) != 0 or content(here) != right:
            wrong.append([i, sorted(content(here))])
        shutil.rmtree(here)
    return {"wrong": wrong, "at": at, "files": sorted(right)}


class Hook:
    """Calls a function at the k-th change of files; fsync counts as one. Counts all changes where there is no such function."""

    def __init__(self):
        self.count, self.at, self.action = 0, None, None

    def arm(self, folder, at, action):
        self.folder, self.count, self.at, self.action = str(folder), 0, at, action

    def __call__(self, event, args=()):
        if self.action is None or event not in MUTATIONS:
            return
        if event == "open" and not str(args[0]).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.at:
            action, self.action = self.action, None
            action(event)


HOOK = Hook()


def points(folder, case, how):
    """Stop a scoring of two chunks at its k-th change of files, for every k, and let another go on."""
    right, wrong, errors, hook = expected(f"{folder}/right", case, 16), [], set(), HOOK
    os.makedirs(f"{folder}/count")
    hook.arm(folder, 0, print)
    score(f"{folder}/count/il", case, 16)
    changes, hook.action = hook.count, None
    for k in range(1, changes + 1):
        os.makedirs(here := f"{folder}/{k}")
        run = partial(score, f"{here}/il", case, 16)
        if how == "exit":

            def stopped(k=k, here=here, run=run):
                hook.arm(here, k, lambda event: os._exit(9))
                run()

            if status(fork(stopped)) != 9:
                wrong.append([k, "did not stop"])
        elif how == "raise":

            def full(event):
                raise OSError(28, "No space left on device")

            hook.arm(here, k, full)
            try:
                run()
            except OSError as error:
                errors.add(error.errno)
            hook.action = None
        else:  # another does all of the work meanwhile
            hook.arm(here, k, lambda event, run=run: run())
            run()
        if how != "meet":
            run()
        if content(here) != right or {path.name for path in Path(here).iterdir()} != {"il"}:
            wrong.append([k, sorted(content(here))])
    return {"wrong": wrong, "changes": changes, "errors": sorted(errors)}


def shares(folder, case, n=48):
    """Shares by 2 and by 3 processes, one after the other in any order, and all at once."""
    right, n, wrong = expected(f"{folder}/right", case, int(n)), int(n), []
    for processes in (2, 3):
        for order in permutations(range(processes)):
            os.makedirs(here := f"{folder}/{order}")
            done = [share(f"{here}/il", process, processes, case, n) is not None for process in order]
            if content(here) != right or done != [False] * (processes - 1) + [True]:
                wrong.append([order, done, sorted(content(here))])
    for i in range(8):
        os.makedirs(here := f"{folder}/at once {i}")
        moment = time.monotonic() + 0.02

        def at_once(process, here=here, moment=moment):
            while time.monotonic() < moment:
                pass
            share(f"{here}/il", process, 3, case, n)

        codes = [status(pid) for pid in [fork(at_once, process) for process in range(3)]]
        if any(codes) or content(here) != right:
            wrong.append([i, sorted(content(here))])
    return {"wrong": wrong, "files": sorted(right)}


def ranks(folder, case, world, n=96):
    """A scoring by the ranks of torch.distributed, with and without a path."""
    right, n, world = expected(f"{folder}/right", case, int(n)), int(n), int(world)
    os.makedirs(f"{folder}/disk")

    def work(rank):
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
        score(f"{folder}/disk/il", case, n, distributed=True)
        models, loader, options = arguments(case, n)
        mapped = options.pop("mapped", False)
        os.makedirs(f"{folder}/rank {rank}")
        store = IrreducibleLossStore.from_model(models, loader, distributed=True, **options)
        store.save(f"{folder}/rank {rank}/il", mapped=mapped)
        torch.distributed.destroy_process_group()

    failed = [code for code in [status(pid) for pid in [fork(work, rank) for rank in range(world)]] if code]
    places = ["disk", *(f"rank {rank}" for rank in range(world))]
    return {"failed": failed, "wrong": [place for place in places if content(f"{folder}/{place}") != right]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    scoring_job.CHUNK, scoring_job.PIECES = 8, 1
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    os.fsync = partial(HOOK, "fsync")  # a process that is killed, unlike a machine, loses nothing that it wrote
    sys.addaudithook(HOOK)
    for number, (name, *args) in enumerate(map(str.split, sys.argv[2:])):
        where = f"{sys.argv[1]}/{number}"
        os.makedirs(where)
        print(json.dumps(globals()[name](where, *args)))
