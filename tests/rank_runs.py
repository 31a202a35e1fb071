"""What ranks of torch.distributed select and train on.

wrappers/test_global_selection.py runs it in a process of its own, which forks cheaply.

Each rank leaves what it saw in a file. The data and the methods of the tests are here too.
"""

import copy
import datetime
import inspect
import os
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from forks import fork, status
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector, Selection, Selector, build_selector, selector_names
from rholoss.diagnostics import ComparisonLog, SelectionLog
from rholoss.selectors import BoltzmannRhoLossSelector, GradientNormImportanceSampler, UniformSelector
from rholoss.testing import check_selector
from rholoss.wrappers import GlobalSelector, SwitchSelector

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # before torch 2.6
    from torch.distributed._composable.fsdp import fully_shard

N, FEATURES, CLASSES, N_B = 103, 5, 3, 4
BIG = 16_777_217  # the first whole number that float32 does not have
STEPS = 5


@dataclass
class Pair:
    """A batch within a batch."""

    half: torch.Tensor
    flags: torch.Tensor


class Coarse(Selector):
    """A score with many ties, in bfloat16."""

    def score(self, candidates):
        return coarse(candidates.index).bfloat16()

    def choose(self, candidates, score, n_b):
        candidates.notes["highest"] = score.max()
        return super().choose(candidates, score, n_b)


def coarse(index):
    return (index // 100 * 3 % 5 + index % 3).float()


def rich_batch(rank, step):
    """(index, batch) of candidates with columns of every kind; ranks have different numbers of them, and index tells all."""
    n = 9 + 2 * rank + (step if rank == 0 else 0)
    index = BIG + 1000 * step + 100 * rank + 2 * torch.arange(n)
    names = [f"example {i}" for i in index.tolist()]
    batch = {
        "id": index.clone(),
        "image": (index[:, None, None] + torch.arange(6).view(2, 3)).double(),
        "pair": Pair((index % 64).half(), index % 3 == 0),
        "nothing": torch.zeros(n, 0),
        "text": names,
        "array": np.array(names),
        "numbers": (index % 100).numpy().astype(np.int16),
        "boxes": [{"box": torch.full((int(i) % 3, 4), float(i % 100))} for i in index],
        "task": "toy",
    }
    return index, batch


def stream(rank, steps=STEPS):
    return IndexedBatches([rich_batch(rank, step) for step in range(steps)])


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, FEATURES, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(CLASSES, (N,), generator=generator))


def net(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def store():
    return IrreducibleLossStore.from_model(net(1), data())


def loader(rank, world, **options):
    sampler = DistributedSampler(data(), world, rank, shuffle=True, seed=3, drop_last=True)
    return DataLoader(data(), **{"batch_size": N_B, "sampler": sampler, **options})


def rho_loss(model, batches, **options):
    return GlobalSelector(batches, model, RhoLossSelector(batches, model, store()), keep=0.25, **options)


def step(model, optimizer, losses):
    optimizer.zero_grad()
    losses.mean().backward()
    optimizer.step()


def choices(rank, world):
    """Every kind of batch, ties, and ranks with different numbers of candidates."""
    batches = stream(rank)
    selector = GlobalSelector(batches, None, Coarse(batches, batch_size=N_B), batch_size=N_B)
    return [(selector.last, batch) for batch in selector]


def everything(rank, world):
    """The batches with and without a choice, where nothing is left out; and whether a batch stays the very same."""
    model, batches = net(), loader(rank, world)
    selector = GlobalSelector(batches, model, RhoLossSelector(batches, model, store()), keep=1.0)
    batch = torch.zeros(N_B, FEATURES, dtype=torch.float64), torch.arange(N_B) % CLASSES
    return list(selector), list(batches), selector.select((torch.arange(N_B), batch)) is batch


def draws(rank, world):
    """Methods that draw, with weights and without; and one after the other."""
    seen = {}
    for name, build in (("boltzmann", boltzmann), ("importance", importance), ("switch", switch)):
        model, batches = net(), loader(rank, world)
        selector = GlobalSelector(batches, model, build(batches, model), keep=0.25, seed=5)
        seen[name] = [(selector.last, len(y)) for _, y in selector]
    return seen


def boltzmann(batches, model):
    return BoltzmannRhoLossSelector(batches, model, store())


def importance(batches, model):
    return GradientNormImportanceSampler(batches, model)


def switch(batches, model):
    return SwitchSelector(batches, model, {0: UniformSelector(batches), 1: importance(batches, model)}, unit="step", keep=0.25)


def trained(rank, world, epochs=3, choose=rho_loss):
    """Training with DDP."""
    model = net()
    parallel, chosen = DistributedDataParallel(model), []
    selector, optimizer = choose(model, loader(rank, world)), torch.optim.SGD(model.parameters(), lr=0.5)
    for epoch in range(epochs):
        selector.set_epoch(epoch)
        for x, y in selector:
            step(parallel, optimizer, nn.functional.cross_entropy(parallel(x), y, reduction="none"))
            chosen.append(selector.last.index)
    return chosen, model.state_dict()


def trained_apart(rank, world):
    """Training with DDP where each rank chooses from its own candidates."""
    return trained(rank, world, choose=lambda model, batches: RhoLossSelector(batches, model, store(), keep=0.25))


def resumed(rank, world):
    """What would have followed, and what does after a resume; and the state of another rank."""
    model = net()
    selector, chosen = rho_loss(model, loader(rank, world)), []
    uniform = GlobalSelector(selector.loader, model, UniformSelector(selector.loader), keep=0.25)
    for each in (selector, uniform):
        for number, _ in enumerate(each):
            if number == 0:
                state = copy.deepcopy(each.state_dict())
            else:
                chosen.append(each.last.index)
        again = copy.deepcopy(each)
        again.load_state_dict(state)
        chosen.append([again.last.index for _ in again])
    states = selector.ranks.all_gather_objects(state)
    return chosen, failure(lambda: again.load_state_dict(states[(rank + 1) % world]))


def uneven(rank, world):
    """Rank 0 has more candidate batches, and the last rank a shorter last one."""
    batches = [rich_batch(rank, number) for number in range(3 if rank else 5)]
    if rank == world - 1:
        index, batch = batches[2]
        batches[2] = index[:1], {key: value[:1] for key, value in batch.items() if key in ("id", "text")}
    batches = IndexedBatches([(i, {"id": b["id"], "text": b["text"]}) for i, b in batches])
    seen = []
    for drop_last in (False, True):
        selector = GlobalSelector(batches, None, Coarse(batches, batch_size=N_B), batch_size=N_B, drop_last=drop_last)
        seen.append([(batch["id"].tolist(), batch["text"]) for batch in selector])
    return seen


def failure(run):
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def halves(rank, world):
    """Two groups of ranks, each of which chooses for itself."""
    groups = [torch.distributed.new_group(range(first, first + world // 2)) for first in (0, world // 2)]
    batches = stream(rank)
    selector = GlobalSelector(batches, None, Coarse(batches, batch_size=N_B), batch_size=N_B, group=groups[rank * 2 // world])
    selector = copy.deepcopy(selector)
    return [(selector.last, batch) for batch in selector]


def joined(rank, world):
    """Ranks that choose for themselves and have different numbers of batches."""
    model, seen = net(), []
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    part = DataLoader(data(), batch_size=N_B, sampler=range(60) if rank else range(60, N))
    selector = RhoLossSelector(part, model, store(), keep=0.25)
    with Join([parallel]):
        for x, y in selector:
            step(parallel, optimizer, nn.functional.cross_entropy(parallel(x), y, reduction="none"))
            seen.append(selector.last.index)
    return len(seen), model.state_dict()


def learns(rank, world):
    """A proxy that is co-trained on the batches of all ranks."""
    model, proxy, batches = net(), net(2), loader(rank, world)
    options = {"proxy": DistributedDataParallel(proxy), "proxy_optimizer": torch.optim.SGD(proxy.parameters(), lr=0.5)}
    method = build_selector("proxy_rho_loss", batches, model, store=store(), **options)
    return len(list(GlobalSelector(batches, model, method, keep=0.25))), proxy.state_dict()


class Broken(Coarse):
    """Fails on the last rank, in a way of its own at each step."""

    def score(self, candidates):
        score = super().score(candidates)
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            if candidates.step == 1:
                score[3] = torch.nan
            if candidates.step == 2:
                raise KeyError("no such column")
        return score


class Headstrong(Coarse):
    """Does not choose on the last rank, or chooses something else there."""

    def choose(self, candidates, score, n_b):
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            if candidates.step == 1:
                raise KeyError("no such choice")
            return torch.arange(n_b), None
        return super().choose(candidates, score, n_b)


def failures(rank, world):
    """What each rank says, where one of them fails; they go on together after it."""
    last = rank == world - 1

    def unreadable():
        yield rich_batch(rank, 0)
        if last:
            raise OSError("the disk is gone")
        yield rich_batch(rank, 1)

    def selector(batches, method=Coarse, **options):
        batches = IndexedBatches(batches)
        return GlobalSelector(batches, None, method(batches, batch_size=N_B), batch_size=N_B, **options)

    said = {"data": failure(lambda: list(selector(unreadable())))}
    broken = selector([], Broken)
    broken.select(rich_batch(rank, 0))
    said["nan"] = failure(lambda: broken.select(rich_batch(rank, 1)))
    broken.step = 2
    said["score"] = failure(lambda: broken.select(rich_batch(rank, 2)))
    few = (rich_batch(rank, 0)[0][:2], torch.zeros(2)) if last else rich_batch(rank, 0)
    said["few"] = failure(lambda: broken.select(few))
    broken.step = 5 + last
    said["step"] = failure(lambda: broken.select(rich_batch(rank, 0)))
    said["seed"] = failure(lambda: selector([], seed=rank).select(rich_batch(rank, 0)))
    index = rich_batch(rank, 0)[0]
    ragged = {"text": [str(i) for i in index], "tokens": {"ids": torch.zeros(len(index), 7 + last, dtype=torch.int64)}}
    said["ragged"] = failure(lambda: selector([]).select((index, ragged)))
    said["fields"] = failure(lambda: selector([]).select((index, {"x": index, **({"y": index} if last else {})})))
    headstrong = selector([], Headstrong)
    said["choices"] = failure(lambda: headstrong.select(rich_batch(rank, 0)))
    headstrong.step = 1
    said["choosing"] = failure(lambda: headstrong.select(rich_batch(rank, 0)))
    model, batches = net(), loader(rank, world)
    proxy = build_selector("proxy_rho_loss", batches, model, store=store(), proxy=net(2), compare_every=1)
    said["reads"] = failure(lambda: list(GlobalSelector(batches, model, proxy)))
    broken.step = 0
    return said, broken.select(rich_batch(rank, 0))["id"]


def methods(rank, world):
    """Each method by its name: why it is refused, or what it chose."""
    outcomes, given = {}, {"store": store(), "proxy": net(2), "irreducible_model": net(1), "keep": 0.25}
    for name in selector_names():
        model, batches = nn.Sequential(nn.Dropout(0.2), net()), loader(rank, world)
        more = {"from_step": 1} if name == "rho_loss_then_uniform" else {}
        try:
            selector = GlobalSelector(batches, model, build_selector(name, batches, model, **given, **more), keep=0.25)
        except ValueError as error:
            outcomes[name] = str(error)
        else:
            outcomes[name] = [selector.last.index for _ in selector]
    return outcomes


def stores(rank, world):
    """A store scored in shares; and one that rank 0 made, told to all."""
    shared = IrreducibleLossStore.from_model(net(1), data(), distributed=True)
    mine = IrreducibleLossStore.from_model(net(1), DataLoader(data(), sampler=range(rank, N, world)))
    parts = [None] * world
    torch.distributed.all_gather_object(parts, mine)
    held = [store() if rank == 0 else None]
    torch.distributed.broadcast_object_list(held)
    return shared.losses, parts[0].merge(*parts[1:]).losses, held[0].losses


def reordered(rank):
    whole = data()
    return TensorDataset(*(column.flip(0) if rank else column for column in whole.tensors))


def moved(rank):
    model = nn.Sequential(nn.BatchNorm1d(FEATURES).double(), net(1))
    model[0].running_mean += rank
    return model


def squares(outputs, targets):
    return (outputs[:, 0] - targets).square()


def unlike_stores(rank, world, folder):
    """What each rank says where they would make one store of different things."""
    unlike = {
        "weights": lambda: (net(rank), data(), {}),
        "buffers": lambda: (moved(rank), data(), {}),
        "models": lambda: ([net(1)] * (1 + rank), data(), {}),
        "order": lambda: (net(1), reordered(rank), {}),
        "length": lambda: (net(1), TensorDataset(*data()[: N - rank]), {}),
        "part": lambda: (net(1), DataLoader(data(), sampler=range(rank, N)), {}),
        "batch size": lambda: (net(1), data(), {"batch_size": 4 + rank}),
        "loader": lambda: (net(1), DataLoader(data(), batch_size=4 + rank), {}),
        "dtype": lambda: (
            net(1).float(),
            TensorDataset(data()[:][0].float(), data()[:][1]),
            {"dtype": torch.bfloat16} if rank else {},
        ),
        "loss": lambda: (net(1), data(), {"loss": squares} if rank else {}),
        "views": lambda: (net(1), data(), {"views": 1 + rank}),
        "seed": lambda: (net(1), data(), {"seed": rank}),
        "path": lambda: (net(1), data(), {"path": f"{folder}/one"} if rank else {}),
        "mapped": lambda: (net(1), data(), {"path": f"{folder}/other", "mapped": bool(rank)}),
    }

    def run(build):
        model, examples, options = build()
        IrreducibleLossStore.from_model(model, examples, distributed=True, **options)

    return {name: failure(lambda build=build: run(build)) for name, build in unlike.items()}


class Fails(TensorDataset):
    """Fails on a rank at an example in a chunk of its own, which is not its first."""

    def __init__(self, failing):
        super().__init__(*data().tensors)
        self.failing = failing

    def __getitem__(self, i):
        if self.failing and i in (60, 65):
            raise OSError("the disk is gone")
        return super().__getitem__(i)


def failed_stores(rank, world, folder):
    """What each rank says, and when, where one fails at its work; and what they make together after it."""
    last = rank == world - 1

    def loss(outputs, targets):
        if last and outputs is not None:  # closes over the rank, as code that names a device does
            raise KeyError("no such loss")
        return squares(outputs, targets)

    def score(model, examples, **options):
        return IrreducibleLossStore.from_model(model, examples, distributed=True, **options)

    failing = {
        "data": lambda path: score(net(1), Fails(last), path=path, batch_size=4),
        "loss": lambda path: score(net(1), data(), path=path, loss=loss, batch_size=4),
        "options": lambda path: score(net(1), data(), path=path, batch_size=0 if last else 4),
        "stream": lambda path: score(net(1), stream(rank), path=path),
        "first": lambda path: score(net(1), Fails(rank == 0), path=path, batch_size=4),
    }
    said = {}
    for name, fail in failing.items():
        for path in (None, f"{folder}/{name}"):
            began = time.monotonic()
            said[name, path is None] = failure(lambda fail=fail, path=path: fail(path)), time.monotonic() - began
    path = f"{folder}/data"
    parts = sorted(os.listdir(f"{path}.parts"))
    whole = score(net(1), Fails(False), path=path, batch_size=4)
    again = score(net(1), Fails(False), path=path, batch_size=4)
    other = failure(lambda: score(net(2), Fails(False), path=path, batch_size=4))
    return said, len(parts), whole.losses, again.losses, other, os.listdir(folder)


def unlike_selectors(rank, world):
    """What each rank says where their selectors differ."""

    def rho(keep=0.25, il=1, method=None, **options):
        model, batches = net(), loader(rank, world)
        made = IrreducibleLossStore.from_model(net(il), data())
        part = method(batches, model) if method else RhoLossSelector(batches, model, made, **options)
        return failure(lambda: list(GlobalSelector(batches, model, part, keep=keep)))

    return {
        "store": rho(il=1 + rank),
        "keep": rho(keep=0.25 if rank else 0.5),
        "bounded": rho(bounded=bool(rank)),
        "gate": rho(max_irreducible_loss=2.0 if rank else None),
        "method": rho(method=boltzmann if rank else importance),
        "temperature": rho(method=lambda b, m: BoltzmannRhoLossSelector(b, m, store(), temperature=1.0 + rank)),
        "none": rho(),
    }


class Lopsided(Coarse):
    """Only what rank 0 has is worth anything."""

    def score(self, candidates):
        return super().score(candidates) - 100 * torch.distributed.get_rank()


def logs(rank, world):
    """Logs of all ranks together, also where nothing of a rank's was chosen."""
    model = net()
    selector = rho_loss(model, loader(rank, world))
    log = SelectionLog(N, {"even": torch.arange(N) % 2 == 0}).attach(selector)
    reports = []
    log.every(4, lambda *report: reports.append((*report, rank)))
    chosen = [(selector.last.index, selector.last.candidate_index) for _ in selector]
    batches = IndexedBatches([(torch.arange(N_B * world) + 10 * rank, torch.zeros(N_B * world)) for _ in range(3)])
    selector = GlobalSelector(batches, None, Lopsided(batches, batch_size=N_B), batch_size=N_B)
    lopsided = SelectionLog(N).attach(selector)
    compared = ComparisonLog({"coarse": Coarse(batches, batch_size=N_B)}, every=1).attach(selector)
    moved = [int(selector.last.notes["from_elsewhere"]) for _ in selector]
    return chosen, log.reduced().summary(), lopsided.reduced().summary(), compared.summary(), (moved, reports, unlike(rank))


def unlike(rank):
    """What each rank is told when logs cannot report together: built otherwise, or with an unknown index on one of them."""
    told = []
    for log in (SelectionLog(N, {"low": torch.arange(N) < 9} if rank else None), SelectionLog(9 if rank else N)):
        index = torch.tensor([10, 11])
        log.every(1, print)
        told.append(failure(lambda log=log, i=index: log.update(Selection(i[:1], i[:1] - 10, None, torch.ones(2), i, 0, 0))))
    return told


def sharded(rank, world):
    """FSDP2: what is chosen and what the weights become, with the weights sharded and whole."""
    outcomes = []
    for is_sharded in (True, False):
        model = net()
        parallel = DistributedDataParallel(model) if not is_sharded else model
        if is_sharded:
            for part in (model[0], model[2], model):
                fully_shard(part, mesh=init_device_mesh("cpu", (world,)))
        selector, optimizer, chosen = rho_loss(model, loader(rank, world)), torch.optim.SGD(model.parameters(), lr=0.5), []
        for x, y in selector:
            step(parallel, optimizer, nn.functional.cross_entropy(parallel(x), y, reduction="none"))
            chosen.append(selector.last.index)
        whole = [p.full_tensor() if is_sharded else p for p in model.parameters()]
        outcomes.append((chosen, [p.detach().clone() for p in whole]))
    return outcomes


def alone(rank, world):
    """The contract, and what is refused, where one rank is all there are."""

    def build(batches, model, store, **options):
        return GlobalSelector(batches, model, RhoLossSelector(batches, model, store, **options), **options)

    check_selector(build)
    model, batches = net(), loader(0, 1)
    nested = SwitchSelector(batches, model, {0: build_selector("divbs", batches, model)}, unit="step")
    return failure(lambda: GlobalSelector(batches, model, nested))


def dies(rank, world):
    """The last rank dies in its second step."""

    class Dying(Coarse):
        def score(self, candidates):
            if candidates.step == 1 and rank == world - 1:
                os._exit(9)
            return super().score(candidates)

    batches, began = stream(rank), time.monotonic()
    selector = GlobalSelector(batches, None, Dying(batches, batch_size=N_B), batch_size=N_B)
    return failure(lambda: list(selector)), time.monotonic() - began


RUNS = {
    1: [alone],
    2: [
        choices,
        everything,
        draws,
        trained,
        trained_apart,
        resumed,
        uneven,
        joined,
        learns,
        failures,
        methods,
        stores,
        unlike_stores,
        failed_stores,
        unlike_selectors,
        logs,
        sharded,
    ],
    4: [choices, trained, uneven, halves],
}


def work(folder, rank, world, runs, name):
    limit = datetime.timedelta(seconds=30)
    where = f"file://{folder}/meet-{name}"
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=world, timeout=limit)
    seen = {}
    for run in runs:
        os.makedirs(own := f"{folder}/{name}/{run.__name__}", exist_ok=True)
        seen[run.__name__] = run(rank, world, own) if "folder" in inspect.signature(run).parameters else run(rank, world)
    torch.save(seen, f"{folder}/{name}-{rank}.pt")
    if name != "dies":
        torch.distributed.destroy_process_group()


def main(folder):
    torch.set_num_threads(1)
    everyone = [(world, runs, str(world)) for world, runs in RUNS.items()] + [(2, [dies], "dies")]
    for world, runs, name in everyone:
        codes = [status(pid) for pid in [fork(work, folder, rank, world, runs, name) for rank in range(world)]]
        if codes != ([0, 9] if name == "dies" else [0] * world):
            sys.exit(1)


if __name__ == "__main__":
    from rank_runs import main  # so that what is saved is of this module by its name

    main(sys.argv[1])
