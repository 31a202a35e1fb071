"""Token-level RHO-LOSS against the same in plain loops: the gradients of whole steps, references, sequences."""

import math
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from token_runs import DOCUMENTS, LABELS, REFERENCE, STEP, TOKENS, WORDS, TinyLM, micro_batch, oracle_choice, oracle_losses
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector
from rholoss.tokens import (
    RhoTokenLoss,
    reference_losses,
    sequence_loss,
    token_losses,
)

TOO_FEW = {"nothing": torch.full((2, 5), -100), "one": torch.tensor([[3, -100, -100], [2, 7, -100]])}


def oracle_gradients(batches, keep, per="batch", shift=True, documents=None):
    """Loss and gradients of one step: each micro-batch selects, then one sum over all selected tokens is divided once."""
    model, total, count = TinyLM(), 0, 0
    for tokens, labels, reference in batches:
        losses = oracle_losses(model(tokens), labels, shift, documents)
        for at in oracle_choice(losses, reference, keep, per):
            total, count = total + losses[at], count + 1
    loss = total / count
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def gradients(batches, criterion, num_tokens=None, documents=None):
    model, total = TinyLM(), 0
    for tokens, labels, reference in batches:
        loss = criterion(model(tokens), labels, reference, num_tokens=num_tokens, document_ids=documents)
        loss.backward()
        total = total + loss.detach()
    return [total, *(p.grad for p in model.parameters())]


def close(found, expected):
    return all(torch.allclose(a, b, rtol=1e-6, atol=1e-12) for a, b in zip(found, expected, strict=True))


class TestLoss:
    @pytest.mark.parametrize("per", ["batch", "sequence"])
    @pytest.mark.parametrize("shift", [True, False])
    @pytest.mark.parametrize("documents", [None, DOCUMENTS])
    def test_gradients_are_those_of_the_oracle_with_padding_and_packing(self, per, shift, documents):
        batch = [(TOKENS, LABELS, REFERENCE)]
        found = gradients(batch, RhoTokenLoss(0.6, per=per, shift=shift), documents=documents)
        assert close(found, oracle_gradients(batch, 0.6, per, shift, documents))

    @pytest.mark.parametrize("per", ["batch", "sequence"])
    def test_gradients_of_four_micro_batches_are_those_of_one_normalised_once(self, per):
        criterion = RhoTokenLoss(0.6, per=per)
        expected = oracle_gradients(STEP, 0.6, per)
        assert close(gradients(STEP, criterion, criterion.num_tokens([labels for _, labels, _ in STEP])), expected)
        means = [grad / len(STEP) for grad in gradients(STEP, criterion)]
        assert not close(means, expected)  # the mean of the means is another thing

    def test_gradients_of_two_ranks_are_those_of_one_batch(self, tmp_path):
        run = [sys.executable, str(Path(__file__).parents[1] / "token_runs.py"), str(tmp_path)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        for per in ("batch", "sequence"):
            ranks = [torch.load(tmp_path / f"{per}-{rank}.pt", weights_only=True) for rank in range(2)]
            expected = oracle_gradients(STEP, 0.6, per)
            for loss, *grads in ranks:
                assert close(grads, expected[1:])
                assert not torch.allclose(loss, expected[0])
            assert torch.allclose((ranks[0][0] + ranks[1][0]) / 2, expected[0])

    @pytest.mark.parametrize("shift", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeping_everything_is_the_ordinary_loss_bit_for_bit(self, shift, dtype):
        tokens, labels, reference = micro_batch(11, n=16, length=50)
        logits = TinyLM()(tokens).detach().to(dtype)
        ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        loss = RhoTokenLoss(1, shift=shift)(ours, labels, reference)
        moved = F.pad(labels[:, 1:], (0, 1), value=-100) if shift else labels
        expected = F.cross_entropy(plain.flatten(0, 1), moved.flatten(), ignore_index=-100)
        loss.backward()
        expected.backward()
        assert torch.equal(loss, expected)
        assert torch.equal(ours.grad, plain.grad)
        if shift:
            sliced = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            assert torch.allclose(loss, sliced)

    def test_bfloat16_logits(self):
        logits = TinyLM()(TOKENS).detach().bfloat16()
        half, full = logits.clone().requires_grad_(), logits.float().requires_grad_()
        losses = [RhoTokenLoss(0.6)(each, LABELS, REFERENCE.bfloat16()) for each in (half, full)]
        for loss in losses:
            loss.backward()
        assert torch.equal(*losses)
        assert losses[0].dtype == torch.float32
        assert torch.equal(half.grad, full.grad.bfloat16())

    @pytest.mark.parametrize("per", ["batch", "sequence"])
    @pytest.mark.parametrize("given", [False, True])
    def test_where_nothing_is_valid_the_loss_and_its_gradient_are_zero(self, per, given):
        criterion, labels = RhoTokenLoss(0.6, per=per), TOO_FEW["nothing"]
        logits = torch.randn(2, 5, WORDS, requires_grad=True)
        num_tokens = criterion.num_tokens(labels) if given else None
        loss = criterion(logits, labels, torch.zeros(2, 5), num_tokens=num_tokens)
        loss.backward()
        assert loss.item() == 0
        assert (logits.grad == 0).all()
        assert not criterion.selected.any()

    @pytest.mark.parametrize("per", ["batch", "sequence"])
    def test_what_labels_say_is_what_is_selected(self, per):
        criterion, total = RhoTokenLoss(0.3, per=per), 0
        batches = [*STEP, (TOO_FEW["one"].clamp(min=0), TOO_FEW["one"], torch.zeros(2, 3))]
        for tokens, labels, reference in batches:
            criterion(TinyLM()(tokens), labels, reference)
            total += int(criterion.selected.sum())
        assert criterion.num_tokens([labels for _, labels, _ in batches]) == total
        criterion(TinyLM()(TOKENS), LABELS, REFERENCE, document_ids=DOCUMENTS)
        assert criterion.num_tokens(LABELS, DOCUMENTS) == criterion.num_tokens([LABELS], [DOCUMENTS]) == criterion.selected.sum()

    def test_the_sum(self):
        mean, total = (RhoTokenLoss(0.5)(TinyLM()(TOKENS), LABELS, REFERENCE, num_tokens=n) for n in (None, 1))
        assert torch.allclose(total, mean * RhoTokenLoss(0.5).num_tokens(LABELS))

    def test_the_choice_and_the_reference_have_no_gradient(self):
        reference = REFERENCE.clone().requires_grad_()
        RhoTokenLoss(0.5)(TinyLM()(TOKENS), LABELS, reference).backward()
        assert reference.grad is None

    def test_labels_and_reference_losses_are_left_as_they_are(self):
        labels, reference = LABELS.clone(), REFERENCE.clone()
        RhoTokenLoss(0.5)(TinyLM()(TOKENS), labels, reference, document_ids=DOCUMENTS)
        assert torch.equal(labels, LABELS)
        assert torch.equal(reference, REFERENCE)

    def test_what_cannot_be_right_is_refused_in_words(self):
        logits = TinyLM()(TOKENS)
        for keep in (0, 1.5, math.nan, True, "half"):
            with pytest.raises(ValueError, match=r"keep must be the fraction of tokens to train on, in \(0, 1\], got"):
                RhoTokenLoss(keep)
        with pytest.raises(ValueError, match="per must be 'batch' or 'sequence', got 'row'"):
            RhoTokenLoss(per="row")
        criterion = RhoTokenLoss()
        with pytest.raises(
            ValueError, match=r"logits must have shape \(4, 10, V\) for labels .* got \(4, 9, 11\).*shift nothing"
        ):
            criterion(logits[:, :-1], LABELS, REFERENCE)
        with pytest.raises(
            ValueError, match=r"reference_loss must be a tensor of shape \(4, 10\), got \(4, 9\); give one value per"
        ):
            criterion(logits, LABELS, REFERENCE[:, 1:])
        with pytest.raises(ValueError, match=r"reference_loss must be a tensor of shape \(4, 10\), got float"):
            criterion(logits, LABELS, 0.5)
        with pytest.raises(ValueError, match=r"labels must be .* shape \(n, T\), integer, got \(10,\).*pass \(1, T\)"):
            criterion(logits, LABELS[0], REFERENCE)
        with pytest.raises(ValueError, match=r"labels must be .* integer, got \(4, 10\) torch.float32"):
            criterion(logits, LABELS.float(), REFERENCE)
        with pytest.raises(ValueError, match=r"document_ids must be a tensor of shape \(4, 10\), got \(10,\)"):
            criterion(logits, LABELS, REFERENCE, document_ids=DOCUMENTS[0])
        with pytest.raises(ValueError, match="num_tokens must be a number of tokens above 0, got 0"):
            criterion(logits, LABELS, REFERENCE, num_tokens=0)
        with pytest.raises(ValueError, match=r"mask must be a tensor of shape \(4, 10\)"):
            sequence_loss(REFERENCE, LABELS[0] > 0)
        with pytest.raises(ValueError, match="document_ids of all or none, got 2 and 1"):
            criterion.num_tokens([LABELS, LABELS], [DOCUMENTS])
        with pytest.raises(ValueError, match="labels of at least one micro-batch"):
            criterion.num_tokens([])
        with pytest.raises(RuntimeError, match="distributed=True needs torch.distributed to be initialized"):
            criterion.num_tokens(LABELS, distributed=True)


class Noisy(nn.Module):
    """A model with dropout and a BatchNorm that is frozen."""

    def __init__(self):
        super().__init__()
        self.lm, self.dropout, self.norm = TinyLM(), nn.Dropout(0.5), nn.BatchNorm1d(WORDS).double()
        self.norm.eval()

    def forward(self, input_ids):
        return self.norm(self.dropout(self.lm(input_ids)).transpose(1, 2)).transpose(1, 2)


class TestReference:
    def test_a_reference_model_is_left_as_it_was(self):
        model = Noisy()
        before = [torch.get_rng_state(), *(each.clone() for each in model.state_dict().values())]
        python, modes = random.getstate(), [module.training for module in model.modules()]
        found = reference_losses(model, {"input_ids": TOKENS, "labels": LABELS})
        assert [module.training for module in model.modules()] == modes
        assert modes == [True, True, True, False]
        assert random.getstate() == python
        assert all(map(torch.equal, before, [torch.get_rng_state(), *model.state_dict().values()]))
        assert not found.requires_grad
        assert torch.equal(found, token_losses(model.eval()(TOKENS), LABELS)[0])

    def test_a_pair_a_forward_function_and_a_masked_model(self):
        found = reference_losses(TinyLM(), (TOKENS, LABELS), shift=False)
        assert torch.equal(found, token_losses(TinyLM()(TOKENS), LABELS, shift=False)[0])
        named = reference_losses(TinyLM(), {"text": TOKENS}, forward=lambda model, batch: (model(batch["text"]), LABELS))
        assert torch.equal(named, token_losses(TinyLM()(TOKENS), LABELS)[0])

    def test_what_is_read_of_packed_rows_is_the_same_without_document_ids(self):
        model = TinyLM(seed=1)
        with_ids, mask = token_losses(model(TOKENS), LABELS, document_ids=DOCUMENTS)
        assert torch.equal(reference_losses(model, (TOKENS, LABELS))[mask], with_ids[mask])


def causal_loss(logits, labels, normalise=True):
    return sequence_loss(*token_losses(logits, labels), normalise=normalise)


class TestSequences:
    @pytest.mark.parametrize("normalise", [True, False])
    def test_the_loss_of_a_sequence_is_the_mean_or_sum_of_the_oracle(self, normalise):
        labels = LABELS.clone()
        labels[1] = -100
        losses = oracle_losses(TinyLM()(TOKENS), labels)
        for row, loss in enumerate(causal_loss(TinyLM()(TOKENS), labels, normalise).tolist()):
            own = [value.item() for (i, _), value in losses.items() if i == row]
            assert loss == pytest.approx(sum(own) / (max(len(own), 1) if normalise else 1))

    def test_what_is_not_valid_is_not_counted(self):
        losses, mask = token_losses(TinyLM()(TOKENS), LABELS)
        assert torch.equal(sequence_loss(losses.masked_fill(~mask, math.nan), mask), sequence_loss(losses, mask))

    def test_it_is_the_loss_of_a_selector_and_its_store(self):
        tokens, labels, _ = micro_batch(3, n=24, length=8)
        data, model, il_model = TensorDataset(tokens, labels), TinyLM(), TinyLM(seed=1)
        for normalise in (True, False):
            loss = partial(causal_loss, normalise=normalise)
            store = IrreducibleLossStore.from_model(il_model, data, loss=loss, batch_size=5)
            selector = RhoLossSelector(DataLoader(data, batch_size=24), model, store, batch_size=6, loss=loss)
            next(iter(selector))
            score = loss(model(tokens), labels) - loss(il_model(tokens), labels)
            assert selector.last.index.tolist() == sorted(score.topk(6).indices.tolist())
