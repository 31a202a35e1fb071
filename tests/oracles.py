"""The methods as their papers state them, slow and obvious: plain loops over plain numbers, nothing shared with the package."""

import copy
import math

import torch
from torch import nn


def softmax(logits):
    highest = max(logits)
    powers = [math.exp(z - highest) for z in logits]
    return [power / sum(powers) for power in powers]


def cross_entropy(logits, target):
    return -math.log(softmax(logits)[target])


def entropy(p):
    return -sum(q * math.log(q) for q in p if q > 0)


def mean(values):
    return sum(values) / len(values)


def mean_prediction(passes):
    """The class probabilities of one example, averaged over the passes."""
    return [mean(column) for column in zip(*[softmax(logits) for logits in passes], strict=True)]


def highest(scores, n_b):
    """Positions of the n_b highest scores, in loader order; of equal scores the earlier."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(ranked[:n_b])


def gumbel(u):
    return -math.log(-math.log(u))


def weighted_draw(scores, numbers):
    """Draw positions with replacement in proportion to the scores, one for each number in [0, 1); and their weights."""
    p = [score / sum(scores) for score in scores]
    drawn = []
    for number in numbers:
        i, passed = 0, p[0]
        while passed <= number:
            i += 1
            passed += p[i]
        drawn.append(i)
    drawn.sort()
    return drawn, [1 / (len(scores) * p[i]) for i in drawn]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def less(a, b, times):
    """a - times b"""
    return [x - times * y for x, y in zip(a, b, strict=True)]


def divbs(gradients, n_b):
    """Positions that the greedy algorithm of Hong et al. (ICML 2024) picks, in its order, until nothing is left to gain."""
    average = [mean(column) for column in zip(*gradients, strict=True)]
    residual, basis, picked = average, [], []
    while len(picked) < n_b:
        gains = {}
        for i, gradient in enumerate(gradients):
            rest = gradient
            for e in basis:
                rest = less(rest, e, dot(rest, e))
            length = math.sqrt(dot(rest, rest))
            if i in picked or length < 1e-5 * math.sqrt(dot(gradient, gradient)):
                continue
            e = [x / length for x in rest]
            if abs(dot(e, residual)) > 1e-5 * math.sqrt(dot(average, average)):
                gains[i] = abs(dot(e, residual)), e
        if not gains:
            break
        highest_gain = max(gain for gain, _ in gains.values())
        best = min(i for i, (gain, _) in gains.items() if gain > (1 - 5e-7) * highest_gain)  # equal but for rounding
        picked.append(best)
        basis.append(gains[best][1])
        residual = less(residual, basis[-1], dot(basis[-1], residual))
    return picked


def kakurenbo(seen, share, confidence):
    """Which examples are hidden: of those of the lowest losses, what is predicted rightly and with confidence.

    Args:
        seen: of each example its logits when it was seen last, and its class.
        share: how many may be hidden.
        confidence: tau.
    """
    losses = {i: cross_entropy(logits, y) for i, (logits, y) in seen.items()}
    hidden = set()
    for i in sorted(losses, key=losses.get)[: round(share * len(losses))]:
        p, (_, y) = softmax(seen[i][0]), seen[i]
        if p.index(max(p)) == y and max(p) >= confidence:
            hidden.add(i)
    return hidden


def sigmoid_losses(firsts, seconds, scale, bias):
    """The loss of each pair of Zhai et al. (ICCV 2023), [first][second]."""
    losses = []
    for i, x in enumerate(firsts.tolist()):
        logits = [scale * dot(x, y) + bias for y in seconds.tolist()]
        losses.append([math.log(1 + math.exp(-z if i == j else z)) for j, z in enumerate(logits)])
    return losses


def jest(scores, n_b, chunks, numbers):
    """Positions that Evans et al. (2024) draw from the scores of pairs, with a row of numbers in [0, 1) for each chunk."""
    picked = []
    for chunk in range(chunks):
        size = n_b // chunks + (1 if chunk < n_b % chunks else 0)
        noisy = {}
        for i in range(len(scores)):
            if i not in picked:
                noisy[i] = scores[i][i] + sum(scores[i][j] + scores[j][i] for j in picked) + gumbel(numbers[chunk][i])
        picked += sorted(noisy, key=lambda i: -noisy[i])[:size]
    return sorted(picked)


def logits_one_by_one(model, xs):
    """The logits of each example alone, in eval mode."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return [model(x[None])[0].double().tolist() for x in xs]


def logits_with_dropout(model, xs, seeds):
    """The logits of each example in each pass, indexed [example][pass]; dropout on, BatchNorm in eval mode."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    passes = []
    with torch.no_grad(), torch.random.fork_rng():
        for seed in seeds:
            torch.manual_seed(seed)
            passes.append(model(torch.stack(xs)).double().tolist())
    return [list(example) for example in zip(*passes, strict=True)]


def train_with_rho_loss(model, irreducible_model, data, order, n_b, n_candidates, learning_rate):
    """Algorithm 1 of Mindermann et al. (ICML 2022) for one epoch with SGD; returns the selected indices of each step."""
    irreducible_loss = {}
    for i in range(len(data)):
        x, y = data[i]
        irreducible_loss[i] = cross_entropy(logits_one_by_one(irreducible_model, [x])[0], int(y))
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    chosen = []
    while len(order) >= n_b:
        candidates, order = order[:n_candidates], order[n_candidates:]
        scores = []
        for i in candidates:
            x, y = data[i]
            scores.append(cross_entropy(logits_one_by_one(model, [x])[0], int(y)) - irreducible_loss[i])
        selected = [candidates[position] for position in highest(scores, n_b)]
        chosen.append(selected)
        model.train()
        xs, ys = torch.stack([data[i][0] for i in selected]), torch.stack([data[i][1] for i in selected])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(xs), ys).backward()
        optimizer.step()
    return chosen
