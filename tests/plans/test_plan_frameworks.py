"""Plans in frameworks, without an adapter: stopped at any step, a run resumes with the picks of the recording."""

import contextlib
import importlib.metadata
import json
import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from rholoss import PlanRecorder, build_selector

N, STEPS = 64, 16


def forgets_the_epoch():
    """Whether Accelerate sets its epoch back to 0 as it skips batches, as before 1.15."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return tuple(map(int, importlib.metadata.version("accelerate").split(".")[:2])) < (1, 15)
    return False


EACH = [None, pytest.param(5, marks=pytest.mark.skipif(forgets_the_epoch(), reason="Accelerate forgets the epoch"))]


class Examples(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        return {"x": torch.tensor([float(index)]), "labels": torch.tensor(index % 2)}


class Model(nn.Module):
    """Remembers the examples that it was trained on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2)
        self.seen = []

    def forward(self, x, labels=None):
        self.seen.append(x[:, 0].long().tolist())
        return {"loss": nn.functional.cross_entropy(self.layer(x), labels)}


@pytest.fixture(scope="module")
def plan_and_picks(tmp_path_factory):
    torch.manual_seed(0)
    selector = build_selector("uniform", DataLoader(Examples(), batch_size=4, shuffle=True), None, keep=0.5)
    with PlanRecorder(tmp_path_factory.mktemp("plans") / "run.plan").attach(selector) as recorder:
        picks = [selector.last.index.tolist() for _ in range(2) for _ in selector]
    assert len(picks) == STEPS
    return recorder.plan, picks


def stops(n=20):
    return random.Random(1).choices(range(1, STEPS), k=n)


def seen_in(batches):
    return [batch["x"][:, 0].long().tolist() for batch in batches]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_resumes_at_any_step(plan_and_picks, workers):
    kind = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    plan, picks = plan_and_picks
    for stop in stops(20 if workers == 0 else 4):
        for each in (None, 5):
            make = lambda each=each: plan.loader(  # noqa: E731
                kind(Examples(), batch_size=4, num_workers=workers), steps_per_epoch=each
            )
            loader, seen = make(), 0
            while seen < stop:
                for _ in loader:
                    seen += 1
                    if seen == stop:
                        state = loader.state_dict()
                        break
            again, rest = make(), []
            again.load_state_dict(state)
            while len(rest) < STEPS - stop:
                rest += seen_in(again)
            assert rest == picks[stop:], (stop, each)


@pytest.mark.parametrize("each", EACH)
def test_accelerate_skips_the_steps_that_were_trained_on(plan_and_picks, each):
    accelerate = pytest.importorskip("accelerate")
    plan, picks = plan_and_picks
    for stop in stops():
        loader = accelerate.Accelerator(cpu=True).prepare(plan.loader(DataLoader(Examples(), batch_size=4), steps_per_epoch=each))
        epoch, skipped = divmod(stop, each or STEPS)
        loader.set_epoch(epoch)
        rest = seen_in(accelerate.skip_first_batches(loader, skipped))
        for later in range(epoch + 1, 4 if each else 1):
            loader.set_epoch(later)
            rest += seen_in(loader)
        assert rest == picks[stop:]


@pytest.mark.parametrize("each", EACH)
def test_the_trainer_of_transformers_resumes_from_a_checkpoint(plan_and_picks, tmp_path, each):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    plan, picks = plan_and_picks

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self):
            return self.accelerator.prepare(plan.loader(super().get_train_dataloader(), steps_per_epoch=each, check=False))

    def run(checkpoint=None, **options):
        quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}
        kept = {"per_device_train_batch_size": 4, "max_steps": STEPS, "remove_unused_columns": False}
        model = Model()
        trainer = Trainer(
            model, transformers.TrainingArguments(str(tmp_path), **kept, **quiet, **options), train_dataset=Examples()
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return model.seen

    assert run(save_steps=1) == picks
    for stop in sorted(set(stops())):
        assert run(str(tmp_path / f"checkpoint-{stop}"), save_strategy="no") == picks[stop:]


@pytest.mark.parametrize("each", [None, 5])
@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_from_a_checkpoint(plan_and_picks, tmp_path, each):
    lightning = pytest.importorskip("lightning")
    plan, picks = plan_and_picks

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, batch, i):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def run(checkpoint=None, callbacks=()):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = lightning.Trainer(max_steps=STEPS, max_epochs=4, callbacks=list(callbacks), default_root_dir=tmp_path, **quiet)
        module = Module()
        trainer.fit(module, plan.loader(DataLoader(Examples(), batch_size=4), steps_per_epoch=each), ckpt_path=checkpoint)
        return module.model.seen

    every = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    assert run(callbacks=[every]) == picks
    for stop in sorted(set(stops())):
        assert run(tmp_path / f"step={stop}.ckpt") == picks[stop:], stop


def test_the_state_is_numbers(plan_and_picks):
    plan, _ = plan_and_picks
    loader = plan.loader(DataLoader(Examples(), batch_size=4))
    next(iter(loader))
    assert json.loads(json.dumps(loader.state_dict())) == {"epoch": 0, "step": 1}
