"""Whatever a store holds comes back from its files; work divided among jobs gives the same bytes in any order."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data, make_net
from hypothesis import given, settings, strategies as st
from shard_runs import content

from rholoss import IrreducibleLossStore, hash_ids
from rholoss.irreducible import scoring_job

INT64 = st.integers(-(2**63), 2**63 - 1)
LOSS = st.one_of(st.floats(0, width=16), st.floats(0, 100, width=32), st.floats(0, 1e30), st.just(float("nan")))
IDS = st.one_of(
    st.lists(st.one_of(st.sampled_from([-(2**63), 2**63 - 1, 0, -1]), INT64), unique=True, max_size=30),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, min_size=1, max_size=30),
    st.lists(st.binary(), unique=True, min_size=1, max_size=30),
)
FORMS = {
    "list": list,
    "tuple": tuple,
    "float64": lambda values: torch.tensor(values, dtype=torch.float64),
    "float32": lambda values: torch.tensor(values, dtype=torch.float32),
    "float16": lambda values: torch.tensor(values, dtype=torch.float16),
    "bfloat16": lambda values: torch.tensor(values, dtype=torch.bfloat16),
    "numpy float64": lambda values: np.array(values, dtype=np.float64),
    "numpy float32": lambda values: np.array(values).astype(np.float32),
    "numpy float16": lambda values: np.array(values).astype(np.float16),
    "strided": lambda values: torch.tensor([values, values], dtype=torch.float64).T[:, 0],
    "requires grad": lambda values: torch.tensor(values, dtype=torch.float64, requires_grad=True),
}
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")


@pytest.fixture(scope="module", autouse=True)
def unsynced():
    """Without waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda fd: None)
        yield


def bits(losses):
    return losses.view(torch.int32)


def as_float32(values):
    values = values.detach() if isinstance(values, torch.Tensor) else values
    return torch.tensor([float(value) for value in values], dtype=torch.float64).float()


def saved(store, mapped=False):
    """The bytes of a store's files."""
    with tempfile.TemporaryDirectory() as folder:
        store.save(f"{folder}/il", mapped=mapped)
        return content(folder)


def reloaded(store, mapped):
    with tempfile.TemporaryDirectory() as folder:
        store.save(f"{folder}/il", mapped=mapped)
        return IrreducibleLossStore.load(f"{folder}/il")  # a mapping outlives the names of its files


def key_of(ids):
    return hash_ids(ids) if ids and isinstance(ids[0], (str, bytes)) else torch.tensor(ids, dtype=torch.int64)


class TestRoundTrip:
    @given(st.data(), st.sampled_from(list(FORMS)), IDS, st.booleans())
    @settings(max_examples=100, deadline=None)
    def test_what_is_saved_is_loaded_and_found_as_in_a_dict(self, data, form, ids, mapped):
        losses = FORMS[form](data.draw(st.lists(LOSS, min_size=len(ids), max_size=len(ids))))
        values = as_float32(losses)
        store = IrreducibleLossStore(losses, ids)
        loaded = reloaded(store, mapped)
        assert loaded.is_mapped == mapped
        assert torch.equal(loaded.ids, store.ids)
        assert torch.equal(bits(loaded.losses), bits(store.losses))
        table = dict(zip(key_of(ids).tolist(), values.tolist(), strict=True))
        asked = torch.tensor([*table, *data.draw(st.lists(INT64, max_size=10)), 2**63 - 1, -(2**63)])
        right = as_float32([table.get(key, float("nan")) for key in asked.tolist()])
        for each in (store, loaded):
            torch.testing.assert_close(each[asked], right, rtol=0, atol=0, equal_nan=True)
        assert saved(loaded, mapped) == saved(store, mapped)
        assert saved(loaded, not mapped) == saved(store, not mapped)

    @given(st.sampled_from(list(FORMS)), st.lists(LOSS, max_size=30), st.booleans())
    @settings(max_examples=60, deadline=None)
    def test_without_ids_as_well(self, form, values, mapped):
        losses = FORMS[form](values)
        store = IrreducibleLossStore(losses, meta={"a": [1, None, "ä"]})
        loaded = reloaded(store, mapped)
        assert torch.equal(bits(loaded.losses.nan_to_num(7)), bits(as_float32(losses).nan_to_num(7)))
        assert loaded.ids is None
        assert loaded.meta == store.meta
        torch.testing.assert_close(loaded[torch.arange(len(values))], as_float32(losses), rtol=0, atol=0, equal_nan=True)

    @given(IDS, st.randoms(use_true_random=False))
    @settings(max_examples=60, deadline=None)
    def test_the_order_that_examples_are_given_in_is_not_in_the_file(self, ids, rng):
        rows = [(i / 8, name) for i, name in enumerate(ids)]
        mixed = rng.sample(rows, len(rows))
        one, other = (IrreducibleLossStore([loss for loss, _ in each], [name for _, name in each]) for each in (rows, mixed))
        assert saved(one) == saved(other)
        assert saved(one, mapped=True) == saved(other, mapped=True)

    @given(IDS.filter(len), st.data())
    @settings(max_examples=40, deadline=None)
    def test_an_id_that_comes_twice_is_refused(self, ids, data):
        again = data.draw(st.sampled_from(ids))
        with pytest.raises(ValueError, match=rf"1 ids appear more than once: {int(key_of([again])[0])};"):
            IrreducibleLossStore([0.5] * (len(ids) + 1), [*ids, again])

    @pytest.mark.parametrize("ids", [[2**63], [-(2**63) - 1], [2**70]])
    def test_an_id_of_more_than_64_bits_is_refused(self, ids):
        with pytest.raises(TypeError, match="ids must be integers, one per example, got"):
            IrreducibleLossStore([0.5], ids)

    @pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float64])
    def test_a_list_is_read_alike_under_any_default_dtype(self, default):
        values = [0.123456789, 70_000.5, 3e-9]
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            store = IrreducibleLossStore(values)
        finally:
            torch.set_default_dtype(before)
        assert store.losses.tolist() == torch.tensor(values, dtype=torch.float32).tolist()

    @pytest.mark.parametrize("mapped", [False, True])
    @pytest.mark.parametrize("ids", [None, [], ()])
    def test_of_no_examples(self, mapped, ids):
        loaded = reloaded(IrreducibleLossStore([], ids), mapped)
        assert len(loaded) == 0
        assert loaded[torch.tensor([0, 5])].isnan().all()
        assert loaded.merge(IrreducibleLossStore([], ids)).coverage == 0

    def test_of_data_frame_columns(self, tmp_path):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"name": [f"{i}.jpg" for i in range(50)], "id": range(100, 150), "loss": np.arange(50) / 7})
        frame = frame.sample(frac=1, random_state=0)
        for dtype in ("float64", "float32", "float16", "Float32", "Float64"):
            for column, keys in (("id", torch.arange(100, 150)), ("name", hash_ids(f"{i}.jpg" for i in range(50)))):
                losses = frame["loss"].astype(dtype)
                store = IrreducibleLossStore(losses, frame[column])
                assert torch.equal(store[keys], as_float32(losses.sort_index().tolist()))
                assert saved(store) == saved(IrreducibleLossStore(losses.tolist(), frame[column].tolist()))
        with pytest.raises(TypeError, match="must be floating"):
            IrreducibleLossStore(frame["id"])

    def test_of_predictions_in_a_data_frame(self):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"cat": [0.25, 0.5], "dog": [0.75, 0.5], "label": [1, 0], "name": ["b", "a"]})
        columns = frame[["cat", "dog"]], frame["label"], frame["name"]
        store = IrreducibleLossStore.from_predictions(*columns, kind="probabilities")
        assert store[hash_ids(["b", "a"])].tolist() == pytest.approx([0.2877, 0.6931], abs=1e-4)


class TestDivided:
    @given(st.data(), st.integers(1, 40), st.integers(1, 6), st.sampled_from(["ids", "no ids", "of one data set"]), st.booleans())
    @settings(max_examples=100, deadline=None)
    def test_any_division_merged_in_any_order_is_the_whole(self, data, n, k, kind, mapped):
        losses = torch.tensor(data.draw(st.lists(st.floats(0, 100, width=32), min_size=n, max_size=n)))
        ids = torch.tensor(data.draw(st.lists(INT64, min_size=n, max_size=n, unique=True))) if kind == "ids" else torch.arange(n)
        member = torch.tensor(data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
        meta = {"views": 2, "loss": "default_loss"}
        if kind == "of one data set":
            meta["data"] = {"length": n, "labels": None, "sample": {}}
        parts = []
        for part in data.draw(st.permutations(range(k))):
            mine = member == part
            held = losses[mine] if kind != "no ids" else torch.where(mine, losses, torch.nan)
            store = IrreducibleLossStore(held, None if kind == "no ids" else ids[mine], meta=meta)
            parts.append(reloaded(store, data.draw(st.booleans())))
        whole = IrreducibleLossStore(losses, ids if kind == "ids" else None, meta=meta)
        if kind == "of one data set" and k == 1:
            whole = IrreducibleLossStore(losses, ids, meta=meta)  # nothing was merged
        assert saved(parts[0].merge(*parts[1:]), mapped) == saved(whole, mapped)

    @given(st.lists(INT64, min_size=2, max_size=20, unique=True), st.data())
    @settings(max_examples=60, deadline=None)
    def test_what_two_know_is_found(self, ids, data):
        cut = data.draw(st.integers(1, len(ids) - 1))
        both = data.draw(st.sampled_from(ids[:cut]))
        theirs = [*ids[cut:], both]
        one, other = IrreducibleLossStore([0.5] * cut, ids[:cut]), IrreducibleLossStore([0.5] * len(theirs), theirs)
        for mine, its in ((one, other), (other, one)):
            with pytest.raises(ValueError, match=rf"1 examples have an irreducible loss in both stores: indices {both}$"):
                mine.merge(its)

    @pytest.mark.parametrize("infinite", [float("inf"), -float("inf")])
    def test_an_infinite_loss_is_known_too_whichever_comes_first(self, infinite):
        one, other = IrreducibleLossStore([infinite, float("nan")]), IrreducibleLossStore([0.5, 0.25])
        for mine, its in ((one, other), (other, one)):
            with pytest.raises(ValueError, match="in both stores: indices 0"):
                mine.merge(its)

    @given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 30), st.integers(1, 4), st.data())
    @settings(max_examples=25, deadline=None)
    def test_any_chunks_shared_by_any_processes_are_the_whole(self, n, batch_size, chunk, processes, data):
        net, examples, mapped = make_net(0), make_data(n), data.draw(st.booleans())
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(scoring_job, "CHUNK", chunk)
            patch.setattr(scoring_job, "PIECES", 1)
            shared = None
            for process in data.draw(st.permutations(range(processes))):
                share = {"process": process, "processes": processes, "batch_size": batch_size}
                store = IrreducibleLossStore.score_share(net, examples, f"{folder}/il", mapped=mapped, **share)
                shared = shared if store is None else store
            assert [path.name for path in Path(folder).iterdir()] == ["il"]
            patch.setattr(scoring_job, "CHUNK", 10**6)  # where nothing is drawn at random, chunks do not show
            whole = IrreducibleLossStore.from_model(net, examples, batch_size=batch_size)
        assert torch.equal(shared.losses, whole.losses)
        assert shared.meta == whole.meta
