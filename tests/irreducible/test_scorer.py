"""The scorer of engines: the losses of ``from_model`` from columns of every kind, in any process."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CLASSES, FEATURES, make_data, make_net

from rholoss import IrreducibleLossScorer, IrreducibleLossStore, Task
from rholoss.irreducible.scorer import _tensor

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pd = pytest.importorskip("pandas")

N = 600
DATA = make_data(N)
X, Y = (tensor.numpy() for tensor in DATA.tensors)
IDS = np.random.default_rng(0).permutation(N)


def forward(model, batch):
    return model(batch["x"]), batch["y"]


def factory():
    return make_net(0)


def scorer(**options):
    return IrreducibleLossScorer(factory, **{"forward": forward, **options})


COLUMNS = {"id": IDS, "x": X[IDS], "y": Y[IDS]}
ARROW = pa.table({"id": IDS, "x": pa.FixedSizeListArray.from_arrays(pa.array(X[IDS].ravel()), FEATURES), "y": pa.array(Y[IDS])})
KINDS = {
    "arrays": COLUMNS,
    "lists": {name: column.tolist() for name, column in COLUMNS.items()},
    "tensors": {name: torch.from_numpy(column) for name, column in COLUMNS.items()},
    "frame": pd.DataFrame({"id": IDS, "x": list(X[IDS]), "y": Y[IDS]}),
    "Arrow table": ARROW,
    "lists in an Arrow table": ARROW.set_column(1, "x", ARROW["x"].cast(pa.list_(pa.float32()))),
    "record batch": ARROW.to_batches()[0],
    "tensors in an Arrow table": ARROW.set_column(
        1, "x", pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(X[IDS]))
    ),
}


@pytest.fixture(scope="module")
def store():
    return IrreducibleLossStore.from_model(factory(), DATA)


class TestLosses:
    @pytest.mark.parametrize("kind", KINDS)
    def test_are_those_of_from_model_and_the_kind_stays(self, store, kind):
        batch = KINDS[kind]
        out = scorer()(batch)
        assert type(out) is (dict if isinstance(batch, dict) else type(batch))
        assert [str(name) for name in (out.column_names if hasattr(out, "column_names") else out)] == ["id", "irreducible_loss"]
        assert list(out["id"]) == list(batch["id"])
        made = IrreducibleLossStore.from_table(out if not isinstance(out, dict) else {**out, "id": IDS})
        assert made.losses.dtype == store.losses.dtype
        torch.testing.assert_close(made.losses, store.losses, rtol=1e-6, atol=1e-6)

    def test_in_passes_of_the_same_examples_are_bit_for_bit_those_of_from_model(self, store):
        each = scorer(batch_size=200)
        batches = [{"id": np.arange(i, i + 200), "x": X[i : i + 200], "y": Y[i : i + 200]} for i in range(0, N, 200)]
        out = [each(batch)["irreducible_loss"] for batch in batches]
        whole = IrreducibleLossStore.from_model(factory(), DATA, batch_size=200)
        assert np.concatenate(out).tolist() == whole.losses.tolist()

    def test_of_several_models_are_their_mean(self):
        def several():
            return [make_net(0), make_net(1)]

        store = IrreducibleLossStore.from_model(several(), DATA)
        made = IrreducibleLossStore.from_table(IrreducibleLossScorer(several, forward=forward)(COLUMNS))
        torch.testing.assert_close(made.losses, store.losses, rtol=1e-6, atol=1e-6)

    def test_an_iterator_of_batches_is_one_of_results(self):
        frame = KINDS["frame"]
        parts = list(scorer()(iter([frame[:100], frame[100:]])))
        assert [len(part) for part in parts] == [100, 500]
        assert pd.concat(parts).equals(pd.concat([scorer()(frame[:100]), scorer()(frame[100:])]))

    def test_come_with_a_suggestion_if_asked_for(self):
        out = scorer(suggest=True)(COLUMNS)
        probabilities = factory().eval()(torch.from_numpy(X[IDS])).softmax(1)
        assert out["suggested_class"].tolist() == probabilities.argmax(1).tolist()
        assert np.allclose(out["probability"], probabilities.max(1).values.detach(), atol=1e-6)
        assert [str(out[name].dtype) for name in ("irreducible_loss", "suggested_class", "probability")] == [
            "float32",
            "int64",
            "float32",
        ]

    def test_of_no_rows_are_none(self):
        for suggest in (False, True):
            out = scorer(suggest=suggest)(KINDS["frame"][:0])
            assert len(out) == 0
            assert str(out["irreducible_loss"].dtype) == "float32"

    def test_are_the_same_in_another_process_and_the_model_is_made_there(self):
        each = scorer()
        out = each(COLUMNS)
        content = pickle.dumps(each)
        assert len(content) < 2000
        again = pickle.loads(content)
        assert "_models" not in vars(again)
        assert again(COLUMNS)["irreducible_loss"].tolist() == out["irreducible_loss"].tolist()

    def test_with_datasets_map_are_a_column(self, store):
        data = datasets.Dataset.from_dict({"id": IDS, "x": X[IDS], "y": Y[IDS]})
        made = IrreducibleLossStore.from_table(data.map(scorer(), batched=True, batch_size=256), data=DATA)
        torch.testing.assert_close(made.losses, store.losses, rtol=1e-6, atol=1e-6)


class TestMetadata:
    def test_are_those_that_from_model_writes(self, store):
        task = Task(forward=forward)
        made = IrreducibleLossScorer(factory, task=task).metadata()
        whole = IrreducibleLossStore.from_model(factory(), [{"x": torch.zeros(FEATURES), "y": 1}], task=task).meta
        for name in ("models", "loss", "forward", "code", "views", "versions"):
            assert getattr(made, name) == getattr(whole, name), name


class TestBad:
    def test_losses_are_named_by_id(self):
        bad = X[IDS].copy()
        bad[3] = np.nan
        with pytest.raises(ValueError, match=rf"the loss of 1 of 600 examples .* is not finite: ids {IDS[3]};"):
            scorer()({**COLUMNS, "x": bad})
        names = np.array([f"img/{i}" for i in IDS])
        with pytest.raises(ValueError, match=rf"is negative: ids img/{IDS[0]}, img/{IDS[1]}, .* and 595 more; pass a loss="):
            scorer(loss=lambda outputs, targets: -torch.ones(len(targets)))({**COLUMNS, "id": names})

    def test_a_class_that_is_none_is_named_by_id(self):
        wrong = Y[IDS].copy()
        wrong[7] = CLASSES + 2
        with pytest.raises(ValueError, match=rf"expected classes from 0 to {CLASSES - 1}, got .*the example with id {IDS[7]}\)"):
            scorer()({**COLUMNS, "y": wrong})

    @pytest.mark.parametrize(
        ("batch", "error", "message"),
        [
            ({"x": X}, ValueError, r"expected a column of ids, 'id', got the columns \['x'\]; pass ids="),
            (3, TypeError, "batch must be columns by name, an Arrow table or record batch, a pandas frame, or an iterator"),
        ],
    )
    def test_batches_are_said_to_be_wrong(self, batch, error, message):
        with pytest.raises(error, match=message):
            scorer()(batch)

    def test_a_model_is_no_factory_and_the_cure_works(self):
        with pytest.raises(TypeError, match=r"model_factory must be a function \(\) -> model, .* got the model Sequential"):
            IrreducibleLossScorer(make_net(0))
        model = make_net(0)
        assert len(IrreducibleLossScorer(lambda: model, forward=forward)(COLUMNS)["irreducible_loss"]) == N

    def test_no_suggestion_without_logits(self):
        with pytest.raises(ValueError, match=r"suggest=True needs class logits, shape \(n, C\), got \(256, 1\); leave it out"):
            IrreducibleLossScorer(
                lambda: torch.nn.Linear(FEATURES, 1), forward=lambda m, b: (m(b["x"]), b["x"][:, :1]), suggest=True
            )(COLUMNS)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1, 2], torch.tensor([1, 2])),
        ([0.5, 1.5], torch.tensor([0.5, 1.5])),
        ([[1.0, 2.0], [3.0, 4.0]], torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
        (pd.Series([np.ones(2), np.zeros(2)]), torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)),
        (["a", "b"], ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([b"a", None], [b"a", None]),
    ],
)
def test_a_column_is_a_tensor_where_it_is_of_numbers(column, expected):
    found = _tensor(column)
    assert type(found) is type(expected)
    assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


def test_an_engine_is_never_imported():
    code = (
        "import sys; from rholoss import IrreducibleLossScorer as S; import numpy as np, torch; "
        "S(lambda: torch.nn.Linear(2, 3), forward=lambda m, b: (m(b['x']), b['y']))"
        "({'id': np.arange(2), 'x': np.zeros((2, 2), 'f4'), 'y': np.zeros(2, int)}); "
        "print({'ray', 'pyspark', 'pyarrow', 'pandas', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
