"""The store: look-up, making, checking against a loader, saving and loading."""

import copy
import json
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import make_data, make_net
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler, WeightedRandomSampler

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector


def losses_of(model, data):
    x, y = data.tensors
    with torch.no_grad():
        return nn.functional.cross_entropy(copy.deepcopy(model).eval()(x), y, reduction="none")


class TestLookUp:
    def test_by_index(self):
        store = IrreducibleLossStore([0.5, 0.25, 2.0])
        assert store[torch.tensor([2, 0, 2])].tolist() == [2.0, 0.5, 2.0]
        assert len(store) == 3
        assert store.coverage == 1.0

    def test_by_id_in_any_order_and_of_any_size(self):
        store = IrreducibleLossStore(np.array([1.0, 2.0, 3.0]), ids=[2**60, -7, 16_777_217])
        assert store[torch.tensor([16_777_217, 2**60, -7])].tolist() == [3.0, 1.0, 2.0]
        assert store[torch.tensor([16_777_216])].isnan().all()

    @pytest.mark.parametrize("index", [[3], [-1], [0, 7]])
    def test_outside_the_store_is_an_error_that_says_which(self, index):
        with pytest.raises(IndexError, match=rf"expected indices from 0 to 2, got {index[-1]}; was this store made for another"):
            IrreducibleLossStore([0.5, 0.25, 2.0])[torch.tensor(index)]

    @given(st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.floats(0, 10, width=32), min_size=1, max_size=30))
    @settings(max_examples=60, deadline=None)
    def test_every_id_gets_its_own(self, losses):
        store = IrreducibleLossStore(list(losses.values()), ids=list(losses))
        assert store[torch.tensor(list(losses))].tolist() == list(losses.values())

    def test_an_empty_store_knows_nothing(self):
        assert IrreducibleLossStore(torch.empty(0)).coverage == 0.0

    @pytest.mark.parametrize(
        ("args", "error", "message"),
        [
            (([[0.5]],), ValueError, r"shape \(N,\), got \(1, 1\)"),
            (([1, 2],), TypeError, "must be floating, got torch.int64"),
            (([0.5, 0.6], [1]), ValueError, "got 1 ids for 2 losses"),
            (([0.5, 0.6, 0.7], [1, 5, 5]), ValueError, "1 ids appear more than once: 5"),
            (([0.5], [0.5]), TypeError, "ids must be integers"),
        ],
    )
    def test_what_is_not_one_loss_per_example_is_refused(self, args, error, message):
        with pytest.raises(error, match=message):
            IrreducibleLossStore(*args)

    def test_survives_pickle_and_deepcopy(self):
        store = IrreducibleLossStore([0.5, 0.25], ids=[9, 4], meta={"data": "toy"})
        for twin in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
            assert twin[torch.tensor([4, 9])].tolist() == [0.25, 0.5]
            assert twin.meta.data == "toy"

    def test_moving_to_its_own_device_is_free(self):
        store = IrreducibleLossStore([0.5])
        assert store.to("cpu") is store
        assert store.to("meta").device.type == "meta"
        assert store.device.type == "cpu"


class TestFromModel:
    def test_scores_in_eval_mode_and_leaves_the_model_as_it_was(self, data, net):
        net.train()
        before = copy.deepcopy(net.state_dict())
        rng = torch.get_rng_state()
        store = IrreducibleLossStore.from_model(net, data)
        torch.testing.assert_close(store[torch.arange(100)], losses_of(net, data))
        assert all(module.training for module in net.modules())
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        assert torch.equal(torch.get_rng_state(), rng)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_of_a_shuffling_loader_scores_every_example_without_moving_its_generator(self, data, net, workers):
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(data, batch_size=30, shuffle=True, drop_last=True, generator=generator, num_workers=workers)
        state = generator.get_state()
        store = IrreducibleLossStore.from_model(net, loader)
        assert store.ids is None
        assert torch.equal(generator.get_state(), state)
        torch.testing.assert_close(store[torch.arange(100)], losses_of(net, data))

    def test_of_a_loader_over_some_examples_knows_those(self, data, net):
        loader = DataLoader(data, batch_size=8, sampler=SubsetRandomSampler(range(20, 50)))
        store = IrreducibleLossStore.from_model(net, loader)
        assert store.ids.tolist() == list(range(20, 50))
        torch.testing.assert_close(store[torch.arange(20, 50)], losses_of(net, data)[20:50])

    @pytest.mark.parametrize("part", [range(30), range(10, 30), range(0, 100, 3)])
    def test_of_a_part_of_the_data_serves_a_loader_over_that_part(self, data, net, part):
        loader = DataLoader(data, batch_size=8, sampler=SubsetRandomSampler(part))
        store = IrreducibleLossStore.from_model(net, loader)
        list(RhoLossSelector(loader, net, store, keep=0.5))
        rest = DataLoader(data, batch_size=8, sampler=[i for i in range(100) if i not in part])
        whole = store.merge(IrreducibleLossStore.from_model(net, rest))
        assert whole.ids is None
        torch.testing.assert_close(whole.losses, losses_of(net, data))

    @pytest.mark.parametrize(
        "drawing",
        [
            {"batch_sampler": [[5, 3, 99], [0, 42], [7]]},
            {"batch_sampler": BatchSampler(range(100), 30, drop_last=True)},
            {"batch_size": 8, "sampler": WeightedRandomSampler(torch.ones(100), 100)},
        ],
        ids=["own batches", "a dropped tail", "weighted"],
    )
    def test_of_a_loader_that_cannot_be_asked_what_it_draws_scores_everything_once(self, data, net, drawing):
        store = IrreducibleLossStore.from_model(net, DataLoader(data, **drawing))
        torch.testing.assert_close(store[torch.arange(100)], losses_of(net, data))

    def test_keeps_ids_that_are_not_0_to_n(self, data, net):
        x, y = data.tensors
        store = IrreducibleLossStore.from_model(net, IndexedBatches([(torch.tensor([-1, 1, 2]), (x[:3], y[:3]))]))
        assert store.ids.tolist() == [-1, 1, 2]

    def test_keeps_its_own_copy_of_the_losses(self):
        losses = torch.zeros(3)
        store = IrreducibleLossStore(losses)
        losses.fill_(9)
        assert store.losses.tolist() == [0, 0, 0]

    def test_of_batches_that_carry_their_index(self, data, net):
        x, y = data.tensors
        batches = [{"id": torch.arange(i, i + 20) + 1000, "x": x[i : i + 20], "y": y[i : i + 20]} for i in range(0, 100, 20)]
        store = IrreducibleLossStore.from_model(
            net, IndexedBatches(batches, index="id"), forward=lambda model, b: (model(b["x"]), b["y"])
        )
        torch.testing.assert_close(store[torch.arange(1000, 1100)], losses_of(net, data))

    def test_refuses_a_loss_that_is_not_finite_and_names_the_examples(self, data, net):
        data.tensors[0][[3, 40]] = torch.nan
        with pytest.raises(ValueError, match=r"loss of 2 of 100 examples under the .* model is not finite: indices 3, 40"):
            IrreducibleLossStore.from_model(net, data)

    def test_refuses_nothing_to_score_and_things_that_are_no_data(self, net):
        with pytest.raises(ValueError, match="at least one example to score"):
            IrreducibleLossStore.from_model(net, [])
        with pytest.raises(TypeError, match="data must be a map-style dataset, .*got <generator"):
            IrreducibleLossStore.from_model(net, (i for i in range(3)))

    def test_reports_progress_to_a_function(self, data, net):
        seen = []
        IrreducibleLossStore.from_model(net, data, batch_size=40, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(40, 100), (80, 100), (100, 100)]
        seen.clear()
        loader = DataLoader(data, batch_size=20, sampler=SubsetRandomSampler(range(50)))
        IrreducibleLossStore.from_model(net, loader, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(20, 50), (40, 50), (50, 50)]

    def test_draws_a_bar_if_asked(self, data, net, capsys):
        IrreducibleLossStore.from_model(net, data, batch_size=50, progress=True)
        captured = capsys.readouterr()
        assert "irreducible losses: 100%" in captured.err
        assert captured.out == ""

    def test_says_which_extra_draws_the_bar(self, data, net, monkeypatch):
        monkeypatch.setitem(sys.modules, "tqdm", None)
        with pytest.raises(ImportError, match=r"pip install 'rholoss\[progress\]'"):
            IrreducibleLossStore.from_model(net, data, progress=True)
        IrreducibleLossStore.from_model(net, data)


class TestMeetingALoader:
    def selector(self, store, data, net, **loader):
        return RhoLossSelector(DataLoader(data, **{"batch_size": 8, **loader}), net, store)

    @pytest.mark.parametrize("n", [99, 101])
    def test_a_store_of_another_length_is_refused(self, data, net, n):
        with pytest.raises(ValueError, match=rf"holds the irreducible losses of {n} examples, but .* dataset has 100"):
            self.selector(IrreducibleLossStore(torch.zeros(n)), data, net)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_an_irreducible_loss_that_is_not_finite_is_refused_and_named(self, data, net, bad):
        losses = torch.zeros(100)
        losses[[7, 8, 9, 10, 11, 12, 90]] = bad
        with pytest.raises(ValueError, match=r"7 of 100 examples have no finite .*indices 7, 8, 9, 10, 11 and 2 more"):
            self.selector(IrreducibleLossStore(losses), data, net)

    def test_a_missing_id_is_refused_and_named(self, data, net):
        store = IrreducibleLossStore(torch.zeros(99), ids=[i for i in range(100) if i != 42])
        with pytest.raises(ValueError, match="1 of 100 examples have no finite irreducible loss .*indices 42"):
            self.selector(store, data, net)

    def test_only_examples_that_may_be_drawn_need_one(self, data, net):
        losses = torch.full((100,), torch.nan)
        losses[:50] = 0
        store = IrreducibleLossStore(losses)
        assert store.coverage == 0.5
        list(self.selector(store, data, net, sampler=SubsetRandomSampler(range(50))))
        with pytest.raises(ValueError, match="1 of 51 examples"):
            self.selector(store, data, net, sampler=SubsetRandomSampler(range(51)))

    def test_with_a_sampler_that_cannot_be_asked_the_first_gap_drawn_is_an_error(self, data, net):
        losses = torch.zeros(100)
        losses[60:] = torch.nan
        weights = (torch.arange(100) < 60).double()
        store = IrreducibleLossStore(losses)
        list(self.selector(store, data, net, sampler=WeightedRandomSampler(weights, 100)))
        with pytest.raises(ValueError, match=r"examples have no finite irreducible loss"):
            list(self.selector(store, data, net, sampler=WeightedRandomSampler(1 - weights, 100)))
        batch_sampler = BatchSampler(range(55, 65), 10, drop_last=False)
        with pytest.raises(ValueError, match=r"5 of 10 examples have no finite irreducible loss .*indices 60, 61, 62, 63, 64"):
            list(RhoLossSelector(DataLoader(data, batch_sampler=[list(b) for b in batch_sampler]), net, store, batch_size=2))

    def test_something_else_than_a_store_is_refused(self, data, net):
        with pytest.raises(TypeError, match=r"an IrreducibleLossStore, got Tensor; make one with"):
            self.selector(torch.zeros(100), data, net)


class TestMerge:
    def test_fills_what_the_other_lacks(self):
        nan = torch.nan
        merged = IrreducibleLossStore([0.5, nan, nan]).merge(IrreducibleLossStore([nan, 0.25, nan]))
        assert merged.losses[:2].tolist() == [0.5, 0.25]
        assert merged.coverage == pytest.approx(2 / 3)

    def test_joins_ids(self):
        merged = IrreducibleLossStore([0.5, 0.25], ids=[10, 2]).merge(IrreducibleLossStore([3.0], ids=[5]))
        assert merged.ids.tolist() == [2, 5, 10]
        assert merged.losses.tolist() == [0.25, 3.0, 0.5]

    @pytest.mark.parametrize(
        ("one", "other", "message"),
        [
            (([0.5, 0.1],), ([0.2, float("nan")],), "1 examples have an irreducible loss in both stores: indices 0"),
            (([0.5], [3]), ([0.2], [3]), "in both stores: indices 3"),
            (([0.5],), ([0.2, 0.1],), "got 1 examples and 2 examples"),
            (([0.5],), ([0.2], [3]), "got 1 examples and 1 examples with ids"),
        ],
    )
    def test_refuses_what_both_know_and_what_does_not_belong_together(self, one, other, message):
        with pytest.raises(ValueError, match=message):
            IrreducibleLossStore(*one).merge(IrreducibleLossStore(*other))


class TestFile:
    @given(st.lists(st.one_of(st.floats(0, width=32), st.just(float("nan"))), max_size=40), st.booleans())
    @settings(max_examples=40, deadline=None)
    def test_load_gives_back_what_was_saved(self, tmp_path_factory, losses, with_ids):
        path = tmp_path_factory.mktemp("store") / "il.npz"
        store = IrreducibleLossStore(torch.tensor(losses), ids=range(7, 7 + len(losses)) if with_ids else None, meta={"a": 1})
        store.save(path)
        loaded = IrreducibleLossStore.load(path)
        assert torch.equal(loaded.losses.view(torch.int32), store.losses.view(torch.int32))
        assert (loaded.ids is None) == (store.ids is None)
        assert loaded.ids is None or torch.equal(loaded.ids, store.ids)
        assert loaded.meta.extra == {"a": 1}

    def test_keeps_the_name_it_was_given(self, tmp_path):
        IrreducibleLossStore([0.5]).save(tmp_path / "losses.v1")
        assert [path.name for path in tmp_path.iterdir()] == ["losses.v1"]

    def test_has_a_format_number_and_no_pickle(self, tmp_path):
        IrreducibleLossStore([0.5]).save(tmp_path / "il.npz")
        with np.load(tmp_path / "il.npz", allow_pickle=False) as file:
            assert json.loads(str(file["header"]))["format"] == 1
            assert file["losses"].dtype == np.float32

    def test_missing_is_a_file_not_found(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="il.npz"):
            IrreducibleLossStore.load(tmp_path / "il.npz")

    @pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps({"losses": [1.0]}), b"PK\x03\x04" + bytes(80)])
    def test_of_another_kind_is_refused_by_name(self, tmp_path, content):
        path = tmp_path / "il.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"il\.npz is not a store that can be read \(.*: expected a \.npz file"):
            IrreducibleLossStore.load(path)

    def test_with_a_pickle_inside_is_refused_without_running_it(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "ran"),))

        np.savez(tmp_path / "il.npz", header=np.array([Evil()], dtype=object), losses=np.zeros(1, np.float32))
        with pytest.raises(ValueError, match="il.npz is not a store"):
            IrreducibleLossStore.load(tmp_path / "il.npz")
        assert not (tmp_path / "ran").exists()

    def test_from_a_bare_tensor_file_is_refused(self, tmp_path):
        torch.save(torch.zeros(3), tmp_path / "il.pt")
        with pytest.raises(ValueError, match="il.pt is not a store that can be read .*it has no header"):
            IrreducibleLossStore.load(tmp_path / "il.pt")
        np.save(tmp_path / "il.npy", np.zeros(3, np.float32))
        with pytest.raises(ValueError, match="il.npy is not a store that can be read .*it is no .npz file"):
            IrreducibleLossStore.load(tmp_path / "il.npy")

    @pytest.mark.parametrize(
        ("header", "fields", "message"),
        [
            ({"format": 2}, {}, "il.npz has store format 2, this rholoss reads up to 1; upgrade rholoss"),
            ({"format": "1"}, {}, "its format number is '1'"),
            ({"kind": "other"}, {}, "its header was written by another program"),
            ({}, {"losses": np.zeros((2, 2), np.float32)}, r"damaged: field 'losses' has dtype float32 and shape \(2, 2\)"),
            ({}, {"losses": np.zeros(2, np.float64)}, "il.npz is damaged: field 'losses' has dtype float64"),
            ({}, {"ids": np.zeros(3, np.int64)}, "il.npz is damaged: expected one id per irreducible loss, got 3 ids for 2"),
            ({}, {"ids": np.zeros(2, np.int64)}, "il.npz is damaged: 1 ids appear more than once"),
            ({}, {"losses": None}, "il.npz is damaged: it has no losses"),
        ],
    )
    def test_that_is_newer_or_damaged_is_refused_by_name(self, tmp_path, header, fields, message):
        arrays = {k: v for k, v in {"losses": np.zeros(2, np.float32), **fields}.items() if v is not None}
        full = {"format": 1, "kind": "rholoss.IrreducibleLossStore", "meta": {}, "fields": list(arrays), **header}
        np.savez(tmp_path / "il.npz", header=np.array(json.dumps(full)), **arrays)
        with pytest.raises(ValueError, match=message):
            IrreducibleLossStore.load(tmp_path / "il.npz")

    def test_cut_short_or_with_a_flipped_bit_is_refused_or_still_right(self, tmp_path):
        path = tmp_path / "il.npz"
        store = IrreducibleLossStore(torch.arange(5000) / 7, ids=torch.arange(5000) * 3, meta={"data": "toy"})
        store.save(path)
        whole = path.read_bytes()
        generator = np.random.default_rng(0)
        damaged = [whole[: generator.integers(len(whole))] for _ in range(60)]
        headers = [
            i for name in (b"header.npy", b"losses.npy", b"ids.npy") for i in range(whole.find(name), whole.find(name) + 150)
        ]
        for place in [*generator.integers(len(whole), size=240), *headers]:
            bits = bytearray(whole)
            bits[place] ^= 1 << generator.integers(8)
            damaged.append(bytes(bits))
        refused = 0
        for content in damaged:
            path.write_bytes(content)
            try:
                loaded = IrreducibleLossStore.load(path)
            except ValueError as error:
                assert "il.npz" in str(error)  # noqa: PT017
                refused += 1
            else:
                assert torch.equal(loaded.losses, store.losses)
                assert torch.equal(loaded.ids, store.ids)
        assert refused > 300

    def test_that_cannot_be_written_leaves_the_old_one_and_nothing_else(self, tmp_path):
        path = tmp_path / "il.npz"
        IrreducibleLossStore([0.5, 0.25]).save(path)
        code = textwrap.dedent(
            """
            import resource, signal, sys, torch
            from rholoss import IrreducibleLossStore
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # stands for a full disk
            try:
                IrreducibleLossStore(torch.zeros(1_000_000)).save(sys.argv[1])
            except OSError as error:
                print("OSError", error)
            """
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("OSError")
        assert [entry.name for entry in tmp_path.iterdir()] == ["il.npz"]
        assert IrreducibleLossStore.load(path).losses.tolist() == [0.5, 0.25]

    def test_in_a_folder_that_is_not_there_is_an_os_error_that_names_it(self, tmp_path):
        with pytest.raises(OSError, match="nowhere"):
            IrreducibleLossStore([0.5]).save(tmp_path / "nowhere" / "il.npz")

    def test_in_the_place_of_a_folder_is_an_os_error_that_leaves_nothing_behind(self, tmp_path):
        (tmp_path / "il.npz").mkdir()
        with pytest.raises(OSError, match="il.npz"):
            IrreducibleLossStore([0.5]).save(tmp_path / "il.npz")
        assert [entry.name for entry in tmp_path.iterdir()] == ["il.npz"]

    def test_a_folder_that_cannot_be_written_is_not_left_half_made(self, tmp_path, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device")

        store = IrreducibleLossStore([0.5])
        store.save(tmp_path / "old", mapped=True)
        monkeypatch.setattr(os, "fsync", full)
        for name in ("new", "old"):
            with pytest.raises(OSError, match="No space"):
                store.save(tmp_path / name, mapped=True)
        assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
        assert IrreducibleLossStore.load(tmp_path / "old").losses.tolist() == [0.5]

    def test_scoring_that_fails_at_once_leaves_nothing_and_may_be_begun_in_another_way(self, data, net, tmp_path):
        def wrong(outputs, targets):
            raise RuntimeError("wrong")

        with pytest.raises(RuntimeError, match="wrong"):
            IrreducibleLossStore.from_model(net, data, path=tmp_path / "il.npz", loss=wrong)
        assert list(tmp_path.iterdir()) == []
        IrreducibleLossStore.from_model(net, data, path=tmp_path / "il.npz")

    def test_with_metadata_that_is_no_json_is_refused_before_anything_is_written(self, tmp_path):
        with pytest.raises(TypeError, match="JSON"):
            IrreducibleLossStore([0.5], meta={"model": nn.Linear(1, 1)}).save(tmp_path / "il.npz")
        assert list(tmp_path.iterdir()) == []


def test_a_store_shows_what_it_holds():
    assert repr(IrreducibleLossStore([0.5, float("nan")])) == "IrreducibleLossStore(2 examples, coverage=50.0%, device=cpu)"


def test_the_store_remembers_what_made_it(data):
    meta = IrreducibleLossStore.from_model(make_net(0), data).meta
    assert [model["class"] for model in meta.models] == ["Sequential"]
    assert meta.models[0]["parameters"] == sum(parameter.numel() for parameter in make_net(0).parameters())
    assert (meta.loss, meta.views, meta.data["length"]) == ("default_loss", 1, 100)
    assert set(meta.versions) == {"rholoss", "torch", "numpy"}


def test_scores_with_the_store_are_loss_minus_irreducible_loss():
    data, model, il_model = make_data(64), make_net(0), make_net(1)
    selector = RhoLossSelector(DataLoader(data, batch_size=8), model, IrreducibleLossStore.from_model(il_model, data), keep=0.125)
    next(iter(selector))
    torch.testing.assert_close(selector.last.scores, losses_of(model, data) - losses_of(il_model, data))
