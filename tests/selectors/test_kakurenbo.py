"""KAKURENBO: what an epoch hides, moves back and resumes."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler

from rholoss import build_selector, functional, split

pytestmark = pytest.mark.filterwarnings("ignore:a forward pass that only scored changed OwnLosses")  # it counts


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
