"""A batch is more than its named tensors: other libraries' containers are cut with all that they carry, or refused by name."""

from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector
from rholoss.batches import RowRange, Rows, cut, each_tensor, move

ROWS, RANGE = Rows(torch.tensor([3, 1])), RowRange(1, 3)
either = pytest.mark.parametrize(("rows", "ids"), [(ROWS, [3, 1]), (RANGE, [1, 2])], ids=["rows", "a range"])
META = torch.device("meta")


class Mask(torch.Tensor):
    """As the tensors of torchvision.tv_tensors: operations return plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class Image(torch.Tensor):
    """A subclass whose operations return its type."""


class TestSubclasses:
    @either
    @pytest.mark.parametrize("kind", [Mask, Image])
    def test_a_tensor_subclass_keeps_its_type_and_what_it_knows_of_the_whole_batch(self, kind, rows, ids):
        boxes = torch.arange(8.0).view(4, 2).as_subclass(kind)
        boxes.format, boxes.canvas_size = "xyxy", (480, 640)
        taken = cut({"boxes": boxes}, rows, 4)["boxes"]
        assert type(taken) is kind
        assert (taken.format, taken.canvas_size) == ("xyxy", (480, 640))
        assert taken.as_subclass(torch.Tensor).tolist() == [[2.0 * i, 2.0 * i + 1] for i in ids]

    @pytest.mark.parametrize(
        "names", [list("abcd"), np.arange(4), torch.arange(4), {"ids": list("abcd")}, (1, 2, 3, 4)], ids=repr
    )
    def test_an_attribute_that_could_be_one_entry_per_example_is_refused_and_a_field_is_cut(self, names):
        boxes = torch.zeros(4, 2).as_subclass(Image)
        boxes.places = names
        with pytest.raises(
            TypeError, match=r"batch\['boxes'\]: the attribute 'places' of a Image holds 4 entries.*make it a field"
        ):
            cut({"boxes": boxes}, ROWS, 4)
        del boxes.places
        assert len(cut({"boxes": boxes, "places": list("abcd")}, ROWS, 4)["places"]) == 2

    def test_a_subclass_reaches_the_model_and_the_loop_as_it_is(self):
        seen = []

        def forward(model, batch):
            seen.append(type(batch["mask"]))
            return model(batch["mask"].as_subclass(torch.Tensor)), batch["y"]

        batch = {"mask": torch.rand(8, 2).as_subclass(Mask), "y": torch.arange(8) % 3}
        loader = IndexedBatches([(torch.arange(8), batch)] * 3)
        store = IrreducibleLossStore(torch.zeros(8))
        for chunk_size in (None, 3):
            options = {"batch_size": 2, "forward": forward, "chunk_size": chunk_size}
            for got in RhoLossSelector(loader, nn.Linear(2, 3), store, **options):
                assert type(got["mask"]) is Mask
        assert set(seen) == {Mask}


class TestLayouts:
    @either
    def test_jagged_tensors_are_cut_and_still_share_their_shape(self, rows, ids):
        lengths = [2, 4, 1, 3]
        x = torch.nested.nested_tensor([torch.full((k, 3), float(i)) for i, k in enumerate(lengths)], layout=torch.jagged)
        weights = torch.nested.nested_tensor_from_jagged(torch.arange(10.0), x.offsets())
        taken = cut({"x": x, "weights": weights}, rows, 4)
        parts = taken["x"].unbind()
        assert [(len(part), float(part[0, 0])) for part in parts] == [(lengths[i], float(i)) for i in ids]
        starts = [0, 2, 6, 7]
        assert [part.tolist() for part in taken["weights"].unbind()] == [
            list(range(starts[i], starts[i] + lengths[i])) for i in ids
        ]
        assert (taken["x"] * taken["weights"].unsqueeze(-1)).size(0) == 2  # as in the model: only alike shapes multiply

    @either
    def test_a_jagged_tensor_with_unused_memory_is_cut(self, rows, ids):
        x = torch.nested.nested_tensor_from_jagged(torch.arange(12.0), torch.tensor([0, 3, 6, 9, 12]), torch.tensor([1, 2, 3, 2]))
        lengths = [1, 2, 3, 2]
        parts = [part.tolist() for part in cut(x, rows, 4).unbind()]
        assert parts == [list(map(float, range(3 * i, 3 * i + lengths[i]))) for i in ids]

    @either
    def test_sparse_tensors_are_cut(self, rows, ids):
        taken = cut({"x": torch.eye(4).to_sparse()}, rows, 4)["x"]
        assert taken.is_sparse
        assert torch.equal(taken.to_dense(), torch.eye(4)[ids])

    def test_a_layout_without_rows_is_refused_by_name_and_the_cure_works(self):
        x = torch.zeros(4, 4).index_fill(0, torch.tensor([1]), 1.0)
        with pytest.warns(UserWarning, match="Sparse"):
            compressed = x.to_sparse_csr()
        with pytest.raises(TypeError, match=r"batch\['x'\]: a Tensor of layout torch.sparse_csr cannot be cut.*dense"):
            cut({"x": compressed}, ROWS, 4)
        assert torch.equal(cut({"x": compressed.to_dense()}, ROWS, 4)["x"], x[[3, 1]])

    def test_a_jagged_batch_is_scored_and_trained_on(self):
        lengths = torch.arange(16) % 4 + 1
        examples = [(torch.randn(int(k), 3), int(k) % 3) for k in lengths]

        def collate(chosen):
            x = torch.nested.nested_tensor([x for x, _ in chosen], layout=torch.jagged)
            return {"x": x, "labels": torch.tensor([y for _, y in chosen])}

        class Mean(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(3, 3)

            def forward(self, x):
                return torch.stack([self.layer(part).mean(0) for part in x.unbind()])

        loader = DataLoader(examples, batch_size=4, collate_fn=collate)
        store = IrreducibleLossStore.from_model(Mean(), loader, progress=False)
        selector = RhoLossSelector(loader, Mean(), store, keep=0.5, chunk_size=3)
        for batch in selector:
            for part, i in zip(batch["x"].unbind(), selector.last.index.tolist(), strict=True):
                assert torch.equal(part, examples[i][0])


class Named(dict):
    """A dict with attributes."""


class Tagged(list):
    """A list with attributes."""


class TaggedPair(tuple):
    """A tuple with attributes."""


class Both(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Record:
    x: torch.Tensor


class TestAttributes:
    @either
    def test_the_encodings_of_a_tokenizer_are_cut_with_its_tensors(self, rows, ids):
        BatchEncoding = pytest.importorskip("transformers").BatchEncoding
        batch = BatchEncoding({"input_ids": torch.arange(4)})
        batch._encodings = [f"encoding {i}" for i in range(4)]
        taken = cut(batch, rows, 4)
        assert type(taken) is BatchEncoding
        assert taken.encodings == [f"encoding {i}" for i in ids]
        assert taken["input_ids"].tolist() == ids
        assert len(batch.encodings) == 4

    def test_features_and_outputs_of_transformers_are_cut(self):
        transformers = pytest.importorskip("transformers")
        BatchFeature, SequenceClassifierOutput = transformers.BatchFeature, transformers.modeling_outputs.SequenceClassifierOutput
        features = cut(BatchFeature({"x": torch.arange(4)}), ROWS, 4)
        assert type(features) is BatchFeature
        assert features.x.tolist() == [3, 1]
        outputs = SequenceClassifierOutput(loss=torch.arange(4), logits=torch.arange(8).view(4, 2))
        taken = cut(outputs, ROWS, 4)
        assert type(taken) is SequenceClassifierOutput
        assert taken.logits.tolist() == taken["logits"].tolist() == taken[1].tolist() == [[6, 7], [2, 3]]
        assert outputs.logits.shape == (4, 2)

    @pytest.mark.parametrize(
        "container",
        [
            Named(x=torch.arange(4)),
            UserDict(x=torch.arange(4)),
            Tagged([torch.arange(4)]),
            TaggedPair([torch.arange(4)]),
            Record(torch.arange(4)),
        ],
        ids=lambda container: type(container).__name__,
    )
    def test_what_belongs_to_the_whole_batch_is_kept_and_what_could_be_rows_is_refused(self, container):
        container.source = "web"
        container.sizes = (480, 640)
        for changed in (cut(container, ROWS, 4), move(container, META), each_tensor(container, torch.neg, apart=True)):
            assert type(changed) is type(container)
            assert (changed.source, changed.sizes) == ("web", (480, 640))
        container.names = list("abcd")
        with pytest.raises(TypeError, match=r"the attribute 'names' of a \w+ holds 4 entries.*make it a field of the batch"):
            cut(container, ROWS, 4)

    def test_a_list_of_a_column_keeps_its_attributes(self):
        names = Tagged("abcd")
        names.language = "en"
        for rows in (ROWS, RANGE):
            taken = cut({"x": torch.arange(4), "names": names}, rows, 4)["names"]
            assert (type(taken), taken.language, len(taken)) == (Tagged, "en", 2)


class TestOwnIndexing:
    @either
    def test_a_frame_is_cut_by_position_whatever_its_index(self, rows, ids):
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame({"a": [0, 1, 2, 3]}, index=[3, 2, 1, 0])
        taken = cut({"x": torch.arange(4), "frame": frame, "column": frame["a"], "words": pd.Index(list("abcd"))}, rows, 4)
        assert taken["frame"]["a"].tolist() == taken["column"].tolist() == ids
        assert taken["words"].tolist() == ["abcd"[i] for i in ids]

    @either
    def test_an_object_of_its_own_kind_is_cut_by_its_own_indexing(self, rows, ids):
        class Instances:
            def __init__(self, x, names):
                self.x, self.names = x, names

            def __len__(self):
                return len(self.x)

            def __getitem__(self, at):
                return Instances(self.x[at], self.names[at])

        taken = cut((Instances(torch.arange(4), np.array(list("abcd"))), torch.arange(4)), rows, 4)
        assert taken[0].x.tolist() == ids
        assert taken[0].names.tolist() == ["abcd"[i] for i in ids]

    @pytest.mark.parametrize(
        "value", [range(4), {1, 2, 3, 4}, object(), memoryview(b"abcd")], ids=lambda value: type(value).__name__
    )
    def test_what_cannot_index_itself_is_refused_by_name(self, value):
        with pytest.raises(TypeError, match=rf"cannot tell the rows of batch\['meta'\].*got {type(value).__name__}"):
            cut({"x": torch.arange(4), "meta": value}, ROWS, 4)

    def test_arrow_tables_whose_own_index_is_by_column_are_refused_by_name(self):
        arrow = pytest.importorskip("pyarrow")
        with pytest.raises(TypeError, match=r"cannot tell the rows of batch\['t'\].*got Table"):
            cut({"t": arrow.table({"a": [1, 2, 3, 4]})}, ROWS, 4)


class TestTensorDict:
    @pytest.fixture
    def tensordict(self):
        return pytest.importorskip("tensordict")

    def of(self, tensordict, n=4):
        inner = tensordict.TensorDict({"z": torch.arange(n)}, batch_size=[n])
        return tensordict.TensorDict({"x": torch.arange(n), "inner": inner, "names": list("abcdefgh"[:n])}, batch_size=[n])

    @either
    def test_a_tensordict_is_cut_with_its_batch_size_whatever_it_holds(self, tensordict, rows, ids):
        batch = self.of(tensordict)
        taken = cut({"data": batch, "y": torch.arange(4)}, rows, 4)["data"]
        assert type(taken) is type(batch)
        assert (len(taken), tuple(taken.batch_size)) == (2, (2,))
        assert taken["x"].tolist() == taken["inner", "z"].tolist() == ids
        assert list(taken["names"]) == ["abcd"[i] for i in ids]
        assert len(batch) == 4

    def test_a_tensordict_moves_as_a_whole(self, tensordict):
        moved = move({"data": self.of(tensordict)}, META)["data"]
        assert moved["x"].is_meta
        assert moved["inner", "z"].is_meta

    def test_a_batch_size_that_is_not_the_number_of_examples_is_refused_and_the_cure_works(self, tensordict):
        batch = tensordict.TensorDict({"x": torch.arange(4)}, batch_size=[])
        with pytest.raises(ValueError, match=r"batch: expected a TensorDict with batch_size=\[4\], .*got batch_size=\[\]"):
            cut(batch, ROWS, 4)
        batch.batch_size = [4]
        assert cut(batch, ROWS, 4)["x"].tolist() == [3, 1]

    @pytest.mark.parametrize("chunk_size", [None, 3])
    def test_a_tensorclass_is_scored_and_trained_on_and_stays_as_it_was_loaded(self, tensordict, chunk_size):
        @tensordict.tensorclass
        class Labelled:
            x: torch.Tensor
            y: torch.Tensor

        x, y = torch.randn(8, 4), torch.arange(8) % 3
        batches = IndexedBatches([(torch.arange(8), Labelled(x=x.clone(), y=y, batch_size=[8]))] * 3)
        store, options = IrreducibleLossStore(torch.rand(8)), {"batch_size": 2, "chunk_size": chunk_size}

        def forward(model, batch):
            batch.x.mul_(2)
            return model(batch.x), batch.y

        selector = RhoLossSelector(batches, nn.Linear(4, 3), store, forward=forward, **options)
        for batch in selector:
            assert type(batch) is Labelled
            assert (len(batch), len(batch.x), len(batch.to("cpu").x)) == (2, 2, 2)
            assert torch.equal(batch.x, x[selector.last.index])


class Graph:
    """An object of a library of its own that moves itself in place."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        self.x = self.x.to(device)
        return self


class Quiet(Graph):
    def to(self, device):
        super().to(device)


@pytest.mark.parametrize("kind", [Graph, Quiet])
def test_an_object_that_moves_itself_in_place_is_moved_as_a_copy(kind):
    graph = kind(torch.zeros(3))
    moved = move((graph, torch.zeros(3)), META)
    assert moved[0].x.is_meta
    assert graph.x.device.type == "cpu"


def test_named_tuples_in_a_loader_of_their_own_collate_are_cut():
    taken = cut(default_collate([Both(torch.tensor(i), torch.tensor(2 * i)) for i in range(4)]), ROWS, 4)
    assert type(taken) is Both
    assert taken.y.tolist() == [6, 2]
