"""The contract suite over the whole registry, and selectors that break it."""

import pytest
import torch
from torch.utils.data import DataLoader

import rholoss
from rholoss import DrawRule, Selector
from rholoss.selectors import SelectiveBackpropSelector
from rholoss.testing import check_selector

OPTIONS = {"rho_loss_then_uniform": {"from_step": 2}}


@pytest.mark.parametrize("name", rholoss.selector_names())
def test_every_registered_method_keeps_the_contract(name):
    check_selector(name, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_the_contract_holds_in_every_way_of_scoring(mode, chunk_size):
    check_selector("rho_loss", mode=mode, chunk_size=chunk_size)
    check_selector("online_rho_loss", mode=mode, chunk_size=chunk_size)


class Hardest(Selector):
    def score(self, candidates):
        return candidates.loss


class Forgetful(Hardest):
    """Scores from a random number that no state holds."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.own = torch.Generator().manual_seed(torch.seed() % 1000)

    def score(self, candidates):
        return torch.rand(len(candidates), generator=self.own)


class Rude(Hardest):
    def score(self, candidates):
        self.model.train()
        return candidates.loss


class Leaky(Hardest):
    def score(self, candidates):
        return candidates.loss + torch.rand(len(candidates))


class Scribbling(Hardest):
    def score(self, candidates):
        if isinstance(candidates.batch, list):
            candidates.batch[0].add_(0.5 / 99)
        return candidates.loss


class Adding(Hardest):
    def score(self, candidates):
        if isinstance(candidates.batch, dict):
            candidates.batch["seen"] = True
        return candidates.loss


class Backwards(Hardest):
    def choose(self, candidates, score, n_b):
        return torch.arange(n_b).flip(0), torch.ones(n_b)


class Cutting(Hardest):
    def select(self, candidates):
        return super().select(candidates)

    def select_from(self, indexed):
        return [column[:-1] for column in super().select_from(indexed)]


def test_a_subclass_with_one_method_keeps_the_contract():
    check_selector(Hardest)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Forgetful, "seed|would have followed"),
        (Rude, "leave the model as before, but changed the mode of module 1; read candidates.outputs"),
        (Leaky, r"leave global random state as before, but changed torch's generator; draw from candidates.rand"),
        (Scribbling, "leave the candidate batches as before, but changed batch 0.*; copy"),
        (Adding, "leave the candidate batches as before"),
        (Cutting, "n_b = 6 examples, got 5"),
    ],
)
def test_a_selector_that_breaks_the_contract_is_caught(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_selector(broken)


class Even(Hardest):
    """Draws examples with an even index only, but all of them with keep = 1."""

    def draw_rule(self):
        return DrawRule(members=self.members)

    def members(self):
        return (torch.arange(len(self.dataset)) % 2 == 0) | (self.n_B == self.n_b)


class Half(Hardest):
    """Loads the first half of what is drawn, and n_b at least."""

    def draw_rule(self):
        return DrawRule(prefilter=self.prefilter)

    def prefilter(self, index, step):
        return torch.arange(max(len(index) // 2, min(self.n_b, len(index))))


def changed(base, **methods):
    """A selector in which some methods are others."""
    return type(base.__name__, (base,), methods)


def running_the_model(self, *arguments):
    return self.model(torch.zeros(4, 5))


def drawing(self, *arguments):
    return torch.randperm(len(arguments[0]) if arguments else 8)


def first_batch_again(self, indexed):
    self.first = getattr(self, "first", indexed)
    return super(Half, self).select_from(self.first)


@pytest.mark.parametrize("base", [Even, Half])
def test_a_selector_with_a_draw_rule_keeps_the_contract(base):
    check_selector(base)


@pytest.mark.parametrize(
    ("base", "methods", "message"),
    [
        (Even, {"score": lambda self, c: c.loss + float(self.dataset[1][0][1])}, r"only members may be read, but \[1\] were too"),
        (Half, {"prefilter": lambda self, index, step: torch.arange(self.n_b - 1)}, "at least n_b = 6 positions, got 5"),
        (
            Half,
            {"prefilter": lambda self, index, step: torch.arange(len(index)) // 2},
            r"distinct positions below 24, got \[0, 0, 1",
        ),
        (
            Half,
            {"prefilter": lambda self, index, step: Half.prefilter(self, index, self.dataset[index[0]])},
            r"exactly the examples that prefilter returns must be read, .*; decide by the index alone",
        ),
        (Half, {"prefilter": lambda self, index, step: torch.arange(6) - 1}, r"distinct positions below 24, got \[-1, 0, 1"),
        (Half, {"select_from": first_batch_again}, r"selected examples must be loaded in their own step, got \["),
        (Even, {"__len__": running_the_model}, r"len\(selector\) must not run a model; score in begin_epoch"),
        (Even, {"__repr__": running_the_model}, r"repr\(selector\) must not run a model"),
        (Even, {"hardest": property(running_the_model)}, "the property hardest must not run a model"),
        (Half, {"hardest": property(drawing)}, "the property hardest must leave global random state .* torch's generator"),
        (Half, {"prefilter": drawing}, r"prefilter\(\) must leave global random state .*; draw from self.generator"),
        (
            Half,
            {"prefilter": lambda self, index, step: Half.prefilter(self, index, running_the_model(self))},
            r"prefilter\(\) must not run a model",
        ),
        (
            Even,
            {"members": lambda self: Even.members(self) | bool(running_the_model(self).isnan().any())},
            r"members\(\) must not run a model",
        ),
        (
            Even,
            {"draw_rule": lambda self: running_the_model(self) is not None and Even.draw_rule(self)},
            r"draw_rule\(\) must not run a model",
        ),
    ],
)
def test_a_draw_rule_that_breaks_the_contract_is_caught(base, methods, message):
    with pytest.raises(AssertionError, match=message):
        check_selector(changed(base, **methods))


def test_a_choice_that_is_out_of_order_is_put_in_order():
    check_selector(Backwards)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ((torch.tensor([0, 0, 1, 2]), None), r"distinct positions, got \[0, 0, 1, 2\]"),
        ((torch.tensor([0, 1, 2, 16]), None), "from 0 to 15, got 0 to 16"),
        ((torch.tensor([-1, 1, 2, 3]), None), "from 0 to 15, got -1 to 3"),
        ((torch.tensor([1, 2, 3]), None), r"4 positions, int64 of shape \(4,\), got torch.int64 of shape \(3,\)"),
        ((torch.tensor([0.0, 1, 2, 3]), None), "got torch.float32 of shape"),
        (([0, 1, 2, 3], None), "got list"),
        (torch.tensor([0, 1, 2, 3]), r"must return \(positions, weights\).*got torch.int64"),
        ((torch.tensor([0, 1, 2, 3]), torch.ones(3)), "one weight per position"),
    ],
)
def test_a_choice_that_is_not_n_b_positions_is_refused(choice, message, data, net):
    class Choosy(Hardest):
        def choose(self, candidates, score, n_b):
            return choice

    with pytest.raises((TypeError, ValueError), match=message):
        next(iter(Choosy(DataLoader(data, batch_size=4), net, keep=0.25)))


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda c: c.loss[:, None], ValueError, r"one value per candidate, shape \(16,\), got \(16, 1\)"),
        (lambda c: c.loss.mean(), ValueError, r"got \(\)"),
        (lambda c: c.loss.tolist(), TypeError, "got list"),
        (lambda c: c.loss > 1, TypeError, "got dtype torch.bool"),
        (lambda c: c.loss.to("meta"), ValueError, "on the scoring device, cpu, got meta"),
        (lambda c: c.loss / 0 * 0, ValueError, "NaN or infinite at step 0: indices .*check what score"),
        (lambda c: c.loss + torch.inf, ValueError, "score of 16 of 16 candidates is NaN or infinite"),
    ],
)
def test_a_score_that_cannot_be_ranked_is_refused(score, error, message, data, net):
    class Scoring(Selector):
        def score(self, candidates):
            return score(candidates)

    with pytest.raises(error, match=message):
        next(iter(Scoring(DataLoader(data, batch_size=4), net, keep=0.25)))


def test_a_diverged_model_is_reported_by_name(data, net):
    with torch.no_grad():
        net[0].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="Hardest: the score of 16 of 16 .*has training diverged"):
        next(iter(Hardest(DataLoader(data, batch_size=4), net, keep=0.25)))


def test_minus_infinity_ranks_last(data, net):
    class Excluding(Selector):
        def score(self, candidates):
            return torch.where(candidates.index % 2 == 0, candidates.loss, -torch.inf)

    selector = Excluding(DataLoader(data, batch_size=4), net, keep=0.25)
    for step, _ in enumerate(selector):
        assert step == 6 or (selector.last.index % 2 == 0).all()  # at the end there are only 4 candidates


def test_check_selector_refuses_a_selector_that_is_built_already(data, net):
    with pytest.raises(TypeError, match="builds the selector itself"):
        check_selector(Hardest(DataLoader(data, batch_size=4), net))


@pytest.mark.parametrize("window", [30, None])
def test_a_loss_that_is_not_finite_has_no_percentile(window, data, net):
    with torch.no_grad():
        net[0].weight.fill_(torch.nan)
    selector = SelectiveBackpropSelector(DataLoader(data, batch_size=4), net, window=window, keep=0.25)
    with pytest.raises(ValueError, match="SelectiveBackpropSelector: the score of 16 of 16 .*has training diverged"):
        next(iter(selector))


class EvenIndices(Hardest):
    """Draws the even ones only, in every epoch."""

    def draw_rule(self):
        return DrawRule(members=torch.arange(len(self.dataset)) % 2 == 0)


def test_a_method_whose_members_never_change_keeps_the_contract():
    check_selector(EvenIndices)
