"""What a method decides before anything is loaded: who may be drawn, and which of those drawn are loaded."""

import copy

import pytest
import torch
from conftest import ReadLog, make_data, make_net
from torch.utils.data import DataLoader

from rholoss import DrawRule, IndexedBatches, IndexedSubset, Selector, functional
from rholoss.testing import check_selector

N = 64


class LongAgo(Selector):
    """Loads the half of the candidates that was scored the longest ago, and keeps the highest losses of these."""

    def __init__(self, loader, model, **options):
        super().__init__(loader, model, **options)
        self.scored_at = torch.full((len(loader.dataset),), -1)

    def draw_rule(self):
        return DrawRule(prefilter=self.oldest)

    def oldest(self, index, step):
        return functional.top(-self.scored_at[index].float(), max(self.n_b, len(index) // 2))

    def score(self, candidates):
        return candidates.loss

    def after_select(self, candidates, selection, batch):
        self.scored_at[candidates.index] = candidates.step

    def extra_state(self):
        return {"scored_at": self.scored_at}

    def load_extra_state(self, state):
        self.scored_at = state["scored_at"].clone()


class Some(Selector):
    """Draws the members only; scores by index."""

    def __init__(self, loader, model=None, *, rule, **options):
        super().__init__(loader, model, **options)
        self.rule = rule

    def draw_rule(self):
        return self.rule

    def score(self, candidates):
        return candidates.index.float()


def prefiltered(answer, **loader):
    data = DataLoader(make_data(N), batch_size=4, **loader)
    return Some(data, rule=DrawRule(prefilter=lambda index, step: answer), keep=0.25)


def test_a_users_own_method_keeps_the_contract():
    check_selector(LongAgo)


def test_only_what_the_prefilter_returns_is_loaded():
    data = ReadLog(make_data(N))
    selector = LongAgo(DataLoader(data, batch_size=4), make_net(0), keep=0.25)
    assert len(selector) == 4
    assert data.read == []
    sizes = [len(selector.last.candidate_index) for _ in selector]
    assert sizes == [8] * 4
    assert data.read == [i for first in range(0, N, 16) for i in range(first, first + 8)]
    data.read.clear()
    for _ in selector:  # the others are older now
        pass
    assert data.read == [i for first in range(8, N, 16) for i in range(first, first + 8)]


def test_the_prefilter_receives_indices_of_the_whole_dataset_and_the_step():
    asked = []

    def all_of_them(index, step):
        asked.append((index.tolist(), step))

    part = IndexedSubset(make_data(N), range(N - 1, N - 33, -1))
    selector = Some(DataLoader(part, batch_size=4), rule=DrawRule(prefilter=all_of_them), keep=0.25)
    drawn = [selector.last.candidate_index.tolist() for _ in selector]
    assert asked == [(drawn[0], 0), (drawn[1], 1)]
    assert drawn[0] == list(range(N - 1, N - 17, -1))


@pytest.mark.parametrize("workers", [0, 1])
def test_members_are_drawn_and_nothing_else(workers):
    members = torch.arange(N) % 4 == 1
    loader = DataLoader(make_data(N), batch_size=4, shuffle=True, num_workers=workers)
    for given in (members, lambda: members):
        selector = Some(loader, rule=DrawRule(members=given), keep=0.5)
        assert len(selector) == 2
        drawn = [i for _ in selector for i in selector.last.candidate_index.tolist()]
        assert sorted(drawn) == list(range(1, N, 4))


def test_a_rule_may_say_that_all_that_is_drawn_is_trained_on():
    members = torch.arange(N) < 20
    selector = Some(DataLoader(make_data(N), batch_size=4), rule=DrawRule(members=members, n_B=4), batch_size=4)
    assert [selector.last.index.tolist() for _ in selector] == [list(range(i, i + 4)) for i in range(0, 20, 4)]


def test_positions_come_back_in_the_order_in_which_they_were_drawn():
    selector = prefiltered(torch.tensor([9, 3, 12, 0, 7]))
    next(iter(selector))
    assert selector.last.candidate_index.tolist() == [0, 3, 7, 9, 12]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.tensor([1, 2, 3]), r"at least n_b = 4 positions, int64 of shape \(m,\), got torch.int64 of shape \(3,\)"),
        (torch.tensor([1.0, 2.0, 3.0, 4.0]), "got torch.float32 of shape"),
        ([1, 2, 3, 4], "got list"),
        (torch.tensor([1, 2, 3, 3]), r"distinct positions from 0 to 15, got \[1, 2, 3, 3\]"),
        (torch.tensor([1, 2, 3, 16]), "distinct positions from 0 to 15"),
        (torch.tensor([-1, 2, 3, 4]), "distinct positions from 0 to 15"),
    ],
)
def test_what_is_no_choice_of_the_drawn_is_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        next(iter(prefiltered(answer)))


def test_what_cannot_be_decided_before_loading_is_refused():
    data = make_data(N)
    rules = [DrawRule(members=torch.ones(N, dtype=torch.bool)), DrawRule(prefilter=lambda index, step: None)]
    pairs = [(torch.arange(8), torch.zeros(8, 2))]
    for rule in rules:
        for selector in (
            Some(DataLoader(data, batch_size=8), rule=rule, batch_size=4),
            Some(IndexedBatches(pairs), rule=rule, batch_size=4),
            Some(IndexedBatches(DataLoader(data, batch_size=4), index=lambda batch: batch[1]), rule=rule, keep=0.5),
        ):
            with pytest.raises(ValueError, match="needs a DataLoader over a map-style dataset .* keep= rather than batch_size="):
                next(iter(selector))


def test_a_copy_asks_its_own_method():
    selector = LongAgo(DataLoader(make_data(N), batch_size=4), make_net(0), keep=0.25)
    next(iter(selector))
    twin = copy.deepcopy(selector)
    for _ in twin:
        pass
    assert (twin.scored_at >= 0).sum() > (selector.scored_at >= 0).sum()
