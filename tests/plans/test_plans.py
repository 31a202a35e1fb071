"""Plans: recording, the file, replaying in order, resuming, ranks, what follows, and refusals."""

import io
import json
import os
import random
import struct
import zipfile

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_data, make_net
from torch.utils.data import DataLoader, TensorDataset

from rholoss import (
    IndexedBatches,
    IndexedSubset,
    IrreducibleLossStore,
    PlanRecorder,
    RhoLossSelector,
    SelectionPlan,
    build_selector,
    record_plan,
)
from rholoss.cli import main
from rholoss.plans import plan_file
from rholoss.plans.plan_file import write_plan
from rholoss.selection import Selection
from rholoss.selectors import GatedUniformSelector

N = 96


@pytest.fixture
def data():
    return make_data(N)


def make_loader(data, **how):
    return DataLoader(data, **{"batch_size": 8, "shuffle": True, **how})


def recorded(tmp_path, data, name="run.plan", epochs=2, **how):
    """A plan of a run of RHO-LOSS, and the indices that it selected, step by step."""
    torch.manual_seed(3)
    store = IrreducibleLossStore(torch.rand(N, generator=torch.Generator().manual_seed(1)))
    selector = RhoLossSelector(make_loader(data), make_net(0), store, keep=0.5)
    with PlanRecorder(tmp_path / name, **how).attach(selector) as recorder:
        picks = [selector.last.index.tolist() for _ in range(epochs) for _ in selector]
    return recorder.plan, picks


def rows_of(loader, data):
    """The indices of the rows that a loader yields, batch by batch."""
    where = {tuple(row.tolist()): i for i, row in enumerate(data.tensors[0])}
    return [[where[tuple(row.tolist())] for row in x] for x, _ in loader]


def plan_of(tmp_path, steps, n=N, name="made.plan"):
    """A plan with given steps, over a dataset of n examples whose content nobody knows."""
    index = np.array([i for step in steps for i in step], "<u4")
    meta = {"data": {"length": n, "labels": None, "sample": {}}, "n_b": max(map(len, steps), default=1)}
    write_plan(tmp_path / name, {"index": index, "ends": np.cumsum([len(step) for step in steps]).astype("<i8")}, meta)
    return SelectionPlan.load(tmp_path / name)


class TestRecording:
    def test_the_plan_has_the_picks_of_the_run_in_their_order(self, tmp_path, data):
        plan, picks = recorded(tmp_path, data)
        assert [step.tolist() for step in plan] == picks
        assert (plan.steps, plan.n_b, plan.selections, len(plan)) == (12, 8, 96, 12)
        assert plan.meta["method"] == "RhoLossSelector"
        assert not os.path.exists(tmp_path / "run.plan.recording")

    def test_weights_and_scores_are_recorded_where_asked(self, tmp_path, data):
        selector = build_selector("gradient_norm_importance_sampling", make_loader(data), make_net(0), keep=0.5)
        with PlanRecorder(tmp_path / "w.plan", weights=True, scores=True).attach(selector) as recorder:
            seen = [(selector.last.weights, selector.last.scores[selector.last.positions]) for _ in selector]
        for step, (weights, scores) in enumerate(seen):
            assert torch.allclose(recorder.plan.weights(step), weights.float())
            assert torch.allclose(recorder.plan.scores(step), scores.float())
        assert recorded(tmp_path, data)[0].weights(0) is None

    def test_a_resumed_recording_has_the_bytes_of_an_uninterrupted_one(self, tmp_path, data):
        def run(path, stop=None):
            torch.manual_seed(3)
            selector = build_selector("uniform", make_loader(data), None, keep=0.5)
            recorder = PlanRecorder(path).attach(selector)
            if stop is not None:
                saved = None
                for _ in selector:
                    if selector.step == stop:
                        saved = selector.state_dict(), recorder.state_dict()
                    if selector.step == stop + 2:
                        break
                selector = build_selector("uniform", make_loader(data), None, keep=0.5)
                recorder = PlanRecorder(path).attach(selector)
                recorder.load_state_dict(json.loads(json.dumps(saved[1])))
                selector.load_state_dict(saved[0])
            while selector.step < 12:
                for _ in selector:
                    pass
            recorder.finish()
            return path.read_bytes()

        whole = run(tmp_path / "whole.plan")
        for stop in (1, 3):
            assert run(tmp_path / f"{stop}.plan", stop) == whole

    def test_a_recorder_that_missed_steps_says_so(self, tmp_path, data):
        selector = build_selector("uniform", make_loader(data), None, keep=0.5)
        recorder = PlanRecorder(tmp_path / "run.plan").attach(selector)
        batches = iter(selector)
        next(batches)
        selector.listeners.clear()
        next(batches)
        selector.listeners.append(recorder)
        with pytest.raises(ValueError, match="expected step 1 of the run after .* got step 2; restore the states"):
            next(batches)

    def test_a_stream_is_refused(self, tmp_path):
        pairs = [(torch.arange(8), (torch.randn(8, 6), torch.zeros(8, dtype=torch.long)))]
        selector = build_selector("uniform", IndexedBatches(pairs), None, batch_size=2)
        with pytest.raises(ValueError, match="a plan needs a map-style dataset: in a stream"):
            PlanRecorder(tmp_path / "run.plan").attach(selector)

    def test_nothing_is_overwritten(self, tmp_path, data):
        recorded(tmp_path, data)
        with pytest.raises(ValueError, match="run.plan exists already; choose another path, or delete it"):
            recorded(tmp_path, data)
        selector = build_selector("uniform", make_loader(data), None, keep=0.5)
        PlanRecorder(tmp_path / "new.plan").attach(selector)
        next(iter(selector))
        with pytest.raises(ValueError, match="new.plan.recording exists already; load the state of that recording, or delete it"):
            recorded(tmp_path, data, "new.plan")

    def test_an_error_in_the_loop_writes_no_plan(self, tmp_path, data):
        selector = build_selector("uniform", make_loader(data), None, keep=0.5)
        recorder = PlanRecorder(tmp_path / "run.plan").attach(selector)
        next(iter(selector))
        recorder.__exit__(RuntimeError, RuntimeError("mine"), None)
        assert not os.path.exists(tmp_path / "run.plan")

    def test_finishing_without_a_step_says_what_is_missing(self, tmp_path, data):
        with pytest.raises(ValueError, match="nothing was selected yet: attach the recorder"):
            PlanRecorder(tmp_path / "run.plan").finish()

    def test_the_state_of_another_run_is_refused(self, tmp_path, data):
        selector = build_selector("uniform", make_loader(data), None, keep=0.5)
        recorder = PlanRecorder(tmp_path / "run.plan").attach(selector)
        next(iter(selector))
        state = recorder.state_dict()
        other = PlanRecorder(tmp_path / "run.plan").attach(build_selector("uniform", make_loader(data), None, keep=0.25))
        with pytest.raises(ValueError, match="this recording was begun with other n_B;"):
            other.load_state_dict(state)
        with_scores = build_selector("uniform", make_loader(data), None, keep=0.5)
        with pytest.raises(ValueError, match="this recording was begun with other columns;"):
            PlanRecorder(tmp_path / "run.plan", scores=True).attach(with_scores).load_state_dict(state)
        (tmp_path / "run.plan.recording" / "index.bin").write_bytes(bytes(32))
        mine = PlanRecorder(tmp_path / "run.plan").attach(build_selector("uniform", make_loader(data), None, keep=0.5))
        with pytest.raises(ValueError, match="does not hold what this state recorded; delete it, and record again"):
            mine.load_state_dict(state)

    def test_a_rank_has_no_scores_of_what_other_ranks_scored(self, tmp_path, data):
        selector = build_selector("uniform", make_loader(data), None, keep=0.5)
        recorder = PlanRecorder(tmp_path / "run.plan", scores=True).attach(selector)
        selection = Selection(torch.arange(8), torch.arange(5), None, torch.rand(16), torch.arange(16), 0, 0)
        with pytest.raises(ValueError, match="this rank has no scores of examples that other ranks scored, .*; record without"):
            recorder(None, selection)


class TestReplaying:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_replay_yields_the_picks_of_the_recording(self, tmp_path, data, workers):
        plan, picks = recorded(tmp_path, data)
        assert rows_of(plan.loader(make_loader(data, num_workers=workers)), data) == picks

    def test_the_loader_stays_the_users(self, tmp_path, data):
        class MyLoader(DataLoader):
            pass

        plan, _ = recorded(tmp_path, data)
        loader = MyLoader(data, batch_size=8, collate_fn=lambda rows: len(rows))
        replay = plan.loader(loader)
        assert isinstance(replay, MyLoader)
        assert len(replay) == 12
        assert list(replay) == [8] * 12
        assert len(loader) == 12  # untouched: 96 / 8
        assert next(iter(loader.batch_sampler)) == list(range(8))

    def test_a_selector_takes_a_replay_as_any_loader(self, tmp_path, data):
        plan, picks = recorded(tmp_path, data)
        selector = build_selector("uniform", plan.loader(make_loader(data), then="repeat"), None, batch_size=8)
        assert [selector.last.index.tolist() for _ in range(2) for _ in selector] == picks + picks

    def test_nothing_but_the_selected_examples_is_read(self, tmp_path, data):
        from conftest import ReadLog

        plan, picks = recorded(tmp_path, data)
        log = ReadLog(data)
        for _ in plan.loader(make_loader(log), check=False):
            pass
        assert log.read == [i for step in picks for i in step]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_loader_resumes_after_the_batches_that_the_loop_received(self, tmp_path, data, workers):
        plan, picks = recorded(tmp_path, data)
        for stop in (1, 5, 11, 12):
            loader = plan.loader(make_loader(data, num_workers=workers))
            for i, _ in enumerate(loader, 1):
                if i == stop:
                    state = json.loads(json.dumps(loader.state_dict()))
                    break
            again = plan.loader(make_loader(data, num_workers=workers))
            again.load_state_dict(state)
            assert rows_of(again, data) == picks[stop:]
            assert rows_of(plan.loader(make_loader(data), start=stop), data) == picks[stop:] if stop < 12 else True

    def test_epochs_of_a_number_of_steps(self, tmp_path, data):
        plan, picks = recorded(tmp_path, data)
        loader = plan.loader(make_loader(data), steps_per_epoch=5)
        epochs = [rows_of(loader, data) for _ in range(3)]
        assert epochs == [picks[:5], picks[5:10], picks[10:]]
        with pytest.raises(ValueError, match="the plan ended after its 12 steps; train for 12 steps, or say what follows"):
            list(loader)
        loader.set_epoch(1)
        assert len(loader) == 5
        assert rows_of(loader, data) == picks[5:10]

    def test_a_state_in_mid_epoch_resumes_its_epoch_and_the_later_ones(self, tmp_path, data):
        plan, picks = recorded(tmp_path, data)
        for stop in range(1, 13):
            loader = plan.loader(make_loader(data), steps_per_epoch=4)
            seen = 0
            while seen < stop:
                for _ in loader:
                    seen += 1
                    if seen == stop:
                        state = loader.state_dict()
                        break
            again = plan.loader(make_loader(data), steps_per_epoch=4)
            again.load_state_dict(state)
            again.set_epoch(state["epoch"])  # as frameworks do
            rest = [rows_of(again, data) for _ in range(3 - state["epoch"])]
            assert [pick for epoch in rest for pick in epoch] == picks[stop:]

    def test_an_epoch_left_early_begins_again(self, tmp_path, data):
        plan, picks = recorded(tmp_path, data)
        loader = plan.loader(make_loader(data))
        next(iter(loader))
        assert rows_of(loader, data) == picks

    def test_another_batch_size_cuts_the_recorded_order(self, tmp_path, data):
        plan, picks = recorded(tmp_path, data)
        flat = [i for step in picks for i in step]
        got = rows_of(plan.loader(make_loader(data, batch_size=20)), data)
        assert got == [flat[i : i + 20] for i in range(0, 96, 20)]

    def test_a_short_step_is_replayed_as_recorded(self, tmp_path, data):
        plan = plan_of(tmp_path, [[1, 2, 3], [4, 5], [6, 7, 8]])
        assert list(plan.batch_sampler(data)) == [[1, 2, 3], [4, 5], [6, 7, 8]]
        assert list(plan.batch_sampler(data, batch_size=4)) == [[1, 2, 3, 4], [5, 6, 7, 8]]

    def test_a_part_of_the_data_is_replayed_by_its_own_positions(self, tmp_path, data):
        part = IndexedSubset(data, torch.randperm(N)[:80])
        selector = build_selector("uniform", make_loader(part), None, keep=0.5)
        with PlanRecorder(tmp_path / "part.plan").attach(selector) as recorder:
            picks = [selector.last.index.tolist() for _ in selector]
        assert rows_of(recorder.plan.loader(make_loader(part)), data) == picks
        assert rows_of(recorder.plan.loader(make_loader(data)), data) == picks  # the whole has the same indices
        other = IndexedSubset(data, [i for i in range(N) if i != picks[0][0]])
        with pytest.raises(ValueError, match=r"step 0 of the plan has examples that these data lack: \[" + str(picks[0][0])):
            list(recorder.plan.loader(make_loader(other)))

    def test_ranks_share_the_examples_of_each_step(self, tmp_path, data):
        plan, picks = recorded(tmp_path, data)
        shares = [rows_of(plan.loader(make_loader(data, batch_size=4), rank=rank, world_size=2), data) for rank in (0, 1)]
        for one, other, step in zip(*shares, picks, strict=True):
            assert len(one) == len(other) == 4
            assert sorted(one + other) == sorted(step)

    def test_every_rank_has_a_batch_in_every_step(self, tmp_path, data):
        plan = plan_of(tmp_path, [[1, 2, 3], [4]])
        assert [list(plan.batch_sampler(data, rank=rank, world_size=2)) for rank in (0, 1)] == [[[1, 3], [4]], [[2], [4]]]


class TestAfterTheEnd:
    def test_repeat(self, tmp_path, data):
        plan = plan_of(tmp_path, [[1, 2], [3, 4], [5, 6]])
        sampler = plan.batch_sampler(data, then="repeat", steps_per_epoch=4)
        assert [list(sampler), list(sampler)] == [[[1, 2], [3, 4], [5, 6], [1, 2]], [[3, 4], [5, 6], [1, 2], [3, 4]]]

    def test_another_loader(self, tmp_path, data):
        plan = plan_of(tmp_path, [[1, 2], [3, 4]])
        after = DataLoader(data, batch_size=40, shuffle=True)
        sampler = plan.batch_sampler(data, then=after)
        assert list(sampler) == [[1, 2], [3, 4]]
        assert len(sampler) == 3
        first, second = list(sampler), list(sampler)
        assert sorted(i for batch in first for i in batch) == list(range(N))
        assert first != second

    @pytest.mark.parametrize("generator", [None, torch.Generator()])
    def test_what_follows_resumes_exactly_and_moves_no_random_state(self, tmp_path, data, generator):
        plan = plan_of(tmp_path, [[1, 2], [3, 4]])
        make = lambda: plan.batch_sampler(  # noqa: E731
            data, then=DataLoader(data, batch_size=40, shuffle=True, generator=generator), steps_per_epoch=3
        )
        state = torch.get_rng_state()
        sampler, batches = make(), []
        for _ in range(4):
            batches += list(sampler)
        assert torch.equal(torch.get_rng_state(), state)
        for stop in (1, 2, 3, 7, 11):
            again, rest = make(), []
            again.load_state_dict({"epoch": stop // 3, "step": stop})
            for _ in range(4 - stop // 3):
                rest += list(again)
            assert rest == batches[stop:]

    def test_uniform_below_the_gate(self, tmp_path, data):
        losses = torch.zeros(N)
        losses[::3] = 5.0
        gated = GatedUniformSelector(make_loader(data), None, IrreducibleLossStore(losses), max_irreducible_loss=1.0)
        plan = plan_of(tmp_path, [[1, 2], [3, 4]])
        sampler = plan.batch_sampler(data, then=gated)
        list(sampler)
        first, second = list(sampler), list(sampler)
        assert {i % 3 for batch in first + second for i in batch} == {1, 2}
        assert [len(batch) for batch in first] == [8, 8]  # of 80 and of the last 16 candidates
        assert first != second
        sampler.set_epoch(1)
        assert list(sampler) == first

    def test_a_selector_that_follows_tells_its_listeners_nothing(self, tmp_path, data):
        heard = []
        selector = build_selector("uniform", make_loader(data), None, keep=0.5)
        selector.listeners.append(lambda *selected: heard.append(selected))
        sampler = plan_of(tmp_path, [[1, 2]]).batch_sampler(data, then=selector)
        assert len(list(sampler) + list(sampler)) > 1
        assert not heard

    def test_a_loader_without_batches_cannot_follow(self, tmp_path, data):
        plan = plan_of(tmp_path, [[1, 2]])
        with pytest.raises(ValueError, match="then must yield batches, got a loader without any; give it more examples"):
            plan.batch_sampler(data, then=DataLoader(data, batch_size=N + 1, drop_last=True))

    def test_a_selector_that_scores_is_refused(self, tmp_path, data):
        plan = plan_of(tmp_path, [[1, 2]])
        scoring = build_selector("train_loss", make_loader(data), make_net(0), keep=0.5)
        with pytest.raises(TypeError, match="TrainLossSelector scores candidates .* which a batch sampler cannot: iterate it"):
            plan.batch_sampler(data, then=scoring)
        with pytest.raises(TypeError, match="then must be 'stop', 'repeat', a DataLoader over the same dataset"):
            plan.batch_sampler(data, then="go on")
        with pytest.raises(ValueError, match="then must draw from the data of the plan, 96 examples, got a dataset of 5"):
            plan.batch_sampler(data, then=DataLoader(range(5), batch_size=2))


class TestRefusals:
    def test_other_data(self, tmp_path, data):
        plan, _ = recorded(tmp_path, data)
        x, y = data.tensors
        for other, why in (
            (TensorDataset(x[:50], y[:50]), "it has 50 examples, and that had 96"),
            (TensorDataset(x.flip(0), y.flip(0)), "its labels, in their order"),
            (TensorDataset(x, (y + 1) % CLASSES), "its labels, in their order"),
        ):
            with pytest.raises(ValueError, match="this plan was recorded over other data.*" + why):
                plan.loader(make_loader(other))
            assert len(plan.loader(make_loader(other), check=False)) == 12

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ({"batch_size": 0}, "batch_size must be a whole number, at least 1, got 0"),
            ({"batch_size": 2.5}, "batch_size must be a whole number"),
            ({"steps_per_epoch": 0}, "steps_per_epoch must be a whole number, at least 1"),
            ({"start": -1}, "start must be a whole number, at least 0"),
            ({"start": 13}, "start must be at most the 12 steps of the plan, got 13"),
            ({"rank": 2, "world_size": 2}, "rank must be from 0 to world_size - 1 = 1, got 2"),
            ({"world_size": 0}, "world_size must be a whole number, at least 1"),
            ({"world_size": "2"}, "world_size must be a whole number, at least 1"),
        ],
    )
    def test_arguments(self, tmp_path, data, how, message):
        plan, _ = recorded(tmp_path, data)
        with pytest.raises(ValueError, match=message):
            plan.loader(make_loader(data), **how)

    def test_loaders_without_an_index(self, tmp_path, data):
        plan, _ = recorded(tmp_path, data)
        with pytest.raises(TypeError, match="a plan replays a DataLoader over a map-style dataset, got list"):
            plan.loader([1, 2])

    @pytest.mark.parametrize("state", [{}, {"epoch": 0}, {"epoch": "a", "step": 0}, {"epoch": 0, "step": 99}, None])
    def test_a_state_of_something_else_changes_nothing(self, tmp_path, data, state):
        plan, picks = recorded(tmp_path, data)
        loader = plan.loader(make_loader(data), start=3)
        with pytest.raises(ValueError, match="this state cannot be loaded"):
            loader.load_state_dict(state)
        assert rows_of(loader, data) == picks[3:]

    def test_a_file_of_something_else(self, tmp_path):
        (tmp_path / "text").write_text("hello")
        np.savez(tmp_path / "other.npz", header=np.array("{}"))
        for name in ("text", "other.npz"):
            with pytest.raises(ValueError, match="is not a plan that can be read .*copy it again, or record again"):
                SelectionPlan.load(tmp_path / name)
        with pytest.raises(FileNotFoundError):
            SelectionPlan.load(tmp_path / "none")

    def test_a_newer_format_asks_for_an_upgrade(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plan_file, "FORMAT", 2)
        plan_of_newer = lambda: plan_of(tmp_path, [[1]])  # noqa: E731
        plan_of_newer()
        monkeypatch.setattr(plan_file, "FORMAT", 1)
        with pytest.raises(ValueError, match="has plan format 2, this rholoss reads up to 1; upgrade rholoss"):
            SelectionPlan.load(tmp_path / "made.plan")

    def test_a_damaged_plan_yields_no_wrong_number(self, tmp_path, data, monkeypatch):
        monkeypatch.setattr(plan_file, "BLOCK", 32)
        plan, picks = recorded(tmp_path, data, scores=True)
        right = picks, [plan.scores(step) for step in range(12)], plan.meta
        whole = (tmp_path / "run.plan").read_bytes()
        flips, refused = random.Random(0), 0
        for _ in range(400):
            bit = flips.randrange(8 * len(whole))
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << (bit % 8)
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                read = SelectionPlan.load(tmp_path / "damaged")
                got = [step.tolist() for step in read], [read.scores(step) for step in range(12)], read.meta
            except ValueError:
                refused += 1
                continue
            assert got[0] == right[0]
            assert all(map(torch.equal, got[1], right[1]))
            assert got[2] == right[2]
        assert refused > 200
        for end in (0, 10, len(whole) // 2, len(whole) - 1):
            (tmp_path / "damaged").write_bytes(whole[:end])
            with pytest.raises(ValueError, match="is not a plan that can be read"):
                SelectionPlan.load(tmp_path / "damaged")


class TestLookingAtIt:
    def test_numbers(self, tmp_path):
        plan = plan_of(tmp_path, [[1, 2], [2, 3], [2, 5]], n=10)
        assert plan.counts().tolist() == [0, 1, 3, 1, 0, 1, 0, 0, 0, 0]
        assert plan.summary() == {"steps": 3, "selections": 6, "used": 0.4, "repeats": 1.5, "most": 3}
        flags = {"odd": torch.arange(10) % 2 == 1}
        assert plan.over_time(flags, every=2) == [
            {"step": 0, "repeated": 0.25, "odd": 0.5},
            {"step": 2, "repeated": 0.5, "odd": 0.5},
        ]
        with pytest.raises(ValueError, match=r"flag 'odd' must be one bool per example, shape \(10,\), got \(3,\)"):
            plan.over_time({"odd": torch.ones(3, dtype=torch.bool)})

    def test_agreement(self, tmp_path):
        one = plan_of(tmp_path, [[1, 2], [3, 4]], n=10, name="a")
        assert one.agreement(one) == {"selections": 1, "examples": 1}
        other = plan_of(tmp_path, [[1, 2], [1, 6]], n=10, name="b")
        assert one.agreement(other) == {"selections": 0.5, "examples": 0.4}
        with pytest.raises(ValueError, match="these plans are of different data"):
            one.agreement(plan_of(tmp_path, [[1]], n=11, name="c"))

    def test_a_weighted_subset(self, tmp_path):
        plan = plan_of(tmp_path, [[1, 2], [2, 3], [2, 3]], n=10)
        index, weights = plan.subset()
        assert index.tolist() == [1, 2, 3]
        assert weights.tolist() == [0.5, 1.5, 1.0]
        assert plan.subset(2)[0].tolist() == [2, 3]

    def test_parquet(self, tmp_path):
        table = pytest.importorskip("pyarrow.parquet")
        plan = plan_of(tmp_path, [[1, 2], [2, 3], [7]], n=10)
        plan.to_parquet(tmp_path / "plan.parquet")
        read = table.read_table(tmp_path / "plan.parquet").to_pydict()
        assert read == {"step": [0, 0, 1, 1, 2], "position": [0, 1, 0, 1, 0], "index": [1, 2, 2, 3, 7]}

    def test_a_step_beyond_the_end(self, tmp_path):
        with pytest.raises(IndexError, match="expected a step from 0 to 0, got 1"):
            plan_of(tmp_path, [[1]])[1]

    def test_indices_beyond_32_bits(self, tmp_path):
        data = {"length": 1 << 40, "labels": None, "sample": {}}
        write_plan(tmp_path / "big", {"index": np.array([1 << 39, 3]), "ends": np.array([2])}, {"data": data, "n_b": 2})
        assert SelectionPlan.load(tmp_path / "big")[0].tolist() == [1 << 39, 3]

    def test_a_block_is_read_only_when_it_is_needed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plan_file, "BLOCK", 4)
        plan = plan_of(tmp_path, [[i, i + 1] for i in range(10)])
        with zipfile.ZipFile(tmp_path / "made.plan") as archive:
            offset = archive.getinfo("index.npy").header_offset
        content = bytearray((tmp_path / "made.plan").read_bytes())
        name, extra = struct.unpack("<HH", content[offset + 26 : offset + 30])
        rows = offset + 30 + name + extra + len(npy_header(np.zeros(20, "<u4")))
        content[rows + 4 * 19] ^= 1  # the last index
        (tmp_path / "made.plan").write_bytes(content)
        plan = SelectionPlan.load(tmp_path / "made.plan")
        assert plan[0].tolist() == [0, 1]
        with pytest.raises(ValueError, match="the plan's column 'index' is damaged from row 16 on; copy the file again"):
            plan[9]


def npy_header(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()[: -array.nbytes]


class TestRecordPlan:
    def make(self, data, path, steps=20, **how):
        store = IrreducibleLossStore(torch.rand(N, generator=torch.Generator().manual_seed(1)))
        proxy = how.pop("proxy", None) or make_net(0)
        how = {"progress": False, **how}
        return record_plan(make_loader(data), proxy, store, steps=steps, path=path, keep=0.5, **how)

    def test_it_records_so_many_steps_and_moves_no_random_state(self, tmp_path, data):
        states = random.getstate(), torch.get_rng_state()
        plan = self.make(data, tmp_path / "a.plan")
        assert plan.steps == 20
        assert random.getstate() == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])

    @pytest.mark.parametrize(("options", "n_B"), [({}, 32), ({"keep": None}, 32), ({"keep": 0.5}, 16), ({"batch_size": 2}, 8)])
    def test_a_quarter_is_kept_unless_told_otherwise(self, tmp_path, data, options, n_B):
        store = IrreducibleLossStore(torch.rand(N))
        plan = record_plan(make_loader(data), make_net(0), store, steps=2, path=tmp_path / "a.plan", progress=False, **options)
        assert plan.meta["n_B"] == n_B

    def test_the_plan_depends_on_the_seed_alone(self, tmp_path, data):
        torch.manual_seed(1)
        self.make(data, tmp_path / "a.plan")
        torch.manual_seed(2)
        self.make(data, tmp_path / "b.plan")
        self.make(data, tmp_path / "c.plan", seed=1)
        content = [(tmp_path / f"{name}.plan").read_bytes() for name in "abc"]
        assert content[0] == content[1] != content[2]

    def test_a_killed_recording_resumes_to_the_same_bytes(self, tmp_path, data, monkeypatch):
        monkeypatch.setattr("rholoss.plans.proxy_run._SAVE_EVERY", 6)
        self.make(data, tmp_path / "whole.plan", 30)
        for stop in (3, 8, 14, 29):

            def killed(done, total, stop=stop):
                if done == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                self.make(data, tmp_path / f"{stop}.plan", 30, progress=killed)
            self.make(data, tmp_path / f"{stop}.plan", 30)
            assert (tmp_path / f"{stop}.plan").read_bytes() == (tmp_path / "whole.plan").read_bytes()

    def test_a_finished_plan_is_returned(self, tmp_path, data):
        self.make(data, tmp_path / "a.plan")
        before = os.stat(tmp_path / "a.plan").st_mtime_ns
        assert self.make(data, tmp_path / "a.plan").steps == 20
        assert os.stat(tmp_path / "a.plan").st_mtime_ns == before
        with pytest.raises(ValueError, match="holds a plan of 20 steps, not 30; load it, delete it, or choose another path"):
            self.make(data, tmp_path / "a.plan", 30)

    @pytest.mark.parametrize(("change", "message"), [
        ({"proxy": torch.nn.Linear(6, CLASSES)}, "holds a plan with other proxy; load it, delete it"),
        ({"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}, "holds a plan with other optimizer; load it, delete"),
        ({"optimizer": lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=0.01)}, "with other optimizer; load it"),
        ({"seed": 1}, "with other seed"),
    ])  # fmt: skip
    def test_a_plan_of_another_recording_is_not_returned(self, tmp_path, data, change, message):
        self.make(data, tmp_path / "a.plan")
        with pytest.raises(ValueError, match=message):
            self.make(data, tmp_path / "a.plan", **change)

    def test_an_unfinished_recording_of_another_proxy_is_not_resumed(self, tmp_path, data):
        def killed(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.make(data, tmp_path / "a.plan", progress=killed)
        with pytest.raises(ValueError, match="this recording was begun with other proxy; resume it as it was, or delete"):
            self.make(data, tmp_path / "a.plan", proxy=torch.nn.Linear(6, CLASSES))
        with pytest.warns(UserWarning, match="other initial weights than the one that was recorded: the recording in .* resumed"):
            self.make(data, tmp_path / "a.plan", proxy=make_net(1))

    def test_other_initial_weights_are_told(self, tmp_path, data):
        plan, proxy = self.make(data, tmp_path / "a.plan"), make_net(1)
        before = [weight.clone() for weight in proxy.parameters()]
        with pytest.warns(UserWarning, match="other initial weights than the one that was recorded: the plan in .* is returned"):
            assert self.make(data, tmp_path / "a.plan", proxy=proxy).agreement(plan)["selections"] == 1
        assert all(map(torch.equal, before, proxy.parameters()))

    @pytest.mark.parametrize(("change", "message"), [
        ({"proxy": make_net(0).requires_grad_(False)}, "proxy must be a model to train, but all its parameters are frozen"),
        ({"proxy": torch.nn.Flatten()}, "proxy must be a model to train, a torch.nn.Module with parameters, got Flatten"),
        ({"forward": lambda model, batch: (model(batch[0]).detach(), batch[1])}, "proxy's loss has no gradient to train it by"),
        ({"optimizer": lambda p: torch.optim.SGD(make_net(1).parameters(), 0.1)}, "trains none of the model's parameters"),
        ({"lr": 0.1}, r"record_plan got an unexpected option lr=; did you mean optimizer=\?"),
        ({"epochs": 2}, r"record_plan got an unexpected option epochs=; did you mean steps=\?"),
    ])  # fmt: skip
    def test_what_cannot_be_recorded_leaves_nothing_behind(self, tmp_path, data, change, message):
        with pytest.raises((TypeError, ValueError), match=message):
            self.make(data, tmp_path / "a.plan", **change)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_is_no_path(self, tmp_path, data):
        with pytest.raises(ValueError, match="path must be a file to write, got the folder .*; name a file in it"):
            self.make(data, tmp_path)
        self.make(data, tmp_path / "new" / "a.plan")

    def test_bad_arguments(self, tmp_path, data):
        for steps in (0, -1, 2.5, True):
            with pytest.raises(ValueError, match="steps must be a number of steps to record, at least 1"):
                self.make(data, tmp_path / "a.plan", steps)

    def test_a_loader_without_batches_says_so(self, tmp_path, data):
        store = IrreducibleLossStore(torch.rand(N))
        loader = DataLoader(IndexedSubset(data, range(5)), batch_size=8, drop_last=True)
        with pytest.raises(ValueError, match="the loader yields no batches to select from; give it more examples"):
            record_plan(loader, make_net(0), store, steps=3, path=tmp_path / "a.plan", keep=0.5)


class TestCommandLine:
    def test_a_plan_is_summed_up_compared_drawn_and_exported(self, tmp_path, capsys, monkeypatch):
        one, other = plan_of(tmp_path, [[1, 2], [2, 3]], n=10, name="a"), plan_of(tmp_path, [[1, 2], [1, 6]], n=10, name="b")
        assert (one.steps, other.steps) == (2, 2)
        monkeypatch.chdir(tmp_path)
        assert main(["plan", "a", "--other", "b", "--plot", "a.png"]) == 0
        printed = capsys.readouterr().out
        assert "a: 2 steps of 2, recorded by an unknown method" in printed
        assert "selections: 4, of 30.0% of 10 examples; 1.3 of each on average, 2 at most" in printed
        assert "in common with b: 50.0% of the selections, 50.0% of the examples" in printed
        assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"

    def test_a_plan_is_written_as_a_table(self, tmp_path, monkeypatch):
        pytest.importorskip("pyarrow")
        plan_of(tmp_path, [[1, 2]], n=10, name="a")
        monkeypatch.chdir(tmp_path)
        assert main(["plan", "a", "--parquet", "a.parquet"]) == 0
        assert (tmp_path / "a.parquet").exists()

    def test_other_data_are_refused(self, tmp_path, capsys, monkeypatch):
        plan_of(tmp_path, [[1, 2]], n=10, name="a")
        (tmp_path / "of_mine.py").write_text("data = list(range(11))")
        monkeypatch.chdir(tmp_path)
        assert main(["plan", "a", "--data", "of_mine:data"]) == 1
        printed = capsys.readouterr().err
        assert "a was recorded over other data than of_mine:data: it has 11 examples, and that had 10; name those" in printed
        assert "check=" not in printed
