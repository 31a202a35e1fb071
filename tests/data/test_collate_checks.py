"""Rows are examples: a collate function that drops, replaces, sorts or multiplies examples is noticed, and each cure works."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from rholoss import IndexedBatches, IndexedSubset, IrreducibleLossStore, RhoLossSelector, build_selector

N = 64
X, Y = torch.randn(N, 5, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3
STORE = IrreducibleLossStore(torch.rand(N))


class Files(Dataset):
    """Examples of which a few cannot be read."""

    def __init__(self, broken=(1, 40), instead=None, with_index=False):
        self.broken, self.instead, self.with_index = broken, instead, with_index

    def __len__(self):
        return N

    def __getitem__(self, i):
        if i in self.broken:
            return self.instead
        return (X[i], Y[i], i) if self.with_index else (X[i], Y[i])


def readable(examples):
    return [example for example in examples if example is not None and example[0] is not None]


def filtered(examples):
    return default_collate(readable(examples))


def refilled(examples):
    return default_collate((readable(examples) * 2)[: len(examples)])


def select(data, collate, method="rho_loss", **options):
    loader = DataLoader(data, batch_size=16, collate_fn=collate)
    return build_selector(method, loader, nn.Linear(5, 3), store=STORE, **{"keep": 0.5, **options})


def rows_of(selector):
    """All selected rows are those of their indices; returns how many there were."""
    n = 0
    for x, *_ in selector:
        assert torch.equal(x, X[selector.last.index])
        n += len(x)
    return n


@pytest.mark.parametrize("collate", [filtered, refilled])
@pytest.mark.parametrize("instead", [None, (None, None), {"x": None}, ()], ids=repr)
@pytest.mark.parametrize("method", ["rho_loss", "uniform"])
def test_examples_that_are_none_are_refused_before_they_move_rows(collate, instead, method):
    loader = DataLoader(Files(instead=instead), batch_size=16, collate_fn=collate)
    selector = build_selector(method, loader, nn.Linear(5, 3), store=STORE, keep=1.0)
    with pytest.raises(ValueError, match=rf"got None for 1: if the collate_fn {collate.__name__} drops or replaces it"):
        list(selector)
    with pytest.raises(ValueError, match="got None for 1"):
        IrreducibleLossStore.from_model(nn.Linear(5, 3), loader, progress=False)


def test_the_cures_for_broken_examples_work():
    decided = Files(instead=(torch.zeros(5), torch.tensor(0)))
    selector = select(decided, default_collate)
    assert sum(len(x) for x, _ in selector) == N // 2
    left_out = IndexedSubset(Files(), [i for i in range(N) if i not in (1, 40)])
    assert rows_of(select(left_out, filtered)) == N // 2
    loader = IndexedBatches(DataLoader(Files(with_index=True), batch_size=16, collate_fn=refilled), index=2)
    carried = RhoLossSelector(loader, nn.Linear(5, 3), STORE, batch_size=4, forward=lambda m, b: (m(b[0]), b[1]))
    assert rows_of(carried) == 16


def shortest_first(examples):
    return default_collate(sorted(examples, key=lambda example: float(example[0][0])))


def reverse(examples):
    return default_collate(examples[::-1])


def drop_and_repeat(examples):
    return default_collate([*examples[1:], examples[0]])


def padded(examples):
    examples = sorted(examples, key=lambda example: len(example["tokens"]))
    tokens = nn.utils.rnn.pad_sequence([torch.as_tensor(example["tokens"]) for example in examples], batch_first=True)
    return {"tokens": tokens, "labels": torch.tensor([example["labels"] for example in examples])}


@pytest.mark.parametrize("collate", [shortest_first, reverse, drop_and_repeat])
@pytest.mark.parametrize("method", ["rho_loss", "uniform"])
def test_rows_that_hold_other_examples_than_were_read_there_are_refused(collate, method):
    with pytest.raises(ValueError, match=rf"the collate_fn {collate.__name__} sorted, dropped or replaced examples: rows "):
        next(iter(select(TensorDataset(X, Y), collate, method)))


def test_sorted_and_padded_sequences_are_refused_too():
    examples = [{"tokens": list(range(i, i + 4 + i % 7)), "labels": i % 3} for i in range(N)]
    with pytest.raises(ValueError, match="the collate_fn padded sorted, dropped or replaced examples"):
        next(iter(select(examples, padded, "uniform")))


def noisy(examples):
    x, y = default_collate(examples)
    return x + torch.randn_like(x), y


def mixed(examples):
    x, y = default_collate(examples)
    return 0.7 * x + 0.3 * x.flip(0), y


def masked(examples):
    x, y = default_collate(examples)
    return x.masked_fill(torch.rand(len(x), 1) < 0.5, 0.0), y


def time_first(examples):
    x, y = default_collate(examples)
    return x.T, y


def renamed(examples):
    x, y = default_collate(examples)
    return {"x": x.double(), "y": y, "text": [str(i) for i in range(len(x))]}


def objects(examples):
    return examples


@pytest.mark.parametrize("collate", [noisy, mixed, masked, time_first, renamed, objects])
@pytest.mark.parametrize("data", [TensorDataset(X, Y), TensorDataset(torch.zeros(N, 5), Y)], ids=["distinct", "all alike"])
def test_what_else_a_collate_function_does_is_its_own_affair(collate, data):
    batches = list(select(data, collate, "uniform", keep=1.0))
    assert len(batches) == N // 16


TURNED = torch.stack([X, X.flip(1)], 1).flatten(0, 1)[:N]  # each example, and its mirror image beside it
BITS = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).repeat(N // 16, 1)  # few values: all of them in each batch
SHORT = [{"tokens": [i % 5 + 1] * (1 + i % 3), "labels": i % 3} for i in range(N)]


def turned(examples):
    x, y = default_collate(examples)
    return x.flip(1), y


def inverted(examples):
    x, y = default_collate(examples)
    return 1 - x, y


def first_words_replaced(examples):
    tokens = [torch.tensor(example["tokens"]) for example in examples]
    tokens[3][0], tokens[8][0] = tokens[1][0], tokens[2][0]
    return {"tokens": nn.utils.rnn.pad_sequence(tokens, batch_first=True), "labels": torch.arange(len(examples)) % 3}


@pytest.mark.parametrize(
    ("data", "collate"),
    [(TensorDataset(TURNED, Y), turned), (TensorDataset(BITS, 0 * Y), inverted), (SHORT, first_words_replaced)],
    ids=["symmetric", "few values", "short sequences"],
)
def test_rows_that_equal_other_examples_by_chance_or_by_their_symmetry_are_not_taken_for_moved(data, collate):
    assert len(list(select(data, collate, "uniform", keep=1.0))) == N // 16


def ragged(examples):
    return {"x": torch.cat([x.expand(1 + i % 3, 5) for i, (x, _) in enumerate(examples)])}


@pytest.mark.parametrize("method", ["rho_loss", "uniform"])
def test_a_batch_without_a_row_for_each_example_is_refused_where_its_index_is_known(method):
    def first_dropped(examples):
        return default_collate(examples[1:])

    for collate, rows in ((first_dropped, 15), (ragged, 31)):
        with pytest.raises(
            ValueError, match=rf"expected one row per example, 16, got {rows} from the collate_fn {collate.__name__}"
        ):
            list(select(TensorDataset(X, Y), collate, method, keep=1.0))


def crops(examples):
    return default_collate([part for x, y in examples for part in ((x, y), (x + 1, y))])


def stacked_crops(examples):
    return default_collate([(torch.stack([x, x + 1]), y) for x, y in examples])


@pytest.mark.parametrize("use", [
    lambda data: next(iter(RhoLossSelector(DataLoader(data, batch_size=8), nn.Linear(5, 3), STORE, keep=0.5))),
    lambda data: IrreducibleLossStore.from_model(nn.Linear(5, 3), data, progress=False),
])  # fmt: skip
class TestDatasetsThatFail:
    def test_none_without_a_collate_function_names_the_index(self, use):
        with pytest.raises(ValueError, match=r"expected an example for each index, got None for 3: .* leave it out with"):
            use(Files(broken=(3,)))

    @pytest.mark.filterwarnings("ignore:a sample of this dataset cannot be read")
    def test_a_length_that_is_too_high_names_the_first_index_that_fails(self, use):
        class Short(Files):
            def __getitem__(self, i):
                return [(X[j], Y[j]) for j in range(6)][i]

        with pytest.raises(IndexError, match=r"Short has 64 examples by its __len__, and fails at 6 \(list index out of range\)"):
            use(Short())

    def test_no_length_is_told_before_anything_is_read(self, use):
        class Endless:
            def __getitem__(self, i):
                raise AssertionError

        with pytest.raises(TypeError, match="must be a map-style dataset, .*got "):
            use(Endless())

    def test_texts_that_nobody_tokenizes(self, use):
        with pytest.raises(TypeError, match="the model was called with texts, and failed .*; tokenize them in the collate_fn"):
            use([("a text", 1)] * N)


def test_several_rows_of_an_example_are_refused_and_the_cure_works_in_one_step():
    loss = lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none").view(-1, 2).mean(1)  # noqa: E731
    for options in ({}, {"loss": loss}):
        with pytest.raises(
            ValueError, match=r"got 64 from the collate_fn crops.*a dimension of its own, shape \(32, 2, \.\.\.\)"
        ):
            next(iter(select(TensorDataset(X, Y), crops, **options)))

    def forward(model, batch):
        return model(batch[0].flatten(0, 1)).unflatten(0, (-1, 2)).mean(1), batch[1]

    loader = DataLoader(TensorDataset(X, Y), batch_size=16, collate_fn=stacked_crops)
    model = nn.Linear(5, 3)
    store = IrreducibleLossStore.from_model(model, loader, forward=forward, progress=False)
    selector = RhoLossSelector(loader, model, store, keep=0.5, forward=forward)
    for x, y in selector:
        assert x.shape == (16, 2, 5)
        assert torch.equal(x[:, 0], X[selector.last.index])
        assert torch.equal(y, Y[selector.last.index])
        torch.testing.assert_close(selector.last.scores, torch.zeros(32), atol=1e-5, rtol=0)


def test_indices_that_do_not_fit_the_rows_of_a_stream_are_refused_also_where_all_are_kept():
    batches = IndexedBatches([(torch.arange(8), (X[:7], Y[:7]))])
    with pytest.raises(ValueError, match="expected one row per index, 8, got 7 rows in a batch; let index= of IndexedBatches"):
        next(iter(build_selector("uniform", batches, batch_size=8)))
    right = IndexedBatches([(torch.arange(7), (X[:7], Y[:7]))])
    assert torch.equal(next(iter(build_selector("uniform", right, batch_size=7)))[0], X[:7])
