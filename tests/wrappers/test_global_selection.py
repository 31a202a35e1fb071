"""Several processes: the ranks together choose what one process with all of their candidates chooses."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rank_runs
import torch
from rank_runs import BIG, N_B, STEPS, N, coarse, data, loader, net, rich_batch, store
from torch import nn

from rholoss import IndexedBatches, RhoLossSelector, functional, selector_names
from rholoss.candidates import Candidates
from rholoss.diagnostics import SelectionLog
from rholoss.isolation import derived_seed
from rholoss.selectors import UniformSelector
from rholoss.wrappers import GlobalSelector
from rholoss.wrappers.row_exchange import Share

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What each rank saw: ``ran(world, run)`` is a list by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "error::UserWarning:rholoss", str(Path(__file__).parents[1] / "rank_runs.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    return lambda world, run, name=None: [
        torch.load(folder / f"{name or world}-{rank}.pt", weights_only=False)[run] for rank in range(1 if name else world)
    ]


def sharing(chosen, sizes):
    """Who trains on what, one row after the other: for each rank positions in the candidates of all ranks, ascending."""
    n_b, owner = len(chosen) // len(sizes), [rank for rank, size in enumerate(sizes) for _ in range(size)]
    shares, left_over = [[] for _ in sizes], []
    for position in chosen:
        mine = shares[owner[position]]
        (mine if len(mine) < n_b else left_over).append(position)
    for share in shares:
        while len(share) < n_b:
            share.append(left_over.pop(0))
    return [sorted(share) for share in shares]


def best(scores, n):
    """The n highest scores, of equal ones the first, in their order."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n])


class TestTheChoice:
    @pytest.mark.parametrize(
        ("world", "run", "ranks"), [(2, "choices", [0, 1]), (4, "choices", [0, 1, 2, 3]), (4, "halves", [2, 3])]
    )
    def test_is_that_of_one_process_with_the_candidates_of_all_ranks(self, ran, world, run, ranks):
        seen, moved = [ran(world, run)[rank] for rank in ranks], 0
        for step in range(STEPS):
            index = [rich_batch(rank, step)[0] for rank in ranks]
            union, sizes = torch.cat(index), [len(each) for each in index]
            chosen = best(coarse(union).bfloat16().tolist(), N_B * len(ranks))
            for place, share in enumerate(sharing(chosen, sizes)):
                selection = seen[place][step][0]
                assert selection.index.tolist() == union[share].tolist()
                first = sum(sizes[:place])
                own = range(first, first + sizes[place])
                assert selection.positions.tolist() == [position - first for position in chosen if position in own]
                assert selection.notes["from_elsewhere"] == len([position for position in share if position not in own])
                assert selection.notes["highest"] == coarse(union).max()
                moved += int(selection.notes["from_elsewhere"])
        assert moved > STEPS
        assert max(selection.index.max() for selection, _ in seen[0]) > BIG

    @pytest.mark.parametrize("world", [2, 4])
    def test_brings_every_column_of_a_batch_along(self, ran, world):
        for rank, steps in enumerate(ran(world, "choices")):
            for selection, batch in steps:
                index = selection.index
                names = [f"example {i}" for i in index.tolist()]
                assert list(batch) == list(rich_batch(rank, 0)[1])
                assert batch["id"].equal(index)
                assert batch["image"].equal((index[:, None, None] + torch.arange(6).view(2, 3)).double())
                assert type(batch["pair"]) is rank_runs.Pair
                assert batch["pair"].half.equal((index % 64).half())
                assert batch["pair"].flags.equal(index % 3 == 0)
                assert batch["nothing"].shape == (N_B, 0)
                assert batch["text"] == names
                assert batch["array"].tolist() == names
                assert batch["numbers"].dtype == np.int16
                assert batch["numbers"].tolist() == (index % 100).tolist()
                assert [len(box["box"]) for box in batch["boxes"]] == (index % 3).tolist()
                assert batch["task"] == "toy"

    def test_of_everything_is_plain_training(self, ran):
        for chosen, plain, is_same in ran(2, "everything"):
            assert is_same
            assert len(chosen) == len(plain) > 5
            for (x, y), (plain_x, plain_y) in zip(chosen, plain, strict=True):
                assert x.equal(plain_x)
                assert y.equal(plain_y)

    @pytest.mark.parametrize("name", ["boltzmann", "importance", "switch"])
    def test_is_drawn_from_one_seed_with_weights_or_without(self, ran, name):
        seen, model = [run[name] for run in ran(2, "draws")], net()
        for step, ranks in enumerate(zip(*seen, strict=True)):
            selections = [selection for selection, _ in ranks]
            index, scores = (torch.cat([getattr(s, field) for s in selections]) for field in ("candidate_index", "scores"))
            sizes = [len(selection.scores) for selection in selections]
            method = getattr(rank_runs, name)(loader(0, 2), model)
            n, generator = 2 * min(N_B, sum(sizes) // 2), torch.Generator().manual_seed(derived_seed("ranks", 5, step))
            everyones = Candidates(index, None, model, method.scorer, torch.device("cpu"), (step, 0), generator)
            assert len({float(score) for score in scores}) == len(scores)
            chosen, weights = method.choose(everyones, scores.float(), n)
            weights = None if weights is None else dict(zip(chosen.tolist(), weights.tolist(), strict=True))
            for selection, share in zip(selections, sharing(chosen.tolist(), sizes), strict=True):
                assert selection.index.tolist() == index[share].tolist()
                assert (selection.weights is None) == (weights is None)
                if weights:
                    assert selection.weights.tolist() == [weights[position] for position in share]

    def test_is_shared_out_evenly_and_moves_no_row_that_can_stay(self):
        generator = random.Random(0)
        for _ in range(200):
            sizes = [generator.randint(1, 6) for _ in range(generator.randint(1, 5))]
            n_b = generator.randint(1, sum(sizes) // len(sizes))
            chosen = sorted(generator.sample(range(sum(sizes)), n_b * len(sizes)))
            if generator.random() < 0.3:  # draws may repeat
                chosen = sorted(generator.choices(range(sum(sizes)), k=n_b * len(sizes)))
            shares = [Share.of(rank, torch.tensor(chosen), sizes) for rank in range(len(sizes))]
            assert [[chosen[i] for i in share.mine] for share in shares] == sharing(chosen, sizes)
            for rank, share in enumerate(shares):
                assert share.received == [len(other.sent[rank]) for other in shares]
                first = sum(sizes[:rank])
                arrived = [p + sum(sizes[:r]) for r, other in enumerate(shares) for p in other.sent[rank].tolist()]
                assert arrived == [chosen[i] for i in share.mine]
                assert share.own.tolist() == [p - first for p in chosen if first <= p < first + sizes[rank]]
                assert share.is_local == all(len(other.sent[r]) == n_b for r, other in enumerate(shares))


class TestTraining:
    @pytest.mark.parametrize("world", [2, 4])
    def test_on_several_ranks_is_that_of_one_process_with_their_candidates(self, ran, world):
        model, chosen = net(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for epoch in range(3):
            ranks = [loader(rank, world, batch_size=4 * N_B) for rank in range(world)]
            for each in ranks:
                each.sampler.set_epoch(epoch)
            rows = {tuple(x.tolist()): i for i, (x, _) in enumerate(data())}
            together = [[torch.cat(column) for column in zip(*parts, strict=True)] for parts in zip(*ranks, strict=True)]
            pairs = [(torch.tensor([rows[tuple(row)] for row in x.tolist()]), (x, y)) for x, y in together]
            batches = IndexedBatches(pairs)
            selector = RhoLossSelector(batches, model, store(), batch_size=world * N_B)
            for x, y in selector:
                whole = len(y) // world * world  # what is left over at the end of an epoch scores lowest
                if whole < len(y):
                    keep = functional.top(selector.last.scores, whole)
                    x, y = pairs[-1][1][0][keep], pairs[-1][1][1][keep]
                    chosen.append(sorted(pairs[-1][0][keep].tolist()))
                else:
                    chosen.append(sorted(selector.last.index.tolist()))
                rank_runs.step(model, optimizer, nn.functional.cross_entropy(model(x), y, reduction="none"))
        runs = ran(world, "trained")
        assert [sorted(torch.cat(parts).tolist()) for parts in zip(*(run[0] for run in runs), strict=True)] == chosen
        for _, weights in runs:
            for name, value in model.state_dict().items():
                torch.testing.assert_close(weights[name], value)

    def test_with_a_choice_on_each_rank_is_that_of_the_mean_gradient(self, ran):
        model, chosen = net(), [[], []]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        selectors = [RhoLossSelector(loader(rank, 2), model, store(), keep=0.25) for rank in range(2)]
        for epoch in range(3):
            for selector in selectors:
                selector.set_epoch(epoch)
            for batches in zip(*selectors, strict=True):
                losses = [nn.functional.cross_entropy(model(x), y) for x, y in batches]
                rank_runs.step(model, optimizer, torch.stack(losses))
                for mine, selector in zip(chosen, selectors, strict=True):
                    mine.append(selector.last.index.tolist())
        for mine, (seen, weights) in zip(chosen, ran(2, "trained_apart"), strict=True):
            assert [index.tolist() for index in seen] == mine
            for name, value in model.state_dict().items():
                torch.testing.assert_close(weights[name], value)

    def test_resumes_with_the_very_choices(self, ran):
        for rank, ((*_,), message) in enumerate(ran(2, "resumed")):
            assert f"expected that of rank {rank} of 2, got that of rank {1 - rank} of 2; save the state of every rank" in message
        for chosen, _ in ran(2, "resumed"):
            ends = [i for i, each in enumerate(chosen) if isinstance(each, list)]
            assert len(ends) == 2
            for start, end in zip([0, ends[0] + 1], ends, strict=True):
                assert end - start > 1
                assert all(a.equal(b) for a, b in zip(chosen[start:end], chosen[end], strict=True))

    def test_with_sharded_weights_is_that_with_whole_ones(self, ran):
        for (sharded, weights), (whole, expected) in ran(2, "sharded"):
            assert len(sharded) > 2
            assert all(a.equal(b) for a, b in zip(sharded, whole, strict=True))
            for value, other in zip(weights, expected, strict=True):
                torch.testing.assert_close(value, other)

    @pytest.mark.parametrize("world", [2, 4])
    def test_ends_on_all_ranks_when_one_runs_short(self, ran, world):
        for kept, dropped in ran(world, "uneven"):
            short = sum(9 + 2 * rank for rank in range(world - 1)) + 2 + 1  # rank 0 has 2 more in the third step
            assert [len(ids) for ids, _ in kept] == [N_B, N_B, min(N_B, short // world)]
            assert [len(ids) for ids, _ in dropped] == [N_B, N_B]
            assert all(texts == [f"example {i}" for i in ids] for ids, texts in kept)

    def test_where_each_rank_chooses_ends_when_all_have_under_join(self, ran):
        (steps, weights), (others, other) = ran(2, "joined")
        assert (steps, others) == (3, 4)
        assert all(weights[name].equal(other[name]) for name in weights)

    def test_of_a_proxy_along_is_the_same_on_all_ranks(self, ran):
        (_, weights), (_, other) = ran(2, "learns")
        assert all(weights[name].equal(other[name]) for name in weights)
        assert not any(weights[name].equal(value) for name, value in net(2).state_dict().items())


class TestFailure:
    @pytest.mark.parametrize(
        ("what", "own", "others"),
        [
            ("data", "OSError: the disk is gone", "OSError: the disk is gone"),
            (
                "nan",
                r"ValueError: GlobalSelector: the score of 1 of 11 candidates is NaN",
                "ValueError: GlobalSelector: the score of 1",
            ),
            ("choosing", "KeyError: 'no such choice'", "KeyError: 'no such choice'"),
            ("score", "KeyError: 'no such column'", "KeyError: 'no such column'"),
            ("few", "ValueError: cannot choose n_b = 4 of 2 candidates", "ValueError: cannot choose n_b = 4 of 2 candidates"),
        ],
    )
    def test_of_one_rank_is_told_to_the_others(self, ran, what, own, others):
        first, last = (said[what] for said, _ in ran(2, "failures"))
        assert re.match(own, last)
        assert first.startswith(f"RuntimeError: rank 1 failed, and the others stop with it: {others}")

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            (
                "step",
                r"ValueError: step must be the same on every rank, got \[5, 6\]; .* resume them from states of the same step",
            ),
            ("seed", r"ValueError: seed must be the same on every rank, got 0 on rank 0 and 1 on rank 1; build the selector"),
            (
                "ragged",
                r"ValueError: rows of batch\['tokens'\]\['ids'\] must be alike on every rank.*\(7,\) on rank 0.*\(8,\) on rank 1",
            ),
            (
                "fields",
                r"ValueError: batches must have the same fields on every rank, got \[.*'x'.*\] on rank 0, \[.*'y'.*\] on rank 1",
            ),
            ("choices", "ValueError: Headstrong does not choose the same on every rank"),
            ("reads", "ValueError: a choice from the candidates of all ranks uses their scores"),
        ],
    )
    def test_to_fit_together_is_told_by_all_ranks(self, ran, what, message):
        for said, _ in ran(2, "failures"):
            assert re.match(message, said[what])

    def test_leaves_ranks_that_can_go_on_together(self, ran):
        chosen = best(coarse(torch.cat([rich_batch(rank, 0)[0] for rank in range(2)])).tolist(), 2 * N_B)
        index = torch.cat([rich_batch(rank, 0)[0] for rank in range(2)])[chosen]
        assert sorted(torch.cat([ids for _, ids in ran(2, "failures")]).tolist()) == sorted(index.tolist())

    def test_of_a_rank_that_dies_is_an_error_on_the_others(self, ran):
        [(message, seconds)] = ran(2, "dies", name="dies")
        assert message is not None
        assert seconds < 20

    def test_without_a_process_group_says_what_to_call(self, data, net):
        batches = torch.utils.data.DataLoader(data, batch_size=4)
        with pytest.raises(RuntimeError, match="call init_process_group first"):
            GlobalSelector(batches, net, UniformSelector(batches))


class TestUnlikeRanks:
    @pytest.mark.parametrize(
        ("what", "place"),
        [
            ("store", r"parts\[0\]\.store"),
            ("keep", "n_B"),
            ("bounded", r"parts\[0\]\.bounded"),
            ("gate", r"parts\[0\]\.max_irreducible_loss"),
            ("method", "method"),
            ("temperature", r"parts\[0\]\.temperature"),
        ],
    )
    def test_do_not_select_together_and_all_say_what_differs(self, ran, what, place):
        said = [said[what] for said in ran(2, "unlike_selectors")]
        assert said[0] == said[1]
        words = "must be the same on every rank, got .* on rank 0 and .* on rank 1; build the selector of every rank alike"
        assert re.match(f"ValueError: {place} {words}", said[0])

    def test_are_not_those_that_differ_in_their_loaders_alone(self, ran):
        assert [said["none"] for said in ran(2, "unlike_selectors")] == [None, None]

    @pytest.mark.parametrize(
        ("what", "place"),
        [
            ("weights", r"models\[0\]\.digest"),
            ("buffers", r"models\[0\]\.digest"),
            ("models", r"models\[1\]\.class"),
            ("order", r"data\.labels"),
            ("length", r"data\.length"),
            ("part", r"examples\[0\]"),
            ("batch size", r"scoring\.batch_size"),
            ("loader", r"scoring\.batch_size"),
            ("dtype", r"scoring\.dtype"),
            ("loss", "loss"),
            ("views", "views"),
            ("seed", r"scoring\.seed"),
            ("path", "path"),
            ("mapped", "mapped"),
        ],
    )
    def test_make_no_store_together_and_all_say_what_differs(self, ran, what, place):
        said = [said[what] for said in ran(2, "unlike_stores")]
        assert said[0] == said[1]
        words = (
            "must be the same on every rank, got .* on rank 0 and .* on rank 1; give every rank the same weights, the same data"
        )
        assert re.match(f"ValueError: {place} {words}", said[0])

    @pytest.mark.parametrize("in_memory", [True, False])
    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("data", "OSError: the disk is gone"),
            ("loss", "KeyError: 'no such loss'"),
            ("options", "ValueError: batch_size must be a number of examples, at least 1"),
        ],
    )
    def test_fail_together_in_seconds_where_one_fails_at_a_store(self, ran, what, message, in_memory):
        (first, seconds), (last, its) = (said[what, in_memory] for said, *_ in ran(2, "failed_stores"))
        assert last.startswith(message)
        assert first.startswith(f"RuntimeError: rank 1 failed, and the others stop with it: {message}")
        assert max(seconds, its) < 10

    def test_fail_together_where_the_first_fails_or_all_do(self, ran):
        for in_memory in (True, False):
            first, last = (said["first", in_memory][0] for said, *_ in ran(2, "failed_stores"))
            assert first == "OSError: the disk is gone"
            assert last.startswith("RuntimeError: rank 0 failed, and the others stop with it: OSError: the disk is gone")
            for said, *_ in ran(2, "failed_stores"):
                assert said["stream", in_memory][0].startswith("TypeError: only a map-style dataset can be scored in shares")

    def test_resume_a_store_together_after_a_failure_and_read_it_when_it_is_there(self, ran):
        for _, parts, whole, again, other, files in ran(2, "failed_stores"):
            assert parts > 2
            assert whole.equal(store().losses)
            assert again.equal(whole)
            assert re.match(
                "(ValueError|RuntimeError): .*data exists already, made with other models; choose another path", other
            )
            assert "data" in files
            assert "data.parts" not in files


COMPARE = {"divbs", "selective_backprop"}
WHOLE = [N_B] * 12 + [3]  # of methods that train on all that they draw, and know of no losses
DRAWN = {"infobatch": WHOLE, "kakurenbo": WHOLE, "selection_via_proxy": [4, 4, 4, 1], "repeated_random_subset": [4, 4, 3]}


class TestMethods:
    @pytest.mark.parametrize("name", selector_names())
    def test_each_chooses_over_all_ranks_or_says_why_not(self, ran, name):
        outcomes = [outcome[name] for outcome in ran(2, "methods")]
        if name in COMPARE:
            assert all("by comparing them with each other" in outcome for outcome in outcomes)
        else:
            expected = DRAWN.get(name, [N_B] * 3 + [3])
            assert [len(index) for index in outcomes[0]] == [len(index) for index in outcomes[1]] == expected

    def test_what_is_drawn_in_scoring_differs_between_ranks(self, ran):
        first, second = (outcome["uniform"] for outcome in ran(2, "methods"))
        places = [[int(i) for index in outcome for i in index] for outcome in (first, second)]
        drawn = [list(loader(rank, 2).sampler) for rank in range(2)]
        assert [drawn[0].index(i) for i in places[0] if i in drawn[0]] != [drawn[1].index(i) for i in places[1] if i in drawn[1]]

    def test_one_rank_alone_keeps_the_contract_and_refuses_what_compares(self, ran):
        assert "SwitchSelector scores candidates by comparing them with each other" in ran(1, "alone")[0]


class TestAround:
    def test_a_store_is_made_in_shares_or_told(self, ran):
        for losses in ran(2, "stores"):
            assert all(each.equal(store().losses) for each in losses)

    def test_logs_add_up_over_ranks(self, ran):
        runs = ran(2, "logs")
        selected, drawn = torch.zeros(N), torch.zeros(N)
        for chosen, *_ in runs:
            for index, candidates in chosen:
                selected[index] += 1
                drawn[candidates] += 1
        for _, summary, lopsided, *_ in runs:
            assert summary["selected"] == selected.sum()
            assert summary["candidates"] == drawn.sum()
            assert summary["never_selected"] == float((selected == 0).double().mean())
            assert summary["even/selected"] == pytest.approx(float(selected[::2].sum() / selected.sum()))
            assert lopsided["selected"] == 3 * 2 * N_B
        assert [compared["batches"] for *_, compared, _ in runs] == [3, 0]
        assert runs[0][3]["overlap/coarse"] == 1
        assert [moved for *_, (moved, *_) in runs] == [[0] * 3, [N_B] * 3]

    def test_a_tracker_is_called_on_the_first_rank_with_the_numbers_of_all(self, ran):
        runs = ran(2, "logs")
        (first, second), steps = ([run[-1][1] for run in runs]), len(runs[0][0])
        assert second == []
        assert [step for _, step, _ in first] == list(range(3, steps, 4))
        for metrics, step, rank in first:
            selected, window = torch.zeros(N), torch.zeros(N)
            for chosen, *_ in runs:
                for i, (index, _) in enumerate(chosen[: step + 1]):
                    selected[index] += 1
                    window[index] += i > step - 4
            again = [index for chosen, *_ in runs for index, _ in chosen[step - 3 : step + 1]]
            before = {int(i) for chosen, *_ in runs for index, _ in chosen[: step - 3] for i in index}
            new = {int(i) for index in again for i in index} - before
            assert (rank, metrics["rholoss/selected"]) == (0, window.sum())
            assert metrics["rholoss/batches"] == 2 * 4
            assert metrics["rholoss/even/selected"] == pytest.approx(float(window[::2].sum() / window.sum()))
            assert metrics["rholoss/never_selected"] == float((selected == 0).double().mean())
            assert metrics["rholoss/most_selected"] == selected.max()
            assert metrics["rholoss/repeated"] == pytest.approx(1 - len(new) / float(window.sum()))

    def test_logs_that_differ_or_fail_on_one_rank_are_an_error_on_all(self, ran):
        (differ, _), (also_differ, fails) = (run[-1][2] for run in ran(2, "logs"))
        assert differ == also_differ
        assert "flags must be the same on every rank, got '' on rank 0 and 'low' on rank 1" in differ
        assert "an index that is not among 0 to 8" in fails
        assert "rank 1 failed, and the others stop with it" in ran(2, "logs")[0][-1][2][1]

    def test_a_log_counts_what_came_from_elsewhere_where_it_came_from(self, ran):
        chosen, *_ = ran(2, "logs")[1]
        assert not all(set(index.tolist()) <= set(candidates.tolist()) for index, candidates in chosen)
        assert SelectionLog(N).summary()["selected"] == 0


def test_the_example_runs_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    for _ in range(2):
        done = subprocess.run(
            [*command, str(EXAMPLES / "several_processes.py")],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=200,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        accuracies = [float(accuracy) for accuracy in re.findall(r"([\d.]+)% of the test digits are right", done.stdout)]
        assert len(accuracies) == 2, done.stderr[-4000:]  # of one process only, for each way of choosing
        assert min(accuracies) > 90
        if "terminate called without an active exception" not in done.stderr:
            break  # else a thread of torch was late as the process ended, once in 30 runs or so: run it again
    assert done.returncode == 0, done.stderr[-4000:]
