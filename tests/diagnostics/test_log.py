"""The log of what was selected: each number against a slow and obvious computation in plain Python."""

import importlib
import io
import math
import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from conftest import make_data, make_net
from hypothesis import given, settings
from torch.utils.data import DataLoader
from watched_runs import Batch, assert_same, methods_of, train

from rholoss import (
    IndexedBatches,
    IrreducibleLossStore,
    Selection,
    build_selector,
    diagnostics,
    hash_ids,
    split,
)
from rholoss.diagnostics import ComparisonLog, SelectionLog, plots
from rholoss.diagnostics.counts import quantiles
from rholoss.selectors import TrainLossSelector, UniformSelector

N = 12
EXAMPLES = Path(__file__).parents[2] / "examples"


def share(part, whole):
    return part / whole if whole else math.nan


def mean(values):
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def quantile(values, q):
    """Linear between the two nearest of the finite values."""
    values = sorted(value for value in values if math.isfinite(value))
    if not values:
        return math.nan
    rank = q * (len(values) - 1)
    low, high = values[math.floor(rank)], values[math.ceil(rank)]
    return low + (high - low) * (rank - math.floor(rank))


def slow_record(batches, everything, flags):
    """The numbers of some batches."""
    selected = [i for batch in batches for i in batch.chosen]
    candidates = [i for batch in batches for i in batch.index]
    record = {"batches": len(batches), "selected": len(selected), "candidates": len(candidates)}
    for name, flag in flags.items():
        among = share(sum(flag[i] for i in selected), len(selected)), share(sum(flag[i] for i in candidates), len(candidates))
        record |= {f"{name}/selected": among[0], f"{name}/candidates": among[1], f"{name}/data": sum(flag) / len(flag)}
        record[f"{name}/ratio"] = share(*among)
    if any(batch.correct is not None for batch in everything):
        known = [batch for batch in batches if batch.correct is not None]
        chosen = [batch.correct[position] for batch in known for position in batch.positions]
        all_of_them = [correct for batch in known for correct in batch.correct]
        among = share(sum(chosen), len(chosen)), share(sum(all_of_them), len(all_of_them))
        record |= {"correct/selected": among[0], "correct/candidates": among[1], "correct/ratio": share(*among)}
    seen, repeated = {i for batch in everything if batches and batch.step < batches[0].step for i in batch.chosen}, 0
    for i in selected:
        repeated += i in seen
        seen.add(i)
    record["repeated"] = share(repeated, len(selected))
    for name in {name for batch in everything for name in batch.notes}:
        record[f"notes/{name}"] = mean([batch.notes.get(name, math.nan) for batch in batches])
    return record


def slow_scores(batches, flags):
    record = {}
    for name in ("candidates", "selected", *flags):
        for q in (5, 25, 50, 75, 95):
            of_batches = []
            for batch in batches:
                if name == "selected":
                    scores = [batch.scores[position] for position in batch.positions]
                else:
                    pairs = zip(batch.index, batch.scores, strict=True)
                    scores = [score for i, score in pairs if name == "candidates" or flags[name][i]]
                of_batches.append(quantile(scores, q / 100))
            record[f"{name}/q{q:02}"] = mean(of_batches)
    return record


def windows(batches, key):
    keys = sorted({key(batch) for batch in batches})
    return [[batch for batch in batches if key(batch) == k] for k in keys]


def check_log(log, batches, flags):
    """Hold all that a log says against the slow way."""
    whole = slow_record(batches, batches, flags)
    times = [sum(batch.chosen.count(i) for batch in batches) for i in range(N)]
    drawn = [sum(batch.index.count(i) for batch in batches) for i in range(N)]
    by_example = {"never_selected": times.count(0) / N, "never_drawn": drawn.count(0) / N, "most_selected": max(times)}
    assert_same(log.summary(), whole | by_example)
    assert log.selected.tolist() == times
    assert log.drawn.tolist() == drawn
    for got, key in ((log.over_time(3), lambda batch: batch.step // 3), (log.by_epoch(), lambda batch: batch.epoch)):
        expected = windows(batches, key)
        assert len(got) == len(expected)
        for record, inside in zip(got, expected, strict=True):
            when = {"step": inside[0].step, "epoch": inside[0].epoch}
            assert_same(record, when | slow_record(inside, batches, flags))
    for record, inside in zip(log.scores_over_time(2), windows(batches, lambda batch: batch.step // 2), strict=True):
        assert_same(record, {"step": inside[0].step, "epoch": inside[0].epoch} | slow_scores(inside, flags))
    if batches:
        since = batches[len(batches) // 2].step
        late = [batch for batch in batches if batch.step >= since]
        assert_same(log.summary(since), slow_record(late, batches, flags) | by_example)


@st.composite
def runs(draw):
    """Batches of several sizes, with repeated positions, gated scores, and now and then notes and what was right."""
    batches, step = [], 0
    for _ in range(draw(st.integers(0, 9))):
        n_B = draw(st.integers(1, 7))
        index = draw(st.lists(st.integers(0, N - 1), min_size=n_B, max_size=n_B))
        n_b = draw(st.integers(1, n_B))
        weighted = draw(st.booleans())
        positions = draw(st.lists(st.integers(0, n_B - 1), min_size=n_b, max_size=n_b, unique=not weighted))
        score = st.one_of(st.just(-math.inf), st.floats(-4, 4, width=16))
        scores = draw(st.lists(score, min_size=n_B, max_size=n_B))
        right = draw(st.none() | st.lists(st.booleans(), min_size=n_B, max_size=n_B))
        notes = draw(st.dictionaries(st.sampled_from(["gated", "overlap"]), st.floats(0, 1, width=16)))
        batches.append(Batch(index, positions, scores, step, step // 4, right, notes))
        step += draw(st.integers(1, 3))
    return batches


flags_of = st.dictionaries(st.sampled_from(["wrong", "rare"]), st.lists(st.booleans(), min_size=N, max_size=N))


@settings(deadline=None, max_examples=60)
@given(runs(), flags_of, st.integers(0, 9))
def test_every_number_is_that_of_the_slow_way(batches, flags, stop):
    """In one go, and read in the middle, and through a checkpoint, and with ids in place of indices."""
    masks = {name: torch.tensor(flag) for name, flag in flags.items()}
    log = SelectionLog(N, masks)
    for batch in batches:
        batch.add_to(log)
    check_log(log, batches, flags)
    stopped = SelectionLog(N, masks)
    for batch in batches[:stop]:
        batch.add_to(stopped)
        stopped.summary()
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    ids = hash_ids(f"image {i}" for i in range(N))
    resumed, hashed = SelectionLog(N, masks), SelectionLog(N, masks, ids=ids)
    Batch([0, 0, 0], [0], [1.0, 2.0, 3.0], 7).add_to(resumed)  # is gone after loading
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for batch in batches[stop:]:
        batch.add_to(resumed)
    for batch in batches:
        batch.add_to(hashed, ids)
    check_log(resumed, batches, flags)
    check_log(hashed, batches, flags)


@settings(deadline=None, max_examples=30)
@given(runs(), flags_of, st.lists(st.booleans(), min_size=9, max_size=9))
def test_the_logs_of_several_processes_add_up_to_one(batches, flags, first_process):
    parts = [[b for b, first in zip(batches, first_process, strict=False) if first == which] for which in (True, False)]
    logs = [SelectionLog(N, {name: torch.tensor(flag) for name, flag in flags.items()}) for _ in parts]
    for log, part in zip(logs, parts, strict=True):
        for batch in part:
            batch.add_to(log)
    logs[0].merge(logs[1].state_dict())
    check_log(logs[0], batches, flags)


def test_a_long_run_is_counted_in_blocks_without_a_difference():
    generator = torch.Generator().manual_seed(0)
    batches = []
    for step in range(150):
        n_B = 7 if step % 50 < 49 else 3
        index = torch.randperm(N, generator=generator)[:n_B].tolist()
        positions = torch.randperm(n_B, generator=generator)[:2].tolist()
        batches.append(Batch(index, positions, torch.randn(n_B, generator=generator).tolist(), step, step // 50))
    flags = {"wrong": [i % 3 == 0 for i in range(N)]}
    log = SelectionLog(N, {"wrong": torch.tensor(flags["wrong"])})
    for batch in batches:
        batch.add_to(log)
    assert log._counts._pending  # the rest of a block waits
    check_log(log, batches, flags)


def test_batches_without_a_wrong_one_count_as_much_as_the_others():
    """The mean over the batches that have some, as some scripts log it, would be 1/2 here."""
    log = SelectionLog(N, {"wrong": torch.arange(N) == 0})
    Batch([0, 1, 2, 3], [0, 1], [1.0] * 4, 0).add_to(log)
    for step in (1, 2, 3):
        Batch([4, 5, 6, 7], [0, 1], [1.0] * 4, step).add_to(log)
    assert log.summary()["wrong/selected"] == 1 / 8
    assert [record["wrong/selected"] for record in log.over_time(2)] == [1 / 4, 0]


def test_an_example_that_is_drawn_twice_counts_twice_and_comes_again():
    log = SelectionLog(N, {"wrong": torch.arange(N) == 0})
    Batch([0, 1, 2], [0, 0, 2], [1.0, 2.0, 3.0], 0).add_to(log)
    summary = log.summary()
    assert summary["wrong/selected"] == pytest.approx(2 / 3)
    assert summary["repeated"] == pytest.approx(1 / 3)
    assert summary["most_selected"] == 2


def test_an_empty_log_says_that_there_was_nothing():
    log = SelectionLog(N, {"wrong": torch.arange(N) == 0})
    summary = log.summary()
    assert summary["batches"] == summary["selected"] == 0
    assert math.isnan(summary["wrong/selected"])
    assert math.isnan(summary["repeated"])
    assert summary["never_selected"] == summary["never_drawn"] == 1
    assert log.over_time() == log.by_epoch() == log.scores_over_time() == []
    again = SelectionLog(N, {"wrong": torch.arange(N) == 0})
    again.load_state_dict(log.state_dict())
    assert again.summary()["never_selected"] == 1
    with pytest.raises(ValueError, match="nothing was selected yet"):
        plots.plot_shares(log)


def test_shares_by_class():
    log = SelectionLog(4)
    Batch([0, 1, 2], [0, 2], [1.0] * 3, 0).add_to(log)
    by_class = log.by_class([0, 1, 2, 2])
    assert {name: shares.tolist() for name, shares in by_class.items()} == {
        "selected": [1 / 2, 0, 1 / 2],
        "candidates": pytest.approx([1 / 3, 1 / 3, 1 / 3]),
        "data": [1 / 4, 1 / 4, 1 / 2],
    }
    with pytest.raises(ValueError, match=r"labels must be one per example, shape \(4,\), integers"):
        log.by_class([0, 1])


def test_what_is_put_in_may_change_afterwards():
    """Such as a stream that fills the same buffers again and again."""
    log, batch = SelectionLog(N), Batch([3, 4, 5], [1], [1.0, 3.0, 2.0], 0, notes={"gated": 0.5})
    selection = batch.selection()
    log.update(selection)
    for buffer in (selection.candidate_index, selection.scores, selection.notes["gated"]):
        buffer.zero_()
    check_log(log, [batch], {})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SelectionLog(0), ValueError, "number of examples in the dataset, at least 1, got 0"),
        (
            lambda: SelectionLog(3, {"wrong": torch.tensor([0, 2])}),
            ValueError,
            r"one bool per example .*shape \(3,\), got torch.int64",
        ),
        (lambda: SelectionLog(3, {"wrong": torch.zeros(4, dtype=torch.bool)}), ValueError, r"of shape \(4,\)"),
        (lambda: SelectionLog(3, {"correct": torch.zeros(3, dtype=torch.bool)}), ValueError, "cannot be called 'correct'"),
        (
            lambda: SelectionLog(3, ids=[1, 2]),
            ValueError,
            r"ids must be one per example of the dataset, shape \(3,\), got \(2,\)",
        ),
        (lambda: SelectionLog(3, ids=[1, 2, 2]), ValueError, "1 ids appear more than once: 2"),
        (lambda: SelectionLog(3).update(None), TypeError, "as selector.last is after a batch, got NoneType"),
        (lambda: SelectionLog(3).over_time(0), ValueError, "every must be a number of steps, at least 1, got 0"),
        (
            lambda: SelectionLog(3).update(Batch([0, 1], [0], [0.0, 0], 0).selection(), torch.ones(2)),
            ValueError,
            "one bool per cand",
        ),
        (lambda: ComparisonLog({}, every=0), ValueError, "every must be a number of steps"),
        (lambda: ComparisonLog({"own": lambda c: c.loss}), ValueError, "give the method another name"),
    ],
)
def test_a_mistake_is_explained(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("ids", "stray", "among"), [(None, N, "0 to 11"), (None, -1, "0 to 11"), (range(5, N + 5), 0, "the 12 ids")]
)
def test_an_index_that_is_no_example_is_an_error_when_numbers_are_read(ids, stray, among):
    log = SelectionLog(N, ids=ids)
    Batch([6, stray, 7], [0], [1.0, 2.0, 3.0], 0).add_to(log)
    with pytest.raises(ValueError, match=f"1 candidates have an index that is not among {among}, such as {stray}"):
        log.summary()


def test_a_selection_is_added_once(data, net):
    selector = TrainLossSelector(DataLoader(data, batch_size=4), net, keep=0.25)
    log = SelectionLog(100).attach(selector)
    next(iter(selector))
    with pytest.raises(ValueError, match="attach the log or call update, not both"):
        log.update(selector.last)


def test_a_state_of_other_data_is_refused():
    flag = {"wrong": torch.arange(N) < 3}
    state = SelectionLog(N, flag).state_dict()
    for other, message in (
        (SelectionLog(N + 1, {"wrong": torch.arange(N + 1) < 3}), "expected n = 13, got 12"),
        (SelectionLog(N, {"wrong": torch.arange(N) >= N - 3}), "expected flags = {'wrong': .*, those of other data"),
        (SelectionLog(N, flag, ids=range(N)), "examples with other ids"),
    ):
        for method in (other.load_state_dict, other.merge):
            with pytest.raises(ValueError, match=message):
                method(state)


OTHERS = ["train_loss", "gradient_norm", "rho_loss", "bald", "uniform", "gradient_norm_importance_sampling", "online_rho_loss"]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    "name", ["dropping", "uniform", "bald", "proxy_rho_loss", "rho_loss", "gradient_norm_importance_sampling"]
)
def test_looking_does_not_change_the_run(name, mode):
    def watch(selector):
        SelectionLog(60, correct=True).attach(selector)
        log = ComparisonLog(methods_of(OTHERS, selector.loader, selector.model, mode=mode), every=1).attach(selector)
        selector.listeners.append(lambda candidates, selection: candidates.rand())
        proxy = getattr(selector, "proxy", make_net(4))
        selector.listeners.append(lambda candidates, selection: candidates.under(proxy).sampled(lambda o, t, n: o, 2))
        selector.listeners.append(lambda candidates, selection: candidates.notes.update(mine=torch.ones(())))
        return log

    alone, left_alone, _ = train(name, None, mode)
    watched, left_watched, log = train(name, watch, mode)
    assert log.batches == len(watched) == 8
    for (one, _), (other, _) in zip(alone, watched, strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.scores, other.scores)
        assert list(one.notes) == list(other.notes)
    assert all(torch.equal(one, other) for one, other in zip(left_alone, left_watched, strict=True))


def test_what_was_correct_is_what_the_model_before_the_step_says():
    chosen, _, logs = train("rho_loss", lambda selector: SelectionLog(60).attach(selector))
    data, right, candidates_right, n = make_data(60), 0, 0, 0
    models = [make_net(0), *(model for _, model in chosen)]
    for (selection, _), model in zip(chosen, models, strict=False):
        with torch.no_grad():
            said = model.eval()(data.tensors[0]).argmax(1) == data.tensors[1]
        right += int(said[selection.index].sum())
        candidates_right += int(said[selection.candidate_index].sum())
        n += len(selection.candidate_index)
    summary = logs.summary()
    assert summary["correct/selected"] == right / (4 * len(chosen))
    assert summary["correct/candidates"] == candidates_right / n


def test_what_was_correct_is_unknown_unless_computed_or_asked_for():
    _, _, log = train("uniform", lambda selector: SelectionLog(60).attach(selector))
    _, _, asking = train("uniform", lambda selector: SelectionLog(60, correct=True).attach(selector))
    assert "correct/selected" not in log.summary()
    assert 0 <= asking.summary()["correct/selected"] <= 1


def test_a_log_works_inside_a_framework_and_with_update(data, net):
    selector = TrainLossSelector(DataLoader(data, batch_size=4), net, keep=0.25)
    attached, updated = SelectionLog(100).attach(selector), SelectionLog(100)
    for batch in selector.candidate_batches:
        selector.select(batch)
        updated.update(selector.last)
    assert torch.equal(attached.selected, updated.selected)
    assert attached.summary()["selected"] == selector.step * 4
    selector.listeners.remove(attached)
    next(iter(selector))
    assert attached.summary()["batches"] == selector.step - 1


def test_a_part_of_a_dataset_and_a_stream_with_names_are_logged_by_example(data, net):
    part, *_ = split(data, holdout=0.5, seed=0)
    selector = UniformSelector(DataLoader(part, batch_size=4), keep=0.25)
    log = SelectionLog(100).attach(selector)
    for _ in selector:
        pass
    assert log.drawn.nonzero().flatten().tolist() == sorted(part.indices.tolist())
    names = [f"image {i}" for i in range(100)]
    stream = IndexedBatches([(names[i : i + 10], data.tensors[0][i : i + 10]) for i in range(0, 100, 10)])
    streaming = UniformSelector(stream, batch_size=4)
    log = SelectionLog(100, {"early": torch.arange(100) < 30}, ids=names).attach(streaming)
    for _ in streaming:
        pass
    assert log.summary()["early/selected"] == 0.3
    assert log.drawn.tolist() == [1] * 100


class TestEvery:
    def reports(self, batches, every=2, **how):
        seen = []
        log = SelectionLog(N, {"low": torch.arange(N) < 2}, **how).every(every, lambda *report: seen.append(report))
        for batch in batches:
            batch.add_to(log)
        return seen, log

    @pytest.fixture
    def batches(self):
        draw = torch.Generator().manual_seed(0)
        index = [torch.randperm(N, generator=draw)[:4].tolist() for _ in range(7)]
        notes = {3: {"gated": 0.5, "lost": math.nan}}
        return [Batch(index[i], [0, 2], [1.0, 2.0, math.inf, 0.5], i, notes=notes.get(i)) for i in range(7)]

    def test_a_tracker_receives_the_finite_numbers_of_its_steps_only(self, batches):
        seen, _ = self.reports(batches)
        assert [step for _, step in seen] == [1, 3, 5]
        flags = {"low": [i < 2 for i in range(N)]}
        for i, (metrics, _) in enumerate(seen):
            past, window = batches[: 2 * i + 2], batches[2 * i : 2 * i + 2]
            times = [sum(batch.chosen.count(example) for batch in past) for example in range(N)]
            drawn = [sum(batch.index.count(example) for batch in past) for example in range(N)]
            by_example = {"never_selected": times.count(0) / N, "never_drawn": drawn.count(0) / N, "most_selected": max(times)}
            scores = {f"scores/{name}": value for name, value in slow_scores(window, flags).items()}
            expected = slow_record(window, past, flags) | by_example | scores
            assert_same(metrics, {f"rholoss/{name}": value for name, value in expected.items() if math.isfinite(value)})
        assert [f"rholoss/notes/{name}" in seen[1][0] for name in ("gated", "lost")] == [True, False]
        assert "rholoss/notes/gated" not in seen[2][0], "a note of other steps"

    def test_metrics_are_those_of_the_last_report(self, batches):
        seen, log = self.reports(batches[:6])
        assert log.metrics(since=4) == seen[-1][0]
        assert log.metrics()["rholoss/batches"] == 6

    def test_several_trackers_have_steps_of_their_own(self, batches):
        seen, log = self.reports(batches[:2])
        log.every(3, lambda metrics, step: seen.append(step))
        for batch in batches[2:6]:
            batch.add_to(log)
        assert [report if isinstance(report, int) else report[1] for report in seen] == [1, 2, 3, 5, 5]

    def test_a_resumed_log_reports_as_if_it_had_not_stopped(self, batches):
        seen, _ = self.reports(batches, 3)
        _, log = self.reports(batches[:4], 3)
        resumed, again = self.reports([], 3)
        again.load_state_dict(log.state_dict())
        for batch in batches[4:]:
            batch.add_to(again)
        assert resumed == seen[1:]

    def test_an_attached_log_reports_before_the_loop_goes_on(self):
        selector = TrainLossSelector(DataLoader(make_data(24), batch_size=4), make_net(0), keep=0.5)
        order = []
        SelectionLog(24).attach(selector).every(1, lambda metrics, step: order.append((step, metrics["rholoss/selected"])))
        order.extend(selector.step for _ in selector)
        assert order == [(0, 4.0), 1, (1, 4.0), 2, (2, 4.0), 3]

    def test_an_unknown_index_is_an_error_and_not_a_report(self):
        with pytest.raises(ValueError, match="1 candidates have an index that is not among 0 to 11"):
            self.reports([Batch([0, N], [0], [1.0, 2.0], 0)], 1)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0, print), "steps must be a number of steps, at least 1, got 0"),
            ((50, None), r"tracker must be a function \(metrics, step\)"),
            ((50, "tensorboard"), r"tracker must be a function \(metrics, step\)"),
        ],
    )
    def test_what_is_no_tracker_is_refused(self, arguments, message):
        with pytest.raises((TypeError, ValueError), match=message):
            SelectionLog(N).every(*arguments)


@given(st.lists(st.floats(-4, 4, width=16) | st.just(math.nan), min_size=1, max_size=9), st.sampled_from([0.05, 0.5, 0.75]))
def test_quantiles_skip_what_is_nan(values, q):
    got = quantiles(torch.tensor(values), torch.tensor([q])).item()
    assert got == pytest.approx(quantile(values, q), abs=1e-5, nan_ok=True)


def test_every_public_name_is_on_the_api_page():
    page = (EXAMPLES.parent / "docs" / "pages" / "api.md").read_text()
    names = [name for name, value in vars(diagnostics).items() if callable(value)]
    assert len(names) == 7
    for name in [*names, "plots"]:
        assert f"::: rholoss.diagnostics.{name}\n" in page
        assert getattr(diagnostics, name).__doc__


def script(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    return importlib.import_module(name)


def test_the_example_prints_its_table_and_draws_its_plots(tmp_path, monkeypatch, capsys):
    example = script("what_was_selected", monkeypatch)
    fit = example.fit_small_network
    monkeypatch.setattr(example, "fit_small_network", lambda digits, seed: fit(digits, seed, epochs=3))
    example.main(["--steps", "6", "--plot", str(tmp_path / "plots")])
    table = capsys.readouterr().out
    assert re.search(r"^\| `rho_loss`, which trains \| \d+ \| \d+ \| 100 \| 1.00 \|$", table, re.MULTILINE)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"shares", "counts", "scores", "agreement"}


def test_the_benchmark_prints_what_watching_costs(monkeypatch, capsys):
    script("diagnostics_overhead", monkeypatch).main(["--steps", "70", "--rounds", "1", "--width", "8"])
    assert re.search(r"SelectionLog, 2 flags: \d\.\d{3} \(.*\) times as long", capsys.readouterr().out)


@pytest.mark.gpu
def test_watching_on_a_gpu_never_waits_for_it():
    data, model = make_data(640), make_net(0).cuda()
    loader = DataLoader(data, batch_size=8, pin_memory=True)
    store = IrreducibleLossStore.from_model(make_net(1), data)
    how = {"device": "model", "keep": 0.5}
    selector = build_selector("rho_loss", loader, model, store=store, **how)
    others = {
        name: build_selector(name, loader, model, store=store, **how) for name in ("train_loss", "uniform", "gradient_norm")
    }
    log = SelectionLog(640, {"low": torch.arange(640) < 64}, ids=torch.arange(640)).attach(selector)
    comparison = ComparisonLog(others, lambda: SelectionLog(640), every=1).attach(selector)
    batches = list(selector.candidate_batches)
    selector.select(batches[0])  # moves what it keeps to the GPU
    log.selected, comparison.summary()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            for batch in batches[1:]:
                selector.select(batch)  # 64 times and more: past a block
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert log.summary()["batches"] == comparison.batches == 1 + 3 * (len(batches) - 1)


@pytest.mark.gpu
def test_numbers_of_a_gpu_are_those_of_the_cpu():
    batches = [
        Batch([0, 1, 2, 3], [0, 2], [0.5, -math.inf, 1.0, 2.0], step, correct=[True, False, True, True]) for step in range(70)
    ]
    one, other = (SelectionLog(N, {"low": torch.arange(N) < 2}) for _ in range(2))
    for batch in batches:
        batch.add_to(one)
        there = batch.selection()
        moved = {name: getattr(there, name).cuda() for name in ("index", "positions", "scores", "candidate_index")}
        other.update(Selection(weights=None, step=batch.step, epoch=0, **moved), torch.tensor(batch.correct).cuda())
    assert_same(other.summary(), one.summary())
    assert_same(other.scores_over_time(1000)[0], one.scores_over_time(1000)[0])
    again = SelectionLog(N, {"low": torch.arange(N) < 2})
    again.load_state_dict(other.state_dict())
    assert_same(again.summary(), one.summary())
