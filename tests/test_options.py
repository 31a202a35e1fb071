"""Options that do not exist, tasks said once, and what a selector shows when it is printed."""

import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector, Task, cross_fit, fit_irreducible_model, split
from rholoss.scoring import default_forward, default_loss
from rholoss.selectors import InfoBatchSelector, TrainLossSelector, UniformSelector
from rholoss.wrappers import StaleSelector, SwitchSelector


@pytest.fixture
def loader(data):
    return DataLoader(data, batch_size=5)


class Named(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return {"picture": x, "kind": y}


def forward(model, batch):
    return model(batch["picture"]), batch["kind"]


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


class TestUnknown:
    @pytest.mark.parametrize(
        ("name", "meant"),
        [("ratio", "keep"), ("kep", "keep"), ("bs", "batch_size"), ("criterion", "loss"), ("chunksize", "chunk_size")],
    )
    def test_an_option_of_a_selector_is_suggested(self, loader, name, meant):
        with pytest.raises(TypeError, match=rf"UniformSelector got an unexpected option {name}=; did you mean {meant}=\?"):
            UniformSelector(loader, **{name: 0.1})

    def test_what_is_like_nothing_gets_the_list(self, loader):
        with pytest.raises(TypeError, match=r"option xyzzy=; The options are keep, batch_size, task, forward, loss"):
            UniformSelector(loader, xyzzy=1)

    def test_of_scoring_a_dataset_as_well(self, data, net):
        for what, make in (
            ("scoring a dataset", lambda **options: IrreducibleLossStore.from_model(net, data, **options)),
            ("cross_fit", lambda **options: cross_fit(data, lambda part: make_net(0), **options)),
        ):
            with pytest.raises(TypeError, match=rf"{what} got an unexpected option batchsize=; did you mean batch_size=\?"):
                make(batchsize=4)


class TestTask:
    def test_is_said_once_for_the_store_the_fit_and_the_selector(self, net):
        task, data = Task(forward=forward, loss=loss), Named(make_data(200))
        train, holdout, validation = split(data, holdout=60, validation=40)
        fit = fit_irreducible_model(make_net(1), holdout, validation, task=task, epochs=1)
        store = IrreducibleLossStore.from_model(fit, train, task=task)
        one_by_one = IrreducibleLossStore.from_model(fit, train, forward=forward, loss=loss)
        assert torch.equal(store.losses, one_by_one.losses)
        assert (store.meta.forward, store.meta.loss) == ("forward", "loss")
        selector = RhoLossSelector(DataLoader(train, batch_size=5), net, store, task=task, keep=0.25)
        same = RhoLossSelector(DataLoader(train, batch_size=5), net, store, forward=forward, loss=loss, keep=0.25)
        assert [batch["kind"].tolist() for batch in selector] == [batch["kind"].tolist() for batch in same]

    def test_is_the_default_where_nothing_is_said(self):
        assert Task() == Task(default_forward, default_loss, None)

    def test_and_its_parts_are_refused_together(self, loader, net, data):
        with pytest.raises(ValueError, match=r"pass task= or loss=, not both; the task already has them"):
            TrainLossSelector(loader, net, task=Task(), loss=loss)
        with pytest.raises(ValueError, match=r"pass task= or forward=, dtype=, not both"):
            IrreducibleLossStore.from_model(net, data, task=Task(), forward=forward, dtype=torch.bfloat16)

    def test_what_is_none_is_refused(self, loader, net):
        with pytest.raises(TypeError, match=r"task must be a rholoss.Task\(forward=, loss=, dtype=\), got str"):
            TrainLossSelector(loader, net, task="classification")
        with pytest.raises(ValueError, match="dtype must be torch.bfloat16, torch.float16, or None"):
            Task(dtype=torch.float64)

    def test_parts_of_a_wrapper_must_share_it(self, loader, net):
        part = TrainLossSelector(loader, net, task=Task(loss=loss))
        with pytest.raises(ValueError, match="must score as SwitchSelector does"):
            SwitchSelector(loader, net, {0: part}, unit="step")
        SwitchSelector(loader, net, {0: part}, unit="step", task=Task(loss=loss))


class TestPrinted:
    def test_says_method_sizes_loader_store_and_epoch(self, loader, net, data):
        selector = RhoLossSelector(loader, net, IrreducibleLossStore.from_model(make_net(1), data), keep=0.25)
        assert repr(selector) == (
            "RhoLossSelector(n_b=5, n_B=20, loader=DataLoader over TensorDataset, epoch=0, step=0, "
            "store=IrreducibleLossStore(100 examples, coverage=100.0%, device=cpu))"
        )
        for _ in selector:
            pass
        assert "epoch=0, step=5" in repr(selector)

    def test_of_a_wrapper_its_part(self, loader, net):
        assert repr(StaleSelector(loader, net, TrainLossSelector(loader, net))).endswith("parts=['TrainLossSelector'])")

    def test_of_a_switch_its_stages_and_which_one_is_active(self, loader, net):
        stages = {1: UniformSelector(loader), 0: TrainLossSelector(loader, net)}
        selector = SwitchSelector(loader, net, stages, unit="epoch", keep=0.25)
        shown = "stages={0: 'TrainLossSelector', 1: 'UniformSelector'}, unit='epoch', active="
        assert repr(selector).endswith(f"{shown}TrainLossSelector)")
        for _ in selector:
            pass
        assert repr(selector).endswith(f"{shown}UniformSelector)"), "the next epoch is that of the second stage"


def test_losses_can_be_recorded_with_every_method_and_only_after_a_batch(loader, net):
    selector = TrainLossSelector(loader, net, keep=0.5)
    with pytest.raises(ValueError, match="record_losses needs the losses of the batch that was selected last"):
        selector.record_losses(torch.zeros(5))
    for _, y in selector:
        assert len(y) == 5
        selector.record_losses(torch.zeros(5))
    pruned = InfoBatchSelector(loader)
    next(iter(pruned))
    with pytest.raises(ValueError, match=r"losses must be one per selected example, shape \(5,\), got \(\)"):
        pruned.record_losses(torch.tensor(0.3))
    assert pruned.losses.isnan().all()
