"""Judging a store: every indicator against a computation by hand, the verdict on both sides of each threshold, the plot."""

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_data, make_net
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IndexedSubset, IrreducibleLossStore
from rholoss.report import statistics
from rholoss.report.report import report_on
from rholoss.report.verdict import (
    CALIBRATED,
    CLEAN,
    CLEANER,
    FAR_CLEANER,
    FEW,
    NOISY,
    OVERCONFIDENT,
    UNINFORMED,
    UNSTABLE,
    WEAKER,
    Indicators,
    judge,
)
from rholoss.store.metadata import CalibrationCounts

NAN = float("nan")
CHANCE = math.log(4)


def tallied(bins=(), halves=None, classes=4):
    """Metadata with a tally of predictions: (confidence, correct) each."""
    tally = CalibrationCounts(classes, halves=halves)
    if bins:
        tally.count(np.array([confidence for confidence, _ in bins]), np.array([float(correct) for _, correct in bins]))
    return {"calibration": tally}


class TestDistribution:
    losses = torch.tensor([0.5, NAN, 3.0, 0.25, 1.0, torch.inf, 0.0])

    def test_counts_what_is_known(self):
        report = IrreducibleLossStore(self.losses).report()
        assert (report.examples, report.known) == (7, 5)
        assert "7 examples, 5 known (71.4%)" in str(report)

    def test_mean_ends_and_quantiles_are_those_of_the_known(self):
        report = IrreducibleLossStore(self.losses).report()
        known = np.array([0.5, 3.0, 0.25, 1.0, 0.0])
        assert report.mean == pytest.approx(known.mean())
        assert (report.distribution.minimum, report.distribution.maximum, report.median) == (0.0, 3.0, 0.5)
        assert report.distribution.quantiles == pytest.approx(np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95, 0.99]))

    def test_the_highest_hundredth_of_the_examples(self):
        losses = torch.ones(300)
        losses[[5, 6, 7]] = 100.0
        report = IrreducibleLossStore(losses).report()
        assert report.distribution.top_share == pytest.approx(300 / 597)
        assert "the highest 1 % of the examples hold 50.3% of the total" in str(report)

    def test_the_share_above_log_c(self):
        report = IrreducibleLossStore([CHANCE - 0.01, CHANCE + 0.01, 3.0, NAN, 0.1, 0.0]).report(classes=4)
        assert report.above_chance == pytest.approx(2 / 5)
        assert "40.0% are above log(4) = 1.386, the chance level" in str(report)

    def test_highest_and_lowest_by_index_the_first_of_equal_ones_first(self):
        report = IrreducibleLossStore([2.0, 0.5, 2.0, NAN, 3.0, 0.5], ids=[70, 50, 20, 10, 90, 60]).report(top=3)
        assert report.highest == ((90, 3.0), (20, 2.0), (70, 2.0))
        assert report.lowest == ((50, 0.5), (60, 0.5), (20, 2.0))
        assert "Highest, by index: 90 (3), 20 (2), 70 (2)" in str(report)

    def test_the_histogram_holds_every_known_one(self):
        for losses in ([0.0, 0.0], [0.0, 1e-9, 5.0], [3.0, 3.0, 3.0], [1e-5, 2e4], [0.5]):
            report = IrreducibleLossStore(losses).report()
            assert sum(report.distribution.histogram) == len(losses)
            assert list(report.distribution.edges) == sorted(set(report.distribution.edges))

    def test_in_chunks_and_in_one_piece_are_the_same(self, monkeypatch):
        generator = torch.Generator().manual_seed(0)
        losses = torch.randint(20, (1000,), generator=generator) / 7
        losses[::13] = NAN
        labels = torch.randint(5, (1000,), generator=generator)
        whole = IrreducibleLossStore(losses).report(labels, top=30)
        monkeypatch.setattr(statistics, "CHUNK", 17)
        parts = IrreducibleLossStore(losses).report(labels, top=30)
        assert parts.mean == pytest.approx(whole.mean)
        assert dataclasses.replace(parts, mean=whole.mean) == whole

    def test_of_a_larger_store_some_examples_drawn_evenly_are_sorted(self, monkeypatch):
        monkeypatch.setattr(statistics, "SAMPLE", 500)
        rows = statistics.sampled_rows(10_000)
        assert len(rows.unique()) == 500
        assert torch.equal(rows // 20, torch.arange(500))
        report = IrreducibleLossStore(torch.arange(10_000) / 1000).report(torch.arange(10_000) % 2)
        assert report.median == pytest.approx(5.0, abs=0.02)
        assert report.mean == pytest.approx(4.9995)
        assert report.distribution.maximum == pytest.approx(9.999)
        assert [each.examples for each in report.by_class] == [5000, 5000]

    def test_a_mapped_store_has_the_same_report_and_is_not_read_whole(self, tmp_path, monkeypatch):
        losses = torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 3
        store = IrreducibleLossStore(losses, ids=torch.arange(5000) * 2)
        store.save(tmp_path / "il", mapped=True)
        mapped = IrreducibleLossStore.load(tmp_path / "il")
        labels = torch.arange(10_000) % 3
        assert mapped.is_mapped
        np.save(tmp_path / "labels.npy", labels)
        assert mapped.report(np.load(tmp_path / "labels.npy", mmap_mode="r")) == store.report(labels)
        monkeypatch.setattr(statistics, "CHUNK", 100)
        monkeypatch.setattr(statistics, "SAMPLE", 300)
        most = [0]
        monkeypatch.setattr(statistics, "known_of", lambda store, rows, known_of=statistics.known_of: read(store, rows, known_of))

        def read(store, rows, known_of):
            most[0] = max(most[0], len(rows))
            return known_of(store, rows)

        mapped.report(labels)
        assert most[0] == 300

    @pytest.mark.parametrize("losses", [[], [NAN, NAN]])
    def test_without_a_known_one_it_says_so(self, losses, tmp_path):
        report = IrreducibleLossStore(torch.tensor(losses)).report([0] * len(losses), classes=3)
        assert report.known == 0
        assert math.isnan(report.mean)
        assert "No irreducible loss is known" in str(report)
        report.plot(tmp_path / "il.png")

    def test_one_example_is_enough(self):
        report = IrreducibleLossStore([0.5]).report([1])
        assert report.distribution.quantiles == (0.5,) * 6
        assert str(report)


class TestByClass:
    def test_median_and_share_above_log_c_the_worst_first(self):
        losses = [0.1, 0.2, 0.9, 5.0, 6.0, 0.3, NAN, 1.2]
        report = IrreducibleLossStore(losses).report([0, 0, 0, 2, 2, 2, 2, 3])
        assert report.classes == 4
        assert [(each.label, each.examples) for each in report.by_class] == [(2, 3), (3, 1), (0, 3)]
        assert [each.quantiles[2] for each in report.by_class] == pytest.approx([5.0, 1.2, 0.2])
        assert report.by_class[0].quantiles == pytest.approx(np.quantile([5.0, 6.0, 0.3], [0.05, 0.25, 0.5, 0.75, 0.95]))
        assert [each.above_chance for each in report.by_class] == pytest.approx([2 / 3, 0, 0])

    def test_a_label_below_0_is_none(self):
        report = IrreducibleLossStore([0.1, 0.2, 7.0]).report([0, 1, -100])
        assert [each.label for each in report.by_class] == [1, 0]
        assert report.known == 3

    def test_ids_find_their_own_labels(self):
        report = IrreducibleLossStore([5.0, 0.1], ids=[3, 0]).report([0, 9, 9, 1], classes=10)
        assert [(each.label, each.quantiles[2]) for each in report.by_class] == [(1, 5.0), (0, pytest.approx(0.1))]

    def test_only_ten_are_printed_and_the_text_says_of_how_many(self):
        text = str(IrreducibleLossStore(torch.rand(600)).report(torch.arange(600) % 30))
        assert "By class, the worst first (10 of 30)" in text
        assert len([line for line in text.splitlines() if line.count("%") == 1 and line.startswith("    ")]) == 10

    def test_no_line_is_longer_than_a_hundred_characters(self):
        report = IrreducibleLossStore(torch.rand(50) * 1e6, ids=torch.arange(50) + 2**61, meta=tallied([(0.5, True)]))
        assert max(map(len, str(report.report(top=30)).splitlines())) <= 100

    @pytest.mark.parametrize(
        "wrap", [lambda d: d, lambda d: DataLoader(d, batch_size=7, shuffle=True), lambda d: IndexedSubset(d, [3, 1])]
    )
    def test_a_dataset_a_loader_and_a_part_show_their_labels(self, wrap):
        data = make_data(60)
        store = IrreducibleLossStore.from_model(make_net(0), data)
        assert store.report(wrap(data)) == store.report(data.tensors[1]) == store.report(data.tensors[1].numpy())
        assert len(store.report(data).by_class) == CLASSES

    def test_data_without_labels_say_nothing_by_class(self):
        data = TensorDataset(torch.randn(20, 6), torch.randn(20))
        store = IrreducibleLossStore.from_model(nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), data)
        report = store.report(data)
        assert (report.by_class, report.classes, report.above_chance, report.bins) == ((), None, None, ())
        assert "By class: not known" in str(report)
        assert "Calibration: not known" in str(report)
        assert "no number of classes was counted or given" in str(report)
        assert report.verdict.helps == "unknown"

    def test_relabelled_data_are_refused(self):
        data = make_data(60)
        store = IrreducibleLossStore.from_model(make_net(0), data)
        other = TensorDataset(data.tensors[0], data.tensors[1].flip(0))
        with pytest.raises(ValueError, match="made from other data than these: its labels, in their order, are not those"):
            store.report(other)
        with pytest.raises(ValueError, match="made from other data than these: it has 59 examples, and that had 60"):
            store.report(make_data(59))

    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            ([0, 1], ValueError, "expected the label of each of 3 examples, got 2"),
            ([0.5, 1.0, 2.0], TypeError, r"one whole number per example, shape \(N,\), got float64 of shape \(3,\)"),
            ([[0, 1, 2]], TypeError, r"got int64 of shape \(1, 3\)"),
            ([0, 1, 7], ValueError, "expected labels from 0 to 3, got 7 at index 2; pass the number of classes as classes="),
        ],
    )
    def test_labels_that_do_not_fit_are_refused(self, labels, error, message):
        with pytest.raises(error, match=message):
            IrreducibleLossStore([0.5, 0.6, 0.7], meta=tallied()).report(labels)

    def test_ids_beyond_the_labels_are_refused(self):
        with pytest.raises(ValueError, match=r"indices from 0 to 7, got 3 labels; if they are in the order of store.ids, judge"):
            IrreducibleLossStore([0.5, 0.6], ids=[0, 7]).report([0, 1, 2])

    @pytest.mark.parametrize("classes", [1, 0, True])
    def test_a_wrong_number_of_classes_is_refused(self, classes):
        with pytest.raises(ValueError, match="classes must be the number of classes, at least 2"):
            IrreducibleLossStore([0.5]).report(classes=classes)

    def test_a_share_that_is_none_is_refused(self):
        with pytest.raises(ValueError, match=r"plain_accuracy must be a share, in \[0, 1\], or None, got 59"):
            IrreducibleLossStore([0.5]).report(plain_accuracy=59)

    def test_classes_are_the_tallied_ones_unless_given(self):
        store = IrreducibleLossStore([0.5, 0.1], meta=tallied())
        assert store.report([0, 1]).classes == 4
        assert store.report([0, 1], classes=7).classes == 7
        assert IrreducibleLossStore([0.5, 0.1]).report([0, 1]).classes == 2
        assert IrreducibleLossStore([0.5, 0.1]).report([0, 0]).classes is None

    def test_the_entropy_of_the_labels(self):
        report = IrreducibleLossStore([0.5, 0.1, 0.2, 0.3]).report([0, 0, 0, 1])
        assert report.label_entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
        assert report.chance_level == report.label_entropy


class TestCalibration:
    bins = ((0.95, True), (0.91, False), (0.45, True), (0.41, False), (0.43, False))

    def test_against_a_computation_by_hand(self):
        report = IrreducibleLossStore([0.5], meta=tallied(self.bins)).report()
        assert report.confidence == pytest.approx(np.mean([confidence for confidence, _ in self.bins]), abs=1e-6)
        assert report.accuracy == pytest.approx(2 / 5)
        assert report.gap == pytest.approx(0.63 - 0.4, abs=1e-6)
        error = 2 / 5 * abs(0.93 - 1 / 2) + 3 / 5 * abs(0.43 - 1 / 3)
        assert report.calibration_error == pytest.approx(error, abs=1e-6)
        assert report.bins == (
            (3, pytest.approx(0.43, abs=1e-6), pytest.approx(1 / 3)),
            (2, pytest.approx(0.93, abs=1e-6), pytest.approx(0.5)),
        )
        assert "mean confidence 0.630, accuracy 0.400, gap +0.230, expected calibration error 0.230" in str(report)

    def test_from_a_model(self):
        data, net = make_data(200), make_net(0)
        report = IrreducibleLossStore.from_model(net, data).report(data)
        with torch.no_grad():
            confidence, likeliest = net.eval()(data.tensors[0]).softmax(1).max(1)
        assert report.confidence == pytest.approx(float(confidence.mean()), abs=1e-5)
        assert report.accuracy == pytest.approx(float((likeliest == data.tensors[1]).float().mean()))
        assert (report.classes, report.models, report.folds) == (CLASSES, 1, 0)


class TestCorrelation:
    def test_between_two_halves_of_the_models(self):
        data = make_data(150)
        nets = [make_net(0), make_net(1)]
        report = IrreducibleLossStore.from_model(nets, data).report()
        one, other = (IrreducibleLossStore.from_model(net, data).losses for net in nets)
        assert report.halves == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-5)
        assert f"between two halves of the models: {report.halves:.3f} (Pearson)" in str(report)

    def test_with_another_store_over_what_both_know(self):
        one = IrreducibleLossStore([0.5, NAN, 1.0, 2.0, 0.1])
        other = IrreducibleLossStore([0.2, 0.3, NAN, 0.9, 0.1])
        report = one.report(other=other)
        assert (report.in_common, report.other) == (3, pytest.approx(1.0))
        assert "with the other store: 1.000 (Spearman, 3 examples in common)" in str(report)
        assert report.pairs == ((0.5, pytest.approx(0.2)), (2.0, pytest.approx(0.9)), (pytest.approx(0.1), pytest.approx(0.1)))

    def test_with_ids_on_one_side_or_both(self):
        dense = IrreducibleLossStore([0.5, 0.25, 1.0, 2.0])
        some = IrreducibleLossStore([3.0, 2.0, 9.0], ids=[1, 3, 8])
        assert dense.report(other=some).in_common == some.report(other=dense).in_common == 2
        assert dense.report(other=some).other == some.report(other=dense).other == pytest.approx(-1.0)
        assert some.report(other=some).other == pytest.approx(1.0)

    def test_with_nothing_in_common_is_not_known(self):
        report = IrreducibleLossStore([0.5, NAN]).report(other=IrreducibleLossStore([NAN, 0.5]))
        assert (report.in_common, report.other) == (0, None)
        assert "not known, 0 examples in common" in str(report)

    def test_not_known_is_said(self):
        assert "Correlation: not known" in str(IrreducibleLossStore([0.5]).report())

    def test_stores_of_other_data_are_refused(self):
        with pytest.raises(ValueError, match="of other data: it has 2 examples, and this has 3 examples"):
            IrreducibleLossStore([0.5, 0.1, 0.2]).report(other=IrreducibleLossStore([0.5, 0.1]))
        one, other = (IrreducibleLossStore.from_model(make_net(0), make_data(40, seed)) for seed in (0, 1))
        with pytest.raises(ValueError, match="of other data: its labels, in their order, are not those"):
            one.report(other=other)
        with pytest.raises(TypeError, match="other must be a store, got str"):
            one.report(other="il.npz")

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=25))
    @settings(max_examples=150, deadline=None)
    def test_spearman_with_ties_against_a_slow_oracle(self, pairs):
        def rank(value, among):
            return sum(other < value for other in among) + (1 + sum(other == value for other in among)) / 2

        sides = [[float(pair[i]) for pair in pairs] for i in (0, 1)]
        x, y = (np.array([rank(value, side) for value in side]) for side in sides)
        found = statistics.spearman(*sides)
        if x.std() == 0 or y.std() == 0:
            assert found is None
        else:
            expected = ((x - x.mean()) * (y - y.mean())).sum() / math.sqrt(
                ((x - x.mean()) ** 2).sum() * ((y - y.mean()) ** 2).sum()
            )
            assert found == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("pairs", [[], [(1.0, 2.0)]])
    def test_fewer_than_two_pairs_have_none(self, pairs):
        assert statistics.spearman([x for x, _ in pairs], [y for _, y in pairs]) is None


SOUND = Indicators(
    known=10_000, classes=10, mean=0.4, median=0.1, above_chance=0.03, confidence=0.9, accuracy=0.9, folds=2, halves=0.95,
    plain_accuracy=0.9,
)  # fmt: skip
NOISY_LABELS = dataclasses.replace(
    SOUND, mean=1.5, median=0.9, above_chance=0.3, confidence=0.56, accuracy=0.6, plain_accuracy=0.59
)


def verdict(of, **changes):
    return judge(dataclasses.replace(of, **changes))


class TestVerdict:
    @pytest.mark.parametrize("of", [SOUND, NOISY_LABELS])
    def test_claims_nothing_where_the_model_may_be_too_weak(self, of):
        text = str(verdict(of, plain_accuracy=None)).replace("\n  ", " ")
        assert "It is unknown whether selection with this store will help. rholoss.auto(loader, model) finds out." in text
        assert "likely to help" not in text

    def test_on_clean_data(self):
        assert (verdict(SOUND).helps, verdict(SOUND).noisy, verdict(SOUND).holdout) == ("yes", False, "unknown")
        assert "no gate is needed" in str(verdict(SOUND))
        assert "math.log" not in str(verdict(SOUND))

    def test_a_cross_fit_of_noisy_data_needs_a_gate(self):
        found = verdict(NOISY_LABELS)
        assert (found.helps, found.noisy, found.holdout, found.weak) == ("with a gate", True, "as noisy", False)
        assert "max_irreducible_loss=math.log(10), bounded=True)" in str(found)
        assert "cross_fit instead" not in str(found)

    def test_a_holdout_as_noisy_needs_a_cross_fit_and_a_gate(self):
        found = verdict(NOISY_LABELS, folds=0, plain_accuracy=None)
        assert found.helps == "unknown"
        assert "Score all of the data with cross_fit instead" in str(found).replace("\n  ", " ")
        assert verdict(NOISY_LABELS, folds=0, plain_accuracy=0.59).helps == "with a gate"

    @pytest.mark.parametrize(
        ("changes", "attribute", "below", "at"),
        [
            ({"above_chance": (NOISY - 1e-6, NOISY)}, "noisy", None, True),
            ({"above_chance": (CLEAN - 1e-6, CLEAN)}, "noisy", False, None),
            ({"above_chance": (CLEAN - 1e-6, CLEAN)}, "helps", "yes", "with a gate"),
            ({"above_chance": (CLEAN - 1e-6, CLEAN)}, "holdout", "unknown", "as noisy"),
            (
                {"confidence": (0.6 + OVERCONFIDENT - 1e-6, 0.6 + OVERCONFIDENT + 1e-9)},
                "holdout",
                "unknown",
                "cleaner or overconfident",
            ),
            ({"confidence": (0.6 + CALIBRATED - 1e-6, 0.6 + CALIBRATED + 1e-9)}, "holdout", "as noisy", "unknown"),
            ({"confidence": (0.6 - OVERCONFIDENT - 1e-9, 0.6 - OVERCONFIDENT + 1e-6)}, "holdout", "underconfident", "as noisy"),
            ({"median": (UNINFORMED * math.log(10) - 1e-6, UNINFORMED * math.log(10))}, "weak", False, True),
            ({"median": (UNINFORMED * math.log(10) - 1e-6, UNINFORMED * math.log(10))}, "helps", "with a gate", "no"),
            ({"plain_accuracy": (0.6 + WEAKER - 1e-6, 0.6 + WEAKER + 1e-9)}, "weak", False, True),
            ({"plain_accuracy": (0.6 + WEAKER - 1e-6, 0.6 + WEAKER + 1e-9)}, "helps", "with a gate", "no"),
            ({"halves": (UNSTABLE - 1e-6, UNSTABLE)}, "unstable", True, False),
            ({"halves": (UNSTABLE - 1e-6, UNSTABLE)}, "helps", "unknown", "with a gate"),
            ({"other": (UNSTABLE - 1e-6, UNSTABLE)}, "unstable", True, False),
        ],
    )
    def test_on_both_sides_of_each_threshold(self, changes, attribute, below, at):
        ((name, values),) = changes.items()
        found = [getattr(verdict(NOISY_LABELS, **{name: value}), attribute) for value in values]
        assert found == [below, at]

    @pytest.mark.parametrize(
        ("ratio", "holdout", "helps", "word"),
        [
            (CLEANER - 1e-6, "overconfident", "with a gate", "dropout"),
            (CLEANER + 1e-9, "cleaner", "yes", "needs no gate"),
            (None, "cleaner or overconfident", "unknown", "pass its validation loss"),
        ],
    )
    def test_more_confident_than_correct_is_good_or_bad(self, ratio, holdout, helps, word):
        loss = None if ratio is None else NOISY_LABELS.mean / ratio
        found = verdict(NOISY_LABELS, confidence=0.87, validation_loss=loss)
        assert (found.holdout, found.helps) == (holdout, helps)
        assert word in str(found).replace("\n  ", " ")
        assert ("math.log" in str(found)) == (helps == "with a gate")

    @pytest.mark.parametrize(("confidence", "otherwise"), [
        (0.6 + CALIBRATED, "unknown"), (0.6 - OVERCONFIDENT + 1e-6, "as noisy"), (0.6 - OVERCONFIDENT - 1e-6, "underconfident"),
    ])  # fmt: skip
    def test_a_far_lower_validation_loss_is_a_cleaner_holdout_without_overconfidence(self, confidence, otherwise):
        losses = [NOISY_LABELS.mean / FAR_CLEANER - 1e-6, NOISY_LABELS.mean / FAR_CLEANER + 1e-6, None]
        found = [verdict(NOISY_LABELS, confidence=confidence, validation_loss=loss) for loss in losses]
        first = otherwise if otherwise == "underconfident" else "cleaner"
        assert [each.holdout for each in found] == [first, otherwise, otherwise]
        assert ("needs no gate" in str(found[0]).replace("\n  ", " ")) == (first == "cleaner")
        assert (found[0].helps == "yes") == (first == "cleaner")

    def test_an_overconfident_holdout_does_not_help_where_a_cross_fit_would(self):
        found = verdict(NOISY_LABELS, confidence=0.87, validation_loss=NOISY_LABELS.mean, folds=0)
        assert (found.holdout, found.helps) == ("overconfident", "no")
        assert "math.log" not in str(found)

    @pytest.mark.parametrize(("known", "rough"), [(FEW - 1, True), (FEW, False)])
    def test_few_examples_are_said_to_be_few(self, known, rough):
        assert ("all shares are rough" in str(verdict(SOUND, known=known))) == rough

    def test_of_a_model_that_knows_nothing_nothing_else_is_said(self):
        found = verdict(NOISY_LABELS, median=2.3)
        assert found.helps == "no"
        assert len(found.sentences) == 2
        assert "its median loss, 2.30, is about the chance level, 2.30" in str(found).replace("\n  ", " ")

    def test_frequent_classes_lower_the_chance_level(self):
        assert verdict(NOISY_LABELS, label_entropy=0.95).weak
        assert verdict(NOISY_LABELS, label_entropy=1.5).weak is False

    @pytest.mark.parametrize(
        ("unknown", "words"),
        [
            ({"classes": None, "above_chance": None}, "How noisy the labels are is unknown without the number of classes"),
            ({"confidence": None, "accuracy": None}, "no class predictions were counted"),
            ({"plain_accuracy": None}, "pass its held-out accuracy on such labels as plain_accuracy="),
            ({"known": 0}, "nothing to judge"),
        ],
    )
    def test_what_cannot_be_known_is_said(self, unknown, words):
        assert words in str(verdict(NOISY_LABELS, **unknown)).replace("\n  ", " ")

    @pytest.mark.parametrize(
        ("case", "folds", "mean", "median", "above", "confidence", "accuracy", "plain", "validation", "helps"),
        [
            ("30 % wrong, clean holdout", 0, 3.94, 0.25, 0.312, 0.873, 0.611, 0.597, 0.42, "yes"),
            ("30 % wrong, noisy holdout", 0, 1.54, 0.97, 0.290, 0.544, 0.589, 0.597, 1.54, "no"),
            ("30 % wrong, noisy holdout, overfitted", 0, 2.02, 1.02, 0.332, 0.645, 0.516, 0.597, 2.0, "no"),
            ("30 % wrong, cross-fit", 2, 1.51, 0.90, 0.293, 0.564, 0.599, 0.597, 1.5, "with a gate"),
            ("30 % wrong, linear model on 500 examples", 0, 1.82, 1.52, 0.284, 0.439, 0.458, 0.597, 1.8, "no"),
            ("10 % wrong, clean holdout", 0, 1.60, 0.10, 0.129, 0.873, 0.782, 0.779, 0.42, "yes"),
            ("10 % wrong, noisy holdout", 0, 0.94, 0.25, 0.123, 0.743, 0.766, 0.779, 0.9, "no"),
            ("10 % wrong, cross-fit", 2, 0.88, 0.23, 0.118, 0.768, 0.781, 0.779, 0.9, "with a gate"),
            ("all right, cross-fit", 2, 0.33, 0.01, 0.033, 0.894, 0.882, None, None, "unknown"),
            ("40 % wrong by hand, clean holdout", 0, 2.22, NAN, 0.343, 0.651, 0.442, None, 1.10, "unknown"),
            ("40 % wrong by hand, cross-fit", 2, 1.72, 1.48, 0.245, 0.406, 0.430, None, None, "unknown"),
            ("17 % wrong by hand, cross-fit", 2, 1.34, 0.96, 0.169, 0.554, 0.572, None, None, "unknown"),
        ],
    )
    def test_agrees_with_what_came_of_the_cases_of_the_study(
        self, case, folds, mean, median, above, confidence, accuracy, plain, validation, helps
    ):
        found = judge(
            Indicators(
                known=50_000, classes=10, mean=mean, median=median, above_chance=above, confidence=confidence, accuracy=accuracy,
                folds=folds, plain_accuracy=plain, validation_loss=validation,
            )
        )  # fmt: skip
        assert found.helps == helps, case


class TestPlot:
    def panels(self, report, tmp_path):
        figure = report.plot(tmp_path / "il.png")
        assert (tmp_path / "il.png").read_bytes().startswith(b"\x89PNG")
        return [axes.get_title() for axes in figure.axes]

    @pytest.mark.parametrize(("classes", "rows"), [(2, 2), (1000, 20)])
    def test_of_few_and_of_many_classes(self, classes, rows, tmp_path):
        losses = torch.rand(2000, generator=torch.Generator().manual_seed(0))
        report = IrreducibleLossStore(losses, meta=tallied(TestCalibration.bins, classes=classes)).report(
            torch.arange(2000) % classes
        )
        assert len(self.panels(report, tmp_path)) == 3
        assert len(report.plot().axes[1].get_yticks()) == rows

    def test_bins_with_few_predictions_are_drawn_but_not_joined(self):
        bins = [(0.95, True)] * 500 + [(0.85, True)] * 20 + [(0.75, False)] * 19
        report = IrreducibleLossStore(torch.rand(9), meta=tallied(bins)).report()
        axes = report.plot().axes[-1]
        assert [len(line.get_xdata()) for line in axes.lines] == [2, 2]
        assert len(axes.collections[0].get_offsets()) == 3

    def test_classes_have_their_names_and_the_figure_a_title(self):
        figure = IrreducibleLossStore([0.5, 0.1, 0.4]).report([0, 1, 1], class_names=["cat", "dog"]).plot()
        assert [tick.get_text() for tick in figure.axes[1].get_yticklabels()] == ["cat", "dog"]
        assert figure.texts[0].get_text() == "Irreducible losses of 3 examples"

    def test_of_two_stores(self, tmp_path):
        store = IrreducibleLossStore(torch.rand(9000))
        report = store.report(torch.arange(9000) % 3, other=store)
        assert self.panels(report, tmp_path)[-1] == "Two stores, rank correlation 1.000"
        assert len(report.pairs) <= 2000

    @pytest.mark.parametrize("losses", [[0.0, 0.0], [5.0], [0.0, 1e6, 2.0], [0.3, NAN]])
    def test_without_labels_and_calibration(self, losses, tmp_path):
        assert self.panels(IrreducibleLossStore(losses).report(), tmp_path) == ["Distribution"]

    def test_marks_the_chance_level_and_the_median(self):
        report = IrreducibleLossStore([0.5, 0.7, 3.0]).report(classes=4)
        marked = {line.get_label(): line.get_xdata()[0] for line in report.plot().axes[0].lines}
        assert marked == {"chance level, log(4): 33.3% above": pytest.approx(CHANCE), "median 0.7": pytest.approx(0.7)}

    def test_no_words_lie_over_others(self):
        losses = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 3
        store = IrreducibleLossStore(losses, meta=tallied(TestCalibration.bins, classes=1000))
        figure = store.report(torch.arange(2000) % 1000, other=store).plot()
        figure.draw_without_rendering()
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
            assert not any(box.overlaps(axes.yaxis.label.get_window_extent()) for box in boxes)
        titles = [axes.title.get_window_extent() for axes in figure.axes]
        assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[i + 1 :])

    def test_leaves_no_global_state_behind(self):
        before = "matplotlib.pyplot" in sys.modules
        IrreducibleLossStore([0.5, 0.7]).report().plot()
        assert ("matplotlib.pyplot" in sys.modules) == before

    def test_names_the_extra_that_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        report = IrreducibleLossStore([0.5]).report()
        with pytest.raises(ImportError, match=r"pip install 'rholoss\[plot\]'"):
            report.plot()


def test_the_store_hands_everything_on():
    store, other = IrreducibleLossStore([0.5, 0.1, 0.4]), IrreducibleLossStore([0.4, 0.1, 0.5])
    how = {"classes": 3, "other": other, "top": 1, "plain_accuracy": 0.5, "validation_loss": 0.3}
    assert store.report([0, 1, 2], **how) == report_on(store, [0, 1, 2], **how)
    assert (store.report(**how).plain_accuracy, store.report(**how).validation_loss) == (0.5, 0.3)
    assert len(store.report(**how).highest) == 1
