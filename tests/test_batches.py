"""Rows of a batch: any structure is cut to the same type, nothing is mutated, and ambiguous batches are refused by name."""

import copy
import dataclasses
from collections import OrderedDict, UserDict, UserList, defaultdict, namedtuple
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch.nn.utils.rnn import pack_sequence

from rholoss.batches import RowRange, Rows, cut, move, parts_of


class Pair(NamedTuple):
    x: Any
    y: Any


Untyped = namedtuple("Untyped", "x y")


class PairWithDefaults(namedtuple("PairWithDefaults", "x y")):
    """A named tuple whose constructor is not that of its fields."""

    def __new__(cls, x):
        return super().__new__(cls, x, x + 100)


@dataclasses.dataclass
class Sample:
    x: Any
    y: Any


@dataclasses.dataclass(frozen=True)
class FrozenSample:
    x: Any
    y: Any


@dataclasses.dataclass(frozen=True, slots=True)
class SlotsSample:
    x: Any
    y: Any


@dataclasses.dataclass
class DerivedSample:
    """A dataclass whose constructor takes other arguments than its fields."""

    x: Any
    scale: dataclasses.InitVar[float]
    y: Any = dataclasses.field(init=False)

    def __post_init__(self, scale):
        self.y = self.x * scale


class Encoding(UserDict):
    """What a tokenizer returns: a mapping with attributes and a state of its own."""

    def __init__(self, data=None, encodings=None):
        super().__init__(data)
        self.encodings = encodings

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def to(self, device):
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


class HomeMade(MutableMapping):
    """A mutable mapping around a dict of its own."""

    def __init__(self, fields):
        self._fields_of = dict(fields)

    def __getitem__(self, key):
        return self._fields_of[key]

    def __setitem__(self, key, value):
        self._fields_of[key] = value

    def __delitem__(self, key):
        del self._fields_of[key]

    def __iter__(self):
        return iter(self._fields_of)

    def __len__(self):
        return len(self._fields_of)


class Immutable(Mapping):
    def __init__(self, fields):
        self._fields_of = dict(fields)

    def __getitem__(self, key):
        return self._fields_of[key]

    def __iter__(self):
        return iter(self._fields_of)

    def __len__(self):
        return len(self._fields_of)


class AttributeDict(dict):
    """The keys are attributes too."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class Words(list):
    pass


def same(a, b):
    """Equal in type, structure and values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(p, q) for p, q in zip(a, b, strict=True))
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)


def x_of(ids):
    return torch.tensor([[10.0 * i, 10.0 * i + 1] for i in ids])


def y_of(ids):
    return torch.tensor(list(ids))


CONTAINERS = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "typed named tuple": Pair,
    "named tuple": Untyped,
    "dict": lambda x, y: {"x": x, "y": y},
    "dict with other keys": lambda x, y: {0: x, ("a", 1): y},
    "OrderedDict": lambda x, y: OrderedDict(x=x, y=y),
    "UserDict": lambda x, y: UserDict(x=x, y=y),
    "defaultdict": lambda x, y: defaultdict(list, x=x, y=y),
    "tokenizer-like mapping": lambda x, y: Encoding({"x": x, "y": y}, encodings="kept"),
    "home-made mapping": lambda x, y: HomeMade({"x": x, "y": y}),
    "immutable mapping": lambda x, y: Immutable({"x": x, "y": y}),
    "mapping proxy": lambda x, y: MappingProxyType({"x": x, "y": y}),
    "dict with attributes": lambda x, y: AttributeDict(x=x, y=y),
    "dataclass": Sample,
    "frozen dataclass": FrozenSample,
    "frozen dataclass with slots": SlotsSample,
}
containers = pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
ROWS = {"rows": (Rows(torch.tensor([0, 3, 4])), [0, 3, 4]), "a range": (RowRange(1, 4), [1, 2, 3])}
either = pytest.mark.parametrize(("rows", "ids"), ROWS.values(), ids=ROWS)


@containers
@either
def test_a_container_comes_back_as_its_own_type_with_the_chosen_rows(container, rows, ids):
    taken = cut(container(x_of(range(5)), y_of(range(5))), rows, 5)
    assert same(taken, container(x_of(ids), y_of(ids)))


@containers
@either
def test_the_batch_itself_stays_as_it_was(container, rows, ids):
    x, y = x_of(range(5)), y_of(range(5))
    batch = container(x, y)
    cut(batch, rows, 5)
    assert same(batch, container(x_of(range(5)), y_of(range(5))))
    parts = list(batch.values()) if isinstance(batch, Mapping) else None
    assert parts is None or (parts[0] is x and parts[1] is y)


@containers
def test_what_is_done_to_the_cut_leaves_the_batch_alone(container):
    batch = container(x_of(range(5)), y_of(range(5)))
    taken = cut(batch, Rows(torch.tensor([1, 2])), 5)
    if isinstance(taken, MutableMapping):
        for key in taken:
            taken[key] = None
    elif isinstance(taken, list):
        taken[:] = [None, None]
    elif dataclasses.is_dataclass(taken):
        object.__setattr__(taken, "x", None)
    else:
        for part in taken.values() if isinstance(taken, Mapping) else taken:
            part.zero_()
    assert same(batch, container(x_of(range(5)), y_of(range(5))))


@containers
def test_containers_nest(container):
    def batch(ids):
        inner = container(x_of(ids), y_of(ids))
        return {"inner": inner, "outer": container(inner, container(y_of(ids), x_of(ids)))}

    assert same(cut(batch(range(5)), Rows(torch.tensor([4, 1])), 5), batch([4, 1]))


def test_a_tokenizer_like_mapping_keeps_what_else_it_holds():
    batch = Encoding({"input_ids": x_of(range(4))}, encodings=["kept"])
    taken = cut(batch, Rows(torch.tensor([2])), 4)
    assert taken.encodings is batch.encodings
    assert torch.equal(taken.input_ids, x_of([2]))


def test_a_default_dict_keeps_its_default():
    taken = cut(defaultdict(list, x=x_of(range(4))), Rows(torch.tensor([2])), 4)
    assert taken["new"] == []


def test_attributes_of_a_dict_are_cut_with_its_keys():
    taken = cut(AttributeDict(x=x_of(range(4))), Rows(torch.tensor([2])), 4)
    assert torch.equal(taken.x, x_of([2]))


def test_a_named_tuple_with_a_constructor_of_its_own_is_cut():
    taken = cut(PairWithDefaults(y_of(range(4))), Rows(torch.tensor([2])), 4)
    assert same(taken, PairWithDefaults(y_of([2])))


def test_a_dataclass_with_other_arguments_than_fields_is_cut():
    taken = cut(DerivedSample(x_of(range(4)), 2.0), Rows(torch.tensor([3, 1])), 4)
    assert same(taken, DerivedSample(x_of([3, 1]), 2.0))


def test_a_dataclass_keeps_what_is_no_field():
    batch = Sample(x_of(range(4)), y_of(range(4)))
    batch.extra = "kept"
    assert cut(batch, Rows(torch.tensor([0])), 4).extra == "kept"


@pytest.mark.parametrize(
    "value", [None, 3, 0.5, True, 1j, "train", b"raw", torch.tensor(7.0), np.array(7.0), np.float32(7), np.int64(7)]
)
def test_values_of_the_whole_batch_pass_through(value):
    taken = cut({"x": x_of(range(4)), "value": value}, Rows(torch.tensor([2])), 4)
    assert taken["value"] is value


def test_values_of_the_whole_batch_pass_through_a_tuple():
    x, mask, scale = cut((x_of(range(4)), None, 0.5), Rows(torch.tensor([2])), 4)
    assert torch.equal(x, x_of([2]))
    assert (mask, scale) == (None, 0.5)


@either
def test_arrays_are_cut_and_stay_arrays(rows, ids):
    batch = {"x": np.arange(10).reshape(5, 2), "name": np.array(list("abcde"))}
    assert same(cut(batch, rows, 5), {"x": np.arange(10).reshape(5, 2)[ids], "name": np.array(list("abcde"))[ids]})


@either
@pytest.mark.parametrize("kind", [list, tuple, Words])
def test_strings_one_per_example_are_cut_and_keep_their_type(rows, ids, kind):
    taken = cut({"x": x_of(range(5)), "text": kind("abcde")}, rows, 5)
    assert same(taken["text"], kind("abcde"[i] for i in ids))


def test_a_batch_that_is_one_tensor_or_one_list_is_cut():
    rows = Rows(torch.tensor([3, 0]))
    assert same(cut(x_of(range(4)), rows, 4), x_of([3, 0]))
    assert same(cut(["a", "b", "c", "d"], rows, 4), ["d", "a"])


def test_integers_and_none_one_per_example_are_rows():
    taken = cut({"x": x_of(range(3)), "length": [5, 6, 7], "box": [None, None, None]}, Rows(torch.tensor([2])), 3)
    assert (taken["length"], taken["box"]) == ([7], [None])


def detection(ids):
    """A list of images, a tuple of dicts of ragged tensors: what a detection loader yields."""
    images = [torch.full((3, 4 + i, 5), float(i)) for i in ids]
    targets = tuple({"boxes": torch.full((i % 3, 4), float(i)), "id": i} for i in ids)
    return images, targets


def test_ragged_examples_of_a_detection_batch_are_rows():
    assert same(cut(detection(range(5)), Rows(torch.tensor([1, 4])), 5), detection([1, 4]))
    assert same(cut(detection(range(5)), RowRange(2, 5), 5), detection([2, 3, 4]))


@pytest.mark.parametrize("together", [list, tuple])
def test_dicts_are_rows_also_where_each_has_as_many_rows_as_there_are_examples(together):
    batch = {"targets": together({"boxes": torch.full((3, 4), float(i))} for i in range(3)), "y": y_of(range(3))}
    taken = cut(batch, Rows(torch.tensor([2])), 3)
    assert same(taken["targets"], together([{"boxes": torch.full((3, 4), 2.0)}]))


def test_a_pair_is_two_columns_also_where_there_are_two_examples():
    taken = cut((y_of([7, 8]), y_of([70, 80])), Rows(torch.tensor([1])), 2)
    assert same(taken, (y_of([8]), y_of([80])))


def test_a_pair_of_mappings_is_two_columns_also_where_there_are_two_examples():
    def batch(ids):
        return {"tokens": y_of(ids)}, {"tokens": y_of([10 * i for i in ids])}

    assert same(cut(batch([1, 2, 3]), Rows(torch.tensor([1])), 3), batch([2]))
    assert same(cut(batch([1, 2]), Rows(torch.tensor([1])), 2), batch([2]))


@pytest.mark.parametrize("batch", [[x_of([4])], (x_of([4]),), {"state": (x_of([4]),)}, ({"tokens": x_of([4])},)])
def test_one_column_of_one_example_is_the_same_either_way(batch):
    assert same(cut(batch, Rows(torch.tensor([0])), 1), batch)


@pytest.mark.parametrize("kind", [list, tuple])
def test_three_mappings_for_three_examples_are_refused(kind):
    views = kind({"tokens": y_of([i, i + 1, i + 2])} for i in (1, 10, 100))
    with pytest.raises(ValueError, match="could be 3 columns or 3 examples"):
        cut(views, Rows(torch.tensor([1])), 3)


def test_a_bare_list_of_three_rgb_images_is_never_taken_for_three_columns():
    images = [torch.full((3, 4, 4), float(i)) for i in range(3)]
    with pytest.raises(ValueError, match="could be 3 columns or 3 examples"):
        cut(images, Rows(torch.tensor([1])), 3)


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize(
    "entry", [torch.zeros(3, 2), np.zeros(3), ["a", "b", "c"], Pair(torch.zeros(3), torch.zeros(3))], ids=["t", "a", "l", "n"]
)
def test_alike_entries_that_could_be_columns_or_examples_are_refused(kind, entry):
    batch = {"x": x_of(range(3)), "state": kind([entry, copy.deepcopy(entry), copy.deepcopy(entry)])}
    with pytest.raises(ValueError, match=r"batch\['state'\].*could be 3 columns or 3 examples"):
        cut(batch, Rows(torch.tensor([1])), 3)


def test_the_cure_for_an_ambiguous_list_works():
    h, c = torch.zeros(2, 3), torch.ones(2, 3)
    rows = Rows(torch.tensor([1]))
    with pytest.raises(ValueError, match="could be") as refused:
        cut({"state": (h, c)}, rows, 2)
    assert "collate columns into a tuple" not in str(refused.value)  # they are in one
    assert same(cut({"state": Pair(h, c)}, rows, 2), {"state": Pair(h[1:], c[1:])})
    assert same(cut({"state": {"h": h, "c": c}}, rows, 2), {"state": {"h": h[1:], "c": c[1:]}})


def test_unlike_entries_are_columns():
    batch = {"pair": [torch.arange(6.0).view(2, 3), torch.tensor([5, 6])]}
    assert same(cut(batch, Rows(torch.tensor([1])), 2), {"pair": [torch.tensor([[3.0, 4, 5]]), torch.tensor([6])]})


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        (torch.zeros(3), "batch:"),
        ((torch.zeros(5), torch.zeros(3)), r"batch\[1\]:"),
        ({"x": torch.zeros(5), "prior": torch.zeros(10)}, r"batch\['prior'\]:"),
        ({"x": torch.zeros(5), "prior": np.zeros(10)}, r"batch\['prior'\]:"),
        (Pair(torch.zeros(5), {"z": torch.zeros(4, 2)}), r"batch\.y\['z'\]:"),
        (FrozenSample(torch.zeros(5), [torch.zeros(5), torch.zeros(1)]), r"batch\.y\[1\]:"),
        ({"x": torch.zeros(5), "names": ["a", "b", "c"]}, r"batch\['names'\]: expected 5 entries, one per example, got 3"),
        ({7: torch.zeros(4)}, r"batch\[7\]: expected 5 rows in the first dimension, one per example, got shape \(4,\)"),
        (Encoding({"x": torch.zeros(4)}), r"batch\['x'\]:"),
    ],
)
@either
def test_a_field_with_another_number_of_rows_is_named(batch, field, rows, ids):
    with pytest.raises(ValueError, match=f"cannot tell the rows of {field}"):
        cut(batch, rows, 5)


@pytest.mark.parametrize("value", [{1, 2}, object(), range(4), UserList("abcd"), iter("abcd")])
def test_a_type_without_rows_is_named(value):
    with pytest.raises(TypeError, match=rf"cannot tell the rows of batch\['meta'\].*got {type(value).__name__}"):
        cut({"x": torch.zeros(4), "meta": value}, Rows(torch.tensor([1])), 4)


def test_packed_sequences_are_refused_rather_than_cut_at_the_wrong_places():
    packed = pack_sequence([torch.ones(3), torch.ones(2), torch.ones(1)])
    with pytest.raises(ValueError, match=r"batch\['x'\]\.data"):
        cut({"x": packed}, Rows(torch.tensor([1])), 3)


def test_a_range_gives_views_and_rows_give_copies():
    batch = {"x": x_of(range(5)), "a": np.arange(5)}
    view = cut(batch, RowRange(1, 3), 5)
    assert view["x"].data_ptr() == batch["x"][1:].data_ptr()
    assert np.shares_memory(view["a"], batch["a"])
    copied = cut(batch, Rows(torch.arange(5)), 5)
    copied["x"].zero_()
    copied["a"][:] = 0
    assert same(batch, {"x": x_of(range(5)), "a": np.arange(5)})


def test_repeated_and_unsorted_positions_are_taken_as_they_are():
    batch = (x_of(range(5)), list("abcde"), np.arange(5))
    assert same(cut(batch, Rows(torch.tensor([4, 0, 0])), 5), (x_of([4, 0, 0]), list("eaa"), np.array([4, 0, 0])))


def test_no_positions_give_an_empty_batch_of_the_same_type():
    taken = cut((x_of(range(5)), list("abcde")), Rows(torch.tensor([], dtype=torch.int64)), 5)
    assert taken[0].shape == (0, 2)
    assert taken[1] == []


def test_gradients_flow_through_a_cut():
    x = torch.arange(4.0, requires_grad=True)
    cut((x, y_of(range(4))), Rows(torch.tensor([2])), 4)[0].sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 0, 1, 0]))


@containers
def test_moving_gives_the_same_type_on_the_device_and_leaves_the_batch(container):
    x, y = x_of(range(4)), y_of(range(4))
    batch = container(x, y)
    moved = move(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    for part in _leaves(moved):
        assert part.is_meta
    assert [id(part) for part in _leaves(batch)] == [id(x), id(y)]


@containers
def test_what_is_on_the_device_already_is_the_very_same_object(container):
    batch = {"inner": container(x_of(range(4)), y_of(range(4))), "text": list("abcd"), "name": "train", "other": {1}}
    assert move(batch, torch.device("cpu")) is batch


def test_what_can_move_itself_does_and_what_cannot_stays():
    packed, array, thing = pack_sequence([torch.ones(3), torch.ones(2)]), np.arange(2), object()
    moved = move([packed, array, thing, ["a", None]], torch.device("meta"))
    assert moved[0].data.is_meta
    assert moved[0].batch_sizes is packed.batch_sizes  # which has to stay on the CPU
    assert moved[1] is array
    assert moved[2] is thing
    assert moved[3] == ["a", None]


def _leaves(batch):
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, (list, tuple)) else [batch.x, batch.y]


# A schema says how a batch is made of examples: leaves make a column of ids, containers nest them.

LEAVES = {
    "tensor": x_of,
    "labels": y_of,
    "array": lambda ids: np.array([[i, i + 1] for i in ids]).reshape(len(ids), 2),
    "names": lambda ids: [f"example {i}" for i in ids],
    "ragged": lambda ids: [torch.full((i % 4, 2), float(i)) for i in ids],
    "targets": lambda ids: [{"boxes": torch.full((i % 3, 4), float(i)), "id": i} for i in ids],
    "images": lambda ids: tuple(torch.full((3, 2, 2), float(i)) for i in ids),
    "tokens": lambda ids: [[i] * (1 + i % 3) for i in ids],
}
SHARED = {"none": None, "number": 0.5, "word": "train", "zero-dim": torch.tensor(3.0)}
NESTS = [tuple, list, lambda parts: dict(enumerate(parts)), lambda parts: OrderedDict(enumerate(parts))]
NESTS += [
    lambda parts: UserDict(enumerate(parts)),
    lambda parts: HomeMade(enumerate(parts)),
    lambda parts: Immutable(enumerate(parts)),
]
PAIRS = [lambda parts: Pair(*parts), lambda parts: Sample(*parts), lambda parts: SlotsSample(*parts)]


def leaf(name):
    return LEAVES[name]


def shared(value):
    return lambda ids: value


def nest(kind, parts):
    return lambda ids: kind([part(ids) for part in parts])


leaves = st.sampled_from(sorted(LEAVES)).map(leaf)
shared_values = st.sampled_from(list(SHARED.values())).map(shared)


def nests_of(parts):
    with_shared = st.tuples(parts, st.lists(parts | shared_values, max_size=3)).map(lambda both: [both[0], *both[1]])
    return st.builds(nest, st.sampled_from(NESTS), with_shared) | st.builds(nest, st.sampled_from(PAIRS), st.tuples(parts, parts))


schemas = nests_of(st.recursive(leaves, nests_of, max_leaves=6))


@settings(max_examples=300, deadline=None)
@given(schema=schemas, n=st.integers(6, 9), data=st.data())
def test_cutting_a_collated_batch_is_collating_the_chosen_examples(schema, n, data):
    ids = data.draw(st.permutations(range(20)))[:n]
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n))
    start = data.draw(st.integers(0, n - 1))
    batch = schema(ids)
    taken = cut(batch, Rows(torch.tensor(positions)), n)
    assert same(taken, schema([ids[i] for i in positions]))
    assert same(cut(batch, RowRange(start, n), n), schema(ids[start:]))
    assert same(batch, schema(ids))


def has_mappings_as_rows(batch, n, top=True):
    """Whether somewhere below the top there are n mappings in a list: these are examples by definition, as in detection."""
    parts = parts_of(batch) if not isinstance(batch, (torch.Tensor, np.ndarray)) else None
    values = [part for _, part in parts or ()]
    own = isinstance(batch, (list, tuple)) and len(values) == n and all(isinstance(value, Mapping) for value in values)
    return (own and not top) or any(has_mappings_as_rows(value, n, top=False) for value in values)


@settings(max_examples=400, deadline=None)
@given(schema=schemas, n=st.integers(1, 4), data=st.data())
def test_a_small_batch_is_cut_rightly_or_refused_but_never_cut_wrongly(schema, n, data):
    ids = data.draw(st.permutations(range(20)))[:n]
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n))
    assume(n == 1 or not has_mappings_as_rows(schema(ids), n))
    try:
        taken = cut(schema(ids), Rows(torch.tensor(positions)), n)
    except ValueError as refused:
        assert "could be" in str(refused)  # noqa: PT017  # the only excuse
    else:
        assert same(taken, schema([ids[i] for i in positions]))
