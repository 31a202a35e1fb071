"""The front door: what a rehearsal finds, and what it does about it."""

import dataclasses
import math
import multiprocessing
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from rholoss import IrreducibleLossStore, auto, split
from rholoss.rehearsal.front_door import _Run
from rholoss.rehearsal.networks import SmallNetwork
from rholoss.rehearsal.reader import Reader, classes_that_occur
from rholoss.rehearsal.rehearsal import Rehearsal, gate, strength, wrong_share
from rholoss.selectors import FilteredUniformSelector
from rholoss.store import CalibrationCounts
from rholoss.testing import check_selector

N, CLASSES, FEATURES = 3_000, 4, 6


def examples(n=N, wrong=0.0, seed=0):
    """The class is that of the largest of the first features; some labels are another class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    y = x[:, :CLASSES].argmax(1)
    is_wrong = torch.rand(n, generator=generator) < wrong
    step = torch.randint(1, CLASSES, (n,), generator=generator)
    return TensorDataset(x, torch.where(is_wrong, (y + step) % CLASSES, y)), is_wrong


def kill():
    raise KeyboardInterrupt


def loader_of(dataset, **options):
    return DataLoader(dataset, **{"batch_size": 20, "shuffle": True, "generator": torch.Generator().manual_seed(0), **options})


def network():
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES)


def open_door(dataset, trusted=None, model=None, **options):
    return auto(loader_of(dataset), model or network(), trusted, **{"progress": False, **options})


@pytest.fixture(scope="module")
def found():
    data, wrong = examples(wrong=0.3)
    return open_door(data), wrong


class TestWrongLabels:
    def test_their_share_is_estimated(self, found):
        share = found[0].rehearsal.wrong
        assert share.low <= 0.3 <= share.high
        assert share.share == pytest.approx(0.3, abs=0.06)

    def test_most_of_them_are_never_drawn(self, found):
        selector, wrong = found
        drawn = torch.cat([selector.last.index for _ in selector])
        assert selector.rehearsal.helps
        assert wrong.float().mean() > 0.28
        assert wrong[drawn].float().mean() < 0.16
        assert len(drawn) == len(drawn.unique())

    def test_few_right_ones_are_left_out(self, found):
        selector, wrong = found
        assert selector.kept[~wrong].float().mean() > 0.93
        assert selector.rehearsal.left_out == pytest.approx(1 - selector.kept.float().mean().item(), abs=1e-6)

    def test_an_epoch_is_as_much_shorter(self, found):
        selector, _ = found
        assert len(selector) == math.ceil(int(selector.kept.sum()) / 20)

    def test_it_is_said(self, found):
        text = " ".join(str(found[0].rehearsal).split())
        assert "of the labels are wrong" in text
        assert "are left out, and the others are trained on as usual" in text

    def test_every_example_was_scored_by_a_network_that_had_not_seen_it(self, found):
        assert found[0].store.coverage == 1
        assert found[0].store.meta.cross_fit.folds == 2

    def test_is_the_same_with_the_same_seed(self, found):
        again = open_door(examples(wrong=0.3)[0])
        assert torch.equal(again.store.losses, found[0].store.losses)

    def test_trusted_examples_are_fitted_on_and_judged_by(self):
        selector = open_door(examples(wrong=0.3)[0], examples(200, seed=5)[0])
        assert selector.rehearsal.trusted == 200
        assert selector.rehearsal.trusted_accuracy > 0.7
        assert selector.rehearsal.helps


class TestRightLabels:
    def test_is_plain_training_bit_for_bit(self):
        data, _ = examples()
        plain = [y.tolist() for _, y in loader_of(data)]
        selector = open_door(data)
        assert selector.rehearsal.recipe == "plain training"
        assert [y.tolist() for _, y in selector] == plain
        assert "this is plain training" in " ".join(str(selector.rehearsal).split())

    def test_looks_at_a_sample_only(self):
        assert len(open_door(examples()[0]).store) < N / 2

    def test_hard_examples_are_not_taken_for_wrong_ones(self):
        data, _ = examples(seed=2)
        noise = torch.Generator().manual_seed(9)
        x, y = data.tensors
        blurred = TensorDataset(x + 0.7 * torch.randn(x.shape, generator=noise), y)  # accuracy of about two thirds at best
        assert not open_door(blurred).rehearsal.helps

    def test_networks_that_know_too_little_leave_nothing_out(self):
        data, _ = examples(wrong=0.3)

        class Guess(nn.Module):  # knows nothing but the first feature
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(1, CLASSES)

            def forward(self, x):
                return self.layer(x[:, :1])

        rehearsal = open_door(data, proxy=Guess).rehearsal
        assert not rehearsal.helps
        assert "this is plain training" in " ".join(str(rehearsal).split())

    def test_the_answer_can_be_overruled(self):
        data, _ = examples()
        selector = open_door(data, force=True)
        assert not selector.rehearsal.helps
        assert selector.rehearsal.recipe == "filtered uniform"
        assert "But force=True was passed. So examples with an irreducible loss above" in " ".join(
            str(selector.rehearsal).split()
        )
        assert selector.store.losses.isfinite().all()
        assert 0 < (~selector.kept).float().mean() < 0.1

    def test_too_few_to_tell(self):
        selector = open_door(examples(300, wrong=0.3)[0])
        assert not selector.rehearsal.helps
        said = "300 examples are too few to rehearse with, at least 500 are needed.\nThis is plain training."
        assert str(selector.rehearsal) == said
        assert len(list(selector)) == 15


class TestTrusted:
    """Trusted examples that cannot be trusted: a sentence, and a rehearsal without them."""

    @pytest.mark.parametrize(
        ("trusted", "said"),
        [
            (lambda data: examples(10, seed=5)[0], "10 trusted examples are too few to learn from, at least 40 are needed"),
            (
                lambda data: TensorDataset(torch.randn(90, FEATURES), torch.full((90,), 2)),
                "All trusted examples have the label 2",
            ),
            (lambda data: TensorDataset(torch.randn(90, FEATURES), torch.arange(90) % 9), "labels that the model does not know"),
            (lambda data: TensorDataset(*(t[:100] for t in data.tensors)), "trusted examples are among the training data, too"),
            (lambda data: corrected(data, 100), "100 of 100 trusted examples are among the training data, too"),
            (lambda data: scaled(examples(200, seed=5)[0], 16), "on another scale than the training inputs: most of their"),
            (lambda data: scaled(examples(200, seed=5)[0], 1, 9), "on another scale than the training inputs: most of their"),
            (lambda data: split(data, holdout=100, validation=0).holdout, "100 of 100 trusted examples are among the training"),
            (lambda data: of_classes(examples(400, seed=5)[0], 2), "have labels that no trusted example has, such as 2, 3: "),
        ],
        ids=["few", "one class", "other classes", "copies", "corrected", "scaled", "shifted", "a part", "some classes"],
    )
    def test_are_not_used_and_that_is_said(self, trusted, said):
        data, _ = examples(wrong=0.3)
        rehearsal = open_door(data, trusted(data)).rehearsal
        assert (rehearsal.trusted, rehearsal.helps) == (0, True)
        assert said in " ".join(str(rehearsal).split())
        assert "they are not used." in " ".join(str(rehearsal).split())

    def test_copies_are_found_among_much_data(self):
        data, _ = examples(30_000)
        copies = TensorDataset(*(t[:25_000].clone() for t in data.tensors))
        note = open_door(data, copies, steps=20).rehearsal.notes[0]
        about = int(note.split()[1].replace(",", ""))
        assert 10_000 < about <= 25_000  # estimated from 200 of one and 4,000 of the other

    def test_classes_that_are_not_asked_for_are_left_out_on_request(self):
        data, _ = examples()
        selector = open_door(data, of_classes(examples(600, seed=5)[0], 2), only_trusted_classes=True)
        labels = data.tensors[1]
        assert selector.rehearsal.helps
        assert selector.kept[labels >= 2].float().mean() < 0.05
        assert selector.kept[labels < 2].float().mean() > 0.9

    @pytest.mark.parametrize(
        ("trusted", "cure"),
        [
            (7, ""),
            (examples(90)[0].tensors, ".*for inputs and labels, pass torch.utils.data.TensorDataset"),
            ([1, 5, 7], ".*for indices of a dataset, pass torch.utils.data.Subset"),
            (torch.arange(90), ".*for indices of a dataset, pass torch.utils.data.Subset"),
        ],
        ids=["a number", "inputs and labels", "indices", "a tensor of indices"],
    )
    def test_must_be_a_dataset(self, trusted, cure):
        with pytest.raises(TypeError, match=f"trusted must be a dataset, or a loader over one{cure}"):
            open_door(examples()[0], trusted)

    @pytest.mark.parametrize(
        "trusted",
        [
            [(x, int(y)) for x, y in examples(90)[0]],
            TensorDataset(torch.randn(90, FEATURES - 1), torch.arange(90) % CLASSES),
            [{"x": x, "labels": y} for x, y in examples(90)[0]],
        ],
        ids=["labels of another kind", "another shape", "dicts"],
    )
    def test_must_be_of_the_kind_of_the_training_data(self, trusted):
        with pytest.raises(TypeError, match=r"trusted examples must be of the same kind .*expected tuple \(Tensor .*, got "):
            open_door(examples()[0], trusted)

    def test_must_be_finite(self):
        trusted = examples(90, seed=5)[0]
        trusted.tensors[0][7, 2] = math.nan
        with pytest.raises(ValueError, match="got NaN or infinite values in the trusted example 7; correct"):
            open_door(examples()[0], trusted)

    def test_are_needed_to_know_the_classes_that_are_asked_for(self):
        with pytest.raises(ValueError, match="only_trusted_classes=True needs trusted examples, got trusted=None"):
            open_door(examples()[0], only_trusted_classes=True)


def corrected(data, n):
    x = data.tensors[0]
    return TensorDataset(x[:n].clone(), x[:n, :CLASSES].argmax(1))


def scaled(data, factor, shift=0):
    x, y = data.tensors
    return TensorDataset(x * factor + shift, y)


def of_classes(data, count):
    x, y = data.tensors
    return TensorDataset(x[y < count], y[y < count])


class Rows(Dataset):
    """Examples as dicts, read one by one."""

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i):
        return {name: column[i] for name, column in self.columns.items()}


class ByName(nn.Module):
    """Called with the inputs of a dict by name."""

    def __init__(self, *names):
        super().__init__()
        self.names, self.layer = names, nn.Linear(len(names), CLASSES)

    def forward(self, **inputs):
        assert set(inputs) == set(self.names)
        return self.layer(torch.stack([inputs[name].float().reshape(len(inputs[name]), -1)[:, 0] for name in self.names], 1))


class TestBatches:
    """What users' loaders yield."""

    def columns(self, wrong=0.3):
        data, _ = examples(wrong=wrong)
        x, y = data.tensors
        return {"age": x[:, 0] * 20 + 40, "rest": x[:, 1:], "labels": y}

    def test_a_dict(self):
        assert open_door(Rows(**self.columns()), model=ByName("age", "rest")).rehearsal.helps

    def test_a_list_of_dicts(self):
        columns = self.columns()
        rows = [{name: column[i] for name, column in columns.items()} for i in range(N)]
        selector = open_door(rows, model=ByName("age", "rest"))
        assert selector.rehearsal.helps
        assert set(next(iter(selector))) == {"age", "rest", "labels"}

    def test_token_ids(self):
        generator = torch.Generator().manual_seed(0)
        y = torch.randint(CLASSES, (N,), generator=generator)
        ids = torch.randint(1, 200, (N, 12), generator=generator)
        ids[:, 3:6] = 1_000 + y[:, None]  # one word says it
        wrong = torch.rand(N, generator=generator) < 0.3
        mask = torch.ones_like(ids)
        labels = torch.where(wrong, (y + torch.randint(1, CLASSES, (N,), generator=generator)) % CLASSES, y)
        model = ByName("input_ids", "attention_mask")
        selector = open_door(Rows(input_ids=ids, attention_mask=mask, labels=labels), model=model)
        assert selector.rehearsal.helps
        assert selector.kept[wrong].float().mean() < 0.4

    def test_digits(self):
        digits = pytest.importorskip("sklearn.datasets").load_digits()
        x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        assert not open_door(TensorDataset(x, y), model=model).rehearsal.helps

    def test_two_workers_make_no_difference(self, monkeypatch):
        monkeypatch.setattr("rholoss.rehearsal.reader._FAST", 0)  # seconds; or they would not be started
        x, y = examples(500, wrong=0.3)[0].tensors
        rows = list(zip(x, y, strict=True))
        found = [auto(loader_of(rows, num_workers=workers), network(), steps=100, progress=False) for workers in (0, 2)]
        assert found[0].rehearsal == dataclasses.replace(found[1].rehearsal, seconds=found[0].rehearsal.seconds)
        assert torch.equal(*(selector.store[torch.arange(500)] for selector in found))

    @pytest.mark.parametrize("data", [examples(wrong=0.3)[0], list(examples(wrong=0.3)[0])], ids=["tensors", "a list"])
    def test_what_is_read_fast_is_fitted_on_without_workers(self, data, monkeypatch):
        started, start = [], multiprocessing.Process.start
        monkeypatch.setattr(multiprocessing.Process, "start", lambda process: started.append(start(process)))
        assert auto(loader_of(data, num_workers=2), network(), progress=False).rehearsal.helps
        assert len(started) <= 1  # for a look at a sample as the loader reads it

    def test_what_is_drawn_at_random_or_slow_to_read_keeps_its_workers(self):
        x, y = examples(200)[0].tensors
        generator = torch.Generator().manual_seed(0)

        class Augmented(Pairs):
            def __getitem__(self, i):
                return self.x[i] + torch.randn(FEATURES, generator=self.generator), self.y[i]

        class Slow(Pairs):
            def __getitem__(self, i):
                time.sleep(0.002)
                return super().__getitem__(i)

        def is_fast(data):
            reader = Reader(DataLoader, lambda model, batch: (model(batch[0]), batch[1]), torch.device("cpu"), 0)
            reader.stand_in = network()
            return reader.is_fast(data)

        augmented = Augmented(x, y)
        for augmented.generator in (None, generator):
            assert not is_fast(augmented)
        assert not is_fast(Slow(x, y))
        assert is_fast(Pairs(x, y))

    def test_a_network_of_the_users_own(self):
        made = []

        def small():
            made.append(nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES)))
            return made[-1]

        assert open_door(examples(wrong=0.3)[0], proxy=small).rehearsal.helps
        assert len(made) >= 3

    def test_a_forward_of_the_users_own(self):
        def forward(model, batch):
            return model(batch["x"]["here"]), batch["y"]

        x, y = examples(wrong=0.3)[0].tensors
        rows = [{"x": {"here": a}, "y": b} for a, b in zip(x, y, strict=True)]
        assert open_door(rows, forward=forward).rehearsal.helps

    def test_a_part_of_the_data(self):
        data, wrong = examples(wrong=0.3)
        part = split(data, holdout=0.5, validation=0, seed=3).holdout
        loader = loader_of(data, shuffle=False, sampler=torch.utils.data.SubsetRandomSampler(range(1_500)))
        for selector, n in ((open_door(part), 1_500), (auto(loader, network(), progress=False), 1_500)):
            drawn = torch.cat([selector.last.index for _ in selector])
            assert selector.rehearsal.examples == n
            assert wrong[drawn].float().mean() < 0.2
            assert len(drawn) == round(n * (1 - selector.rehearsal.left_out))

    def test_all_ranks_rehearse_with_all_of_the_data(self):
        data, _ = examples(wrong=0.3)
        sampler = DistributedSampler(data, num_replicas=2, rank=1)
        selector = auto(loader_of(data, shuffle=False, sampler=sampler), network(), progress=False)
        assert torch.equal(selector.store.losses, open_door(data).store.losses)


class TestAGuest:
    def test_leaves_the_model_and_the_random_states_as_they_were(self):
        model = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        open_door(examples(wrong=0.3)[0], model=model)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_resumes_like_any_selector(self):
        data, _ = examples(wrong=0.3)
        one = open_door(data)
        batches = iter(one)
        for _ in range(5):
            next(batches)
        state = one.state_dict()
        rest = [y.tolist() for _, y in batches]
        other = open_door(data)
        other.load_state_dict(state)
        assert [y.tolist() for _, y in other] == rest


class TestLabels:
    """Labels that are no class, few of a class, and outputs of classes that do not occur."""

    @pytest.mark.parametrize("shows", [True, False])
    def test_labels_that_do_not_count_are_neither_judged_nor_left_out(self, shows):
        data, wrong = examples(wrong=0.3)
        x, y = data.tensors
        unlabelled = torch.arange(N) % 3 == 0
        y[unlabelled] = -100
        selector = open_door(data if shows else Pairs(x, y))
        assert selector.rehearsal.examples == N * 2 // 3
        assert selector.rehearsal.wrong.low <= 0.3 <= selector.rehearsal.wrong.high
        assert selector.kept[unlabelled].all()
        assert selector.kept[wrong & ~unlabelled].float().mean() < 0.45
        assert selector.kept[~wrong & ~unlabelled].float().mean() > 0.9
        assert "1,000 of 3,000 examples have no class as their label, such as -100" in str(selector.rehearsal)
        assert len(torch.cat([selector.last.index for _ in selector])) == int(selector.kept.sum())

    def test_no_wrong_label_is_seen_in_labels_that_do_not_count(self):
        data, _ = examples()
        data.tensors[1][::5] = -100
        rehearsal = open_door(data).rehearsal
        assert not rehearsal.helps
        assert rehearsal.wrong.share < 0.05

    def test_no_label_at_all(self):
        x, y = examples()[0].tensors
        selector = open_door(TensorDataset(x, torch.full_like(y, -100)))
        assert "0 examples are too few to rehearse with" in str(selector.rehearsal)
        assert len(list(selector)) == N / 20

    def test_a_loss_that_ignores_another_label(self):
        data, _ = examples(wrong=0.3)
        data.tensors[1][::3] = 255
        loss = nn.CrossEntropyLoss(ignore_index=255, reduction="none")
        selector = open_door(data, loss=loss)
        assert selector.kept[::3].all()
        assert selector.rehearsal.wrong.share == pytest.approx(0.3, abs=0.08)

    def test_a_label_that_is_no_class_is_named_by_its_index(self):
        data, _ = examples()
        data.tensors[1][777:779] = torch.tensor([12, 14])
        with pytest.raises(
            ValueError, match=r"expected classes from 0 to 3, got 14 .*; if 14 marks .*\(the example with index 778\)"
        ):
            open_door(data)

    def test_labels_are_those_of_the_forward_function(self):
        data, _ = examples(wrong=0.3)
        x, y = data.tensors
        selector = open_door(TensorDataset(x, y + 5), forward=lambda model, batch: (model(batch[0]), batch[1] - 5))
        plain = open_door(data)
        assert torch.equal(selector.store.losses, plain.store.losses)
        assert selector.rehearsal.wrong == plain.rehearsal.wrong

    def test_values_as_labels(self):
        x, _ = examples(600)[0].tensors
        rehearsal = open_door(TensorDataset(x, torch.randperm(600)), model=nn.Linear(FEATURES, 600)).rehearsal
        assert str(rehearsal).startswith("600 examples of 600 classes are too few to rehearse with")

    @pytest.mark.parametrize("outputs", [40, 400])
    def test_outputs_without_examples_change_neither_the_answer_nor_the_gate(self, outputs, found):
        data, wrong = examples(wrong=0.3)
        selector = open_door(data, model=nn.Linear(FEATURES, outputs))
        assert selector.rehearsal.classes == CLASSES
        assert selector.kept[wrong].float().mean() < 0.45
        assert selector.rehearsal.left_out == pytest.approx(found[0].rehearsal.left_out, abs=0.06)

    def test_unseen_classes_are_estimated_from_those_seen_once(self):
        assert classes_that_occur(torch.tensor([0, 0, 1, 1, 2]), 5, 10) == 3
        assert classes_that_occur(torch.tensor([0, 0, 1, 1, 2]), 6, 10) == 4
        assert classes_that_occur(torch.tensor([0, 1, 2, 3]), 100, 5) == 5
        assert classes_that_occur(torch.tensor([3, 3]), 2, 10) == 2

    def test_probabilities_as_outputs_are_warned_of(self):
        model = nn.Sequential(network(), nn.Softmax(1))
        with pytest.warns(UserWarning, match="expected logits, got outputs that look like probabilities"):
            open_door(examples(300)[0], model=model)


class Pairs(Dataset):
    """Inputs and labels that are not shown."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class TestFile:
    def test_its_folder_is_made(self, tmp_path, capsys):
        data, _ = examples(600)
        path = tmp_path / "new" / "folder" / "il.npz"
        for _ in range(2):
            auto(loader_of(data), network(), path=path)
        first, second = capsys.readouterr().out.split(f"Read from {path}, with nothing fitted again:\n")
        assert first == second

    def test_a_folder_is_refused_before_anything_is_fitted(self, tmp_path):
        with pytest.raises(ValueError, match=r"path must be a file, got the folder .*; pass a file in it, such as .*il.npz"):
            open_door(examples(600)[0], path=tmp_path)

    def test_a_damaged_one_can_be_deleted(self, tmp_path):
        path = tmp_path / "il.npz"
        open_door(examples(600)[0], path=path)
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(ValueError, match=r"or delete .*il.npz, and auto makes it again"):
            open_door(examples(600)[0], path=path)

    def test_the_second_time_it_starts_at_once(self, tmp_path, monkeypatch):
        data, _ = examples(wrong=0.3)
        first = open_door(data, path=tmp_path / "il.npz")
        monkeypatch.setattr("rholoss.rehearsal.front_door.fit_irreducible_model", None)
        second = open_door(data, path=tmp_path / "il.npz")
        assert torch.equal(first.store.losses, second.store.losses)
        assert str(second.rehearsal) == str(first.rehearsal)
        assert second.rehearsal.table() == first.rehearsal.table()

    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_a_killed_one_resumes_after_the_last_fit(self, after, tmp_path, monkeypatch):
        data, trusted = examples(wrong=0.3)[0], examples(100, seed=5)[0]
        whole = open_door(data, trusted, path=tmp_path / "whole.npz")
        score, found = _Run._score, _Run._found
        with monkeypatch.context() as patched:
            patched.setattr(_Run, "_score", lambda run, fold: kill() if fold == after else score(run, fold))
            patched.setattr(_Run, "_found", lambda *a, **k: kill() if after == 2 else found(*a, **k))
            with pytest.raises(KeyboardInterrupt):
                open_door(data, trusted, path=tmp_path / "killed.npz")
        folds = []
        monkeypatch.setattr(_Run, "_score", lambda run, fold: folds.append(fold) or score(run, fold))
        resumed = open_door(data, trusted, path=tmp_path / "killed.npz")
        assert folds == list(range(after, 2))
        assert resumed.rehearsal == dataclasses.replace(whole.rehearsal, seconds=resumed.rehearsal.seconds)
        assert resumed.store.digest == whole.store.digest

    def test_plain_training_is_remembered_too(self, tmp_path, monkeypatch):
        data, _ = examples()
        open_door(data, path=tmp_path / "il.npz")
        monkeypatch.setattr("rholoss.rehearsal.front_door.fit_irreducible_model", None)
        assert not open_door(data, path=tmp_path / "il.npz").rehearsal.helps

    @pytest.mark.parametrize(
        ("changed", "what"),
        [
            (lambda: open_door(examples(wrong=0.3, seed=4)[0], path="il.npz"), "training data"),
            (lambda: open_door(examples(wrong=0.3)[0], path="il.npz", seed=1), "seed="),
            (lambda: open_door(examples(wrong=0.3)[0], examples(90, seed=5)[0], path="il.npz"), "trusted examples"),
        ],
        ids=["data", "seed", "trusted"],
    )
    def test_of_another_rehearsal_is_refused(self, changed, what, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        open_door(examples(wrong=0.3)[0], path="il.npz")
        with pytest.raises(
            ValueError, match=f"il.npz holds irreducible losses of another rehearsal, with other {what}; delete it"
        ):
            changed()

    def test_of_anything_else_is_refused(self, tmp_path):
        IrreducibleLossStore(torch.rand(N)).save(tmp_path / "il.npz")
        with pytest.raises(ValueError, match="holds irreducible losses of another rehearsal; delete it"):
            open_door(examples()[0], path=tmp_path / "il.npz")


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


class Out(dict):
    @property
    def scores(self):
        return self["out"]


class TestRefused:
    def test_values_instead_of_classes(self):
        x, _ = examples()[0].tensors
        with pytest.raises(
            TypeError, match="auto looks at classifiers only, .*; for two classes, give the model two outputs; for values"
        ):
            open_door(TensorDataset(x, x[:, 0]), model=nn.Linear(FEATURES, 1))

    def test_a_model_that_is_not_only_called(self):
        class Encoder(nn.Linear):
            def encode(self, x):
                return self(x)

        model = Encoder(FEATURES, CLASSES)
        with pytest.raises(TypeError, match=r"forward uses more of the model than a call .*encode.*; pass proxy="):
            open_door(examples()[0], model=model, forward=lambda model, batch: (model.encode(batch[0]), batch[1]))

    def test_a_stream(self):
        with pytest.raises(TypeError, match="auto needs a DataLoader over a map-style dataset"):
            auto([(torch.zeros(2, 3), torch.zeros(2))], network())

    @pytest.mark.parametrize(
        ("loader", "cure"),
        [
            (examples(600)[0], "got the dataset TensorDataset; pass torch.utils.data.DataLoader"),
            (network(), "and then the model, got the model first; swap the two"),
            (DataLoader(examples(600)[0], batch_size=None), "got one with batch_size=None, .*give the loader a batch_size"),
            (DataLoader(Stream(), batch_size=4), "got one over the stream Stream; read its examples into a list"),
        ],
        ids=["a dataset", "swapped", "whole batches", "a stream"],
    )
    def test_what_is_no_loader_by_index(self, loader, cure):
        model = network() if not isinstance(loader, nn.Module) else loader_of(examples(600)[0])
        with pytest.raises(TypeError, match=f"auto needs a DataLoader over a map-style dataset, {cure}"):
            auto(loader, model)

    @pytest.mark.parametrize(
        ("labels", "cure"),
        [
            (lambda y: y.float(), r"forward=lambda model, batch: \(model\(batch\[0\]\), batch\[1\].long\(\)\)"),
            (lambda y: nn.functional.one_hot(y, CLASSES), r"batch\[1\].argmax\(1\)"),
            (lambda y: y[:, None], r"batch\[1\].squeeze\(1\).long\(\)"),
        ],
        ids=["floats", "one-hot", "columns"],
    )
    def test_the_cure_for_labels_of_another_form_works(self, labels, cure):
        x, y = examples(600)[0].tensors
        data = TensorDataset(x, labels(y))
        with pytest.raises(TypeError, match=cure) as error:
            open_door(data)
        forward = eval("lambda" + str(error.value).split("forward=lambda")[1].split("; for values")[0])
        assert len(open_door(data, forward=forward)) == 30

    @pytest.mark.parametrize("take", [lambda out: out[0], lambda out: out["out"], lambda out: out.scores])
    def test_the_cure_for_outputs_of_another_form_works(self, take):
        class Model(nn.Linear):
            def forward(self, x):
                return Out({"out": super().forward(x), 0: super().forward(x)})

        def forward(model, batch):
            return take(model(batch[0])), batch[1]

        model, data = Model(FEATURES, CLASSES), examples(600)[0]
        with pytest.raises(TypeError, match="auto looks at classifiers only, .*pass forward=.* and proxy="):
            open_door(data, model=model)
        with pytest.raises(TypeError, match="forward uses more of the model than a call .*; pass proxy="):
            open_door(data, model=model, forward=forward)
        proxy = lambda: Model(FEATURES, CLASSES)  # noqa: E731
        assert len(open_door(Pairs(*data.tensors), model=model, forward=forward, proxy=proxy)) == 30

    def test_inputs_of_more_than_one_length(self):
        rows = [(torch.randn(20 + i % 30), i % 3) for i in range(600)]

        def padded(batch):
            return nn.utils.rnn.pad_sequence([x for x, _ in batch], batch_first=True), torch.tensor([y for _, y in batch])

        class Mean(nn.Linear):
            def forward(self, x):
                return super().forward(x.mean(1, keepdim=True))

        loader = DataLoader(rows, 4, shuffle=True, collate_fn=padded)
        with pytest.raises(
            ValueError, match="inputs must have one shape in all batches, got .*; bring all to one shape .*proxy="
        ):
            auto(loader, Mean(1, 3), progress=False)
        assert len(auto(loader, Mean(1, 3), proxy=lambda: Mean(1, 3), progress=False)) == 150

    def test_inputs_that_are_not_finite(self):
        data, _ = examples(600)
        data.tensors[0][:, 1] = math.inf
        with pytest.raises(ValueError, match="inputs must be finite, got NaN or infinite values in the example with index 0"):
            open_door(data)

    def test_a_few_inputs_that_are_not_finite_are_named_when_the_fit_fails(self):
        data, _ = examples(600)
        data.tensors[0][99::2, 1] = math.nan
        with pytest.raises(
            ValueError, match=r"got NaN or infinite values in the example with index (99|[1-5]\d[13579]); correct"
        ):
            open_door(data)

    def test_inputs_that_are_not_finite_are_named_by_their_own_index_beside_trusted_examples(self):
        data, _ = examples(600)
        trusted, _ = examples(100, seed=5)
        data.tensors[0][100:160, 1] = math.nan
        with pytest.raises(ValueError, match="got NaN or infinite values in the example with index 100; correct"):
            open_door(data, trusted)

    def test_a_network_in_place_of_a_function(self):
        with pytest.raises(TypeError, match=r"proxy must be a function .*, got one network, Linear; pass lambda: Linear"):
            open_door(examples(600)[0], proxy=network())

    @pytest.mark.parametrize(("option", "meant"), [("trusted_set", "trusted"), ("epochs", "steps")])
    def test_options_of_another_name(self, option, meant):
        with pytest.raises(TypeError, match=f"did you mean {meant}=.* The options are trusted, steps, (?!.*(keep|batch_size))"):
            open_door(examples(600)[0], **{option: 3})

    def test_less_than_a_batch_left(self):
        data, _ = examples(wrong=0.3)
        for size, drop_last in ((N // 2, True), (N - 100, False)):
            assert len(list(auto(loader_of(data, batch_size=size, drop_last=drop_last), network(), progress=False))) == 1
        with pytest.raises(
            ValueError, match=r"of 3,000 examples are left, less than a batch of 2900, .*; give .*drop_last=False"
        ):
            auto(loader_of(data, batch_size=N - 100, drop_last=True), network(), progress=False)

    @pytest.mark.parametrize("option", [{"keep": 0.1}, {"batch_size": 4}])
    def test_a_choice_of_how_many(self, option):
        with pytest.raises(ValueError, match="auto trains on every example that it does not leave out, got "):
            open_door(examples()[0], **option)
        store = IrreducibleLossStore(torch.rand(N))
        with pytest.raises(ValueError, match="trains on every example below the limit, got "):
            FilteredUniformSelector(loader_of(examples()[0]), None, store, max_irreducible_loss=0.5, **option)

    def test_no_model(self):
        with pytest.raises(TypeError, match="model must be the torch.nn.Module in training, got None"):
            auto(loader_of(examples()[0]), None)

    def test_no_data(self):
        with pytest.raises(ValueError, match="the loader's dataset"):
            auto(DataLoader(TensorDataset(torch.zeros(0, FEATURES), torch.zeros(0).long())), network())


def counts(confident, agreeing, rest=0, agreeing_rest=0, classes=10):
    made = CalibrationCounts(classes)
    made.bins[95] = confident, agreeing, 0
    made.bins[40] = rest, agreeing_rest, 0
    return made


class TestWrongShare:
    def test_is_read_where_models_are_surest(self):
        assert wrong_share(counts(1_000, 700, 4_000, 2_800)).share == pytest.approx(0.3)

    def test_agreement_that_still_rises_is_doubt(self):
        found = wrong_share(counts(1_000, 900, 9_000, 3_000))
        assert (found.share, found.low) == (0, 0)
        assert found.high > 0.1

    def test_is_no_more_than_trusted_examples_allow(self):
        assert wrong_share(counts(1_000, 700, 4_000, 2_800), (0.7, 10_000)).share < 0.03

    def test_nothing_known(self):
        assert wrong_share(CalibrationCounts(10)) == (0, 0, 1)


def test_strength():
    assert strength(0.7, 0.3, 0.1) == pytest.approx(1)
    assert strength(0.1, 0.3, 0.1) == pytest.approx(0)
    assert strength(0.68, 0.3, 0.676) < 0.2, "with rare classes a guess of the most frequent one is often right"


@pytest.mark.parametrize(("wrong", "classes"), [(0.3, 10), (0.1, 10), (0.05, 2), (0.3, 100)])
def test_at_the_gate_two_labels_in_three_are_right(wrong, classes):
    other = wrong / (classes - 1)  # probability that a label is one particular other class
    given = math.exp(-gate(wrong, classes))
    clean = (given - other) / (1 - wrong - other)
    assert (1 - wrong) * clean / given == pytest.approx(2 / 3)


@pytest.mark.parametrize(("wrong", "classes"), [(0.0, 10), (0.8, 10), (0.45, 2)])
def test_the_gate_is_at_least_the_chance_level(wrong, classes):
    assert gate(wrong, classes) == pytest.approx(math.log(classes))


def test_a_rehearsal_is_the_same_from_json():
    import json

    rehearsal = open_door(examples(wrong=0.3)[0]).rehearsal
    assert Rehearsal.of_json(json.loads(json.dumps(rehearsal.to_json()))) == rehearsal


def test_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    figure = open_door(examples(wrong=0.3)[0]).rehearsal.plot(tmp_path / "rehearsal.png")
    assert (tmp_path / "rehearsal.png").stat().st_size > 10_000
    assert figure.texts[0].get_text() == "Rehearsal: filtered uniform"


@pytest.mark.parametrize(
    "call",
    [
        {"0": torch.zeros(4, 3, 32, 32)},
        {"0": torch.zeros(4, 1, 28, 28)},
        {"0": torch.zeros(4, 48, 48)},
        {"0": torch.zeros(4, 3, 32, 32, dtype=torch.uint8)},
        {"x": torch.zeros(4, 7), "sex": torch.zeros(4, dtype=torch.int64), "age": torch.zeros(4)},
        {"input_ids": torch.ones(4, 9, dtype=torch.int64), "attention_mask": torch.ones(4, 9, dtype=torch.int64)},
        {"0.a": torch.zeros(4, 2), "0.b.0": torch.zeros(4, 3)},
    ],
    ids=["colour", "grey", "no channel", "bytes", "table", "tokens", "nested"],
)
def test_a_small_network_takes_what_the_model_takes(call):
    made = SmallNetwork(call, CLASSES)
    nested = {"a": call["0.a"], "b": [call["0.b.0"]]} if "0.a" in call else None
    outputs = made(nested) if nested else made(call["0"]) if "0" in call else made(**call)
    outputs.sum().backward()
    assert outputs.shape == (4, CLASSES)


@pytest.mark.parametrize("shape", [(1, 28, 28), (28, 28), (3, 12, 20), (1, 12, 12), (3, 96, 64)])
def test_a_network_of_images_takes_those_of_another_size_in_float_and_in_bytes(shape):
    images = torch.randint(256, (6, *shape), dtype=torch.uint8)
    made = SmallNetwork({"0": images}, CLASSES)
    for given in (images, images.float(), torch.nn.functional.pad(images, (0, 9, 0, 5))):
        made(given).sum().backward()
        assert made(given).shape == (6, CLASSES)
    assert all(weight.grad.any() for weight in made.parameters())


def test_a_small_network_of_nothing_known():
    with pytest.raises(TypeError, match="a small network can be made for images, vectors, .* got no tensor; pass proxy="):
        SmallNetwork({}, CLASSES)


def test_filtered_uniform_needs_the_losses_of_what_may_be_drawn():
    data, _ = examples(100)
    losses = torch.rand(100)
    losses[3] = math.nan
    with pytest.raises(ValueError, match="1 of 100 examples have no finite irreducible loss"):
        FilteredUniformSelector(loader_of(data), None, IrreducibleLossStore(losses), max_irreducible_loss=0.5)


def test_filtered_uniform_with_nothing_below_the_limit():
    data, _ = examples(100)
    store = IrreducibleLossStore(torch.ones(100))
    with pytest.raises(ValueError, match="no example has an irreducible loss of at most 0.5; pass a higher limit"):
        FilteredUniformSelector(loader_of(data), None, store, max_irreducible_loss=0.5)


@pytest.mark.parametrize("workers", [0, 2])
def test_filtered_uniform_draws_each_example_below_the_limit_once(workers):
    data, _ = examples(100)
    losses = torch.arange(100) / 100
    loader = loader_of(data, batch_size=8, num_workers=workers)
    selector = FilteredUniformSelector(loader, None, IrreducibleLossStore(losses), max_irreducible_loss=0.5)
    drawn = torch.cat([selector.last.index for _ in selector])
    assert sorted(drawn.tolist()) == list(range(51))
    assert len(selector) == 7


def test_filtered_uniform_keeps_the_contract():
    def build(loader, model, *, store, keep, batch_size=None, forward=None, **options):
        return FilteredUniformSelector(loader, model, store, max_irreducible_loss=1e9, forward=forward, **options)

    check_selector(build)


class TestTexts:
    """Token ids are counted: naive Bayes."""

    @staticmethod
    def texts(n=2_000, wrong=0.3, length=12, seed=0):
        """Ids 1 to 100, of which each of 4 classes uses 25 more often; padded with zeros."""
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(4, (n,), generator=generator)
        own = torch.rand(n, length, generator=generator) < 0.5
        ids = torch.where(own, 25 * y[:, None] + torch.randint(25, (n, length), generator=generator),
                          torch.randint(100, (n, length), generator=generator)) + 1  # fmt: skip
        ids[torch.arange(length) >= torch.randint(4, length, (n, 1), generator=generator)] = 0
        is_wrong = torch.rand(n, generator=generator) < wrong
        return ids, torch.where(is_wrong, (y + torch.randint(1, 4, (n,), generator=generator)) % 4, y), is_wrong

    def test_counting_finds_wrong_labels(self):
        ids, y, is_wrong = self.texts()
        network = SmallNetwork({"0": ids[:4]}, 4)
        assert network.head is None, "nothing but words"
        batches = DataLoader(TensorDataset(ids[:1_000], y[:1_000]), batch_size=100)
        network.count(batches, lambda model, batch: (model(batch[0]), batch[1]))
        with torch.no_grad():
            losses = nn.functional.cross_entropy(network(ids[1_000:]), y[1_000:], reduction="none")
        assert losses[is_wrong[1_000:]].mean() > 1.5 * losses[~is_wrong[1_000:]].mean()

    def test_padding_and_repetition_do_not_count(self):
        ids, y, _ = self.texts()
        network = SmallNetwork({"0": ids[:4]}, 4)
        network.count([(ids, y)], lambda model, batch: (model(batch[0]), batch[1]))
        row = ids[:1][ids[:1] != 0].unique()[None]
        padded = torch.cat([row, row, torch.zeros_like(row)], 1)
        assert torch.allclose(network(row), network(padded), atol=1e-6)
        masked = SmallNetwork({"ids": ids[:4], "attention_mask": (ids[:4] != 0).long()}, 4)
        masked.load_state_dict(network.state_dict())
        seven = torch.where(padded == 0, 7, padded)
        assert torch.allclose(masked(ids=seven, attention_mask=(padded != 0).long()), network(row), atol=1e-6)

    def test_five_parts_and_most_wrong_labels_left_out(self):
        ids, y, is_wrong = self.texts(4_000)
        selector = auto(loader_of(TensorDataset(ids, y)), nn.Sequential(Bag(), nn.Linear(8, 4)), progress=False)
        assert selector.rehearsal.helps
        assert {row["fold"] for row in selector.rehearsal.table()} == {0, 1, 2, 3, 4}
        drawn = torch.cat([selector.last.index for _ in selector])
        assert is_wrong[drawn].float().mean() < 0.15

    def test_labels_outside_the_classes_are_not_counted(self):
        ids, y, _ = self.texts(100)
        one, other = (SmallNetwork({"0": ids[:4]}, 4) for _ in range(2))
        forward = lambda model, batch: (model(batch[0]), batch[1])  # noqa: E731
        one.count([(ids[:90], y[:90])], forward)
        other.count([(ids, torch.cat([y[:90], torch.full((10,), -100)]))], forward)
        assert torch.equal(one.branches[0].weights, other.branches[0].weights)


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.EmbeddingBag(101, 8)

    def forward(self, ids):
        return self.embedding(ids)


@pytest.mark.parametrize(
    ("proxy", "error", "message"),
    [
        (
            lambda: nn.Linear(FEATURES, CLASSES + 1),
            ValueError,
            r"of the model's 4 classes, shape \(2, 4\) for 2 .*, got shape \(2, 5\)",
        ),
        (lambda: nn.Sequential(nn.Linear(FEATURES, 1), nn.Flatten(0)), ValueError, r"shape \(2, 4\) .*, got shape \(2,\)"),
        (lambda: nn.LSTM(FEATURES, CLASSES), ValueError, r"shape \(2, 4\) for 2 examples, got \(tensor"),
        (lambda: nn.Linear(FEATURES + 1, CLASSES), ValueError, "are called as the model is, got RuntimeError: mat1 and mat2"),
        (lambda: CLASSES, TypeError, "proxy must return a new small network, a torch.nn.Module, got 4"),
        (lambda: nn.Linear, TypeError, "proxy must return a new small network, a torch.nn.Module, got .*Linear"),
    ],
)
def test_a_proxy_that_is_not_like_the_model_is_told_at_once(proxy, error, message):
    with pytest.raises(error, match=message):
        open_door(examples(wrong=0.0)[0], proxy=proxy)
