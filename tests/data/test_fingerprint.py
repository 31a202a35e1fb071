"""A store and a loader that do not belong together are told apart."""

import copy
import random

import numpy as np
import pytest
import torch
from conftest import CLASSES, FEATURES, make_net
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from rholoss import IndexedBatches, IndexedSubset, IrreducibleLossStore, RhoLossSelector, build_selector
from rholoss.data.fingerprint import difference, example_digests, fingerprint


class Texts(Dataset):
    """Examples of several kinds, whose labels are not shown."""

    def __init__(self, n=60, noise=None):
        self.rows = [{"text": f"example {i} " * (i % 5), "label": i % 3, "size": (i, 2.5)} for i in range(n)]
        self.noise = noise

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        extra = {} if self.noise is None else {"view": self.noise()}
        return {**self.rows[i], **extra}


def meet(store, data, **loader):
    return RhoLossSelector(DataLoader(data, batch_size=4, **loader), make_net(1), store)


@pytest.fixture
def store(data, net):
    return IrreducibleLossStore.from_model(net, data)


def test_the_same_data_are_accepted_whatever_the_loader(store, data):
    meet(store, data)
    meet(store, copy.deepcopy(data), shuffle=True)
    meet(store, data, num_workers=2)
    meet(store, IndexedSubset(data, range(0, 100, 2)))


def test_reordered_data_are_refused(store, data):
    x, y = data.tensors
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"other data than the loader reads: its labels, in their order, are not those .*again"):
        meet(store, TensorDataset(x[order], y[order]))


def test_reordered_data_are_refused_under_other_names_too_and_the_same_data_are_not(store, data):
    x, y = data.tensors
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    meet(store, [{"pixels": one, "labels": label} for one, label in zip(x, y, strict=True)])
    meet(store, [{"pixels": one, "labels": label} for one, label in zip(2 * x, y, strict=True)])  # as normalised otherwise
    with pytest.raises(ValueError, match=r"its fields have other names, and none holds what one of that held .*again"):
        meet(store, [{"pixels": one, "labels": label} for one, label in zip(x[order], y[order], strict=True)])


def test_a_selector_that_scores_by_another_loss_than_the_store_was_made_with_warns(store, data):
    loss = torch.nn.MultiMarginLoss(reduction="none")
    with pytest.warns(UserWarning, match=r"the loss 'default_loss', .* with 'MultiMarginLoss\(margin=1.0, .*\)': .*one loss="):
        RhoLossSelector(DataLoader(data, batch_size=4), make_net(1), store, loss=loss)
    RhoLossSelector(
        DataLoader(data, batch_size=4), make_net(1), IrreducibleLossStore.from_model(make_net(0), data, loss=loss), loss=loss
    )


def test_a_swap_of_two_examples_is_refused(store, data):
    x, y = (tensor.clone() for tensor in data.tensors)
    one, other = 3, next(i for i in range(4, 100) if y[i] != y[3])
    for tensor in (x, y):
        tensor[[one, other]] = tensor[[other, one]]
    with pytest.raises(ValueError, match="its labels, in their order, are not those"):
        meet(store, TensorDataset(x, y))


def test_data_reordered_within_the_labels_are_refused(store, data):
    x, y = data.tensors
    order = torch.cat([torch.nonzero(y == label).flatten().roll(1) for label in range(CLASSES)])
    places = torch.cat([torch.nonzero(y == label).flatten() for label in range(CLASSES)])
    moved = x.clone()
    moved[places] = x[order]
    with pytest.raises(ValueError, match=r"\d+ of 32 sampled examples differ in \[0\] .*rebind\(dataset\)"):
        meet(store, TensorDataset(moved, y))


def test_a_dropped_row_is_refused(net, data):
    part = IrreducibleLossStore.from_model(net, IndexedSubset(data, range(90)))  # has ids, so that its length alone says nothing
    x, y = data.tensors
    with pytest.raises(ValueError, match="it has 99 examples, and that had 100"):
        meet(part, TensorDataset(x[1:], y[1:]), sampler=range(90))


def test_one_label_that_changed_is_refused(store, data):
    x, y = data.tensors
    y = y.clone()
    y[57] = (y[57] + 1) % CLASSES
    with pytest.raises(ValueError, match=r"reordered or relabelled"):
        meet(store, TensorDataset(x, y))


def test_data_that_show_no_labels_are_known_by_a_sample():
    texts = Texts()
    saved = fingerprint(texts)
    assert saved["labels"] is None
    assert set(saved["sample"]) == {"['text']", "['label']", "['size'][0]", "['size'][1]"}
    assert difference(saved, fingerprint(Texts())) is None
    assert difference(saved, fingerprint(DataLoader(Texts(), num_workers=2))) is None
    relabelled = Texts()
    for row in relabelled.rows:
        row["label"] = (row["label"] + 1) % 3
    assert "32 of 32 sampled examples differ in ['label']" in difference(saved, fingerprint(relabelled))
    reordered = Texts()
    reordered.rows.reverse()
    assert "sampled examples differ" in difference(saved, fingerprint(reordered))


@pytest.mark.parametrize(
    "noise",
    [lambda: torch.rand(3), lambda: np.random.rand(3), random.random],  # noqa: NPY002
    ids=["torch", "numpy", "python"],
)
def test_what_is_augmented_at_random_is_left_out_and_no_random_state_moves(noise):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    saved = fingerprint(Texts(noise=noise))
    assert "['view']" not in saved["sample"]
    assert "['text']" in saved["sample"]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert difference(saved, fingerprint(Texts())) is None  # without augmentation the rest is the same


def test_another_form_of_the_same_examples_is_accepted_once_told(store, data):
    x, y = data.tensors
    scaled = TensorDataset(x * 2, y)
    with pytest.raises(ValueError, match=r"rebind\(dataset\)"):
        meet(store, scaled)
    meet(store.rebind(scaled), scaled)
    with pytest.raises(ValueError, match="sampled examples differ in"):
        meet(store.rebind(scaled), data)
    assert store.rebind(scaled).meta.models == store.meta.models


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_rows_of_tensors_have_the_digests_of_examples_that_are_read_one_by_one(dtype):
    values = torch.arange(600).remainder(7)
    data = TensorDataset(values.view(50, 3, 4).to(dtype), values[:50], values.view(2, 300).double().T[:50])
    positions = torch.tensor([3, 3, 49, 0])
    examples = [data[i] for i in range(50)]
    one, other = (example_digests(DataLoader(each), each, positions) for each in (data, examples))
    assert one == other
    assert one[0] == one[1] != one[2]


def test_another_size_of_the_same_examples_is_not_compared(store, data):
    x, y = data.tensors
    meet(store, TensorDataset(x.repeat(1, 2)[:, :FEATURES].contiguous(), y))
    fingerprints = fingerprint(data), fingerprint(TensorDataset(x[:, :3], y))
    assert difference(*fingerprints) is None


def test_data_that_say_their_own_indices_or_cannot_be_read_are_not_looked_at(data):
    class Stream(IterableDataset):
        def __iter__(self):
            raise AssertionError("was read")

    assert fingerprint(IndexedBatches(DataLoader(data), index=0)) is None
    assert fingerprint(DataLoader(Stream())) is None
    assert fingerprint(object()) is None


def test_the_tokens_of_a_text_are_one_field_and_a_token_that_changed_is_seen():
    texts = [{"input_ids": [1, *range(i % 7)], "spans": [{"end": i}]} for i in range(40)]
    known = fingerprint(texts)
    assert set(known["sample"]) == {"['input_ids']", "['spans'][0]['end']"}
    changed = copy.deepcopy(texts)
    changed[39]["input_ids"][-1] = 6
    assert "1 of 32 sampled examples" in difference(known, fingerprint(changed))
    assert difference(known, fingerprint(copy.deepcopy(texts))) is None


def test_the_data_are_read_in_a_worker_where_the_loader_has_workers(data):
    class OnlyInWorkers(TensorDataset):
        def __getitem__(self, i):
            assert torch.utils.data.get_worker_info() is not None, "opened in the main process"
            return super().__getitem__(i)

    assert fingerprint(DataLoader(OnlyInWorkers(*data.tensors), num_workers=2))["sample"]


def test_a_store_without_a_fingerprint_is_checked_by_length_alone_and_data_without_a_length_are_not_looked_at(data):
    meet(IrreducibleLossStore(torch.zeros(100)), data)

    class Endless(Dataset):
        def __getitem__(self, i):
            return data[i]

    meet(IrreducibleLossStore(torch.zeros(100)), Endless(), sampler=range(60))
    assert fingerprint(DataLoader(Endless(), sampler=range(60))) is None


def test_the_fingerprint_survives_a_file(store, data, tmp_path):
    store.save(tmp_path / "il.npz")
    meet(IrreducibleLossStore.load(tmp_path / "il.npz"), data)
    x, y = data.tensors
    with pytest.raises(ValueError, match="reordered"):
        meet(IrreducibleLossStore.load(tmp_path / "il.npz"), TensorDataset(x.flip(0), y.flip(0)))


class Shuffled(Dataset):
    """Examples (x, y) in an order that changes when ``order`` does; the x of ``shift`` is another transform."""

    def __init__(self, n=60, fields=("x", "y")):
        generator = torch.Generator().manual_seed(0)
        self.columns = {"x": torch.randn(n, FEATURES, generator=generator), "y": torch.arange(n) % CLASSES}
        self.columns["index"] = self.columns["index too"] = torch.arange(n)
        self.order, self.fields, self.shift, self.noise = torch.arange(n), fields, 0.0, 0.0

    def __len__(self):
        return len(self.order)

    def __getitem__(self, i):
        at = {name: i if name == "index" else column[self.order[i]] for name, column in self.columns.items()}
        at["x"] = at["x"] + self.shift + self.noise * torch.rand(FEATURES)
        return tuple(at[name] for name in self.fields)


def turned(data):
    data.order = data.order.roll(7)


def relabelled(data):
    data.columns["y"] = data.columns["y"].clone()
    data.columns["y"][::2] = (data.columns["y"][::2] + 1) % CLASSES


def shorter(data):
    data.order = data.order[:50]


def forward(model, batch):
    return model(batch[0]), batch[1]


def epochs_of(selector, data, change, n=2):
    list(selector)
    change(data)
    for _ in range(n - 1):
        list(selector)


class TestWhileItTrains:
    def selector(self, data, method="rho_loss", **loader):
        store = IrreducibleLossStore.from_model(make_net(0), data, forward=forward)
        loader = DataLoader(data, batch_size=4, drop_last=True, **loader)
        options = {"irreducible_model": make_net(0)} if method == "lazy_rho_loss" else {}
        return build_selector(method, loader, make_net(1), store=store, keep=0.25, forward=forward, **options)

    @pytest.mark.parametrize("change", [turned, relabelled])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_index_that_becomes_another_example_is_refused(self, change, workers):
        data = Shuffled()
        selector = self.selector(data, num_workers=workers)
        with pytest.raises(ValueError, match=r"as of epoch 1, .*differ in .* one example in all epochs. Shuffle in the loader"):
            epochs_of(selector, data, change)

    def test_the_cure_works(self):
        data = Shuffled()
        selector = self.selector(data, shuffle=True)
        epochs_of(selector, data, lambda data: None, n=5)

    def test_fields_that_hold_the_index_prove_nothing(self):
        data = Shuffled(fields=("x", "y", "index"))
        data.columns["y"] = torch.zeros(60, dtype=torch.int64)  # one class
        selector = self.selector(data)
        with pytest.raises(ValueError, match="as of epoch 1"):
            epochs_of(selector, data, turned)

    def test_a_dataset_that_becomes_shorter_is_refused(self):
        data = Shuffled()
        with pytest.raises(ValueError, match="as of epoch 1, it has 50 examples, and that had 60"):
            epochs_of(self.selector(data, sampler=range(40)), data, shorter)

    def test_a_store_that_may_grow_lets_the_data_grow(self):
        data = Shuffled()
        epochs_of(self.selector(data, "lazy_rho_loss", sampler=range(40)), data, shorter)

    def test_labels_that_are_shown_and_change_are_refused(self, data):
        selector = RhoLossSelector(
            DataLoader(data, batch_size=4), make_net(1), IrreducibleLossStore.from_model(make_net(0), data)
        )
        list(selector)
        data.tensors[1][57] = (data.tensors[1][57] + 1) % CLASSES
        with pytest.raises(ValueError, match="its labels, in their order"):
            list(selector)

    def test_another_transform_of_the_same_examples_warns(self):
        data = Shuffled()
        selector = self.selector(data)
        with pytest.warns(UserWarning, match=r"has changed since .*differ in \[0\].*other fields are the same"):
            epochs_of(selector, data, lambda data: setattr(data, "shift", 1.0))

    def test_augmentation_that_is_turned_on_or_off_is_no_change(self):
        for first, then in ((0.0, 1.0), (1.0, 0.0)):
            data = Shuffled()
            data.noise = first
            epochs_of(self.selector(data), data, lambda data, then=then: setattr(data, "noise", then), n=3)

    def test_it_is_looked_at_in_epochs_1_2_4_8_alone_and_once_however_often_they_are_announced(self, monkeypatch):
        looked = []
        data = Shuffled()
        selector = self.selector(data)
        monkeypatch.setattr("rholoss.selectors.store_selector.refuse_changed_data", lambda *a, may_grow: looked.append(a[2]))
        for epoch in range(10):
            selector.set_epoch(epoch)
            list(selector)
        assert looked == [1, 2, 4, 8]

    def test_a_dataset_with_epochs_is_looked_at_from_the_first_on(self):
        data = Shuffled()
        data.set_epoch = lambda epoch: turned(data)
        selector = self.selector(data)
        with pytest.raises(ValueError, match="as of epoch 0"):
            selector.set_epoch(0)

    def test_no_random_state_moves_so_that_keeping_all_is_plain_training(self):
        data, model = Shuffled(), make_net(1)
        data.noise = 1.0  # drawn from the global generator
        loader = DataLoader(data, batch_size=4, shuffle=True)
        selector = RhoLossSelector(loader, model, IrreducibleLossStore.from_model(make_net(0), data), keep=1.0)
        read = []
        for batches in (loader, selector):
            torch.manual_seed(3)
            read.append([x for _ in range(3) for x, _ in batches])
        assert all(torch.equal(mine, its) for mine, its in zip(*read, strict=True))


def test_data_whose_examples_are_drawn_whatever_the_index_are_noticed_when_the_store_is_made_and_when_it_is_used():
    class Drawn(Shuffled):
        def __getitem__(self, i):
            return (*super().__getitem__(int(torch.randint(60, ()))), i)

    with pytest.warns(UserWarning, match=r"no field .* is the same when they are read twice: .*let __getitem__ go by the index"):
        store = IrreducibleLossStore.from_model(make_net(0), Drawn(), forward=forward)
    with pytest.warns(UserWarning, match="no field"):
        RhoLossSelector(DataLoader(Drawn(), batch_size=4), make_net(1), store, keep=0.25, forward=forward)
    with pytest.warns(UserWarning, match="no field"):
        RhoLossSelector(DataLoader(Drawn(), batch_size=4), make_net(1), IrreducibleLossStore(torch.zeros(60)), forward=forward)


def test_a_weight_that_changes_from_epoch_to_epoch_is_reported_and_not_refused():
    class Weighted(Shuffled):
        weight = 1.0

        def __getitem__(self, i):
            return (*super().__getitem__(i), self.weight * (1 + i))

    data = Weighted()
    selector = RhoLossSelector(
        DataLoader(data, batch_size=4), make_net(1), IrreducibleLossStore(torch.zeros(60)), keep=0.25, forward=forward
    )
    list(selector)
    data.weight = 0.5
    with pytest.warns(UserWarning, match=r"the dataset has changed .* sampled examples differ in \[2\]"):
        list(selector)


def test_examples_that_are_rarely_augmented_are_told_apart_by_what_they_mostly_are():
    class RarelyTurned(Shuffled):
        reads = 0

        def __getitem__(self, i):
            self.reads += 1
            x, _ = super().__getitem__(i)
            return x + 1 if self.reads == 5 else x

    assert fingerprint(RarelyTurned())["sample"] == {}  # no warning, which would be an error


def test_a_generator_of_the_datasets_own_is_put_back():
    class Augmented(Shuffled):
        def __init__(self):
            super().__init__()
            self.generator, self.transform = torch.Generator().manual_seed(1), [random.Random(2)]

        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + torch.rand((), generator=self.generator) + self.transform[0].random(), y

    data = Augmented()
    state = data.generator.get_state(), data.transform[0].getstate()
    assert list(fingerprint(data)["sample"]) == ["[1]"]
    assert torch.equal(data.generator.get_state(), state[0])
    assert data.transform[0].getstate() == state[1]


def test_an_example_that_cannot_be_read_and_is_never_drawn_does_not_end_the_run():
    class Broken(Shuffled):
        def __getitem__(self, i):
            if i == 59:
                raise OSError("truncated file")
            return super().__getitem__(i)

    loader = DataLoader(Broken(), batch_size=4, sampler=range(50))
    with pytest.warns(UserWarning, match=r"sample of this dataset cannot be read \(OSError: truncated file\)"):
        store = IrreducibleLossStore.from_model(make_net(0), loader)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert len(list(RhoLossSelector(loader, make_net(1), store, keep=0.25))) == 4
