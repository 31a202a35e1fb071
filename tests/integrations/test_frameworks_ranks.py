"""Frameworks on two processes: candidates are dealt out, a run is that of a plain loop with DDP, and is resumed exactly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from framework_rank_runs import EPOCHS, N_B, SAVED_AT, WORLD, N, dealt, n_b, permutation
from torch.utils.data import DataLoader

DONE = {}


@pytest.fixture
def ran(tmp_path_factory):
    """What each rank saw in a run: ``ran("accelerate_trains")`` is a list by rank."""

    def by_rank(run):
        framework = {"fabric": "lightning"}.get(name := run.split("_")[0], name)
        for package in (framework, "accelerate") if framework == "transformers" else (framework,):
            pytest.importorskip(package)
        if framework not in DONE:
            folder = tmp_path_factory.mktemp(framework)
            command = [sys.executable, str(Path(__file__).parents[1] / "framework_rank_runs.py"), framework, str(folder)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
            assert done.returncode == 0, done.stderr[-4000:]
            parts = [
                [torch.load(folder / f"{part}-{rank}.pt", weights_only=False) for part in ("whole", "resumed")]
                for rank in range(WORLD)
            ]
            DONE[framework] = [{**whole, **resumed} for whole, resumed in parts]
        return [seen[run] for seen in DONE[framework]]

    return by_rank


def same(one, other):
    """Whether two runs of a rank chose alike and ended alike."""
    assert one.seen == other.seen
    assert len(one.seen) >= 2 * EPOCHS
    torch.testing.assert_close(one.weights, other.weights)


def goes_on(rest, whole):
    assert rest.seen == whole.seen[-len(rest.seen) :]
    assert rest.epochs == whole.epochs[-len(rest.seen) :]
    assert len(rest.seen) == len(whole.seen) - SAVED_AT
    assert all(map(torch.equal, rest.weights, whole.weights))


def in_rounds(by_rank):
    """Candidates in the order in which they were dealt."""
    return [index for batches in zip(*by_rank, strict=True) for batch in batches for index in batch]


class TestAccelerate:
    @pytest.mark.parametrize("way", ["default", "dropped", "dispatched"])
    def test_deals_what_the_whole_loader_would_draw(self, ran, way):
        loader = DataLoader(range(N), shuffle=True, generator=torch.Generator().manual_seed(3))
        orders = [[int(index) for index in (loader.sampler if way == "dispatched" else loader)] for _ in range(2)]
        ranks = [run[way] for run in ran("accelerate_deals")]
        for epoch, order in enumerate(orders):
            if way == "dispatched":  # rank 0 draws for all and cuts the last round in two
                assert in_rounds([epochs[epoch] for epochs, _ in ranks]) == order
                continue
            whole = order[: N // (WORLD * N_B) * WORLD * N_B] if way == "dropped" else order
            assert [epochs[epoch] for epochs, _ in ranks] == dealt(whole)
        assert {length for _, length in ranks} == {len(epochs[0]) for epochs, _ in ranks}

    @pytest.mark.parametrize("way", ["seedable", "stateful"])
    def test_deals_every_example_in_each_order_of_its_seedable_sampler(self, ran, way):
        ranks = [run[way][0] for run in ran("accelerate_deals")]
        for epoch in range(2):
            assert [epochs[epoch] for epochs in ranks] == dealt(permutation(3 + epoch))

    def test_deals_unevenly_only_where_it_is_told_to(self, ran):
        ranks = [run["uneven"][0] for run in ran("accelerate_deals")]
        for epoch in range(2):
            shares = [epochs[epoch] for epochs in ranks]
            assert [len(share) for share in shares] == [3, 2]
            assert sorted(index for share in shares for batch in share for index in batch) == list(range(N))

    def test_that_splits_batches_is_told_to_select_from_them(self, ran):
        for message, selected, seen in ran("accelerate_split"):
            assert "pass batch_size= to select from the batches that come" in message
            assert {len(candidates) for _, candidates in seen} == {n_b // WORLD}
            assert set(selected) == {2}

    def test_brings_a_stream_to_each_rank_with_its_indices(self, ran):
        for way in zip(*ran("accelerate_streams"), strict=True):
            first, second = ([index for index, _ in batches] for batches in way)
            assert in_rounds([first, second])[:80] == list(range(80))
            assert len(first) == len(second) == 3
            assert all(is_right for batches in way for _, is_right in batches)

    def test_trains_on_what_a_plain_loop_with_ddp_trains_on(self, ran):
        for mine, (plain, _) in zip(ran("accelerate_trains"), ran("accelerate_by_ddp"), strict=True):
            same(mine, plain)

    def test_lets_all_ranks_choose_together(self, ran):
        for mine, (alone, plain) in zip(ran("accelerate_trains_globally"), ran("accelerate_by_ddp"), strict=True):
            same(mine, plain)
            assert mine.seen != alone.seen

    @pytest.mark.parametrize(
        ("way", "run"),
        [
            ("each", "accelerate_trains"),
            ("each, global", "accelerate_trains_globally"),
            ("rank 0", "accelerate_keeps_rank_0"),
        ],
    )
    def test_resumes_from_its_checkpoint(self, ran, way, run):
        for rest, whole in zip(ran("accelerate_resumes"), ran(run), strict=True):
            goes_on(rest[way], whole)

    def test_scores_without_a_word_to_ranks_that_have_joined(self, ran):
        first, second = ran("accelerate_joins")
        assert [len(first.seen), len(second.seen)] == [3, 2]
        assert all(map(torch.equal, first.weights, second.weights))


class TestTransformers:
    def test_trains_on_what_a_plain_loop_with_ddp_trains_on(self, ran):
        first, second = (run[0] for run in ran("transformers_trains"))
        assert all(map(torch.equal, first.weights, second.weights))
        for mine, (plain, _) in zip((first, second), ran("transformers_by_ddp"), strict=True):
            same(mine, plain)

    def test_counts_and_saves_for_all_ranks(self, ran):
        for _, n, files in ran("transformers_trains"):
            assert n == 3 * n_b * WORLD
            assert {"selector_0.pt", "selector_1.pt"} < set(files)

    def test_chooses_the_same_with_evaluations_in_between(self, ran):
        for seen, (whole, *_) in zip(ran("transformers_evaluates"), ran("transformers_trains"), strict=True):
            assert seen == whole.seen

    def test_lets_all_ranks_choose_together(self, ran):
        for mine, (alone, plain) in zip(ran("transformers_trains_globally"), ran("transformers_by_ddp"), strict=True):
            same(mine, plain)
            assert mine.seen != alone.seen

    @pytest.mark.parametrize("name", ["saved", "global", "stream"])
    def test_resumes_from_its_checkpoint(self, ran, name):
        runs = {"saved": "transformers_trains", "global": "transformers_trains_globally", "stream": "transformers_streams"}
        for rest, whole in zip(ran("transformers_resumes"), ran(runs[name]), strict=True):
            goes_on(rest[name], whole[0] if isinstance(whole, tuple) else whole)

    def test_deals_a_stream_in_turn(self, ran):
        shares = [[candidates for _, candidates in run.seen] for run in ran("transformers_streams")]
        for epoch in range(3):
            assert in_rounds([share[3 * epoch : 3 * epoch + 3] for share in shares])[:80] == list(range(80))

    def test_refuses_a_checkpoint_of_the_model_alone(self, ran):
        for rank, message in enumerate(ran("transformers_saves_only_the_model")):
            assert "holds no state of a selector" in message
            assert f"selector_{rank}.pt" in message

    def test_selects_from_fewer_where_batches_do_not_fit(self, ran):
        for run, fits, n in ran("transformers_shrinks"):
            assert fits < n_b
            assert {len(index) for index, _ in run.seen} == {fits}
            assert {len(candidates) for _, candidates in run.seen} == {n}


class TestLightning:
    @pytest.mark.parametrize("run", ["lightning_trains", "fabric_trains"])
    def test_trains_on_what_a_plain_loop_with_ddp_trains_on(self, ran, run):
        for mine, (plain, _) in zip(ran(run), ran("lightning_by_ddp"), strict=True):
            same(mine if run == "lightning_trains" else mine[0], plain)

    def test_lets_all_ranks_choose_together(self, ran):
        for mine, (alone, plain) in zip(ran("lightning_trains_globally"), ran("lightning_by_ddp"), strict=True):
            same(mine, plain)
            assert mine.seen != alone.seen

    def test_resumes_from_its_checkpoint(self, ran):
        for rest, whole in zip(ran("lightning_resumes"), ran("lightning_trains"), strict=True):
            goes_on(rest, whole)

    def test_fabric_reads_candidates_and_selects_in_the_step(self, ran):
        (first, _), (second, _) = ran("fabric_selects_in_the_step")
        assert all(map(torch.equal, first.weights, second.weights))
        for mine, (plain, _) in zip((first, second), ran("lightning_by_ddp"), strict=True):
            assert mine.seen[:2] == plain.seen[:2]  # the third candidate batch of the epoch is short, and left out here
            assert len(mine.seen) == 2 * EPOCHS

    def test_a_loader_that_fabric_has_set_up_is_refused(self, ran):
        for _, refused in ran("fabric_trains"):
            assert "without fabric.setup_dataloaders" in refused
