"""Trackers: each against its real package, offline. A package that is not installed is skipped; ``make trackers`` has all."""

import importlib
import json
import sys
import warnings

import pytest
import torch
from conftest import make_data, make_net
from torch.utils.data import DataLoader

from rholoss.diagnostics import SelectionLog
from rholoss.integrations import trackers
from rholoss.integrations.transformers import SelectionMixin
from rholoss.selectors import TrainLossSelector

N, EVERY = 96, 4
NAMES = {"rholoss/selected", "rholoss/class 1 (of 4)/ratio", "rholoss/repeated", "rholoss/scores/selected/q50"}


def watched(tracker, loader=None):
    """A selector, and the reports that its log gives to a tracker."""
    data, reports = make_data(N), []
    loader = DataLoader(data, batch_size=8) if loader is None else loader
    selector = TrainLossSelector(loader, make_net(0), keep=0.5)
    log = SelectionLog(N, {"class 1 (of 4)": data.tensors[1] == 1}).attach(selector)
    log.every(EVERY, lambda *report: reports.append(report)).every(EVERY, tracker)
    return selector, reports


def run(tracker, loop=lambda step: None):
    selector, reports = watched(tracker)
    for step, _ in enumerate(selector):
        loop(step)
    assert [step for _, step in reports] == [3]
    for step, _ in enumerate(selector, selector.step):
        loop(step)
    assert [step for _, step in reports] == [3, 7, 11]
    assert set(reports[0][0]) >= NAMES
    return reports


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        reports = run(trackers.tensorboard(writer))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {name for metrics, _ in reports for name in metrics}
    for name in NAMES:
        expected = [(step, pytest.approx(metrics[name])) for metrics, step in reports if name in metrics]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected


LOOPS = {  # how a loop logs by itself, and at which steps
    "never": lambda run, step: None,
    "without a step": lambda run, step: run.log({"loss": step}),
    "twice, without a step": lambda run, step: (run.log({"loss": step}), run.log({"accuracy": step})),
    "by step": lambda run, step: run.log({"loss": step}, step=step),
    "by step, from one": lambda run, step: run.log({"loss": step}, step=step + 1),
    "seldom, by step": lambda run, step: step % 8 == 5 and run.log({"loss": step}, step=step),
    "by update of two batches": lambda run, step: step % 2 and run.log({"loss": step}, step=step // 2),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_wandb_keeps_every_number_of_the_loop_and_of_the_log(loop, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    expected = []

    def log(metrics, step=None):
        expected.append(metrics)
        wandb.run.log(metrics, step=step)

    started = wandb.init(project="test")
    recorder = type("Run", (), {"log": staticmethod(log)})
    reports = run(trackers.wandb(), lambda step: LOOPS[loop](recorder, step))
    started.finish()
    wandb.teardown()
    rows = history(next(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    found = [(row["rholoss/step"], row["rholoss/selected"]) for row in rows if "rholoss/step" in row]
    assert found == [(step, metrics["rholoss/selected"]) for metrics, step in reports]
    kept = [(name, row[name]) for row in rows for name in ("loss", "accuracy") if name in row]
    assert sorted(kept) == sorted(item for metrics in expected for item in metrics.items())


def history(path):
    """The rows that W&B keeps of an offline run: records in a log of blocks, as LevelDB's."""
    from wandb.proto import wandb_internal_pb2

    raw, at, record, rows = path.read_bytes(), 7, b"", []
    while at < len(raw):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        record += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            parsed = wandb_internal_pb2.Record.FromString(record)
            if parsed.WhichOneof("record_type") == "history":
                rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in parsed.history.item})
            record = b""
    return rows


def test_wandb_without_a_run_is_told():
    pytest.importorskip("wandb")
    with pytest.raises(ValueError, match="no W&B run in progress; call wandb.init first"):
        trackers.wandb()


@pytest.mark.parametrize("where", ["sqlite:///mlflow.db", "file:./mlruns"])
@pytest.mark.filterwarnings("ignore")  # of its own
def test_mlflow(where, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(where)
    with mlflow.start_run() as started:
        reports = run(trackers.mlflow())
    client = mlflow.tracking.MlflowClient()
    for name in NAMES:
        history = client.get_metric_history(started.info.run_id, name.replace("(of 4)", "_of 4_"))
        expected = [(step, pytest.approx(metrics[name])) for metrics, step in reports if name in metrics]
        assert [(each.step, each.value) for each in history] == expected


@pytest.mark.filterwarnings("ignore")  # of its own
def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    trackio.init(project="test")
    reports = run(trackers.trackio())
    trackio.finish()
    rows = SQLiteStorage.get_logs("test", SQLiteStorage.get_runs("test")[0])
    assert [(row["step"], row["rholoss/selected"]) for row in rows] == [(s, m["rholoss/selected"]) for m, s in reports]


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    from accelerate.tracking import GeneralTracker

    class Kept(GeneralTracker):
        name, requires_logging_directory, tracker, rows = "kept", False, None, []

        def __init__(self):
            super().__init__()

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **how):
            self.rows.append((values, step))

    accelerator = accelerate.Accelerator(log_with=Kept())
    accelerator.init_trackers("test")
    reports = run(trackers.accelerate(accelerator))
    assert Kept.rows == reports


def test_transformers(tmp_path):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    seen = []

    class Watch(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest):
            seen.append(logs)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_net(0)

        def forward(self, x, labels=None):
            logits = self.net(x)
            return {"logits": logits} if labels is None else {"loss": torch.nn.functional.cross_entropy(logits, labels)}

    class Watched(SelectionMixin, transformers.Trainer):
        def make_selector(self, loader):
            selector = TrainLossSelector(loader, self.model, keep=0.5)
            SelectionLog(N).attach(selector).every(EVERY, trackers.transformers(self))
            return selector

    data = [{"x": x, "labels": y} for x, y in zip(*make_data(N).tensors, strict=True)]
    how = {"per_device_train_batch_size": 8, "num_train_epochs": 2, "report_to": "none", "use_cpu": True}
    arguments = transformers.TrainingArguments(str(tmp_path), save_strategy="no", logging_steps=3, disable_tqdm=True, **how)
    trainer = Watched(Net(), arguments, train_dataset=data, callbacks=[Watch()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own
        trainer.train()
    mine = [row for row in trainer.state.log_history if "rholoss/selected" in row]
    assert [(row["step"], row["rholoss/selected"]) for row in mine] == [(3, 32.0), (7, 32.0), (11, 32.0)]
    assert sum("rholoss/selected" in logs for logs in seen) == 3, "what it reports to has them"
    assert all("loss" not in row for row in mine)


@pytest.mark.parametrize("how", ["trainer", "fabric"])
def test_lightning(how, tmp_path):
    lightning = pytest.importorskip("lightning")
    from lightning.fabric.loggers import CSVLogger as FabricLogger
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_net(0)

        def training_step(self, batch, _):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers, few batches
        if how == "fabric":
            logger = FabricLogger(tmp_path)
            reports = run(trackers.lightning(lightning.Fabric(accelerator="cpu", loggers=[logger])))
            rows = logger.experiment.metrics
        else:
            logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1000)
            quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
            trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=logger, **quiet)
            selector, reports = watched(trackers.lightning(trainer))
            trainer.fit(Module(), selector)
            rows = [row for row in logger.experiment.metrics if "rholoss/selected" in row]
            if not rows:  # written already
                rows = [row for row in logged(logger) if row["rholoss/selected"]]
    assert [(int(row["step"]), float(row["rholoss/selected"])) for row in rows] == [
        (step, metrics["rholoss/selected"]) for metrics, step in reports
    ]
    assert len(rows) == 3


def logged(logger):
    import csv

    with open(logger.experiment.metrics_file_path) as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("tensorboard", "runs", "writer must be a SummaryWriter, got 'runs'"),
        ("tensorboard", None, "writer must be a SummaryWriter, got None"),
        ("accelerate", object(), "accelerator must be an Accelerator, got <object"),
        ("transformers", 3, "trainer must be a Trainer of transformers, got 3"),
        ("lightning", 3, "trainer must be a Trainer of Lightning, or a Fabric, got 3"),
        ("trackio", 3, r"run must be what trackio.init returned, got 3"),
        ("wandb", 3, r"run must be what wandb.init returned, got 3"),
    ],
)
def test_what_cannot_be_logged_to_is_refused(name, given, message):
    with pytest.raises(TypeError, match=message):
        getattr(trackers, name)(given)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    importlib.invalidate_caches()
    with pytest.raises(
        ImportError, match=rf"trackers.{name} needs {name}, which is not installed; run: pip install {name}, or .*\[trackers\]"
    ):
        getattr(trackers, name)()
