"""Scoring changes nothing: what a model or a loss does to its input never reaches the batch that is trained on."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector, Selector
from rholoss.isolation import Lender

N = 64
X, Y = torch.rand(N, 4), torch.arange(N) % 3
STORE = IrreducibleLossStore(torch.rand(N, generator=torch.Generator().manual_seed(0)))


class Net(nn.Module):
    """Calls a function on its input before its layer."""

    def __init__(self, does):
        super().__init__()
        self.layer, self.does = nn.Linear(4, 3), does

    def forward(self, x):
        self.does(x)
        return self.layer(x.float())


def selector(does, **options):
    return RhoLossSelector(DataLoader(TensorDataset(X, Y), batch_size=8), Net(does), STORE, keep=0.25, **options)


def subtract_of_a_view(x):
    x[:, 1:].sub_(0.5)


def write_through_data(x):
    x.data.mul_(2)


def write_through_numpy(x):
    x.detach().numpy()[:] = 0


IN_PLACE = {
    "in place": lambda x: x.sub_(0.5),
    "a row": lambda x: x[0].zero_(),
    "a view": subtract_of_a_view,
    "an activation": lambda x: F.hardtanh_(x, 0.2, 0.4),
    "out=": lambda x: torch.mul(x, 2, out=x),
    "data": write_through_data,
    "numpy": write_through_numpy,
    "resize": lambda x: x.resize_(len(x), 4).zero_(),
    "requires_grad": lambda x: x.requires_grad_(),
}
in_place = pytest.mark.parametrize("does", IN_PLACE.values(), ids=IN_PLACE)


@in_place
@pytest.mark.parametrize("options", [{}, {"chunk_size": 5}, {"mode": "train"}, {"device": "model"}], ids=str)
def test_a_model_that_works_in_place_is_given_a_copy(does, options):
    mine = selector(does, **options)
    for x, y in mine:
        assert torch.equal(x, X[mine.last.index])
        assert torch.equal(y, Y[mine.last.index])
        assert not x.requires_grad


@in_place
def test_the_scores_are_those_of_the_model_as_it_is(does):
    mine = selector(does)
    for x, _ in mine:
        index, model = mine.last.candidate_index, mine.model.eval()
        assert len(x) == 8
        with torch.no_grad():
            losses = F.cross_entropy(model(X[index].clone()), Y[index], reduction="none")
        torch.testing.assert_close(mine.last.scores, losses - STORE.losses[index])


def test_everything_kept_is_handed_back_as_it_was_loaded():
    mine = RhoLossSelector(DataLoader(TensorDataset(X, Y), batch_size=8), Net(lambda x: x.zero_()), STORE, keep=1.0)
    for x, _ in mine:
        assert torch.equal(x, X[mine.last.index])


def test_a_dataset_whose_own_memory_is_in_its_batches_is_left_alone():
    whole = X.clone()
    batches = IndexedBatches([(torch.arange(i, i + 8), (whole[i : i + 8], Y[i : i + 8])) for i in range(0, N, 8)])
    IrreducibleLossStore.from_model(Net(lambda x: x.zero_()), batches, progress=False)
    assert torch.equal(whole, X)


def test_dropout_in_place_is_noticed_in_the_mode_in_which_it_drops():
    class Both(Selector):
        def score(self, candidates):
            return candidates.loss + candidates.sampled(self.losses, 3).mean(0)

        def losses(self, outputs, targets, n):
            return F.cross_entropy(outputs, targets, reduction="none")

    model = nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(4, 3))
    mine = Both(DataLoader(TensorDataset(X, Y), batch_size=8), model, keep=0.25)
    for x, _ in mine:
        assert torch.equal(x, X[mine.last.index])


@pytest.mark.parametrize("outputs_first", [False, True])
def test_a_loss_that_works_in_place_changes_neither_targets_nor_the_outputs_that_a_method_reads(outputs_first):
    def loss(outputs, targets):
        targets[targets == 1] = 0
        return F.cross_entropy(outputs.mul_(2), targets, reduction="none")

    class Reads(Selector):
        def score(self, candidates):
            before = candidates.outputs.clone() if outputs_first else None
            score = candidates.loss
            with torch.no_grad():
                expected = self.model.eval()(candidates.batch[0])
            torch.testing.assert_close(candidates.outputs, expected)
            assert before is None or torch.equal(before, candidates.outputs)
            return score

    mine = Reads(DataLoader(TensorDataset(X, Y), batch_size=8), nn.Linear(4, 3), keep=0.25, loss=loss)
    for _, y in mine:
        assert torch.equal(y, Y[mine.last.index])


def sometimes(at):
    calls = []

    def does(x):
        calls.append(None)
        if len(calls) == at:
            x.zero_()

    return does


def test_a_model_that_begins_to_work_in_place_is_an_error_rather_than_a_changed_batch():
    steps = iter(selector(sometimes(2)))
    next(steps)
    with pytest.raises(ValueError, match=r"changed batch\[0\] in place while it only scored: .* such as x\.clone\(\)"):
        next(steps)


def test_its_cure_works():
    does, calls = sometimes(2), []

    def forward(model, batch):
        calls.append(None)
        return model(batch[0].clone()), batch[1]

    mine = selector(does, forward=forward)
    assert sum(int(torch.equal(x, X[mine.last.index])) for x, _ in mine) == 2 == len(calls)


@dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor


def pop(batch):
    return batch.pop("y")


def replace_field(batch):
    y, batch.y = batch.y, None
    return y


def doubled(array):
    return torch.from_numpy(np.multiply(array, 2, out=array))


STRUCTURES = {
    "dict": (lambda x, y: {"x": x, "y": y}, lambda m, b: (m(b["x"]), pop(b))),
    "nested dict": (lambda x, y: {"in": {"x": x}, "y": y}, lambda m, b: (m(b["in"].pop("x")), b["y"])),
    "list": (lambda x, y: [x, y], lambda m, b: (m(b.pop(0)), b.pop(0))),
    "dataclass": (Record, lambda m, b: (m(b.x), replace_field(b))),
    "array": (
        lambda x, y: {"x": x.numpy(), "y": y},
        lambda m, b: (m(torch.from_numpy(np.multiply(b["x"], 2, out=b["x"]))), b["y"]),
    ),
}


@pytest.mark.parametrize(("made", "forward"), STRUCTURES.values(), ids=STRUCTURES)
def test_what_a_forward_adds_to_or_removes_from_a_container_is_still_there(made, forward):
    batches = [(torch.arange(i, i + 8), made(X[i : i + 8].clone(), Y[i : i + 8])) for i in range(0, N, 8)]
    mine = RhoLossSelector(IndexedBatches(batches), Net(lambda x: None), STORE, batch_size=2, forward=forward)
    for batch in mine:
        record = batch if isinstance(batch, Record) else None
        found = batch["in"] if isinstance(batch, dict) and "in" in batch else batch
        x = record.x if record else found[0] if isinstance(batch, list) else found["x"]
        y = record.y if record else batch[1] if isinstance(batch, list) else batch["y"]
        assert torch.equal(torch.as_tensor(x), X[mine.last.index])
        assert torch.equal(y, Y[mine.last.index])


class TestLender:
    def test_the_first_loan_is_a_copy_and_later_ones_are_the_tensors_themselves(self):
        lender, batch = Lender(), (torch.zeros(3), {"y": torch.ones(3)})
        for is_same in (False, True, True):
            with lender.lend(batch, "model") as lent:
                assert (lent[0] is batch[0], lent[1]["y"] is batch[1]["y"]) == (is_same, is_same)
                assert lent[1] is not batch[1]

    def test_a_borrower_that_changed_its_first_loan_is_given_copies_for_ever_and_others_are_not(self):
        lender, batch = Lender(), [torch.zeros(3)]
        for _ in range(4):
            with lender.lend(batch, "careless") as lent:
                lent[0].add_(1)
            with lender.lend(batch, "careful") as lent:
                assert torch.equal(lent[0], torch.zeros(3))
        assert lent[0] is batch[0]

    def test_a_tensor_that_is_there_twice_is_lent_as_one(self):
        x = torch.zeros(3)
        with Lender().lend((x, x), "model") as (a, b):
            assert a is b
            assert a is not x

    def test_a_copy_keeps_type_attributes_and_what_it_requires(self):
        class Mask(torch.Tensor):
            __torch_function__ = torch._C._disabled_torch_function_impl

        mask = torch.zeros(3, 2).as_subclass(Mask)
        mask.size_of_image = (5, 5)
        weights = torch.zeros(3, requires_grad=True)
        with Lender().lend((mask, weights), "model") as lent:
            assert type(lent[0]) is Mask
            assert lent[0].size_of_image == (5, 5)
            assert lent[1].requires_grad

    def test_flags_are_put_back_also_where_the_borrower_fails(self):
        lender, x = Lender(), torch.zeros(3)
        with lender.lend(x, "model"):
            pass

        def failing():
            with lender.lend(x, "model") as lent:
                lent.requires_grad_()
                raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            failing()
        assert not x.requires_grad

    def test_a_container_that_cannot_be_rebuilt_is_lent_as_it_is_and_a_change_is_an_error(self):
        class Odd(dict):
            def __copy__(self):
                raise TypeError("not copied")

        lender, batch = Lender(), Odd(x=torch.zeros(3))

        def change():
            with lender.lend(batch, "model") as lent:
                assert lent is batch
                lent["x"].add_(1)

        with pytest.raises(ValueError, match=r"changed batch\['x'\] in place"):
            change()

    def test_tensors_of_inference_mode_which_have_no_version_are_lent(self):
        with torch.inference_mode():
            x = torch.zeros(3)
        for _ in range(2):
            with Lender().lend(x, "model") as lent:
                assert torch.equal(lent, x)

    def test_what_is_no_tensor_is_lent_too(self):
        with Lender().lend((None, "word", 3), "model") as lent:
            assert lent == (None, "word", 3)
