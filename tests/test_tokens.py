"""Token-level RHO-LOSS against the same in plain loops: losses, selections, and gradients of whole steps."""

import math
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from token_runs import STEP, WORDS, TinyLM, micro_batch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector
from rholoss.tokens import (
    ReferenceLossCache,
    RhoTokenLoss,
    reference_losses,
    select_tokens,
    sequence_loss,
    token_losses,
    token_mask,
)

TOKENS, LABELS, REFERENCE = micro_batch(7, n=4, length=10)
LEFT = torch.tensor([[-100, -100, 3, 1, 4], [-100, 1, 5, 9, 2]])  # padded on the left
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 9]] * 3 + [[4] * 10])
TOO_FEW = {"nothing": torch.full((2, 5), -100), "one": torch.tensor([[3, -100, -100], [2, 7, -100]])}


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


def set_of(selected):
    return sorted(map(tuple, selected.nonzero().tolist()))


class TestLosses:
    @pytest.mark.parametrize("shift", [True, False])
    @pytest.mark.parametrize("documents", [None, DOCUMENTS])
    def test_every_token_has_the_loss_of_the_oracle_at_its_own_position(self, shift, documents):
        logits = TinyLM()(TOKENS)
        losses, mask = token_losses(logits, LABELS, shift=shift, document_ids=documents)
        expected = oracle_losses(logits, LABELS, shift, documents)
        assert set_of(mask) == sorted(expected)
        for at, loss in expected.items():
            assert losses[at].item() == pytest.approx(loss.item())
        assert (losses[~mask] == 0).all()

    def test_left_padding(self):
        logits = TinyLM()(LEFT.clamp(min=0))
        losses, mask = token_losses(logits, LEFT)
        expected = oracle_losses(logits, LEFT)
        assert set_of(mask) == sorted(expected)
        assert all(losses[at].item() == pytest.approx(loss.item()) for at, loss in expected.items())
        attention_mask = (LEFT != -100).long()
        assert set_of(mask & ~token_mask(LEFT, document_ids=attention_mask)) == [(0, 2), (1, 1)]  # predicted from padding

    def test_the_first_token_of_a_document_is_not_predicted_from_the_one_before(self):
        mask = token_mask(torch.ones(1, 6, dtype=torch.int64), document_ids=torch.tensor([[7, 7, 3, 3, 3, 7]]))
        assert mask.tolist() == [[False, True, False, True, True, False]]

    def test_another_label_can_be_the_one_that_is_ignored(self):
        labels = LABELS.masked_fill(LABELS == -100, 0)
        losses, mask = token_losses(TinyLM()(TOKENS), labels, ignore_index=0)
        as_usual, _ = token_losses(TinyLM()(TOKENS), labels.masked_fill(labels == 0, -100))
        assert torch.equal(losses, as_usual)
        assert not mask[labels == 0].any()

    @pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, half):
        logits = TinyLM()(TOKENS).to(half)
        losses, _ = token_losses(logits, LABELS)
        assert torch.equal(losses, token_losses(logits.float(), LABELS)[0])
        assert losses.dtype == torch.float32


class TestSelection:
    @pytest.mark.parametrize("per", ["batch", "sequence"])
    @pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.6, 0.75, 1])
    @pytest.mark.parametrize("documents", [None, DOCUMENTS])
    def test_the_choice_is_the_one_of_the_oracle(self, per, keep, documents):
        losses, mask = token_losses(TinyLM()(TOKENS), LABELS, document_ids=documents)
        selected = select_tokens(losses, REFERENCE, mask, keep, per=per)
        expected = oracle_losses(TinyLM()(TOKENS), LABELS, documents=documents)
        assert set_of(selected) == oracle_choice(expected, REFERENCE, keep, per)

    @pytest.mark.parametrize("keep", [0.001, 0.1, 0.25, 0.5, 0.6, 0.7, 0.9, 1.0])
    def test_as_many_as_python_rounds_to_and_at_least_one(self, keep):
        for valid in range(64):
            mask = torch.zeros(1, 70, dtype=torch.bool)
            mask[0, torch.randperm(70, generator=torch.Generator().manual_seed(valid))[:valid]] = True
            selected = select_tokens(torch.randn(1, 70), torch.zeros(1, 70), mask, keep)
            assert selected.sum() == (max(1, round(keep * valid)) if valid else 0)
            assert not (selected & ~mask).any()

    def test_of_equal_tokens_the_earlier_is_kept(self):
        same, mask = torch.ones(2, 6), torch.ones(2, 6, dtype=torch.bool)
        mask[0, 1] = False
        assert set_of(select_tokens(same, same, mask, 0.4)) == [(0, 0), (0, 2), (0, 3), (0, 4)]
        assert set_of(select_tokens(same, same, mask, 0.4, per="sequence")) == [(0, 0), (0, 2), (1, 0), (1, 1)]
        many = torch.randint(3, (2, 500), generator=torch.Generator().manual_seed(0)).float()  # few are sorted stably by chance
        expected = oracle_choice({(i // 500, i % 500): each for i, each in enumerate(many.flatten())}, many * 0, 0.6)
        assert set_of(select_tokens(many, many * 0, torch.ones(2, 500, dtype=torch.bool), 0.6)) == expected

    def test_what_stands_where_no_token_is_valid_is_not_read(self):
        losses, mask = token_losses(TinyLM()(TOKENS), LABELS)
        torn = REFERENCE.masked_fill(~mask, math.nan)
        assert torch.equal(select_tokens(losses, torn, mask, 0.5), select_tokens(losses, REFERENCE, mask, 0.5))

    def test_a_token_without_a_reference_loss_is_an_error_not_a_rank(self):
        losses, mask = token_losses(TinyLM()(TOKENS), LABELS)
        with pytest.raises(ValueError, match=rf"must be finite for valid tokens, got NaN or infinity for 1 of {int(mask.sum())}"):
            select_tokens(losses, REFERENCE.index_put(tuple(mask.nonzero()[:1].T), torch.tensor(math.nan).double()), mask, 0.5)

    @pytest.mark.parametrize("per", ["batch", "sequence"])
    def test_on_an_accelerator_no_value_is_read_back(self, per):
        criterion = RhoTokenLoss(0.5, per=per)
        logits = torch.zeros(2, 4, WORDS, device="meta", requires_grad=True)  # a meta tensor has no value that could be read
        labels = torch.zeros(2, 4, dtype=torch.int64, device="meta")
        loss = criterion(
            logits, labels, torch.zeros(2, 4, device="meta"), document_ids=labels, num_tokens=criterion.num_tokens(labels)
        )
        loss.backward()
        assert loss.shape == ()


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
        run = [sys.executable, str(Path(__file__).with_name("token_runs.py")), str(tmp_path)]
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


INDEX = torch.tensor([30, 2**40, 7])
OWN = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
VALUES = torch.tensor([[0.0, 1.1, 2.2, 3.3], [0.0, 4.4, 9.9, 9.9], [0.0, 5.5, 6.6, 9.9]])


@pytest.fixture
def cache():
    return ReferenceLossCache.from_batches([(INDEX[:2], VALUES[:2], OWN[:2]), (INDEX[2:].tolist(), VALUES[2:], OWN[2:])])


class TestCache:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_what_is_saved_comes_back_padded_by_index(self, tmp_path, dtype):
        batches = [(INDEX, VALUES, OWN)]
        ReferenceLossCache.from_batches(batches, dtype=dtype, meta={"model": "ref"}).save(tmp_path / "ref.npz")
        cache = ReferenceLossCache.load(tmp_path / "ref.npz")
        right = (VALUES * OWN).to(dtype).float()
        assert torch.equal(cache[INDEX], right)
        assert torch.equal(cache[[7, 2**40, 7]], right[[2, 1, 2]][:, :3])
        assert torch.allclose(cache[INDEX], VALUES * OWN, rtol=1 / 2000)
        assert cache.meta == {"model": "ref"}
        assert len(cache) == 3
        assert [path.name for path in tmp_path.iterdir()] == ["ref.npz"]
        with np.load(tmp_path / "ref.npz", allow_pickle=False) as file:
            assert file["values"].dtype == (np.float32 if dtype == torch.float32 else np.float16)
            assert file["offsets"].tolist() == [0, 4, 6, 9]

    def test_a_mask_says_where_in_the_batch_the_tokens_are(self, cache):
        left = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]])
        found = cache.lookup(torch.tensor([7, 2**40]), left)
        assert torch.allclose(found, torch.tensor([[0, 0, 0, 5.5, 6.6], [0, 0, 0, 0, 4.4]]))

    def test_training_with_the_cache_is_training_with_the_model(self):
        reference, index = TinyLM(seed=1), torch.arange(3)
        losses = reference_losses(reference, (TOKENS[:3], LABELS[:3])).float()
        whole = torch.ones_like(LABELS[:3])
        cache = ReferenceLossCache.from_batches([(index, losses, whole)])
        a, b = RhoTokenLoss(0.4), RhoTokenLoss(0.4)
        a(TinyLM()(TOKENS[:3]), LABELS[:3], losses)
        b(TinyLM()(TOKENS[:3]), LABELS[:3], cache[index])
        assert torch.equal(a.selected, b.selected)

    def test_no_example_and_an_empty_one(self):
        cache = ReferenceLossCache(torch.tensor([4, 9]), torch.tensor([0, 2]), torch.tensor([0.5, 1.5]))
        assert cache[[]].shape == (0, 0)
        assert cache[[4, 9]].tolist() == [[0, 0], [0.5, 1.5]]

    def test_examples_that_are_missing_are_named(self, cache):
        with pytest.raises(KeyError, match=r"2 of 3 examples are not in the cache of 3: indices 8, 31; score them too"):
            cache[[7, 8, 31]]
        with pytest.raises(KeyError, match=r"1 of 1 examples are not in the cache of 3: indices 2199023255552"):
            cache[[2**41]]
        empty = ReferenceLossCache(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), torch.tensor([]))
        with pytest.raises(KeyError, match="1 of 1 examples are not in the cache of 0"):
            empty[[7]]

    def test_a_length_that_does_not_match_is_named(self, cache):
        with pytest.raises(
            ValueError, match=r"1 of 2 examples have another .*: index 7 has 2 positions in the batch and 3 in the"
        ):
            cache.lookup([30, 7], torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
        with pytest.raises(ValueError, match=r"mask must have shape \(2, T\) for 2 indices, got \(1, 4\)"):
            cache.lookup([30, 7], OWN[:1])

    def test_what_cannot_be_right_is_refused(self):
        from_batches = ReferenceLossCache.from_batches
        with pytest.raises(ValueError, match="every example must be there once, got more of indices 30"):
            from_batches([(INDEX, VALUES, OWN), (INDEX[:1], VALUES[:1], OWN[:1])])
        with pytest.raises(ValueError, match=r"must be finite in torch.float16, got 1 that are"):
            from_batches([(INDEX[:1], torch.tensor([[1.0, 1e6]]), torch.ones(1, 2))], dtype=torch.float16)
        with pytest.raises(ValueError, match="must be finite in torch.float32, got 1"):
            from_batches([(INDEX[:1], torch.tensor([[1.0, math.nan]]), torch.ones(1, 2))])
        with pytest.raises(
            ValueError, match=r"losses and mask must have shape \(3, T\) for 3 indices, got \(3, 4\) and \(2, 4\)"
        ):
            from_batches([(INDEX, VALUES, OWN[:2])])
        with pytest.raises(ValueError, match="at least one batch"):
            from_batches([])
        with pytest.raises(ValueError, match="lengths add up to 4, but there are 3 values"):
            ReferenceLossCache(torch.arange(2), torch.tensor([1, 3]), torch.zeros(3))
        with pytest.raises(ValueError, match=r"lengths \(N,\), at least 0, and values"):
            ReferenceLossCache(torch.arange(2), torch.tensor([4, -1]), torch.zeros(3))
        with pytest.raises(ValueError, match="values must be float32 or float16, got torch.bfloat16"):
            ReferenceLossCache(torch.arange(1), torch.tensor([3]), torch.zeros(3).bfloat16())
        with pytest.raises(ValueError, match=r"expected index \(N,\), lengths \(N,\).*got \(2,\), \(1,\), \(3,\)"):
            ReferenceLossCache(torch.arange(2), torch.tensor([3]), torch.zeros(3))

    def test_a_damaged_or_other_file_is_refused(self, cache, tmp_path):
        path = tmp_path / "ref.npz"
        cache.save(path)
        content = path.read_bytes()
        at = content.index(VALUES[0].numpy().tobytes())
        bad = {"flipped": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], "cut": content[:-30], "text": b"losses"}
        for name, damaged in bad.items():
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{name} is not a cache that can be read .*written by ReferenceLossCache.save"):
                ReferenceLossCache.load(tmp_path / name)
        big = torch.rand(500_000)  # which NumPy reads without looking at the checksum
        ReferenceLossCache(torch.arange(1), torch.tensor([len(big)]), big).save(path)
        content = path.read_bytes()
        at = content.index(big[250_000:250_010].numpy().tobytes())
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match="a checksum does not fit"):
            ReferenceLossCache.load(path)
        cache.save(path)
        IrreducibleLossStore([0.5]).save(tmp_path / "il.npz")
        with pytest.raises(ValueError, match="its kind is 'rholoss.IrreducibleLossStore'"):
            ReferenceLossCache.load(tmp_path / "il.npz")
        with np.load(path) as file:
            arrays = dict(file)
        newer = str(arrays["header"]).replace('"format": 1', '"format": 2')
        wrong = [
            ({"header": newer}, "its format is 2, this rholoss reads up to 1"),
            ({"index": arrays["index"].astype(np.float64)}, "field 'index' has dtype float64"),
            ({"offsets": arrays["offsets"][1:]}, "its offsets do not fit"),
            ({"offsets": arrays["offsets"] + 1}, "its offsets do not fit"),
            ({"offsets": np.array([0, 4, 6, 8])}, "lengths add up to 8"),
            ({"values": np.array([print], dtype=object)}, "Object arrays cannot be loaded"),
        ]
        for change, message in wrong:
            np.savez(path, **{**arrays, **change})
            with pytest.raises(ValueError, match=message):
                ReferenceLossCache.load(path)
        with pytest.raises(FileNotFoundError):
            ReferenceLossCache.load(tmp_path / "none.npz")

    def test_a_write_that_fails_leaves_the_file_that_was_there(self, cache, tmp_path, monkeypatch):
        cache.save(tmp_path / "ref.npz")
        before = (tmp_path / "ref.npz").read_bytes()
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            cache.save(tmp_path / "ref.npz")
        assert [path.name for path in tmp_path.iterdir()] == ["ref.npz"]
        assert (tmp_path / "ref.npz").read_bytes() == before


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
