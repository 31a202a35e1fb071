"""In each framework: a few lines more, the very examples of the plain loop, and a killed run resumes exactly."""

import copy
import difflib
import multiprocessing
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from rholoss import IndexedBatches, build_selector
from rholoss.integrations.transformers import SelectedBatches, SelectionMixin

for package in ("accelerate", "lightning", "transformers", "torchdata", "sklearn"):
    pytest.importorskip(package)

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples" / "frameworks"
NAMES = sorted(path.name.removesuffix("_rholoss.py") for path in EXAMPLES.glob("*_rholoss.py"))


def run(*args):
    return subprocess.run([sys.executable, str(TESTS / "framework_runs.py"), *map(str, args)], capture_output=True, text=True)


def code_of(name):
    text = re.sub(r'^\s*""".*?"""\n', "", (EXAMPLES / f"{name}.py").read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if line.strip()]


# Examples.


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    done = run("examples", folder, *NAMES)
    assert done.returncode == 0, done.stderr
    return folder


def test_there_is_an_example_for_each_framework():
    assert len(NAMES) == 8


@pytest.mark.parametrize("name", NAMES)
def test_an_example_differs_from_the_plain_one_by_a_handful_of_lines(name):
    changes = [line for line in difflib.ndiff(code_of(name), code_of(f"{name}_rholoss")) if line[0] in "+-"]
    added = [line for line in changes if line[0] == "+"]
    assert len(added) <= {"hf_trainer": 8}.get(name, 5), changes  # of the one, three are the class and its method
    assert len(changes) - len(added) <= {"hf_trainer": 2, "lightning_fabric": 2, "lightning_manual": 2}.get(name, 1), changes


@pytest.mark.parametrize("name", NAMES)
def test_an_example_picks_the_very_examples_that_the_plain_loop_picks(runs, name):
    (picks, weights), (plain_picks, plain_weights) = (
        torch.load(runs / f"{name}{end}.pt", weights_only=True) for end in ("", "-plain")
    )
    assert len(picks) >= 240
    assert picks == plain_picks
    assert all(map(torch.equal, weights, plain_weights))


@pytest.mark.parametrize(
    "framework", ["plain", "stateful", "accelerate", "fabric", "lightning", "lightning_epochs", "transformers"]
)
def test_a_run_killed_at_any_of_20_steps_resumes_with_the_same_picks_and_weights(framework, tmp_path):
    done = run("resume", tmp_path, framework)
    assert done.returncode == 0, done.stderr[-5000:]


def test_the_trainer_divides_the_loss_of_an_update_by_the_tokens_that_were_chosen(tmp_path):
    done = run("items", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (picks, weights), *by_hand = torch.load(tmp_path / "items.pt", weights_only=True).values()
    assert len(picks) == 18  # two epochs of 8 batches and a short one
    assert [picks_by_hand for picks_by_hand, _ in by_hand] == [picks, picks]
    agree = [all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(weights, its, strict=True)) for _, its in by_hand]
    assert any(agree)


# Loaders that Accelerate prepares.


def data(n=43):
    return TensorDataset(torch.arange(n).float()[:, None], torch.arange(n) % 3)


def shards(n, size, processes, **options):
    from accelerate.data_loader import BatchSamplerShard

    sampler = RandomSampler(range(n), generator=torch.Generator())
    whole = BatchSampler(sampler, size, drop_last=False)
    return [
        BatchSamplerShard(copy.deepcopy(whole), num_processes=processes, process_index=i, **options) for i in range(processes)
    ]


def candidates_of(batch_sampler, n, **options):
    selector = build_selector("uniform", DataLoader(data(n), batch_sampler=batch_sampler), **options)
    return [selector.last.candidate_index.tolist() for _ in selector]


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("n", [43, 48])
def test_the_ranks_of_accelerate_draw_candidates_apart_as_many_as_keep_says(n, even):
    drawn = [candidates_of(shard, n, keep=0.5) for shard in shards(n, 4, 2, even_batches=even)]
    assert all(len(candidates) == 8 for candidates in (drawn[0] + drawn[1])[:4])
    order = [batch for pair in zip(*drawn, strict=False) for batch in pair]
    whole = list(BatchSampler(RandomSampler(range(n), generator=torch.Generator()), 8, drop_last=False))
    assert order[: n // 8] == whole[: n // 8]
    assert {index for rank in drawn for batch in rank for index in batch} == set(range(n))
    if even:
        assert len(drawn[0]) == len(drawn[1])


def test_keep_with_batches_that_accelerate_splits_says_what_to_do():
    shard = shards(48, 4, 2, split_batches=True)[0]
    with pytest.raises(ValueError, match=r"BatchSamplerShard; pass batch_size="):
        build_selector("uniform", DataLoader(data(48), batch_sampler=shard), keep=0.5)
    assert len(candidates_of(shard, 48, batch_size=1)[0]) == 2


def test_a_prepared_loader_tells_that_it_ends_when_its_last_batch_is_in_use():
    from accelerate import Accelerator

    loader = Accelerator(cpu=True).prepare(DataLoader(data(43), batch_size=5))
    selector = build_selector("uniform", loader, keep=0.5)
    assert [loader.gradient_state.end_of_dataloader for _ in selector] == [False] * 4 + [True]
    assert loader.base_dataloader.batch_sampler.batch_size == 5, "the user's loader was changed"


# What samplers count belongs to the state.


class CountsItsEpochs(RandomSampler):
    """Makes its generator as it is first iterated, and counts up as an epoch ends, as accelerate's does."""

    def __init__(self, data_source):
        super().__init__(data_source)
        self.epoch = 0

    def __iter__(self):
        if self.generator is None:
            self.generator = torch.Generator()
        self.generator.manual_seed(self.epoch)
        yield from super().__iter__()
        self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_a_sampler_that_counts_its_epochs_is_put_back_to_the_one_in_progress():
    def make():
        return build_selector("uniform", DataLoader(data(48), batch_size=4, sampler=CountsItsEpochs(range(48))), keep=0.5)

    selector, chosen, states = make(), [], []
    for _ in range(3):
        for _ in selector:
            chosen.append(selector.last.index.tolist())
            states.append(selector.state_dict())
    for step, state in enumerate(states[:12], 1):
        resumed = make()
        resumed.load_state_dict(state)
        begun = len(range(resumed.epoch, 3))
        assert [resumed.last.index.tolist() for _ in range(begun) for _ in resumed] == chosen[step:]


def test_the_epoch_reaches_the_sampler_behind_a_batch_sampler_whoever_is_told():
    sampler = CountsItsEpochs(range(48))
    selector = build_selector("uniform", DataLoader(data(48), batch_sampler=BatchSampler(sampler, 4, False)), batch_size=2)
    selector.set_epoch(7)
    assert sampler.epoch == 7
    selector.sampler.set_epoch(9)  # what Lightning does
    assert (sampler.epoch, selector.epoch) == (9, 9)


# Lightning's Trainer.


def test_a_lightning_checkpoint_without_a_selector_is_refused():
    from rholoss.integrations.lightning import SelectorCheckpoint

    with pytest.raises(ValueError, match="holds no state of a selector: resume from one that was saved with SelectorCheckpoint"):
        SelectorCheckpoint().on_load_checkpoint(None, None, {"state_dict": {}})
    trainer = SimpleNamespace(train_dataloader=DataLoader(data()))
    with pytest.raises(TypeError, match=r"needs a selector to train on, got DataLoader; pass it to trainer\.fit"):
        SelectorCheckpoint().on_save_checkpoint(trainer, None, {})


def fitted(loader, **options):
    """What a Lightning module is trained on, by epoch; the random state after it; and the worker processes that are left."""
    from lightning import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.seen = torch.nn.Linear(1, 1), []

        def training_step(self, batch, _):
            batch = batch[0] if isinstance(batch[0], (list, tuple)) else batch
            self.seen.append((self.current_epoch, batch[0].flatten().tolist()))
            return self.net(batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    before, module = set(multiprocessing.active_children()), Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Lightning: few workers, few batches, shuffling turned off
        Trainer(**{"max_epochs": 2, "accelerator": "cpu", **dict.fromkeys(quiet, False), **options}).fit(module, loader)
    return module.seen, torch.get_rng_state().tolist(), set(multiprocessing.active_children()) - before


def numbers(n=20, **options):
    return DataLoader(TensorDataset(torch.arange(float(n))[:, None]), batch_size=3, **options)


@pytest.mark.parametrize(
    ("loader", "trainer"),
    [
        ({"shuffle": True}, {}),
        ({"shuffle": True, "drop_last": True}, {"limit_train_batches": 3}),
        ({"shuffle": True}, {"limit_train_batches": 0.5}),
        ({"shuffle": True}, {"fast_dev_run": 2}),
        ({"shuffle": True}, {"reload_dataloaders_every_n_epochs": 1}),
        ({"shuffle": True, "generator": 3}, {}),
        ({"shuffle": True, "num_workers": 1}, {}),
        ({"shuffle": True, "num_workers": 1, "persistent_workers": True}, {}),
        ({}, {"overfit_batches": 2}),
        ({}, {"overfit_batches": 0.5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("beside_another", [False, True])
def test_a_lightning_trainer_trains_on_what_it_would_without_a_selector(loader, trainer, beside_another):
    ran = []
    for wrap in (lambda loader: loader, lambda loader: build_selector("uniform", loader, keep=1.0)):
        given = dict(loader)
        if "generator" in given:
            given["generator"] = torch.Generator().manual_seed(given["generator"])
        torch.manual_seed(0)
        one = wrap(numbers(**given))
        ran.append(fitted([one, numbers(9)] if beside_another else one, **trainer))
    assert ran[0] == ran[1]
    assert not ran[1][2]


def test_lightnings_overfit_batches_selects_from_the_same_candidates_in_each_epoch():
    selector = build_selector("uniform", numbers(), keep=0.5)
    seen, _, _ = fitted(selector, overfit_batches=2)
    assert [epoch for epoch, _ in seen] == [0, 0, 1, 1]
    assert all(set(batch) <= set(range(6 * (i % 2), 6 * (i % 2) + 6)) for i, (_, batch) in enumerate(seen))


def test_lightnings_overfit_batches_with_a_loader_that_shuffles_says_what_to_do():
    selector = build_selector("uniform", numbers(shuffle=True), keep=1.0)
    message = (
        r"overfit_batches turns shuffling off, .* a selector: .* around a RandomSampler; wrap a DataLoader with shuffle=False"
    )
    with pytest.raises(ValueError, match=message):
        fitted(selector, overfit_batches=2)
    assert selector.sampler is selector
    selector = build_selector("uniform", numbers(shuffle=False), keep=1.0)
    assert fitted(selector, overfit_batches=2)[0] == [(epoch, [*range(3 * i, 3 * i + 3)]) for epoch in (0, 1) for i in (0, 1)]


def test_a_lightning_checkpoint_of_another_batch_size_resumes_where_that_may_differ():
    from rholoss.integrations.lightning import SelectorCheckpoint

    def trainer(batch_size):
        return SimpleNamespace(train_dataloader=build_selector("uniform", DataLoader(data(48), batch_size=batch_size), keep=0.5))

    saved, smaller = {}, trainer(4)
    next(iter(smaller.train_dataloader))
    SelectorCheckpoint().on_save_checkpoint(smaller, None, saved)
    for allow in ((), ("n_b", "n_B")):
        callback, larger = SelectorCheckpoint(allow=allow), trainer(8)
        callback.on_load_checkpoint(larger, None, saved)
        if not allow:
            with pytest.raises(ValueError, match=r"expected n_b = 8, got 4; .* pass allow=\['n_b'\]"):
                callback.on_train_start(larger, None)
            continue
        callback.on_train_start(larger, None)
        assert larger.train_dataloader.step == 1


# The Trainer of transformers.


class Base:
    """What the mixin uses of a Trainer."""

    def __init__(self, **changes):
        self.args = SimpleNamespace(
            **{"process_index": 0, "world_size": 1, "ignore_data_skip": False, "save_only_model": False, **changes}
        )
        self.saved, self.batches = [], []

    def get_train_dataloader(self):
        return DataLoader(data(48), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))

    def num_examples(self, dataloader):
        return len(dataloader.dataset)

    def save_model(self, output_dir=None, _internal_call=False):
        self.saved.append(output_dir)

    def train(self, resume_from_checkpoint=None, trial=None):
        return list(self.get_train_dataloader())


class Selects(SelectionMixin, Base):
    def make_selector(self, loader):
        return build_selector("uniform", loader, keep=0.5)


def test_a_trainer_that_does_not_say_how_to_select_says_what_is_expected():
    class Silent(SelectionMixin, Base):
        pass

    with pytest.raises(NotImplementedError, match=r"Silent has no selector.*make_selector\(loader\) .*such as RhoLossSelector"):
        Silent().train()

    class Forgets(SelectionMixin, Base):
        def make_selector(self, loader):
            build_selector("uniform", loader, keep=0.5)

    with pytest.raises(TypeError, match="make_selector must return a Selector, got NoneType"):
        Forgets().train()


def test_a_trainer_that_would_load_before_the_mixin_is_refused():
    with pytest.raises(TypeError, match=r"Late would train .* as in class Late\(SelectionMixin, Base\)"):
        type("Late", (Base, SelectionMixin), {})
    type("Loads", (SelectionMixin, type("Loader", (Base,), {"get_train_dataloader": Base.get_train_dataloader})), {})


def test_a_trainer_counts_the_examples_that_are_trained_on():
    trainer = Selects()
    loader = trainer.get_train_dataloader()
    assert (len(loader), trainer.num_examples(loader), trainer.num_examples(DataLoader(data(7)))) == (6, 24, 7)


def test_a_checkpoint_holds_the_selector_and_a_model_alone_does_not(tmp_path):
    trainer = Selects()
    trainer.train()
    trainer.save_model(str(tmp_path / "exported"))
    trainer.save_model(str(tmp_path / "checkpoint"), _internal_call=True)
    trainer.args.save_only_model = True
    trainer.save_model(str(tmp_path / "weights"), _internal_call=True)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.pt")] == ["checkpoint/selector_0.pt"]
    assert len(trainer.saved) == 3


def test_a_checkpoint_without_a_selector_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no state of a selector: expected .*selector_0\.pt; resume from one that Selects"
    ):
        Selects().train(resume_from_checkpoint=str(tmp_path))


def checkpoint(folder, step):
    trainer = Selects()
    batches = iter(trainer.get_train_dataloader())
    for _ in range(step):
        next(batches)
    trainer.save_model(str(folder), _internal_call=True)
    return trainer, batches


def test_batches_that_were_trained_on_are_passed_over_without_being_chosen_again(tmp_path):
    whole, rest = checkpoint(tmp_path, 2)
    resumed = Selects()
    batches = resumed.train(resume_from_checkpoint=str(tmp_path))
    assert batches[:2] == [None, None]
    assert [x.tolist() for x, _ in batches[2:]] == [x.tolist() for x, _ in rest]
    assert resumed.selector.step == whole.selector.step == 6


def test_an_epoch_in_progress_that_is_said_again_is_resumed(tmp_path):
    checkpoint(tmp_path, 2)
    resumed = Selects()
    resumed._checkpoint = str(tmp_path)
    loader = resumed.get_train_dataloader()
    loader.set_epoch(0)  # older Trainers say it before they pass over batches
    assert [batch is None for batch in loader] == [True] * 2 + [False] * 4


def test_a_trainer_that_skips_nothing_begins_the_epoch_again(tmp_path):
    checkpoint(tmp_path, 2)
    resumed = Selects(ignore_data_skip=True)
    assert None not in resumed.train(resume_from_checkpoint=str(tmp_path))
    assert len(resumed.train()) == 6


def test_a_trainer_that_skips_nothing_resumes_with_another_batch_size_loader_and_data(tmp_path):
    class Doubled(Selects):
        def get_loader(self):
            return DataLoader(data(64), batch_size=8)

        def make_selector(self, loader):
            return build_selector("uniform", self.get_loader(), keep=0.5)

    checkpoint(tmp_path, 2)
    cure = r"expected n_b = 8, got 4; .*\. .* pass TrainingArguments\(ignore_data_skip=True\)"
    with pytest.raises(ValueError, match=cure):
        Doubled().train(resume_from_checkpoint=str(tmp_path))
    resumed = Doubled(ignore_data_skip=True)
    batches = resumed.train(resume_from_checkpoint=str(tmp_path))
    assert [len(x) for x, _ in batches] == [8] * 4
    assert (resumed.selector.step, resumed.selector.epoch) == (2 + 4, 1)


def test_an_epoch_that_is_to_begin_passes_over_nothing(tmp_path):
    checkpoint(tmp_path, 6)
    resumed = Selects()
    resumed._checkpoint = str(tmp_path)
    loader = resumed.get_train_dataloader()
    loader.set_epoch(1)
    batches = list(loader)
    assert len(batches) == 6
    assert None not in batches
    assert resumed.selector.epoch == 1


def test_the_batches_of_a_trainer_draw_nothing_from_the_global_generator_but_what_the_loader_draws():
    selector = build_selector("uniform", DataLoader(data(48), batch_size=4, shuffle=True, generator=torch.Generator()), keep=0.5)
    before = torch.get_rng_state()
    list(SelectedBatches(selector))
    assert torch.equal(torch.get_rng_state(), before)


def test_indexed_batches_around_the_loader_of_a_trainer_is_a_selectors_loader_too():
    class Doors(SelectionMixin, Base):
        def make_selector(self, loader):
            return build_selector("uniform", IndexedBatches(loader, index=lambda batch: batch[0][:, 0].long()), batch_size=2)

    assert [len(y) for _, y in Doors().train()] == [2] * 12


def test_a_selector_over_a_prepared_loader_can_be_copied_in_use():
    from accelerate import Accelerator

    selector = build_selector("uniform", Accelerator(cpu=True).prepare(DataLoader(data(40), batch_size=5)), keep=0.5)
    iterator = iter(selector)
    next(iterator)
    twin = copy.deepcopy(selector)
    rest = [selector.last.index.tolist() for _ in iterator]
    assert [twin.last.index.tolist() for _ in twin] == rest
    assert len(rest) == 3
