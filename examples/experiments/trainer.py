"""Fine-tunes a transformer on SST-2 with 30 % wrong labels by the Trainer of transformers: plain, and on filtered data.

    python examples/experiments/trainer.py --data DIR [--steps 120] [--trusted 1000]

Prints the accuracy of both on GLUE's development data. Irreducible losses come from a bag of words that was fitted on what is
trusted: the mean of the transformer's own word embeddings, and one hidden layer.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of this package, rather than this folder

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from experiments.experiments import TEXT_RATES, TRUSTED_BAG, TUNED
from experiments.measures import Evaluation
from experiments.models import TransformerClassifier
from experiments.references import make_reference
from experiments.setups import located
from experiments.tasks import Task, load_task, make_model
from rholoss import IrreducibleLossStore
from rholoss.integrations.transformers import SelectionMixin
from rholoss.selectors import FilteredUniformSelector

GATE = math.log(2)  # the chance level


def collate(examples: list[tuple[Mapping[str, Tensor], Tensor]]) -> dict[str, Tensor]:
    """A batch as the Trainer wants it: by name, with ``labels``, and as long as its longest sentence."""
    length = max(int(tokens["attention_mask"].sum()) for tokens, _ in examples)
    columns = {name: torch.stack([tokens[name][:length] for tokens, _ in examples]) for name in examples[0][0]}
    return columns | {"labels": torch.stack([label for _, label in examples])}


class FilteredTrainer(SelectionMixin, Trainer):
    """A Trainer that never draws the examples that look wrong."""

    store: IrreducibleLossStore

    def make_selector(self, loader: Any) -> FilteredUniformSelector:
        return FilteredUniformSelector(loader, self.model, self.store, max_irreducible_loss=GATE)


def trained(kind: type[Trainer], task: Task, root: Path, steps: int) -> TransformerClassifier:
    """A model after so many steps; the same initial weights and order for both trainers."""
    torch.manual_seed(0)
    model: Any = make_model(TUNED.model, task, **located(TUNED.model_options, root))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=TUNED.n_b,
            max_steps=steps,
            learning_rate=TEXT_RATES[0],
            lr_scheduler_type="cosine",
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        kind(model.model, arguments, train_dataset=task.train, data_collator=collate).train()
    return model


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fine-tune on SST-2 with the Trainer, plain and filtered.")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds sst2 and minilm: see README.md")
    parser.add_argument("--steps", type=int, default=TUNED.steps)
    parser.add_argument("--trusted", type=int, default=1000, help="sentences with right labels, which are not trained on")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = load_task("sst2", options.data, **{**TUNED.task_options, "holdout": options.trusted, "tested": None})
    test = Evaluation(task.test, task.metric)
    reference = make_reference(TRUSTED_BAG, task, 0, test, options.data, torch.device("cpu"))
    FilteredTrainer.store = reference.store
    wrong = task.flags["wrong"][reference.store.losses <= GATE].float().mean()
    print(f"irreducible losses in {reference.seconds:.0f} s; of what is left, {wrong:.1%} have wrong labels")
    for kind in (Trainer, FilteredTrainer):
        began = time.process_time()
        model = trained(kind, task, options.data, options.steps)
        seconds = time.process_time() - began
        print(
            f"{kind.__name__}: {test(model):.1%} of the test sentences are right after {options.steps} steps, in {seconds:.0f} s"
        )


if __name__ == "__main__":
    main()
