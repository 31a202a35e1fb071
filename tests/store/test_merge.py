"""What is merged with what."""

import pytest
import torch
from conftest import make_data, make_net
from torch import nn

from rholoss import (
    IndexedSubset,
    IrreducibleLossStore,
)


class TestMerge:
    def store(self, model=None, data=None, part=range(50), **options):
        return IrreducibleLossStore.from_model(model or make_net(0), IndexedSubset(data or make_data(100), part), **options)

    def test_of_parts_is_the_whole(self, data, net):
        merged = self.store().merge(self.store(part=range(50, 80)), self.store(part=range(80, 100)))
        whole = IrreducibleLossStore.from_model(net, data)
        assert torch.equal(merged.losses, whole.losses)
        assert merged.ids is None
        assert merged.meta.calibration.to_json()["bins"] == whole.meta.calibration.to_json()["bins"]

    def test_with_nothing_is_itself(self):
        store = self.store()
        assert store.merge() is store

    def test_of_strangers_is_refused(self):
        mine, rest = self.store(), range(50, 100)
        for stranger, message in (
            (self.store(model=make_net(1), part=rest), "made by different models, Sequential .* and Sequential .*"),
            (self.store(data=make_data(100, seed=5), part=rest), "of different data, .*labels, in their order, are not those"),
            (self.store(data=make_data(120), part=rest), "it has 120 examples, and that had 100"),
            (self.store(loss=nn.CrossEntropyLoss(reduction="none"), part=rest), "another loss, 'default_loss' and 'Cross"),
            (self.store(views=2, part=rest), "another views, 1 and 2"),
        ):
            with pytest.raises(ValueError, match=message):
                mine.merge(stranger)

    def test_of_what_is_known_twice_is_refused(self):
        with pytest.raises(ValueError, match="1 examples have an irreducible loss in both stores: indices 49"):
            self.store().merge(self.store(part=range(49, 60)))

    def test_of_stores_that_say_nothing_of_themselves_is_allowed(self):
        assert len(IrreducibleLossStore([0.5], ids=[200]).merge(self.store())) == 51
