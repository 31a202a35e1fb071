"""The framework examples, and runs in frameworks that are killed and resumed; for test_frameworks.py, in processes of their own.

python tests/framework_runs.py examples FOLDER NAME...     each example's picks and weights, and the plain loop's, to FOLDER
python tests/framework_runs.py resume FOLDER FRAMEWORK     20 runs killed at random steps and resumed, and those that were not
"""

import os
import runpy
import sys
import warnings
from pathlib import Path

import torch
from forks import fork, status
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector, Selector

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
    model, accumulated = task.make_model(), ACCUMULATED.get(name, 1)
    order = {"shuffle": True, "generator": task.seeded()}
    if name == "hf_trainer":  # it seeds everything as it begins, and orders the data with Accelerate's sampler
        from accelerate.data_loader import SeedableRandomSampler

        torch.manual_seed(2)
        order = {"sampler": SeedableRandomSampler(task.train_set, data_seed=2)}
    loader = DataLoader(task.train_set, batch_size=32 // accumulated, **order)
    store = IrreducibleLossStore.from_model(task.make_small_model(), task.train_set)
    loader = RhoLossSelector(loader, model, store, keep=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(task.EPOCHS):
        for step, batch in enumerate(loader, 1):
            (model(**batch)["loss"] / accumulated).backward()
            if step % accumulated == 0 or step == len(loader):
                optimizer.step()
                optimizer.zero_grad()
    return model


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    what, folder, *names = sys.argv[1:]
    if what == "examples":
        failed = [name for name in names for run in (example, plain_loop) if status(fork(run, name, folder))]
    sys.exit(f"failed: {failed}" if failed else 0)
