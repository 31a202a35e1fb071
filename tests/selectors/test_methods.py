"""Every method of the registry against its oracle, and every sign in every formula against the oracles."""

import ast
import copy
import importlib
import inspect
import math
import pkgutil
import sys
import types

import oracles
import pytest
import torch
from conftest import make_data, make_net
from oracles import cross_entropy, entropy, highest, logits_one_by_one, logits_with_dropout, mean, mean_prediction, softmax
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset

import rholoss
from rholoss import IrreducibleLossStore, functional, registry, schedules, selectors, wrappers
from rholoss.selectors import UniformSelector
from rholoss.selectors.selection_via_proxy import ForgettingCounts, proxy_scores
from rholoss.wrappers import SwitchSelector

N_B, N_CANDIDATES, STEPS, PASSES = 4, 16, 4, 3
DATA = make_data(N_CANDIDATES * STEPS)
IRREDUCIBLE_MODEL, PROXY = make_net(1), make_net(2)
OPTIONS = {
    "rho_loss_then_uniform": {"from_step": 2},
    "proxy_rho_loss": {"compare_every": 1},
    "boltzmann_rho_loss": {"temperature": schedules.Geometric(2.0, 0.5, steps=3)},
    "prefiltered_rho_loss": {"share": 1.0},
    "bald": {"passes": PASSES},
    "entropy": {"passes": PASSES},
    "conditional_entropy": {"passes": PASSES},
    "loss_minus_conditional_entropy": {"passes": PASSES},
    "loss_plus_conditional_entropy": {"passes": PASSES},
    "divbs, features": {"features": lambda model, batch: (model(batch[0]), batch[1], model[:-1](batch[0]))},
    "rank_based": {"pressure": schedules.Geometric(1000.0, 2.0, steps=3)},
    "selective_backprop": {"window": 40},
    "selective_backprop, ranks": {"window": None, "beta": schedules.Linear(2.0, 0.5, steps=3)},
}


class Step:
    """What an oracle may look at: the models before each step, one candidate batch, the random numbers, and the steps before."""

    def __init__(self, number, models, index, generator, before=()):
        self.number, self.models, self.generator, self.before = number, models, generator, before
        self.xs = [DATA[i][0] for i in index]
        self.ys = [int(DATA[i][1]) for i in index]

    def losses(self, model):
        return [cross_entropy(z, y) for z, y in zip(logits_one_by_one(model, self.xs), self.ys, strict=True)]

    def reducible(self, model):
        pairs = zip(self.losses(model), self.losses(IRREDUCIBLE_MODEL), strict=True)
        return [loss - irreducible_loss for loss, irreducible_loss in pairs]

    def now(self):
        return self.models[self.number]

    def random_numbers(self, n):
        return torch.rand(n, generator=self.generator).tolist()

    def passes(self):
        """The logits of each example in each pass with dropout."""
        seeds = torch.randint(2**62, (PASSES,), generator=self.generator).tolist()
        return logits_with_dropout(self.now(), self.xs, seeds)


def ranked(scores):
    return scores, highest(scores, N_B), None


def gradient_norms(step):
    norms = []
    for logits, y in zip(logits_one_by_one(step.now(), step.xs), step.ys, strict=True):
        gradient = [p - (c == y) for c, p in enumerate(softmax(logits))]
        norms.append(sum(g * g for g in gradient) ** 0.5)
    return norms


def draw_by_gradient_norm(step):
    norms = gradient_norms(step)
    return (norms, *oracles.weighted_draw(norms, step.random_numbers(N_B)))


def boltzmann(step):
    temperature = 2.0 * (0.5 / 2.0) ** min(step.number / 3, 1)
    scores = step.reducible(step.now())
    noisy = [s / temperature + oracles.gumbel(u) for s, u in zip(scores, step.random_numbers(N_CANDIDATES), strict=True)]
    return scores, highest(noisy, N_B), None


def selective_backprop(step):
    history = [loss for past in (*step.before, step) for loss in past.losses(past.now())][-40:]
    scores = [sum(other <= loss for other in history) / len(history) for loss in step.losses(step.now())]
    return drawn_without_replacement(step, scores, beta=N_CANDIDATES / N_B - 1)


def selective_backprop_by_rank(step):
    losses = step.losses(step.now())
    scores = [(sum(other < loss for other in losses) + 0.5) / len(losses) for loss in losses]
    return drawn_without_replacement(step, scores, beta=2.0 - 1.5 * min(step.number / 3, 1))


def drawn_without_replacement(step, scores, beta):
    noise = [oracles.gumbel(u) for u in step.random_numbers(N_CANDIDATES)]
    return scores, highest([math.log(score**beta) + g for score, g in zip(scores, noise, strict=True)], N_B), None


def rank_based(step):
    losses, pressure = step.losses(step.now()), 1000.0 * (2.0 / 1000.0) ** min(step.number / 3, 1)
    noisy = []
    for loss, u in zip(losses, step.random_numbers(N_CANDIDATES), strict=True):
        rank = 1 + sum(other > loss for other in losses)
        noisy.append(math.log(1 / math.exp(math.log(pressure) / len(losses)) ** rank) + oracles.gumbel(u))
    return losses, highest(noisy, N_B), None


def divbs(step, with_features=False):
    """With the gradients of the last layer's weights, or of the logits, written out."""
    gradients = []
    features = logits_one_by_one(step.now()[:-1], step.xs) if with_features else [[1.0]] * N_CANDIDATES
    for logits, y, h in zip(logits_one_by_one(step.now(), step.xs), step.ys, features, strict=True):
        gradients.append([(p - (c == y)) * x for c, p in enumerate(softmax(logits)) for x in h])
    picked = oracles.divbs(gradients, N_B)
    scores = step.random_numbers(N_CANDIDATES)
    for t, i in enumerate(picked):
        scores[i] = N_B - t
    return ranked(scores)


def everything():
    """Of a candidate batch of n_b, all is kept; what is left out was never drawn."""
    return [1.0] * N_B, list(range(N_B)), None


def bald(passes):
    return entropy(mean_prediction(passes)) - conditional_entropy(passes)


def conditional_entropy(passes):
    return mean([entropy(softmax(logits)) for logits in passes])


def loss_and_conditional_entropy(step, sign):
    scores = []
    for passes, y in zip(step.passes(), step.ys, strict=True):
        scores.append(mean([cross_entropy(logits, y) for logits in passes]) + sign * conditional_entropy(passes))
    return scores


def via_proxy(step):
    return [entropy(softmax(logits)) for logits in logits_one_by_one(PROXY, step.xs)]


ORACLES = {
    "uniform": lambda step: ranked(step.random_numbers(N_CANDIDATES)),
    "train_loss": lambda step: ranked(step.losses(step.now())),
    "irreducible_loss": lambda step: ranked([-loss for loss in step.losses(IRREDUCIBLE_MODEL)]),
    "gradient_norm": lambda step: ranked(gradient_norms(step)),
    "gradient_norm_importance_sampling": draw_by_gradient_norm,
    "bald": lambda step: ranked([bald(passes) for passes in step.passes()]),
    "entropy": lambda step: ranked([entropy(mean_prediction(passes)) for passes in step.passes()]),
    "conditional_entropy": lambda step: ranked([conditional_entropy(passes) for passes in step.passes()]),
    "loss_minus_conditional_entropy": lambda step: ranked(loss_and_conditional_entropy(step, -1)),
    "loss_plus_conditional_entropy": lambda step: ranked(loss_and_conditional_entropy(step, +1)),
    "rho_loss": lambda step: ranked(step.reducible(step.now())),
    "online_rho_loss": lambda step: ranked(step.reducible(step.now())),
    "lazy_rho_loss": lambda step: ranked(step.reducible(step.now())),
    "stale_rho_loss": lambda step: ranked(step.reducible(step.models[max(step.number - 1, 0)])),
    "proxy_rho_loss": lambda step: ranked(step.reducible(PROXY)),
    "prefiltered_rho_loss": lambda step: ranked(step.reducible(step.now())),
    "boltzmann_rho_loss": boltzmann,
    "rho_loss_then_uniform": lambda step: ranked(
        step.reducible(step.now()) if step.number < 2 else step.random_numbers(N_CANDIDATES)
    ),
    "selection_via_proxy": lambda step: (via_proxy(step), list(range(N_B)), None),
    "selective_backprop": selective_backprop,
    "rank_based": rank_based,
    "divbs": divbs,
    "infobatch": lambda step: everything(),  # in the first epoch
    "kakurenbo": lambda step: everything(),  # likewise
    "repeated_random_subset": lambda step: everything(),
}
VARIANTS = {  # methods with other options
    "selective_backprop, ranks": selective_backprop_by_rank,
    "divbs, features": lambda step: divbs(step, with_features=True),
}


def compare_with_oracle(name, build):
    """Train for a few steps and hold scores, positions and weights of each against the oracle's."""
    torch.manual_seed(0)  # for the model's dropout
    model = make_net(0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    store = IrreducibleLossStore.from_model(IRREDUCIBLE_MODEL, DATA)
    loader = DataLoader(DATA, batch_size=N_B, shuffle=True, generator=torch.Generator().manual_seed(5))
    selector = registry.build_selector(
        build, loader, model, store=store, proxy=PROXY, irreducible_model=IRREDUCIBLE_MODEL, keep=N_B / N_CANDIDATES,
        seed=3, **OPTIONS.get(name, {}),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    models, before = [], []
    batches = iter(selector)
    for number in range(STEPS):
        models.append(copy.deepcopy(model))
        x, y = next(batches)
        last = selector.last
        step = Step(number, models, last.candidate_index.tolist(), generator, tuple(before))
        scores, positions, weights = (ORACLES | VARIANTS)[name](step)
        before.append(step)
        torch.testing.assert_close(last.scores.double(), torch.tensor(scores, dtype=torch.float64), rtol=1e-4, atol=1e-5)
        assert last.positions.tolist() == positions
        assert (last.weights is None) == (weights is None)
        if weights is not None:
            torch.testing.assert_close(last.weights.double(), torch.tensor(weights, dtype=torch.float64), rtol=1e-4, atol=0.0)
        assert torch.equal(x, DATA.tensors[0][last.index])
        assert torch.equal(y, DATA.tensors[1][last.index])
        losses = nn.functional.cross_entropy(model(x), y, reduction="none")
        optimizer.zero_grad()
        selector.mean_loss(losses).backward()
        optimizer.step()
        if name == "proxy_rho_loss":
            own = highest(Step(number, models, last.candidate_index.tolist(), generator).reducible(models[number]), N_B)
            assert last.notes["overlap"].item() == pytest.approx(len(set(own) & set(positions)) / N_B)
    return selector


@pytest.mark.parametrize("name", sorted(ORACLES | VARIANTS))
def test_a_method_scores_and_chooses_what_its_oracle_does(name):
    compare_with_oracle(name, method_of(name))


def method_of(name):
    """The registered name of an oracle's method."""
    return name.split(",")[0]


def check_prefilter(build):
    """What was scored is known by its age, and the oldest is what is listed."""
    store, options = IrreducibleLossStore.from_model(IRREDUCIBLE_MODEL, DATA), {"keep": N_B / N_CANDIDATES}
    selector = build(DataLoader(DATA, batch_size=N_B), make_net(0), store, share=1.0, **options)
    list(selector)
    assert [float(selector.last.notes["age"]) for _ in selector] == [STEPS] * STEPS
    selector = build(DataLoader(DATA, batch_size=N_B), make_net(0), store, share=0.5, oldest=1.0, **options)
    listed = [i for _ in range(2) for _ in selector for i in selector.last.candidate_index.tolist()]
    assert sorted(listed) == list(range(len(DATA)))


def check_gated_uniform(build):
    """What is drawn at random is below the limit, and the share above it is told."""
    store = IrreducibleLossStore(torch.arange(len(DATA)) % 2 * 5.0)
    loader = DataLoader(DATA, batch_size=N_B)
    selector = build(loader, None, store, max_irreducible_loss=1.0, keep=N_B / N_CANDIDATES)
    for _ in selector:
        assert not (selector.last.index % 2).any()
        assert selector.last.notes["gated"] == 0.5


def test_the_prefilter_and_the_gate_do_what_they_say():
    check_prefilter(registry._METHODS["prefiltered_rho_loss"])
    check_gated_uniform(selectors.GatedUniformSelector)


def check_jest(build):
    """A batch is drawn chunk by chunk, by the learner's losses of pairs less the reference's."""
    data = TensorDataset(torch.randn(48, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(48))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner, reference = nn.Linear(5, 6), nn.Linear(5, 6)
    options = {"forward": lambda model, batch: (tuple(model(batch[0]).chunk(2, dim=1)), None), "keep": 5 / 20, "seed": 3}
    loader = DataLoader(data, batch_size=5, drop_last=True)
    selector = build(loader, learner, reference, pair_losses=sigmoid_losses, chunks=3, **options)
    generator = torch.Generator().manual_seed(3)
    for _ in selector:
        last = selector.last
        n = len(last.candidate_index)
        x = data.tensors[0][last.candidate_index]
        learnt, known = (oracles.sigmoid_losses(*model(x).double().chunk(2, dim=1), 2.0, -1.0) for model in (learner, reference))
        scores = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(learnt, known, strict=True)]
        assert last.scores.tolist() == pytest.approx([scores[i][i] for i in range(n)], abs=1e-5)
        assert last.positions.tolist() == oracles.jest(scores, 5, 3, torch.rand(3, n, generator=generator).tolist())
    assert selector.step == 3


def sigmoid_losses(model, outputs):
    return functional.sigmoid_pair_losses(*outputs, 2.0, -1.0)


def test_a_batch_that_is_drawn_jointly_is_what_its_oracle_draws():
    check_jest(selectors.JestSelector)


def test_every_registered_method_has_an_oracle():
    assert sorted(ORACLES) == rholoss.selector_names()


def test_a_short_training_run_is_the_papers_algorithm():
    data, model, slow_model = make_data(90), make_net(0), make_net(0)
    for network in (model, slow_model):
        network[3].p = 0.0
    store = IrreducibleLossStore.from_model(IRREDUCIBLE_MODEL, data)
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(7))
    order_generator = torch.Generator().manual_seed(7)
    torch.empty((), dtype=torch.int64).random_(generator=order_generator)  # what DataLoader draws as the workers' seed
    order = list(RandomSampler(data, generator=order_generator))
    expected = oracles.train_with_rho_loss(slow_model, IRREDUCIBLE_MODEL, data, order, n_b=4, n_candidates=16, learning_rate=0.3)
    selector = rholoss.RhoLossSelector(loader, model, store, keep=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    chosen = []
    model.train()
    for x, y in selector:
        chosen.append(selector.last.index.tolist())
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert chosen == expected
    assert len(chosen) == 6
    assert all(
        torch.equal(mine, its) for mine, its in zip(model.state_dict().values(), slow_model.state_dict().values(), strict=True)
    )


def check_selection_via_proxy(build, scores_by_proxy, counts_type):
    """The fixed part is the share with the highest proxy scores, the same in every epoch; nothing else is read."""
    all_scores = [entropy(softmax(logits)) for logits in logits_one_by_one(PROXY, [DATA[i][0] for i in range(len(DATA))])]
    part = set(highest(all_scores, len(DATA) // 4))
    selector = build(DataLoader(DATA, batch_size=N_B, shuffle=True), None, PROXY, keep=0.25)
    for _ in range(2):
        drawn = []
        for _ in selector:
            drawn += selector.last.index.tolist()
        assert set(drawn) == part
        assert len(drawn) == len(part)
    confidence = [1 - max(softmax(logits)) for logits in logits_one_by_one(PROXY, [DATA[i][0] for i in range(len(DATA))])]
    torch.testing.assert_close(
        scores_by_proxy(PROXY, DATA, "least_confidence").double(), torch.tensor(confidence, dtype=torch.float64)
    )
    counts = counts_type(4)
    for right in ([1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1]):
        counts.update(torch.arange(4), torch.tensor(right, dtype=torch.bool))
    some = SubsetRandomSampler(range(8, 40))
    selector = build(DataLoader(DATA, batch_size=N_B, sampler=some), None, PROXY, keep=0.25)
    for _ in selector:
        assert int(selector.last.index.min()) >= 8
        assert int(selector.last.index.max()) < 40
    assert len(selector) == 2
    assert counts.scores().tolist() == [2, 0, 3, 1]  # example 2 was never learnt: above every count


def test_selection_via_proxy_keeps_one_fixed_part():
    check_selection_via_proxy(registry._METHODS["selection_via_proxy"], proxy_scores, ForgettingCounts)


def check_kakurenbo(build):
    """What is hidden is what the paper's rule hides, by the predictions at the time when each example was seen last."""
    torch.manual_seed(0)
    x = DATA.tensors[0]
    data = TensorDataset(x, x[:, :4].argmax(1))  # what can be learnt
    model, moved_back = make_net(0).train(), []
    model[1].eval()  # the last batch of an epoch may have one example
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    loader = DataLoader(data, batch_size=N_B, shuffle=True, generator=torch.Generator().manual_seed(5))
    selector = build(loader, model, keep=0.4, stages=(7, 8, 9))
    seen, hidden = {}, set()
    for epoch in range(11):
        for i in hidden:
            seen[i] = logits_one_by_one(model, [data[i][0]])[0], int(data[i][1])
        share = 0.6 * {7: 0.8, 8: 0.6, 9: 0.4, 10: 0.4}.get(epoch, 1.0)
        hidden = oracles.kakurenbo(seen, share, 0.7)
        moved_back.append(round(share * len(seen)) - len(hidden))
        drawn = []
        for x, y in selector:
            assert selector.learning_rate_scale == pytest.approx(1 / (1 - len(hidden) / len(data)))
            index, logits = selector.last.index.tolist(), model(x)
            seen |= {i: (row, int(c)) for i, row, c in zip(index, logits.tolist(), y, strict=True)}
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(logits, y, reduction="none")
            selector.mean_loss(losses).backward()
            selector.record_losses(losses)
            optimizer.step()
            drawn += index
        assert sorted(drawn) == sorted(set(range(len(data))) - hidden)
    assert moved_back[1] == 38 > moved_back[2] > 0  # all, then some,
    assert (moved_back[-1], len(hidden)) == (0, 15)  # and in the end none
    selector = build(DataLoader(data, batch_size=N_B, drop_last=True), model, keep=0.01, bound=math.inf)
    for _ in selector:
        selector.record_losses(-selector.last.index.float())
    assert [selector.last.index.tolist() for _ in selector] == [list(range(N_B))]


def test_kakurenbo_hides_what_the_papers_rule_hides():
    check_kakurenbo(registry._METHODS["kakurenbo"])


def check_formulas(module):
    """The pure functions that no method exercises to the end."""
    confident = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]])
    expected = [1 - max(softmax(row)) for row in confident.tolist()]
    torch.testing.assert_close(module.least_confidence(confident), torch.tensor(expected))
    tenths = torch.ones(10, dtype=torch.float64)  # ten times 0.1 adds up to a little under 1
    positions, _ = module.importance_sample(tenths, torch.tensor([1 - 2**-53], dtype=torch.float64))
    assert positions.tolist() == [9]
    positions, weights = module.importance_sample(torch.zeros(4), torch.tensor([0.1, 0.6]))
    assert positions.tolist() == [0, 2]
    assert weights.tolist() == [1, 1]
    loss, irreducible_loss = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 0.5, 3.5])
    bounded = [math.exp(-b) - math.exp(-a) for a, b in zip(loss.tolist(), irreducible_loss.tolist(), strict=True)]
    torch.testing.assert_close(module.bounded_reducible_loss(loss, irreducible_loss), torch.tensor(bounded))
    assert module.gated(loss, irreducible_loss, 2.0).tolist() == [0.0, 1.0, -math.inf]
    assert module.ranks(torch.tensor([0.3, 0.1, 0.3, 0.3])).tolist() == [3.0, 1.0, 3.0, 3.0]
    assert module.spearman(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([5.0, 7.0, 6.0])).item() == pytest.approx(0.5)
    assert module.overlap(torch.tensor([1, 2, 3, 4]), torch.tensor([4, 9, 1])).item() == 0.5


def check_schedules(module):
    assert [module.Linear(3.0, 1.0, steps=4)(step) for step in (0, 1, 2, 4, 9)] == [3.0, 2.5, 2.0, 1.0, 1.0]
    assert [module.Geometric(8.0, 0.5, steps=2)(step) for step in (0, 1, 2, 9)] == [8.0, 2.0, 0.5, 0.5]
    cosine = module.Cosine(0.1, 0.9, steps=4)
    assert [cosine(step) for step in (0, 2, 4, 9)] == pytest.approx([0.1, 0.5, 0.9, 0.9])
    assert cosine(1) == pytest.approx(0.1 + 0.4 * (1 - 2**-0.5))
    assert [module.Switch(0.1, 0.9, at=3)(step) for step in (0, 2, 3, 9)] == [0.1, 0.1, 0.9, 0.9]


def test_the_pure_functions_are_their_formulas():
    check_formulas(functional)
    check_schedules(schedules)


def test_the_weighted_draw_is_unbiased_where_the_plain_mean_of_what_is_drawn_is_not():
    generator = torch.Generator().manual_seed(0)
    norms, losses = torch.rand(30, generator=generator), torch.rand(30, generator=generator)
    losses = losses + norms  # what is drawn more often loses more
    plain, weighted = [], []
    for _ in range(4000):
        positions, weights = functional.importance_sample(norms, torch.rand(8, generator=generator))
        plain.append(losses[positions].mean())
        weighted.append((losses[positions] * weights).mean())
    off = (torch.stack(weighted).mean() - losses.mean()).abs()
    assert off < 4 * torch.stack(weighted).std() / 4000**0.5
    assert torch.stack(plain).mean() - losses.mean() > 0.1


def test_boltzmann_goes_from_rho_loss_to_uniform_with_the_temperature():
    model, store = make_net(0), IrreducibleLossStore.from_model(IRREDUCIBLE_MODEL, DATA)
    rho = rholoss.RhoLossSelector(DataLoader(DATA, batch_size=N_B), model, store)
    cold, hot = (
        registry.build_selector("boltzmann_rho_loss", DataLoader(DATA, batch_size=N_B), model, store=store, temperature=t)
        for t in (1e-6, 1e6)
    )
    for selector in (rho, cold, hot):
        next(iter(selector))
    assert torch.equal(cold.last.index, rho.last.index)
    assert not torch.equal(hot.last.index, rho.last.index)
    assert len(hot.last.index.unique()) == N_B


def test_the_irreducible_loss_model_trained_along_takes_one_step_on_each_selected_batch():
    irreducible_model = copy.deepcopy(IRREDUCIBLE_MODEL).eval()
    twin = copy.deepcopy(irreducible_model)
    optimizer = torch.optim.SGD(irreducible_model.parameters(), lr=0.1)
    twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    selector = registry.build_selector(
        "online_rho_loss", DataLoader(DATA, batch_size=N_B), make_net(0), irreducible_model=irreducible_model,
        irreducible_optimizer=optimizer, keep=0.25,
    )  # fmt: skip
    for x, y in selector:
        step = Step(0, [selector.model], selector.last.candidate_index.tolist(), None)
        expected = [a - b for a, b in zip(step.losses(selector.model), step.losses(twin), strict=True)]
        assert selector.last.scores.tolist() == pytest.approx(expected, abs=1e-5)
        twin_optimizer.zero_grad()
        nn.functional.cross_entropy(twin(x), y).backward()
        twin_optimizer.step()
        torch.testing.assert_close(irreducible_model.state_dict(), twin.state_dict())
    assert all(p.grad is None for p in irreducible_model.parameters())


def test_switching_by_epoch_counts_passes_over_the_data():
    model = make_net(0)
    loader = DataLoader(DATA, batch_size=N_B)
    rho = registry.build_selector("train_loss", loader, model)
    selector = SwitchSelector(loader, model, {0: rho, 1: UniformSelector(loader)}, unit="epoch", keep=0.25)
    list(selector)
    losses = selector.last.scores
    list(selector)
    assert float(losses.max()) > 1
    assert float(selector.last.scores.max()) < 1  # random numbers now
    assert selector.epoch == 1


def sign_flips(source):
    """Every copy of a module with one sign of a formula turned: a sum, a negation or the direction of a sort."""
    places = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
            places.append((node.lineno, node.col_offset, "sum"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
            places.append((node.lineno, node.col_offset, "negation"))
        elif isinstance(node, ast.keyword) and node.arg == "descending":
            places.append((node.lineno, node.col_offset, "direction"))
    for line, column, kind in places:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if (getattr(node, "lineno", None), getattr(node, "col_offset", None)) != (line, column):
                continue
            if kind == "sum" and isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
                node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
                break
            if kind == "negation" and isinstance(node, ast.UnaryOp):
                node.op = ast.UAdd()
                break
            if kind == "direction" and isinstance(node, ast.keyword):
                node.value = ast.Constant(not node.value.value)
                break
        yield f"line {line}, column {column}: {kind}", ast.fix_missing_locations(tree)


def loaded(module, tree, monkeypatch):
    """A module made of another tree, and the methods that it registers; the real registry stays as it is."""
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_METHODS", {})
        changed = types.ModuleType(module.__name__)
        changed.__file__ = module.__file__
        patch.setitem(sys.modules, module.__name__, changed)
        exec(compile(tree, module.__file__, "exec"), vars(changed))
        return changed, dict(registry._METHODS)


ELSEWHERE = ("store_selector", "payoff_gate", "keep_schedule", "global_selection", "row_exchange")  # have tests of their own
METHOD_MODULES = sorted(
    f"{package.__name__}.{module.name}"
    for package in (selectors, wrappers)
    for module in pkgutil.iter_modules(package.__path__)
    if module.name not in ELSEWHERE
)


def fails(check):
    try:
        check()
    except (AssertionError, ValueError, IndexError):
        return True
    return False


@pytest.mark.parametrize("name", METHOD_MODULES)
def test_turning_any_sign_in_a_method_is_noticed(name, monkeypatch):
    module = importlib.import_module(name)
    for where, tree in sign_flips(inspect.getsource(module)):
        changed, methods = loaded(module, tree, monkeypatch)

        def check(changed=changed, methods=methods):
            for method, build in methods.items():
                for variant in (name for name in (*ORACLES, *VARIANTS) if method_of(name) == method):
                    compare_with_oracle(variant, build)
            if name.endswith(".prefiltered_rho_loss"):
                check_prefilter(changed.PrefilteredRhoLossSelector)
            if name.endswith(".jest"):
                check_jest(changed.JestSelector)
            if name.endswith(".irreducible_loss"):
                check_gated_uniform(changed.GatedUniformSelector)
            if name.endswith(".kakurenbo"):
                check_kakurenbo(changed.KakurenboSelector)
            if name.endswith(".selection_via_proxy"):
                check_selection_via_proxy(changed.SelectionViaProxy, changed.proxy_scores, changed.ForgettingCounts)

        assert fails(check), f"no test notices a turned sign in {name}, {where}"


@pytest.mark.parametrize("name", ["functional", "schedules"])
def test_turning_any_sign_in_a_formula_is_noticed(name, monkeypatch):
    module = importlib.import_module(f"rholoss.{name}")
    flips = list(sign_flips(inspect.getsource(module)))
    assert flips
    for where, tree in flips:
        changed, _ = loaded(module, tree, monkeypatch)

        def check():
            check_formulas(functional)
            for method in (*ORACLES, *VARIANTS):
                compare_with_oracle(method, method_of(method))
            check_jest(selectors.JestSelector)

        with monkeypatch.context() as patch:
            for attribute, value in vars(changed).items():
                if inspect.isfunction(value) and hasattr(module, attribute):
                    patch.setattr(module, attribute, value)
            noticed = fails(check) or (module is schedules and fails(lambda changed=changed: check_schedules(changed)))
        assert noticed, f"no test notices a turned sign in {name}, {where}"
