"""Frameworks on two processes, for integrations/test_frameworks_ranks.py: python tests/framework_rank_runs.py FRAMEWORK FOLDER.

Each rank leaves what it saw in a file. Beside each framework's runs there is a plain loop with DDP, whose ranks are dealt their
candidates by hand.
"""

import importlib
import os
import socket
import sys
import warnings
from types import SimpleNamespace

import torch
from forks import fork, status
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector
from rholoss.wrappers import GlobalSelector

WORLD, N, N_B, n_b = 2, 90, 20, 8
EPOCHS, SAVED_AT = 3, 4  # three steps an epoch: the checkpoint is in the second
_generator = torch.Generator().manual_seed(0)
X, Y = torch.randn(N, 6, generator=_generator), torch.randint(4, (N,), generator=_generator)
LOSSES = torch.rand(N, generator=_generator)


class Examples(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"x": X[i], "labels": Y[i]}


class Stream(IterableDataset):
    def __iter__(self):
        yield from ({"id": i, "x": X[i], "labels": Y[i]} for i in range(N))


class Net(nn.Module):
    def __init__(self, has_norm=False):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8) if has_norm else nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x, labels=None, id=None):
        logits = self.layers(x)
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def net(**options):
    torch.manual_seed(1)
    return Net(**options)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.5)


def selector_of(loader, model, is_global=False, **how_many):
    how_many = how_many or {"keep": n_b / N_B}
    selector = RhoLossSelector(loader, model, IrreducibleLossStore(LOSSES), **how_many)
    selector = GlobalSelector(loader, model, selector, **how_many) if is_global else selector
    selector.seen, selector.epochs = [], []
    selector.listeners.append(lambda _, last: selector.seen.append((last.index.tolist(), last.candidate_index.tolist())))
    selector.listeners.append(lambda _, last: selector.epochs.append(last.epoch))
    return selector


def of_ids(loader, model):
    """Of a stream."""
    forward = lambda model, batch: (model(batch["x"])["logits"], batch["labels"])  # noqa: E731
    return selector_of(IndexedBatches(loader, index="id"), model, batch_size=n_b, forward=forward)


def outcome(selector, model):
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    return SimpleNamespace(seen=selector.seen, epochs=selector.epochs, weights=weights)


def failure(function, *args):
    try:
        function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


# What the frameworks' runs are compared with.


def dealt(order, n=N_B, fill=True):
    """Candidate batches in rounds of one for each rank, the last round filled up from the start: each rank's list of them."""
    missing = -len(order) % (n * WORLD) if fill else 0
    order = order + order[:missing]
    batches = [order[i : i + n] for i in range(0, len(order), n)]
    return [batches[rank::WORLD] for rank in range(WORLD)]


def permutation(seed):
    return torch.randperm(N, generator=torch.Generator().manual_seed(seed)).tolist()


def by_ddp(rank, epochs, is_global=False):
    """A plain loop over candidates that are given for each epoch and rank."""
    model, batches = net(), []
    parallel, optimizer = DistributedDataParallel(model), sgd(model)
    loader = DataLoader(Examples(), batch_sampler=batches)
    selector = selector_of(loader, model, is_global, batch_size=n_b)
    for epoch in epochs:
        batches[:] = epoch[rank]
        for batch in selector:
            optimizer.zero_grad()
            parallel(**batch)["loss"].backward()
            optimizer.step()
    return outcome(selector, model)


def seedable(seed):
    """The candidates of each epoch where Accelerate's seedable sampler says the order."""
    return [dealt(permutation(seed + epoch)) for epoch in range(EPOCHS)]


# Accelerate.


def accelerator(**options):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import DataLoaderConfiguration

    AcceleratorState._reset_state()  # of another run in this process; the process group stays
    GradientState._reset_state()
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))


def accelerate_loader(drop_last=False):
    return DataLoader(Examples(), batch_size=n_b, shuffle=True, drop_last=drop_last, generator=torch.Generator().manual_seed(3))


def accelerate_deals(rank, folder):
    """The candidates of two epochs, under each way to prepare a loader."""
    ways = {
        "default": {},
        "seedable": {"use_seedable_sampler": True, "data_seed": 3},
        "stateful": {"use_stateful_dataloader": True, "use_seedable_sampler": True, "data_seed": 3},
        "dispatched": {"dispatch_batches": True},
        "uneven": {"even_batches": False},
    }
    deals = {}
    for way, options in {**ways, "dropped": {}}.items():
        loader = accelerator(**options).prepare(accelerate_loader(drop_last=way == "dropped"))
        selector = selector_of(loader, net())
        deals[way] = [[selector.last.candidate_index.tolist() for _ in selector] for _ in range(2)], len(selector)
    return deals


def accelerate_split(rank, folder):
    loader = accelerator(split_batches=True).prepare(accelerate_loader())
    selector = selector_of(loader, net(), batch_size=2)
    return failure(selector_of, loader, net()), [len(batch["x"]) for batch in selector], selector.seen


def accelerate_streams(rank, folder):
    """Candidates of a stream that rank 0 reads and sends, and of one that every rank reads."""
    deals = []
    for dispatch in (True, False):
        loader = accelerator(dispatch_batches=dispatch).prepare(DataLoader(Stream(), batch_size=N_B))
        selector = of_ids(loader, net())
        deals.append([(selector.last.candidate_index.tolist(), bool(batch["x"].equal(X[batch["id"]]))) for batch in selector])
    return deals


def accelerate_trains(rank, folder, is_global=False, is_each_saved=True, is_resumed=False):
    """A loop; saved at a step, and gone on with in another process."""
    place, where = accelerator(use_seedable_sampler=True, data_seed=3), f"{folder}/accelerate-{is_global}-{is_each_saved}"
    model = net()
    parallel, optimizer, loader = place.prepare(model, sgd(model), accelerate_loader())
    selector = selector_of(loader, parallel, is_global)
    if not is_each_saved:
        place.register_for_checkpointing(selector)
    own = f"{where}-{rank}.pt"
    if is_resumed:
        place.load_state(where)
        if is_each_saved:
            selector.load_state_dict(torch.load(own, weights_only=True))
    for _ in range(selector.epoch, EPOCHS):
        for batch in selector:
            place.backward(parallel(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
            if selector.step == SAVED_AT and not is_resumed:
                place.save_state(where)
                if is_each_saved:
                    torch.save(selector.state_dict(), own)
    return outcome(selector, model)


def accelerate_trains_globally(rank, folder):
    return accelerate_trains(rank, folder, is_global=True)


def accelerate_keeps_rank_0(rank, folder):
    return accelerate_trains(rank, folder, is_each_saved=False)


def accelerate_resumes(rank, folder):
    ways = {"each": (False, True), "each, global": (True, True), "rank 0": (False, False)}
    return {way: accelerate_trains(rank, folder, *options, is_resumed=True) for way, options in ways.items()}


def accelerate_by_ddp(rank, folder):
    return [by_ddp(rank, seedable(3), is_global) for is_global in (False, True)]


def accelerate_joins(rank, folder):
    """One rank has a batch more, and the model has buffers: DDP speaks in each forward pass."""
    place = accelerator(even_batches=False)
    model = net(has_norm=True)
    parallel, optimizer, loader = place.prepare(model, sgd(model), accelerate_loader())
    selector = selector_of(loader, parallel)
    with Join([parallel]):  # join_uneven_inputs is this, on GPUs
        for batch in selector:
            optimizer.zero_grad()
            place.backward(parallel(**batch)["loss"])
            optimizer.step()
    return outcome(selector, model)


# Hugging Face's Trainer.


def trainer(folder, model=None, data=None, is_global=False, **options):
    from accelerate.state import AcceleratorState, GradientState
    from transformers import Trainer, TrainingArguments

    from rholoss.integrations.transformers import SelectionMixin

    class RhoTrainer(SelectionMixin, Trainer):
        def make_selector(self, loader):
            return selector_of(loader, self.model, is_global) if data is None else of_ids(loader, self.model)

    AcceleratorState._reset_state()
    GradientState._reset_state()
    defaults = {
        "output_dir": f"{folder}/trainer",
        "use_cpu": True,
        "ddp_backend": "gloo",
        "ddp_find_unused_parameters": False,
        "per_device_train_batch_size": n_b if data is None else N_B,
        "num_train_epochs": EPOCHS,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    model = model or net()
    arguments = TrainingArguments(**{**defaults, **options})
    made = RhoTrainer(model, arguments, train_dataset=data or Examples(), eval_dataset=Examples(), optimizers=(sgd(model), None))
    made.log = lambda *args, **kwargs: None
    return made


def ran(made, checkpoint=None):
    made.train(resume_from_checkpoint=checkpoint)
    return outcome(made.selector, made.model)


SAVED = {"save_strategy": "steps", "save_steps": SAVED_AT}


def transformers_trains(rank, folder):
    made = trainer(folder, **SAVED, output_dir=f"{folder}/saved")
    return ran(made), made.num_examples(made.get_train_dataloader()), sorted(os.listdir(f"{folder}/saved/checkpoint-{SAVED_AT}"))


def transformers_evaluates(rank, folder):
    """With an evaluation after each step, and the best weights at the end."""
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    return ran(trainer(folder, **{**SAVED, **best}, output_dir=f"{folder}/best")).seen


def transformers_trains_globally(rank, folder):
    return ran(trainer(folder, is_global=True, **SAVED, output_dir=f"{folder}/global"))


def transformers_streams(rank, folder):
    """Epochs whose length nobody knows: of three steps, as everywhere."""
    return ran(trainer(folder, data=Stream(), max_steps=9, **SAVED, output_dir=f"{folder}/stream"))


def transformers_saves_only_the_model(rank, folder):
    options = {**SAVED, "save_only_model": True, "max_steps": SAVED_AT, "output_dir": f"{folder}/only"}
    ran(trainer(folder, **options))
    return failure(ran, trainer(folder, **options), f"{folder}/only/checkpoint-{SAVED_AT}")


def transformers_shrinks(rank, folder):
    """Batches that do not fit are halved, as often as need be, and the selector with them."""

    class Small(Net):
        def forward(self, x, labels=None):
            if self.training and len(x) >= n_b:
                raise RuntimeError("CUDA out of memory.")
            return super().forward(x, labels)

    made = trainer(folder, Small(), auto_find_batch_size=True, num_train_epochs=1)
    return ran(made), made.selector.n_b, made.selector.n_B


def transformers_resumes(rank, folder):
    runs = {
        "saved": trainer(folder),
        "global": trainer(folder, is_global=True),
        "stream": trainer(folder, data=Stream(), max_steps=9),
    }
    return {name: ran(made, f"{folder}/{name}/checkpoint-{SAVED_AT}") for name, made in runs.items()}


def transformers_by_ddp(rank, folder):
    return [by_ddp(rank, seedable(42), is_global) for is_global in (False, True)]


# Lightning.


def distributed_loader(rank):
    return DataLoader(Examples(), batch_size=n_b, sampler=DistributedSampler(Examples(), WORLD, rank))


def lightning_trainer(folder):
    from lightning import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    checkpoints = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=SAVED_AT, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(max_epochs=EPOCHS, accelerator="cpu", devices=WORLD, strategy="ddp", callbacks=[checkpoints], **quiet)


def lightning_trains(rank, folder, is_global=False, checkpoint=None):
    from lightning import LightningModule

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.selector = net(), None

        def train_dataloader(self):  # the process group is there by now
            self.selector = selector_of(distributed_loader(rank), self.model, is_global)
            return self.selector

        def training_step(self, batch, batch_idx):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return sgd(self)

    module = Module()
    lightning_trainer(f"{folder}/lightning-{is_global}").fit(module, ckpt_path=checkpoint)
    return outcome(module.selector, module.model)


def lightning_trains_globally(rank, folder):
    return lightning_trains(rank, folder, is_global=True)


def lightning_resumes(rank, folder):
    return lightning_trains(rank, folder, checkpoint=f"{folder}/lightning-False/step={SAVED_AT}.ckpt")


def fabric_trains(rank, folder, is_step_owned=False):
    from lightning import Fabric

    fabric = Fabric(accelerator="cpu", devices=WORLD, strategy="ddp")
    fabric.launch()
    model = net()
    parallel, optimizer = fabric.setup(model, sgd(model))
    loader = distributed_loader(rank)
    selector = selector_of(loader, parallel)
    refused = failure(selector_of, fabric.setup_dataloaders(loader), parallel)
    batches = fabric.setup_dataloaders(selector.candidate_batches) if is_step_owned else selector
    for epoch in range(EPOCHS):
        selector.set_epoch(epoch)
        for batch in batches:
            if is_step_owned and len(batch.index) < n_b:
                continue
            batch = selector.select(batch) if is_step_owned else batch
            optimizer.zero_grad()
            fabric.backward(parallel(**batch)["loss"])
            optimizer.step()
    return outcome(selector, model), refused


def fabric_selects_in_the_step(rank, folder):
    return fabric_trains(rank, folder, is_step_owned=True)


def lightning_by_ddp(rank, folder):
    """Each rank's share as DistributedSampler deals it."""
    epochs = []
    for epoch in range(EPOCHS):
        order = permutation(epoch)
        shares = [order[rank::WORLD] for rank in range(WORLD)]
        epochs.append([[share[i : i + N_B] for i in range(0, len(share), N_B)] for share in shares])
    return [by_ddp(rank, epochs, is_global) for is_global in (False, True)]


RUNS = {
    "accelerate": {
        "whole": [
            accelerate_deals,
            accelerate_split,
            accelerate_streams,
            accelerate_trains,
            accelerate_trains_globally,
            accelerate_keeps_rank_0,
            accelerate_by_ddp,
            accelerate_joins,
        ],
        "resumed": [accelerate_resumes],
    },
    "transformers": {
        "whole": [
            transformers_trains,
            transformers_evaluates,
            transformers_trains_globally,
            transformers_streams,
            transformers_saves_only_the_model,
            transformers_shrinks,
            transformers_by_ddp,
        ],
        "resumed": [transformers_resumes],
    },
    "lightning": {
        "whole": [
            lightning_trains,
            lightning_trains_globally,
            fabric_trains,
            fabric_selects_in_the_step,
            lightning_by_ddp,
        ],
        "resumed": [lightning_resumes],
    },
}


def work(framework, folder, rank, port, part):
    """Some of a framework's runs, in a process as torchrun would start it."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    os.environ.update(zip(names, map(str, (rank, rank, WORLD, WORLD, "127.0.0.1", port, "run")), strict=True))
    torch.save({run.__name__: run(rank, folder) for run in RUNS[framework][part]}, f"{folder}/{part}-{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main(framework, folder):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    importlib.import_module({"transformers": "transformers.trainer"}.get(framework, framework))  # once for all processes
    for part in ("whole", "resumed"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ranks = [fork(work, framework, folder, rank, port, part) for rank in range(WORLD)]
        if [status(rank) for rank in ranks] != [0] * WORLD:
            sys.exit(1)


if __name__ == "__main__":
    from framework_rank_runs import main  # so that what is saved is of this module by its name

    main(*sys.argv[1:])
