"""A training step on two ranks, run by tokens/test_token_loss.py in a process of its own, which forks cheaply.

The model, the data and the oracles of the tests in tests/tokens are here too.
"""

import sys

import torch
from forks import fork, status
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rholoss.tokens import RhoTokenLoss

WORDS = 11


class TinyLM(nn.Module):
    """Predicts each next token from the mean of the tokens so far."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn(WORDS, 5, generator=generator, dtype=torch.float64))
        self.out = nn.Parameter(torch.randn(5, WORDS, generator=generator, dtype=torch.float64))

    def forward(self, tokens):
        seen = self.embedding[tokens].cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        return seen @ self.out


def micro_batch(seed, n=3, length=9):
    """(tokens, labels, reference losses) of sequences of all lengths, with labels of -100 for the padding and for some more."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(WORDS, (n, length), generator=generator)
    labels = tokens.clone()
    for row in range(n):
        labels[row, int(torch.randint(2, length + 1, (1,), generator=generator)) :] = -100
    labels[torch.rand(n, length, generator=generator) < 0.15] = -100
    return tokens, labels, 2 * torch.rand(n, length, generator=generator, dtype=torch.float64)


# two micro-batches for each of two ranks, of very different numbers of tokens
STEP = [micro_batch(0), micro_batch(1, n=5, length=14), micro_batch(2, n=1, length=4), micro_batch(3, n=2, length=6)]


TOKENS, LABELS, REFERENCE = micro_batch(7, n=4, length=10)
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 9]] * 3 + [[4] * 10])


def oracle_losses(logits, labels, shift=True, documents=None):
    """The loss of each valid token by (row, position), one at a time."""
    losses = {}
    for row in range(len(labels)):
        for t in range(labels.shape[1]):
            y = int(labels[row, t])
            if y == -100 or (shift and t == 0):
                continue
            if shift and documents is not None and int(documents[row, t]) != int(documents[row, t - 1]):
                continue
            z = logits[row, t - 1 if shift else t]
            losses[row, t] = z.exp().sum().log() - z[y]
    return losses


def oracle_choice(losses, reference, keep, per="batch"):
    """The tokens to train on: the highest losses minus reference losses, of equal ones the earlier."""
    rows = sorted({row for row, _ in losses})
    chosen = []
    for group in [list(losses)] if per == "batch" else [[at for at in losses if at[0] == row] for row in rows]:
        ranked = sorted(group, key=lambda at: (-(losses[at].item() - reference[at].item()), at))
        chosen += ranked[: max(1, round(keep * len(group)))] if group else []
    return sorted(chosen)


def step(rank, folder, per):
    """One optimizer step's gradients on one rank."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet-{per}", rank=rank, world_size=2)
    model = DistributedDataParallel(TinyLM())
    criterion = RhoTokenLoss(keep=0.6, per=per)
    first, last = STEP[2 * rank : 2 * rank + 2]
    num_tokens = criterion.num_tokens([first[1], last[1]], distributed=True)
    with model.no_sync():
        loss = criterion(model(first[0]), *first[1:], num_tokens=num_tokens)
        loss.backward()
    more = criterion(model(last[0]), *last[1:], num_tokens=num_tokens)
    more.backward()
    torch.save([loss.detach() + more.detach(), *(p.grad for p in model.parameters())], f"{folder}/{per}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for per in ("batch", "sequence"):
        pids = [fork(step, rank, sys.argv[1], per) for rank in range(2)]
        codes = [status(pid) for pid in pids]
        if any(codes):
            sys.exit(1)
