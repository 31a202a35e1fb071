"""Losses of tokens and the choice among them, in plain loops."""

import math

import pytest
import torch
from token_runs import DOCUMENTS, LABELS, REFERENCE, TOKENS, WORDS, TinyLM, oracle_choice, oracle_losses

from rholoss.tokens import (
    RhoTokenLoss,
    select_tokens,
    token_losses,
    token_mask,
)

LEFT = torch.tensor([[-100, -100, 3, 1, 4], [-100, 1, 5, 9, 2]])  # padded on the left


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
