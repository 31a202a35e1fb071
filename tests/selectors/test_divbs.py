"""DivBS: which directions the gradients span, and its features."""

import pytest
import torch
from conftest import CLASSES, make_data, make_net
from torch.utils.data import DataLoader

from rholoss import build_selector


def last_layer(model, batch):
    features = model[:-1](batch[0])
    return model[-1](features), batch[1], features


class TestDivBS:
    def select(self, model=None, **options):
        loader = DataLoader(make_data(64), batch_size=8)
        selector = build_selector("divbs", loader, make_net(0) if model is None else model, keep=0.25, **options)
        next(iter(selector))
        return selector

    def test_the_logits_span_one_direction_less_than_there_are_classes_and_the_rest_is_drawn_at_random(self):
        first, second = (self.select(seed=seed).last for seed in (0, 1))
        assert sorted(first.scores[first.scores >= 1].tolist()) == [6, 7, 8]
        assert len(first.scores[first.scores >= 1]) == CLASSES - 1
        assert torch.equal(first.scores >= 1, second.scores >= 1)
        assert first.index.tolist() != second.index.tolist()

    def test_the_last_layers_weights_span_more_and_nothing_is_left_to_chance(self):
        first, second = (self.select(seed=seed, features=last_layer).last for seed in (0, 1))
        assert sorted(first.scores[first.positions].tolist()) == list(range(1, 9))
        assert torch.equal(first.index, second.index)

    @pytest.mark.parametrize("chunk_size", [5, 16])
    def test_features_are_gathered_in_chunks(self, chunk_size):
        whole, chunked = self.select(features=last_layer), self.select(features=last_layer, chunk_size=chunk_size)
        assert torch.equal(whole.last.index, chunked.last.index)
        assert chunked.cost().scored == whole.cost().scored == 32

    def test_features_take_one_forward_pass_that_the_loss_is_not_given(self):
        calls = []

        def features(model, batch):
            calls.append(len(batch[0]))
            return last_layer(model, batch)

        selector = self.select(features=features)
        assert calls == [32]
        selector.listeners.append(lambda candidates, _: calls.append(tuple(candidates.outputs.shape)))
        next(iter(selector))
        assert calls == [32, 32, (32, CLASSES)]

    @pytest.mark.parametrize(
        ("features", "error", "message"),
        [
            (
                lambda model, batch: (model(batch[0]), batch[1]),
                TypeError,
                r"must return \(logits, targets, features\), got tuple",
            ),
            (lambda model, batch: (model(batch[0]), batch[1], batch[0][:3]), ValueError, r"shape \(32, d\), got \(3, 6\)"),
        ],
    )
    def test_what_are_not_features_is_refused(self, features, error, message):
        with pytest.raises(error, match=message):
            self.select(features=features)

    def test_a_diverged_model_is_reported(self):
        model = make_net(0)
        with torch.no_grad():
            model[0].weight.fill_(torch.nan)
        with pytest.raises(ValueError, match="DivBSSelector: the score of 32 of 32 candidates is NaN"):
            self.select(model)
