"""The framework examples, and runs in frameworks that are killed and resumed.

integrations/test_frameworks.py runs them in processes of their own.

python tests/framework_runs.py examples FOLDER NAME...     each example's picks and weights, and the plain loop's, to FOLDER
python tests/framework_runs.py resume FOLDER FRAMEWORK     20 runs killed at random steps and resumed, and those that were not
"""

import contextlib
import itertools
import os
import random
import runpy
import shutil
import signal
import sys
import warnings
from pathlib import Path

import torch
import torch._inductor.config
from forks import fork, status
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector, Selector
from rholoss.tokens import causal_loss

EXAMPLES = Path(__file__).parents[1] / "examples" / "frameworks"
sys.path.insert(0, str(EXAMPLES))
task = __import__("task")

ACCUMULATED = {"accelerate_loop": 2}


def recorded(function, *args):
    """What was chosen while a function ran, step by step, and what it returned."""
    picks, plain = [], Selector.after_select

    def after_select(self, candidates, selection, batch):
        picks.append(selection.index.tolist())
        plain(self, candidates, selection, batch)

    Selector.after_select = after_select
    try:
        return picks, function(*args)
    finally:
        Selector.after_select = plain


def stateful_loader():
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader


def weights_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


# Examples.


def example(name, folder):
    os.chdir(folder)
    sys.argv = [name]
    picks, names = recorded(runpy.run_path, str(EXAMPLES / f"{name}_rholoss.py"))
    model = names["module"].model if "module" in names else names["trainer"].model if "trainer" in names else names["model"]
    torch.save([picks, weights_of(getattr(model, "module", model))], f"{folder}/{name}.pt")


def plain_loop(name, folder):
    """What the example's framework does, as a plain loop with the same seed."""
    picks, model = recorded(plainly, name)
    torch.save([picks, weights_of(model)], f"{folder}/{name}-plain.pt")


def plainly(name):
    model, accumulated, kind = task.make_model(), ACCUMULATED.get(name, 1), DataLoader
    order, precision = {"shuffle": True, "generator": task.seeded()}, contextlib.nullcontext()
    if name == "hf_trainer":  # it seeds everything as it begins, and orders the data with Accelerate's sampler
        from accelerate.data_loader import SeedableRandomSampler

        torch.manual_seed(2)
        order = {"sampler": SeedableRandomSampler(task.train_set, data_seed=2)}
    if name == "stateful_loader":
        kind = stateful_loader()
    if name == "mixed_precision":
        model, precision = torch.compile(model), torch.autocast("cpu", dtype=torch.bfloat16)
    loader = kind(task.train_set, batch_size=32 // accumulated, **order)
    store = IrreducibleLossStore.from_model(task.make_small_model(), task.train_set)
    loader = RhoLossSelector(loader, model, store, keep=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(task.EPOCHS):
        for step, batch in enumerate(loader, 1):
            with precision:
                loss = model(**batch)["loss"]
            (loss / accumulated).backward()
            if step % accumulated == 0 or step == len(loader):
                optimizer.step()
                optimizer.zero_grad()
    return model


# A language model, whose loss the Trainer divides by the number of tokens of an update, which it counts before.


def padded(examples):
    length = max(len(example["input_ids"]) for example in examples)
    rows = [(example["input_ids"], length - len(example["input_ids"])) for example in examples]
    return {
        "input_ids": torch.tensor([tokens + [0] * missing for tokens, missing in rows]),
        "attention_mask": torch.tensor([[1] * len(tokens) + [0] * missing for tokens, missing in rows]),
        "labels": torch.tensor([tokens + [-100] * missing for tokens, missing in rows]),
    }


def language_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=30, max_position_embeddings=40, **sizes))


def texts():
    draw = random.Random(3)
    return [{"input_ids": [draw.randrange(1, 30) for _ in range(draw.randrange(2, 30))], "source": "unused"} for _ in range(70)]


def choosing(loader, model):
    losses = 3 * torch.rand(70, generator=torch.Generator().manual_seed(5))
    return RhoLossSelector(loader, model, IrreducibleLossStore(losses), keep=0.5, loss=causal_loss)


def counted_by_the_trainer(folder):
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    from rholoss.integrations.transformers import SelectionMixin

    class RhoTrainer(SelectionMixin, Trainer):
        def make_selector(self, loader):
            return choosing(loader, self.model)

    model = language_model()
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=2,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    data = Dataset.from_list(texts())
    RhoTrainer(model, arguments, train_dataset=data, data_collator=padded, optimizers=(optimizer, None)).train()
    return model


def counted_by_hand(first=1):
    """``first``: the first token that counts; older releases of the Trainer count one more than has a loss."""
    from accelerate.data_loader import SeedableRandomSampler

    model, data = language_model(), texts()
    loader = DataLoader(data, batch_size=4, sampler=SeedableRandomSampler(data, data_seed=2), collate_fn=padded)
    selector, optimizer = choosing(loader, model), torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        batches = iter(selector)
        while update := list(itertools.islice(batches, 2)):
            count = sum((batch["labels"][:, first:] != -100).sum() for batch in update)
            optimizer.zero_grad()
            for batch in update:
                logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
                losses = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
                )
                (losses / count).backward()
            optimizer.step()
    return model


def items(folder):
    runs = {"trainer": recorded(counted_by_the_trainer, folder)}
    runs |= {f"by hand, from {first}": recorded(counted_by_hand, first) for first in (0, 1)}
    torch.save({name: [picks, weights_of(model)] for name, (picks, model) in runs.items()}, f"{folder}/items.pt")


# Runs that are killed. Each is a function of a folder for checkpoints, of the workers of the loader and of the micro-batches in
# an update; it goes on from the latest checkpoint that is there, saves one after every update, and returns the model.


def latest(folder, pattern):
    found = sorted(Path(folder).glob(pattern), key=lambda path: int("".join(filter(str.isdigit, path.name))))
    return found[-1] if found else None


def small_task(workers, kind=DataLoader):
    """A model with dropout and a selector over 90 digits: 5 candidate batches in an epoch, the last of them short."""
    model, data = task.make_model(), task.Digits(task.training[:90])
    loader = kind(data, batch_size=8, shuffle=True, generator=task.seeded(), num_workers=workers)
    return model, data, loader


def selector_of(loader, model):
    losses = torch.rand(90, generator=torch.Generator().manual_seed(5))
    return RhoLossSelector(loader, model, IrreducibleLossStore(losses), keep=0.4)


def plain(folder, workers, accumulated, kind=DataLoader):
    model, _, loader = small_task(workers, kind)
    selector, optimizer = selector_of(loader, model), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    parts, begin = {"model": model, "optimizer": optimizer, "selector": selector}, 0
    if (checkpoint := latest(folder, "*.pt")) is not None:
        saved = torch.load(checkpoint, weights_only=True)
        begin = saved["epoch"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
    for epoch in range(begin, RESUMED_EPOCHS):
        for batch in selector:
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()
            saved = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**saved, "epoch": epoch, "rng": torch.get_rng_state()}, f"{folder}/new")
            os.replace(f"{folder}/new", f"{folder}/{selector.step}.pt")
    return model


def stateful(folder, workers, accumulated):
    return plain(folder, workers, accumulated, stateful_loader())


def accelerate(folder, workers, accumulated):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(
        gradient_accumulation_steps=accumulated, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True)
    )
    model, _, loader = small_task(workers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    selector = selector_of(loader, model)
    accelerator.register_for_checkpointing(selector)
    if (checkpoint := latest(folder, "step-*")) is not None:
        accelerator.load_state(str(checkpoint))
    for _ in range(selector.next_epoch, RESUMED_EPOCHS):
        for batch in selector:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                shutil.rmtree(f"{folder}/new", ignore_errors=True)
                accelerator.save_state(f"{folder}/new", safe_serialization=False)
                os.replace(f"{folder}/new", f"{folder}/step-{selector.step}")
    return accelerator.unwrap_model(model)


def fabric(folder, workers, accumulated):
    from lightning import Fabric

    fabric = Fabric(devices=1, accelerator="cpu")
    model, _, loader = small_task(workers)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    selector = selector_of(loader, model)
    state = {"model": model, "optimizer": optimizer, "selector": selector, "epoch": 0, "rng": torch.get_rng_state()}
    if (checkpoint := latest(folder, "step-*")) is not None:
        fabric.load(checkpoint, state)
        torch.set_rng_state(state["rng"])
    for epoch in range(state["epoch"], RESUMED_EPOCHS):
        for batch in selector:
            optimizer.zero_grad()
            fabric.backward(model(**batch)["loss"])
            optimizer.step()
            fabric.save(f"{folder}/new", {**state, "epoch": epoch, "rng": torch.get_rng_state()})
            os.replace(f"{folder}/new", f"{folder}/step-{selector.step}")
    return model.module


def lightning(folder, workers, accumulated, often=None):
    from lightning import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from rholoss.integrations.lightning import SelectorCheckpoint

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.rng = task.make_model(), None

        def training_step(self, batch, batch_idx):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

        def on_save_checkpoint(self, checkpoint):  # Lightning leaves dropout's random state to its users
            checkpoint["rng"] = torch.get_rng_state()

        def on_load_checkpoint(self, checkpoint):
            self.rng = checkpoint["rng"]

        def on_train_start(self):
            if self.rng is not None:
                torch.set_rng_state(self.rng)

    _, _, loader = small_task(workers)
    module = Module()
    often = often or {"every_n_train_steps": 1}
    callbacks = [ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, **often), SelectorCheckpoint()]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=RESUMED_EPOCHS, accelerator="cpu", callbacks=callbacks, accumulate_grad_batches=accumulated, **quiet
    )
    trainer.fit(module, selector_of(loader, module.model), ckpt_path=latest(folder, "*.ckpt"))
    return module.model


def lightning_epochs(folder, workers, accumulated):
    """Saves when an epoch is over, as Lightning does where it is not told otherwise."""
    return lightning(folder, workers, accumulated, {"every_n_epochs": 1, "save_on_train_epoch_end": True})


def transformers(folder, workers, accumulated):
    from transformers import Trainer, TrainingArguments

    from rholoss.integrations.transformers import SelectionMixin

    class RhoTrainer(SelectionMixin, Trainer):
        def make_selector(self, loader):
            return selector_of(loader, self.model)

    model, data, _ = small_task(workers)
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8,
        num_train_epochs=RESUMED_EPOCHS,
        gradient_accumulation_steps=accumulated,
        dataloader_num_workers=workers,
        dataloader_pin_memory=False,
        learning_rate=0.01,
        save_steps=1,
        logging_steps=1000,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = RhoTrainer(model, arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=latest(folder, "checkpoint-*") is not None)
    return trainer.model


RUNS = {run.__name__: run for run in (plain, stateful, accelerate, fabric, lightning, lightning_epochs, transformers)}
RESUMED_EPOCHS, POINTS = 3, 20


def run_to_the_end(name, folder, *options):
    """A run's picks by step and its weights, to a file; picks of one step before and after the kill are two entries."""
    picks, model = recorded(RUNS[name], folder, *options)
    torch.save([picks, weights_of(model)], f"{folder}/end")


def run_to_its_death(name, folder, step, *options):
    plain, steps = Selector.after_select, itertools.count(1)

    def after_select(self, candidates, selection, batch):
        if next(steps) == step:
            os.killpg(0, signal.SIGKILL)
        plain(self, candidates, selection, batch)

    Selector.after_select = after_select
    RUNS[name](folder, *options)


def resume(name, folder):
    """Kills runs at random steps, lets them go on, and compares with those that were not killed; returns what differs."""
    draw, whole, differing = random.Random(name), {}, []
    Path(folder, f"{name}-first").mkdir()
    RUNS[name](f"{folder}/{name}-first", 0, 1)  # imports what the others then have at once
    for point in range(POINTS):
        options = (0 if point % 4 else 2, 1 if point % 2 else 2)
        if name in ("plain", "stateful", "fabric"):
            options = (options[0], 1)
        if options not in whole:
            there = Path(folder, f"{name}-whole-{options[0]}-{options[1]}")
            there.mkdir()
            if status(fork(run_to_the_end, name, str(there), *options)):
                return [f"{options}: the whole run failed"]
            whole[options] = torch.load(there / "end", weights_only=True)
        picks, weights = whole[options]
        there, step = Path(folder, f"{name}-{point}"), draw.randint(2, len(picks))
        there.mkdir()
        if status(fork(run_to_its_death, name, str(there), step, *options)) != -signal.SIGKILL:
            differing.append(f"{options}, step {step}: was not killed")
        if status(fork(run_to_the_end, name, str(there), *options)):
            differing.append(f"{options}, step {step}: did not go on")
            continue
        picks_after, weights_after = torch.load(there / "end", weights_only=True)
        gone, between = len(picks) - len(picks_after), 5 if name == "lightning_epochs" else options[1]
        if not step - 1 - between <= gone < step:
            differing.append(f"{options}, step {step}: went on after step {gone}")
        if picks_after != picks[gone:]:
            differing.append(f"{options}, step {step}: other picks")
        if not all(map(torch.equal, weights, weights_after)):
            differing.append(f"{options}, step {step}: other weights")
        shutil.rmtree(there)
    return differing


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch._inductor.config.fallback_random = True  # a compiled dropout draws from the global generator, however it was compiled
    what, folder, *names = sys.argv[1:]
    if what == "examples":
        failed = [name for name in names for run in (example, plain_loop) if status(fork(run, name, folder))]
    elif what == "items":
        failed = items(folder) or []
    else:
        failed = [f"{name} {difference}" for name in names for difference in resume(name, folder)]
    sys.exit("\n".join(failed) if failed else 0)
