"""A short list by irreducible loss, made before anything is loaded."""

import math

import pytest
import torch
from conftest import ReadLog, make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector, split
from rholoss.selectors import PrefilteredRhoLossSelector


class TestPrefilter:
    def make(self, data, store, **options):
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
        return PrefilteredRhoLossSelector(loader, make_net(0), store, keep=0.1, **options)

    def test_only_the_list_is_read_and_scored(self, store):
        data = ReadLog(make_data(320))
        selector = self.make(data, store, share=0.25)
        data.read.clear()  # the fingerprint
        for x, _ in selector:
            assert len(x) == 8
            assert len(selector.last.candidate_index) == 20
        assert len(data.read) == 4 * 20
        assert selector.cost().scored == 20

    def test_the_list_is_that_of_the_highest_remembered_scores_and_the_oldest(self, store):
        data = ReadLog(make_data(320))
        selector = self.make(data, store, share=0.5, oldest=0.5)
        model = selector.model.eval()
        when = [-1] * 320
        loss, mean = [0.0] * 320, 0.0
        order = torch.randperm(320, generator=_after_the_seed(0)).tolist()
        for step, _ in enumerate(selector):
            drawn = order[80 * step : 80 * step + 80]
            old = sorted(range(80), key=lambda p: (when[drawn[p]], p))[:20]
            score = [(loss[i] if when[i] >= 0 else mean) - float(store[torch.tensor([i])]) for i in drawn]
            rest = sorted((p for p in range(80) if p not in old), key=lambda p: (-score[p], p))[:20]
            expected = [drawn[p] for p in sorted(old + rest)]
            assert selector.last.candidate_index.tolist() == expected
            with torch.no_grad():
                x, y = (column[expected] for column in data.data.tensors)
                losses = nn.functional.cross_entropy(model(x), y, reduction="none")
            for i, value in zip(expected, losses.tolist(), strict=True):
                loss[i], when[i] = value, step
            mean = float(losses.mean())
        assert step == 3

    def test_age_is_told(self, store):
        selector = self.make(make_data(320), store, share=0.5)
        next(iter(selector))
        assert math.isnan(selector.last.notes["age"])
        list(selector), list(selector)
        assert selector.last.notes["age"] >= 1

    def test_everything_is_read_at_a_share_of_one(self, store):
        selector, plain = self.make(make_data(320), store, share=1.0), None
        loader = DataLoader(make_data(320), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
        plain = RhoLossSelector(loader, make_net(0), store, keep=0.1)
        for _ in zip(selector, plain, strict=True):
            assert torch.equal(selector.last.index, plain.last.index)

    def test_a_part_keeps_its_indices(self):
        data = ReadLog(make_data(400))
        part, _ = split(data, holdout=80, validation=0, seed=0)[:2]
        store = IrreducibleLossStore(torch.rand(400))
        loader = DataLoader(part, batch_size=8)
        selector = PrefilteredRhoLossSelector(loader, make_net(0), store, keep=0.1)
        for _ in selector:
            assert set(selector.last.candidate_index.tolist()) <= set(part.indices.tolist())
            seen = selector._when[selector.last.candidate_index]
            assert (seen == selector.step - 1).all()

    def test_refuses_what_cannot_be_drawn_from(self, loader, store):
        with pytest.raises(ValueError, match="pass a DataLoader over a map-style dataset, and keep="):
            PrefilteredRhoLossSelector(loader, make_net(0), store, batch_size=4)
        with pytest.raises(ValueError, match=r"share must be a fraction in \(0, 1\]"):
            self.make(make_data(320), store, share=0)

    def test_a_state_of_other_data_is_refused(self, store):
        state = self.make(make_data(320), store).state_dict()
        state["extra"]["loss"] = torch.zeros(3)
        with pytest.raises(ValueError, match=r"expected loss to be a tensor of torch.float32 and shape \(320,\), got .* \(3,\)"):
            self.make(make_data(320), store).load_state_dict(state)


def _after_the_seed(seed):
    """The loader's generator where its sampler begins to draw: a base seed was drawn first."""
    generator = torch.Generator().manual_seed(seed)
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return generator
