"""What the methods that RHO-LOSS is compared with do beyond what their oracles see."""

import copy

import pytest
import torch
from conftest import CLASSES, make_data, make_net
from torch.utils.data import DataLoader, SubsetRandomSampler

from rholoss import IndexedBatches, build_selector, functional, split
from rholoss.selectors import JestSelector
from rholoss.testing import check_selector


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


class TestInfoBatch:
    """The loss that the loop reports of an example is its index, so that the lower half is below the mean."""

    N = 40

    def build(self, keep=0.5, loader=None, **options):
        wanted = {"batch_size": 4, "shuffle": True, "generator": torch.Generator().manual_seed(1), **(loader or {})}
        return build_selector("infobatch", DataLoader(make_data(self.N), **wanted), keep=keep, **options)

    def epoch(self, selector, steps=None):
        """The weight of each example that was drawn."""
        drawn = {}
        for step, _ in enumerate(selector, 1):
            last = selector.last
            weights = torch.ones(len(last.index)) if last.weights is None else last.weights
            assert not drawn.keys() & set(last.index.tolist())
            drawn |= dict(zip(last.index.tolist(), weights.tolist(), strict=True))
            losses = last.index.float().requires_grad_()
            mean = selector.mean_loss(losses)
            selector.record_losses(losses)
            mean.backward()
            torch.testing.assert_close(losses.grad, weights / len(weights))
            if step == steps:
                break
        return drawn

    def test_half_of_what_is_below_the_mean_is_left_out_and_the_rest_of_it_counts_twice(self):
        selector = self.build()
        assert self.epoch(selector) == dict.fromkeys(range(self.N), 1.0)
        parts = []
        for _ in range(20):
            drawn = self.epoch(selector)
            low = sorted(i for i in drawn if i < self.N / 2)
            assert all(weight == (2.0 if i in low else 1.0) for i, weight in drawn.items())
            assert set(drawn) == {*low, *range(self.N // 2, self.N)}
            assert len(selector) == -(-len(drawn) // 4)
            parts.append(low)
        assert len({tuple(low) for low in parts}) > 10
        assert 8 < sum(len(low) for low in parts) / len(parts) < 12

    def test_what_was_not_trained_on_yet_is_kept_and_of_no_weight_of_its_own(self):
        selector = self.build()
        known = self.epoch(selector, steps=5)
        limit = sum(known) / len(known)
        drawn = self.epoch(selector)
        assert all((weight == 2.0) == (i in known and i < limit) for i, weight in drawn.items())
        assert {i for i in range(self.N) if i not in known or i >= limit} <= set(drawn)

    def test_the_pure_function_is_the_papers_rule(self):
        generator = torch.Generator().manual_seed(0)
        losses, uniform = torch.rand(30, generator=generator), torch.rand(30, generator=generator)
        losses[7] = torch.nan
        known = [loss for i, loss in enumerate(losses.tolist()) if i != 7]
        kept, weights = functional.infobatch_part(losses, 0.7, uniform)
        for i, (loss, u) in enumerate(zip(losses.tolist(), uniform.tolist(), strict=True)):
            low = i != 7 and loss < sum(known) / len(known)
            assert bool(kept[i]) == (not low or u < 0.7)
            assert float(weights[i]) == pytest.approx(1 / 0.7 if low else 1.0)

    def test_the_weighted_sum_is_unbiased(self):
        generator = torch.Generator().manual_seed(0)
        losses, sums = torch.rand(50, generator=generator), []
        for _ in range(2000):
            kept, weights = functional.infobatch_part(losses, 0.3, torch.rand(50, generator=generator))
            sums.append((losses * weights)[kept].sum())
        assert abs(torch.stack(sums).mean() - losses.sum()) < 4 * torch.stack(sums).std() / 2000**0.5

    def test_the_last_epochs_are_plain_training(self):
        selector = self.build(full_from=2)
        assert len(self.epoch(selector)) == self.N
        assert len(self.epoch(selector)) < self.N
        for _ in range(2):
            assert self.epoch(selector) == dict.fromkeys(range(self.N), 1.0)
            assert selector.last.weights is None

    @pytest.mark.parametrize("options", [{"keep": 1.0}, {"keep": None, "batch_size": 4}])
    def test_keeping_everything_is_plain_training(self, options):
        selector = self.build(**options)
        plain = DataLoader(make_data(self.N), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            for (x, _), (plain_x, _) in zip(selector, plain, strict=True):
                assert torch.equal(x, plain_x)
                assert selector.last.weights is None
                selector.record_losses(selector.last.index.float())

    def test_without_reported_losses_nothing_is_left_out(self):
        selector = self.build()
        for _ in range(3):
            assert sum(len(x) for x, _ in selector) == self.N

    @pytest.mark.parametrize("at", [4, 10, 13, 17])
    @pytest.mark.parametrize("loader", [{}, {"num_workers": 1}, {"sampler": range(4, 36), "shuffle": False}])
    def test_a_resumed_run_leaves_the_same_out(self, at, loader):
        selector, chosen, state = self.build(loader=loader), [], None
        for _ in range(4):
            for _ in selector:
                chosen.append((selector.last.index.tolist(), selector.last.weights))
                selector.record_losses(selector.last.index.float())
                if len(chosen) == at:
                    state = copy.deepcopy(selector.state_dict())
        resumed, again = self.build(loader=loader), []
        resumed.load_state_dict(state)
        while resumed.epoch < 3 or len(again) < len(chosen) - at:
            for _ in resumed:
                again.append((resumed.last.index.tolist(), resumed.last.weights))
                resumed.record_losses(resumed.last.index.float())
        assert [index for index, _ in again] == [index for index, _ in chosen[at:]]
        assert str(again) == str(chosen[at:])

    def test_an_epoch_that_begins_anew_has_the_same_part_and_another_has_another(self):
        selector = self.build(loader={"shuffle": False})
        self.epoch(selector)
        selector.set_epoch(5)
        first = self.epoch(selector)
        selector.set_epoch(5)
        assert self.epoch(selector) == first
        selector.set_epoch(6)
        assert self.epoch(selector) != first

    def test_the_state_of_another_dataset_and_a_stream_are_refused(self):
        state = self.build().state_dict()
        other = build_selector("infobatch", DataLoader(make_data(30), batch_size=4), keep=0.5)
        with pytest.raises(ValueError, match="it is of 40 examples, got a dataset of 30"):
            other.load_state_dict(state)
        batches = IndexedBatches([(torch.arange(4), torch.zeros(4))])
        with pytest.raises(TypeError, match="InfoBatchSelector draws from a subset.*got IndexedBatches"):
            build_selector("infobatch", batches, batch_size=2)

    def test_of_a_part_of_a_dataset_what_counts_is_the_index_in_the_whole(self):
        training, _, _ = split(make_data(self.N), holdout=8, validation=8, seed=0)
        selector = build_selector("infobatch", DataLoader(training, batch_size=4), keep=0.5)
        first, second = self.epoch(selector), self.epoch(selector)
        limit = sum(first) / len(first)
        assert set(first) == set(training.indices.tolist())
        assert {i for i in first if i >= limit} <= set(second) < set(first)


class OwnLosses(torch.nn.Module):
    """A model whose output is the loss of an example, by its index; it counts what goes through it."""

    def __init__(self, n):
        super().__init__()
        self.losses = torch.nn.Parameter(torch.arange(n, dtype=torch.float32))
        self.passes, self.modes = [], []

    def forward(self, index):
        self.passes.append(index.tolist())
        self.modes.append(self.training)
        return self.losses[index]


class TestKakurenbo:
    """The loss of an example is its index, unless it is changed. What is hidden is the lowest 12 of 40."""

    N, HIDDEN = 40, list(range(12))

    def build(self, loader=None, **options):
        wanted = {"batch_size": 4, "shuffle": True, "generator": torch.Generator().manual_seed(1), **(loader or {})}
        wanted = {"dataset": list(range(self.N)), **wanted}
        hooks = {"forward": lambda model, batch: (model(batch), None), "loss": lambda outputs, targets: outputs}
        return build_selector("kakurenbo", DataLoader(**wanted), OwnLosses(self.N), **{"bound": 99.0, **hooks, **options})

    def epoch(self, selector, change=0.0):
        """What is trained on; the loop changes the losses of all by some number as it goes."""
        drawn = []
        for batch in selector:
            drawn += selector.last.index.tolist()
            selector.record_losses(selector.model.losses.detach()[batch])
            with torch.no_grad():
                selector.model.losses += change
        return drawn

    def hidden(self, selector, **options):
        return sorted(set(range(self.N)) - set(self.epoch(selector, **options)))

    def test_the_lowest_losses_are_hidden_and_looked_at_once_an_epoch_in_eval_mode(self):
        selector = self.build()
        model = selector.model.train()
        assert self.hidden(selector) == []
        assert model.passes == []
        for _ in range(2):
            model.passes.clear()
            assert self.hidden(selector) == self.HIDDEN
            assert len(selector) == 7
        assert model.passes == [self.HIDDEN[i : i + 4] for i in (0, 4, 8)]
        assert not any(model.modes)
        assert model.training
        assert selector.cost().scored == 12 / 24  # three epochs of 10 and 7 and 7 steps
        assert selector.cost().loaded == (40 + 28 + 28 + 12) / 24

    def test_what_is_hidden_comes_back_when_its_loss_has_risen(self):
        selector = self.build()
        self.epoch(selector)
        self.epoch(selector)
        with torch.no_grad():
            selector.model.losses[:6] += 50
        assert self.hidden(selector) == list(range(6, 18))

    def test_the_losses_of_the_rest_are_those_of_when_they_were_trained_on(self):
        selector = self.build(loader={"shuffle": False})
        self.epoch(selector, change=-10.0)  # a batch later in the epoch has the lower losses
        assert self.hidden(selector) == list(range(28, 40))

    def test_what_is_above_the_bound_is_moved_back(self):
        selector = self.build(bound=4.5)
        self.epoch(selector)
        assert self.hidden(selector) == list(range(5))
        assert selector.learning_rate_scale == pytest.approx(40 / 35)

    def test_the_pure_function_trains_on_what_is_not_known(self):
        losses = torch.tensor([0.2, torch.nan, 0.1, torch.inf, 0.3, -torch.inf])
        assert functional.kakurenbo_part(losses, 1.0, 0.2).tolist() == [False, True, False, True, True, False]
        assert functional.kakurenbo_part(losses, 2 / 6, 9.0).tolist() == [True, True, False, True, True, False]
        assert functional.kakurenbo_part(losses, 0.0, 9.0).all()

    def test_fewer_are_hidden_stage_by_stage(self):
        selector = self.build(stages=(2, 3, 5))
        assert [len(self.hidden(selector)) for _ in range(7)] == [0, 12, 10, 7, 7, 5, 5]

    def test_the_learning_rate_of_an_epoch_is_known_before_it_begins(self):
        selector, scales = self.build(stages=(2,)), []
        for epoch in range(3):
            selector.set_epoch(epoch)
            scales.append(selector.learning_rate_scale)
            self.epoch(selector)
            assert selector.learning_rate_scale == scales[-1]
        assert scales == pytest.approx([1, 40 / 28, 40 / 30])
        assert len(selector.model.passes) == 3  # once, though it was asked for often

    @pytest.mark.parametrize("drop_last", [True, False])
    def test_a_batch_is_left_in_every_epoch(self, drop_last):
        selector = self.build(keep=0.001, loader={"drop_last": drop_last})
        for _ in range(3):
            drawn = self.epoch(selector)
        assert sorted(drawn) == [36, 37, 38, 39]
        selector = self.build(loader={"dataset": [0, 1, 2], "drop_last": drop_last})
        assert [len(self.epoch(selector)) for _ in range(3)] == [0 if drop_last else 3] * 3

    def test_an_example_that_is_drawn_twice_counts_once_and_of_no_example_nothing_is_hidden(self):
        selector = self.build(loader={"sampler": [0, 0, 0, 0, 0, *range(1, 10)], "shuffle": False})
        self.epoch(selector)
        assert self.epoch(selector) == list(range(3, 10))
        selector = self.build(loader={"sampler": SubsetRandomSampler([]), "shuffle": False})
        assert [self.epoch(selector) for _ in range(2)] == [[], []]

    @pytest.mark.parametrize("options", [{"keep": 1.0}, {"batch_size": 4}])
    def test_keeping_everything_is_plain_training(self, options):
        selector = self.build(**options)
        plain = DataLoader(range(self.N), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            assert self.epoch(selector) == [i for batch in plain for i in batch.tolist()]
        assert selector.model.passes == []

    def test_without_reported_losses_nothing_is_hidden(self):
        selector = self.build()
        assert [sum(len(batch) for batch in selector) for _ in range(3)] == [self.N] * 3
        assert selector.learning_rate_scale == 1.0

    def test_the_hidden_are_read_with_the_loaders_collate_function_and_in_chunks(self):
        selector = self.build(
            loader={"collate_fn": lambda examples: {"which": torch.tensor(examples)}},
            forward=lambda model, batch: (model(batch["which"]), None),
            chunk_size=5,
        )
        for _ in range(3):
            for batch in selector:
                selector.record_losses(batch["which"].float())
        assert [len(chunk) for chunk in selector.model.passes] == [5, 5, 2]

    def test_the_hidden_are_scored_in_the_dtype_for_scoring_and_with_another_augmentation_in_each_epoch(self):
        class Augmented(list):
            def __getitem__(self, index):
                return index, torch.rand(())

        noise, dtypes = [], set()

        def forward(model, batch):
            noise.extend(batch[1].tolist())
            dtypes.add((batch[1][:, None] @ torch.ones(1, 1)).dtype)
            return model(batch[0]), None

        selector = self.build(loader={"dataset": Augmented(range(self.N))}, forward=forward, dtype=torch.bfloat16)
        for _ in range(4):
            for index, _ in selector:
                selector.record_losses(index.float())
        assert len(set(noise)) == len(noise) == 24
        assert dtypes == {torch.bfloat16}

    def test_looking_at_the_hidden_leaves_random_state_and_the_order_alone(self):
        class Drawing(list):
            def __getitem__(self, index):
                torch.rand(3)
                return super().__getitem__(index)

        selector, blind = (self.build(loader={"dataset": Drawing(range(self.N)), "generator": None}) for _ in range(2))
        blind._score_hidden = lambda epoch: None  # their losses stay as they are anyway
        runs = []
        for each in (selector, blind):
            torch.manual_seed(3)
            runs.append(([self.epoch(each) for _ in range(3)], torch.get_rng_state().tolist()))
        assert selector.model.passes
        assert not blind.model.passes
        assert runs[0] == runs[1]

    @pytest.mark.parametrize("at", [4, 10, 13, 17, "after epoch 1"])
    @pytest.mark.parametrize("loader", [{}, {"num_workers": 1}, {"sampler": range(4, 36), "shuffle": False}])
    def test_a_resumed_run_hides_the_same(self, at, loader):
        def follow(selector, states):
            chosen = []

            def save(name):
                states[name] = len(chosen), copy.deepcopy((selector.state_dict(), selector.model.state_dict()))

            while selector.epoch < 3:
                for batch in selector:
                    chosen.append((selector.last.index.tolist(), selector.learning_rate_scale))
                    selector.record_losses(selector.model.losses.detach()[batch])
                    with torch.no_grad():
                        selector.model.losses[batch] += 13.0
                    save(len(chosen))
                save(f"after epoch {selector.epoch}")
            return chosen

        states, resumed = {}, self.build(loader=loader)
        chosen = follow(self.build(loader=loader), states)
        done, (state, weights) = states[at]
        before = state["extra"]["losses"].tolist()
        resumed.load_state_dict(state)
        resumed.model.load_state_dict(weights)
        assert follow(resumed, {}) == chosen[done:]
        assert str(state["extra"]["losses"].tolist()) == str(before)  # the state is still what was saved
        assert len({scale for _, scale in chosen}) > 1

    def test_of_a_part_of_a_dataset_what_counts_is_the_index_in_the_whole(self):
        training, _, _ = split(range(self.N), holdout=8, validation=8, seed=0)
        selector = self.build(loader={"dataset": training})
        first, second, third = (self.epoch(selector) for _ in range(3))
        assert sorted(first) == training.indices.tolist()
        assert sorted(second) == sorted(third) == training.indices.tolist()[7:]
        assert selector.model.passes == [training.indices.tolist()[:4], training.indices.tolist()[4:7]]

    def test_what_makes_no_sense_is_refused(self):
        loader = DataLoader(range(8), batch_size=4)
        with pytest.raises(ValueError, match="pass the model in training as the second argument, got None"):
            build_selector("kakurenbo", loader)
        with pytest.raises(ValueError, match="bound must be the highest loss of a hidden example.* got nan"):
            self.build(bound=float("nan"))
        for stages in ((3, 2), (2, 2), (1, 2, 3, 4)):
            with pytest.raises(ValueError, match="up to 3 later stages, ascending, such as"):
                self.build(stages=stages)


class TestRepeatedRandomSubset:
    def parts(self, loader, epochs=3, **options):
        selector, parts = build_selector("repeated_random_subset", loader, **options), []
        for _ in range(epochs):
            parts.append([i for _ in selector for i in selector.last.index.tolist()])
            assert len(selector) == -(-len(parts[-1]) // loader.batch_size)
        return parts

    def test_each_epoch_trains_on_another_part_of_the_size_that_was_asked_for(self):
        parts = self.parts(DataLoader(make_data(50), batch_size=4, shuffle=True), epochs=200, keep=0.3)
        assert all(len(part) == len(set(part)) == 15 for part in parts)
        assert len({frozenset(part) for part in parts}) == 200
        counts = torch.tensor([i for part in parts for i in part]).bincount(minlength=50)
        assert 35 < int(counts.min()) < int(counts.max()) < 90  # 60 times each on average

    def test_the_part_is_of_what_the_loader_may_draw(self):
        parts = self.parts(DataLoader(make_data(50), batch_size=4, sampler=range(10, 40)), keep=0.5)
        assert all(len(part) == 15 and set(part) <= set(range(10, 40)) for part in parts)
        assert all(part == sorted(part) for part in parts)  # in the sampler's order

    def test_the_seed_says_which(self):
        loader = DataLoader(make_data(50), batch_size=4)
        assert self.parts(loader, keep=0.5, seed=1) == self.parts(loader, keep=0.5, seed=1)
        assert self.parts(loader, keep=0.5, seed=1) != self.parts(loader, keep=0.5, seed=2)
        assert [len(part) for part in self.parts(loader)] == [25] * 3


class TestJest:
    def build(
        self, loader, model, chunks=3, pair_losses=lambda model, outputs: functional.sigmoid_pair_losses(outputs, outputs), **o
    ):
        return JestSelector(loader, model, make_net(1), pair_losses=pair_losses, chunks=chunks, **o)

    @pytest.mark.parametrize("chunks", [1, 3, 100])
    def test_it_keeps_the_contract(self, chunks):
        def build(loader, model, **options):
            return JestSelector(loader, model, model, pair_losses=lambda model, z: z @ z.T, chunks=chunks, **options)

        check_selector(build)

    def test_an_example_is_drawn_for_what_it_is_worth_together_with_others(self):
        scores = torch.zeros(6, 6)
        scores[0, 0] = 50.0  # drawn first
        scores[4, 0] = 25.0  # and this one for its sake, from either side
        scores[0, 2] = 25.0
        for seed in range(20):
            uniform = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed))
            assert functional.jest_choice(scores, 3, 3, uniform).tolist() == [0, 2, 4]
        assert functional.jest_choice(scores, 6, 2, uniform).tolist() == list(range(6))

    def test_what_makes_no_sense_is_refused(self):
        loader = DataLoader(make_data(40), batch_size=4)
        with pytest.raises(ValueError, match="chunks must be how many parts to draw a batch in, at least 1, got 0"):
            self.build(loader, make_net(0), chunks=0)
        selector = self.build(loader, make_net(0), pair_losses=lambda model, outputs: outputs, keep=0.25)
        with pytest.raises(ValueError, match=r"one loss per pair, shape \(16, 16\), got \(16, 4\) and \(16, 4\)"):
            next(iter(selector))
