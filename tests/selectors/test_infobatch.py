"""InfoBatch: what an epoch leaves out, and with what weights."""

import copy

import pytest
import torch
from conftest import make_data
from torch.utils.data import DataLoader

from rholoss import IndexedBatches, build_selector, functional, split


class TestInfoBatch:
    """The loss that the loop reports of an example is its index, so that the lower half is below the mean."""

    N = 40

    def build(self, keep=0.5, loader=None, **options):
        wanted = {"batch_size": 4, "shuffle": True, "generator": torch.Generator().manual_seed(1), **(loader or {})}
        return build_selector("infobatch", DataLoader(make_data(self.N), **wanted), keep=keep, **options)

    def epoch(self, selector, steps=None):
        """The weight of each example that was drawn."""
        drawn = {}
        for step, _ in enumerate(selector, 1):
            last = selector.last
            weights = torch.ones(len(last.index)) if last.weights is None else last.weights
            assert not drawn.keys() & set(last.index.tolist())
            drawn |= dict(zip(last.index.tolist(), weights.tolist(), strict=True))
            losses = last.index.float().requires_grad_()
            mean = selector.mean_loss(losses)
            selector.record_losses(losses)
            mean.backward()
            torch.testing.assert_close(losses.grad, weights / len(weights))
            if step == steps:
                break
        return drawn

    def test_half_of_what_is_below_the_mean_is_left_out_and_the_rest_of_it_counts_twice(self):
        selector = self.build()
        assert self.epoch(selector) == dict.fromkeys(range(self.N), 1.0)
        parts = []
        for _ in range(20):
            drawn = self.epoch(selector)
            low = sorted(i for i in drawn if i < self.N / 2)
            assert all(weight == (2.0 if i in low else 1.0) for i, weight in drawn.items())
            assert set(drawn) == {*low, *range(self.N // 2, self.N)}
            assert len(selector) == -(-len(drawn) // 4)
            parts.append(low)
        assert len({tuple(low) for low in parts}) > 10
        assert 8 < sum(len(low) for low in parts) / len(parts) < 12

    def test_what_was_not_trained_on_yet_is_kept_and_of_no_weight_of_its_own(self):
        selector = self.build()
        known = self.epoch(selector, steps=5)
        limit = sum(known) / len(known)
        drawn = self.epoch(selector)
        assert all((weight == 2.0) == (i in known and i < limit) for i, weight in drawn.items())
        assert {i for i in range(self.N) if i not in known or i >= limit} <= set(drawn)

    def test_the_pure_function_is_the_papers_rule(self):
        generator = torch.Generator().manual_seed(0)
        losses, uniform = torch.rand(30, generator=generator), torch.rand(30, generator=generator)
        losses[7] = torch.nan
        known = [loss for i, loss in enumerate(losses.tolist()) if i != 7]
        kept, weights = functional.infobatch_part(losses, 0.7, uniform)
        for i, (loss, u) in enumerate(zip(losses.tolist(), uniform.tolist(), strict=True)):
            low = i != 7 and loss < sum(known) / len(known)
            assert bool(kept[i]) == (not low or u < 0.7)
            assert float(weights[i]) == pytest.approx(1 / 0.7 if low else 1.0)

    def test_the_weighted_sum_is_unbiased(self):
        generator = torch.Generator().manual_seed(0)
        losses, sums = torch.rand(50, generator=generator), []
        for _ in range(2000):
            kept, weights = functional.infobatch_part(losses, 0.3, torch.rand(50, generator=generator))
            sums.append((losses * weights)[kept].sum())
        assert abs(torch.stack(sums).mean() - losses.sum()) < 4 * torch.stack(sums).std() / 2000**0.5

    def test_the_last_epochs_are_plain_training(self):
        selector = self.build(full_from=2)
        assert len(self.epoch(selector)) == self.N
        assert len(self.epoch(selector)) < self.N
        for _ in range(2):
            assert self.epoch(selector) == dict.fromkeys(range(self.N), 1.0)
            assert selector.last.weights is None

    @pytest.mark.parametrize("options", [{"keep": 1.0}, {"keep": None, "batch_size": 4}])
    def test_keeping_everything_is_plain_training(self, options):
        selector = self.build(**options)
        plain = DataLoader(make_data(self.N), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            for (x, _), (plain_x, _) in zip(selector, plain, strict=True):
                assert torch.equal(x, plain_x)
                assert selector.last.weights is None
                selector.record_losses(selector.last.index.float())

    def test_without_reported_losses_nothing_is_left_out(self):
        selector = self.build()
        for _ in range(3):
            assert sum(len(x) for x, _ in selector) == self.N

    @pytest.mark.parametrize("at", [4, 10, 13, 17])
    @pytest.mark.parametrize("loader", [{}, {"num_workers": 1}, {"sampler": range(4, 36), "shuffle": False}])
    def test_a_resumed_run_leaves_the_same_out(self, at, loader):
        selector, chosen, state = self.build(loader=loader), [], None
        for _ in range(4):
            for _ in selector:
                chosen.append((selector.last.index.tolist(), selector.last.weights))
                selector.record_losses(selector.last.index.float())
                if len(chosen) == at:
                    state = copy.deepcopy(selector.state_dict())
        resumed, again = self.build(loader=loader), []
        resumed.load_state_dict(state)
        while resumed.epoch < 3 or len(again) < len(chosen) - at:
            for _ in resumed:
                again.append((resumed.last.index.tolist(), resumed.last.weights))
                resumed.record_losses(resumed.last.index.float())
        assert [index for index, _ in again] == [index for index, _ in chosen[at:]]
        assert str(again) == str(chosen[at:])

    def test_an_epoch_that_begins_again_has_the_same_part_and_another_has_another(self):
        selector = self.build(loader={"shuffle": False})
        self.epoch(selector)
        selector.set_epoch(5)
        first = self.epoch(selector)
        selector.set_epoch(5)
        assert self.epoch(selector) == first
        selector.set_epoch(6)
        assert self.epoch(selector) != first

    def test_the_state_of_another_dataset_and_a_stream_are_refused(self):
        state = self.build().state_dict()
        options = {"batch_size": 4, "shuffle": True, "generator": torch.Generator()}
        other = build_selector("infobatch", DataLoader(make_data(30), **options), keep=0.5)
        with pytest.raises(ValueError, match=r"expected subset to be a tensor of torch.bool and shape \(30,\), got .* \(40,\)"):
            other.load_state_dict(state)
        batches = IndexedBatches([(torch.arange(4), torch.zeros(4))])
        with pytest.raises(TypeError, match="InfoBatchSelector draws from a subset.*got IndexedBatches"):
            build_selector("infobatch", batches, batch_size=2)

    def test_of_a_part_of_a_dataset_what_counts_is_the_index_in_the_whole(self):
        training, _, _ = split(make_data(self.N), holdout=8, validation=8, seed=0)
        selector = build_selector("infobatch", DataLoader(training, batch_size=4), keep=0.5)
        first, second = self.epoch(selector), self.epoch(selector)
        limit = sum(first) / len(first)
        assert set(first) == set(training.indices.tolist())
        assert {i for i in first if i >= limit} <= set(second) < set(first)
