"""What the package does on an accelerator, run by ``test_devices.py`` in a process of its own, as a device is global.

The oracle is the CPU: the same choices, losses and numbers. The device is that of ``pretend_device.py``.
"""

import copy
import io
import math

import pretend_device
import pytest
import torch
from conftest import make_data, make_learnable_data, make_net
from pretend_device import QUEUE, host_waits
from token_runs import DOCUMENTS, LABELS, REFERENCE, TOKENS, WORDS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rholoss
from rholoss import (
    IndexedBatches,
    IrreducibleLossStore,
    RhoLossSelector,
    Selector,
    auto,
    build_selector,
    cross_fit,
    fit_irreducible_model,
    functional,
    split,
)
from rholoss.devices import recorded
from rholoss.diagnostics import ComparisonLog, SelectionLog
from rholoss.isolation import fork_rng
from rholoss.selectors import GatedUniformSelector, JestSelector, StoreSelector, TrainLossSelector, UniformSelector
from rholoss.tokens import ReferenceLossCache, RhoTokenLoss, reference_losses, select_tokens
from rholoss.wrappers import GlobalSelector, KeepScheduleSelector, PayoffGatedSelector, StaleSelector, SwitchSelector

N, N_B, KEEP = 128, 8, 0.25
DATA = make_data(N)
KNOWN = IrreducibleLossStore.from_model(make_net(1), DATA)
WAITS = {"prefiltered_rho_loss": 1}  # the losses of one step decide what the host loads for the next
OPTIONS = {
    "rho_loss_then_uniform": {"from_step": 3},
    "prefiltered_rho_loss": {"share": 0.5},
    "proxy_rho_loss": {"compare_every": 2, "max_irreducible_loss": 1.4},
    **{name: {"passes": 3} for name in rholoss.selector_names() if "entropy" in name or name == "bald"},
}


@pytest.fixture(autouse=True, scope="session")
def device():
    pretend_device.register()


def on(device, module):
    return copy.deepcopy(module).to(device)


def batches_of(n_b=N_B, data=DATA, **options):
    return DataLoader(data, batch_size=n_b, shuffle=True, generator=torch.Generator().manual_seed(1), **options)


def without_dropout():
    """A net, since a fit draws its batches and, on the CPU alone, its dropout from one generator."""
    net = make_net(0)
    net[3].p = 0.0
    return net


def half_known():
    """A store that lacks the odd indices."""
    return IrreducibleLossStore(KNOWN.losses[::2], torch.arange(0, N, 2))


class Run:
    """A training run on a device: what was chosen in each step, the losses, and the waits of the host."""

    def __init__(self, name, where, epochs=2, store=None, model=None, listeners=(), **options):
        self.model = on(where, make_net(0) if model is None else model)
        other = on(where, make_net(1))
        if name in ("proxy_rho_loss", "online_rho_loss"):
            optimizer = {"proxy_rho_loss": "proxy_optimizer", "online_rho_loss": "irreducible_optimizer"}[name]
            options = {optimizer: torch.optim.SGD(other.parameters(), lr=0.1), **options}
        made = {"device": "model", "store": KNOWN if store is None else store, "proxy": other, "irreducible_model": other}
        build = name if callable(name) else lambda *given, **options: build_selector(name, *given, **options)
        options = {**made, **OPTIONS.get(name, {}), **options} if isinstance(name, str) else {"device": "model", **options}
        self.selector = build(batches_of(), self.model, keep=KEEP, **options)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.chosen, self.losses, self.waits = [], [], []
        for listener in listeners:
            listener.attach(self.selector)
        torch.manual_seed(0)
        for _ in range(epochs):
            self.epoch()

    def epoch(self, steps=None):
        self.selector.set_epoch(self.selector.next_epoch)
        batches = self.batches = iter(self.selector)
        while steps is None or steps > 0:
            with host_waits() as waits:
                batch = next(batches, None)
                if batch is None:
                    break
                losses = self.train(*batch)
            self.waits.append(list(waits))
            self.chosen.append(self.selector.last.index.tolist())
            self.losses.append(losses.tolist())
            steps = None if steps is None else steps - 1

    def train(self, x, y):
        device = next(self.model.parameters()).device
        x, y = (each.to(device, non_blocking=True) for each in (x, y))
        losses = nn.functional.cross_entropy(self.model(x), y, reduction="none")
        self.optimizer.zero_grad()
        self.selector.mean_loss(losses).backward()
        self.optimizer.step()
        self.selector.record_losses(losses.detach())
        return losses.detach()


@pytest.mark.parametrize("name", rholoss.selector_names())
def test_a_method_chooses_what_it_chooses_on_the_cpu_and_the_host_never_waits(name):
    here, there = Run(name, "cpu"), Run(name, "pretend")
    assert there.selector.last.scores.device.type == "pretend"
    assert there.chosen == here.chosen
    assert there.losses == here.losses
    assert [len(waits) for waits in there.waits] == [WAITS.get(name, 0)] * len(here.chosen), there.waits


@pytest.mark.parametrize("name", rholoss.selector_names())
def test_batches_that_stay_on_the_cpu_cost_one_wait_for_the_positions_to_cut(name):
    here, there = Run(name, "cpu", epochs=1, device=None), Run(name, "pretend", epochs=1, device=None)
    assert there.chosen == here.chosen
    keeps_all = here.selector.n_B == here.selector.n_b
    assert [len(waits) for waits in there.waits] == [WAITS.get(name, 0) + (not keeps_all)] * len(here.chosen), there.waits


def pairs_of(model, outputs):
    return functional.sigmoid_pair_losses(outputs, outputs, 2.0, -1.0)


def drawn_by_hand(wrapper, inner):
    """A way to build a wrapper around a method on the same loader and model."""

    def build(loader, model, **options):
        return wrapper(loader, model, inner(loader, model, **options), **options)

    return build


def with_features(model, batch):
    return model(batch[0]), batch[1], model[:-1](batch[0])


OTHERS = {
    "divbs by features": lambda *given, **options: build_selector("divbs", *given, features=with_features, **options),
    "selective_backprop by ranks": lambda *given, **options: build_selector("selective_backprop", *given, window=None, **options),
    "gated uniform": lambda loader, model, **options: GatedUniformSelector(
        loader, model, KNOWN, max_irreducible_loss=1.4, **options
    ),
    "bounded": lambda loader, model, **options: RhoLossSelector(loader, model, KNOWN, bounded=True, **options),
    "a store of ids": lambda loader, model, **options: RhoLossSelector(
        loader, model, IrreducibleLossStore(KNOWN.losses, torch.arange(N)), **options
    ),
    "a store that lacks half": lambda loader, model, **options: build_selector(
        "lazy_rho_loss", loader, model, store=half_known(), irreducible_model=model, **options
    ),
    "chunks": lambda loader, model, **options: RhoLossSelector(loader, model, KNOWN, chunk_size=5, **options),
    "train mode": lambda loader, model, **options: RhoLossSelector(loader, model, KNOWN, mode="train", **options),
    "jest": lambda loader, model, **options: JestSelector(loader, model, model, pair_losses=pairs_of, chunks=3, **options),
    "stale": drawn_by_hand(StaleSelector, TrainLossSelector),
    "keep schedule": lambda loader, model, **options: KeepScheduleSelector(
        loader, model, TrainLossSelector(loader, model, **options), lambda step: 0.5, **options
    ),
    "switch": lambda loader, model, **options: SwitchSelector(
        loader,
        model,
        {0: TrainLossSelector(loader, model, **options), 3: UniformSelector(loader, **options)},
        unit="step",
        **options,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_wrappers_and_options_do_what_they_do_on_the_cpu_without_waiting(name):
    here, there = Run(OTHERS[name], "cpu"), Run(OTHERS[name], "pretend")
    assert (there.chosen, there.losses) == (here.chosen, here.losses)
    assert not any(there.waits), there.waits


def test_an_autocast_dtype_costs_no_wait():  # the pretend device has no half precision, so the scores are not those of the CPU
    assert not any(Run("rho_loss", "pretend", dtype=torch.bfloat16).waits)


def test_candidates_that_are_there_already_are_thinned_out_without_waiting():
    chosen = []
    for where in ("cpu", "pretend"):
        loader, model, options = batches_of(32), on(where, make_net(0)), {"batch_size": 8, "device": "model"}
        method = TrainLossSelector(loader, model, **options)
        selector = KeepScheduleSelector(loader, model, method, lambda step: 0.5, **options)
        with host_waits() as waits:
            index = [selector.last.index for _ in selector]
        assert len(waits) <= (where == "pretend"), "the end of the epoch"
        chosen.append([each.tolist() for each in index])
    assert chosen[1] == chosen[0]


def test_the_gate_waits_in_its_measurements_only():
    def build(loader, model, **options):
        method, held = TrainLossSelector(loader, model, **options), make_data(64, seed=5)
        return PayoffGatedSelector(loader, model, method, held, every=2, batches=2, **options)

    here, there = Run(build, "cpu"), Run(build, "pretend")
    assert (there.chosen, there.losses) == (here.chosen, here.losses)
    assert there.selector.gains == here.selector.gains
    assert [bool(waits) for waits in there.waits] == [False, False, True, True, True, True, False, False]


class TestTheDevice:
    def test_what_was_computed_elsewhere_does_not_mix(self):
        x = torch.ones(3, device="pretend")
        for other in (torch.ones(3), torch.ones(3, device="pretend:1")):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                x + other
        assert (x + torch.tensor(1.0)).tolist() == [2.0] * 3

    def test_every_way_to_wait_is_seen(self):
        x = torch.arange(4.0, device="pretend")
        ways = [
            lambda: float(x[0]), lambda: bool((x > 1).any()), x.tolist, x.cpu, lambda: torch.equal(x, x), lambda: x[x > 1],
            lambda: torch.nonzero(x), x.unique, lambda: x.masked_select(x > 1), lambda: torch.zeros(4).to("pretend"),
            lambda: torch.zeros(4).copy_(x), lambda: x.copy_(torch.zeros(4)), lambda: x[torch.tensor([0, 1])],
            lambda: torch.repeat_interleave(x.long()), lambda: torch.bincount(x.long()), lambda: torch.allclose(x, x),
            lambda: x.index_put_((x >= 0,), torch.ones(4, device="pretend")),
        ]  # fmt: skip
        for way in ways:
            with host_waits() as waits:
                way()
            assert len(waits) == 1
        with host_waits() as waits:
            x[x > 1] = 0
            torch.arange(3).to("pretend", non_blocking=True)
            (x.softmax(0) + x.argsort()).to("cpu", non_blocking=True)
        assert not waits

    def test_a_copy_is_wrong_until_it_has_come(self):
        x = torch.arange(3, device="pretend")
        copied, event = x.to("cpu", non_blocking=True), recorded(x.device)
        assert copied.tolist() == [1, 2, 3]
        assert not event.query()
        for _ in range(QUEUE.lag):
            x + 1
        assert event.query()
        assert copied.tolist() == [0, 1, 2]

    def test_random_numbers_are_its_own_and_put_back(self):
        device = torch.device("pretend:0")
        torch.manual_seed(3)
        with fork_rng(device, seed=5):
            inside = torch.rand(4, device=device)
            torch.rand(4)
        first = torch.rand(4, device=device)
        torch.manual_seed(3)
        assert first.tolist() == torch.rand(4).tolist()
        assert inside.tolist() == torch.rand(4, generator=torch.Generator().manual_seed(5)).tolist()


class Exploding(Selector):
    """The score of example 3 is NaN."""

    def score(self, candidates):
        return torch.where(candidates.index == 3, torch.nan, candidates.loss)


class TestErrors:
    MESSAGE = r"Exploding: the score of 1 of 32 candidates is NaN or infinite at step 0: indices \[3\]; check what score"

    def build(self, n_b=N_B):
        return Exploding(DataLoader(DATA, batch_size=n_b), on("pretend", make_net(0)), device="model", keep=KEEP)

    def test_a_score_that_is_nan_is_never_chosen_and_an_error_once_it_has_come(self):
        batches = iter(selector := self.build())
        with host_waits() as waits:
            next(batches)
        assert not waits
        assert 3 not in selector.last.index.tolist()
        torch.pretend.synchronize()
        with pytest.raises(ValueError, match=self.MESSAGE):
            next(batches)

    def test_it_is_an_error_before_the_epoch_ends(self, monkeypatch):
        monkeypatch.setattr(QUEUE, "lag", 10**9)
        selector = Exploding(DataLoader(DATA, batch_size=N, drop_last=True), on("pretend", make_net(0)), batch_size=8)
        with pytest.raises(ValueError, match="score of 1 of 128 candidates is NaN or infinite at step 0"):
            for _ in selector:
                pass

    def test_a_diverged_model_is_named_as_the_cause(self):
        model = on("pretend", make_net(0))
        model[0].weight.data.fill_(torch.nan)
        with pytest.raises(ValueError, match="the model's loss is not finite for them: has training diverged?"):
            for _ in TrainLossSelector(batches_of(), model, keep=KEEP):
                pass

    def test_a_device_without_events_waits_and_reports_at_once(self, monkeypatch):
        monkeypatch.setattr(torch, "Event", self.unsupported)
        batches = iter(selector := self.build())
        with pytest.raises(ValueError, match=self.MESSAGE), host_waits() as waits:
            next(batches)
        assert waits
        assert math.isnan(selector.cost().selecting)

    def test_before_torch_accelerator_the_events_are_those_of_the_device_s_module(self, monkeypatch):
        device = torch.device("pretend:0")
        monkeypatch.setattr(torch.pretend, "Event", lambda **options: pretend_device.Event(device, **options), raising=False)
        monkeypatch.setattr(torch.pretend, "current_stream", lambda device: torch.Stream(device=device), raising=False)
        monkeypatch.delattr(torch, "accelerator")
        event = recorded(device, timing=True)
        assert event.enable_timing
        assert not event.query()

    @staticmethod
    def unsupported(*args, **options):
        raise RuntimeError("Backend doesn't support events.")

    def test_a_model_without_dropout_is_an_error_of_bald_a_little_later(self):
        selector = build_selector("bald", batches_of(), on("pretend", nn.Linear(6, 4)), keep=KEEP, passes=2)
        batches = iter(selector)
        next(batches)
        torch.pretend.synchronize()
        with pytest.raises(ValueError, match="needs a model with dropout: 2 passes in train mode gave the same outputs"):
            next(batches)

    def test_a_store_that_lacks_an_example_is_an_error(self):
        class Forgetful(StoreSelector):
            needs_all = False

            def score(self, candidates):
                return -self.irreducible_loss(candidates)

        selector = Forgetful(batches_of(), on("pretend", make_net(0)), half_known(), keep=KEEP, device="model")
        with pytest.raises(ValueError, match="the score of .* candidates is NaN or infinite at step 0"):
            for _ in selector:
                pass


class TestLogs:
    def logs(self):
        flags = {"even": torch.arange(N) % 2 == 0, "class 1": DATA.tensors[1] == 1}
        return SelectionLog(N, flags), SelectionLog(N, ids=torch.arange(N).flip(0), correct=True)

    def test_numbers_are_those_of_the_cpu_and_counting_does_not_wait(self):
        summaries, waits = [], []
        for where in ("cpu", "pretend"):
            logs = self.logs()
            run = Run("rho_loss", where, epochs=4, listeners=logs)
            waits.extend(run.waits)
            summaries.append([[log.summary(), log.by_epoch(), log.scores_over_time(3), log.selected.tolist()] for log in logs])
            state = logs[0].state_dict()
            logs[0].load_state_dict(state)
            assert logs[0].summary() == summaries[-1][0][0]
        assert str(summaries[1]) == str(summaries[0])  # NaN too
        assert not any(waits), waits

    def test_many_steps_are_counted_without_waiting(self):
        log = SelectionLog(N, {"even": torch.arange(N) % 2 == 0})
        selector = UniformSelector(batches_of(), on("pretend", make_net(0)), keep=KEEP, device="model")
        log.attach(selector)
        with host_waits() as waits:
            for _ in range(20):
                for _ in selector:
                    pass
        assert log._counts._rows, "some have been counted"
        assert len(waits) <= 20, "one at the end of an epoch"
        assert log.summary()["selected"] == 20 * 4 * N_B

    def test_a_tracker_receives_the_numbers_of_the_cpu_and_the_host_waits_for_its_reports_only(self):
        reports = []
        for where in ("cpu", "pretend"):
            log, seen = SelectionLog(N, {"even": torch.arange(N) % 2 == 0}), []
            run = Run("rho_loss", where, epochs=4, listeners=[log.every(3, lambda *report, seen=seen: seen.append(report))])
            reports.append(seen)
        assert reports[1] == reports[0]
        assert [step for _, step in seen] == [2, 5, 8, 11, 14]
        waiting = [step for step, waits in enumerate(run.waits) if waits]
        assert waiting == [2, 5, 8, 11, 14], run.waits

    def test_what_others_would_choose_is_what_they_choose_on_the_cpu(self):
        found = []
        for where in ("cpu", "pretend"):
            model = on(where, make_net(0))
            loader = batches_of()
            selector = TrainLossSelector(loader, model, keep=KEEP, device="model")
            methods = {"rho": RhoLossSelector(loader, model, KNOWN, keep=KEEP, device="model"), "norm": lambda c: -c.loss}
            log = ComparisonLog(methods, lambda: SelectionLog(N), every=1).attach(selector)
            with host_waits() as waits:
                for _ in selector:
                    pass
            assert len(waits) <= (where == "pretend"), "the end of the epoch"
            found.append(log.summary())
        assert found[1] == pytest.approx(found[0])

    def test_without_times_of_events_there_are_none(self, monkeypatch):
        def unsupported(*events):
            raise NotImplementedError("Backend doesn't support elapsedTime.")

        monkeypatch.setattr(pretend_device.Event, "elapsed_time", unsupported)
        cost = Run("rho_loss", "pretend").selector.cost()
        assert math.isnan(cost.selecting)
        assert str(cost).startswith("nothing measured yet")

    def test_a_step_has_times_and_they_cost_no_wait(self):
        run = Run("rho_loss", "pretend")
        assert not any(run.waits)
        cost = run.selector.cost()
        assert min(cost.selecting, cost.training) > 0
        assert "selection costs" in str(cost)


class TestStores:
    def test_a_model_on_the_device_makes_the_store_that_it_makes_on_the_cpu(self, tmp_path):
        for options in ({}, {"views": 2}, {"batch_size": 7}, {"path": tmp_path / "store.npz"}):
            store = IrreducibleLossStore.from_model(on("pretend", make_net(1)), DATA, **options)
            assert store.device.type == "cpu"
            assert torch.allclose(store.losses, KNOWN.losses, atol=1e-6)
        assert torch.equal(IrreducibleLossStore.load(tmp_path / "store.npz").losses, store.losses)
        assert store.meta == KNOWN.meta

    def test_predictions_may_be_on_the_device(self):
        logits, classes = torch.randn(20, 4), torch.randint(4, (20,))
        here = IrreducibleLossStore.from_predictions(logits, classes)
        there = IrreducibleLossStore.from_predictions(logits.to("pretend"), classes.to("pretend"))
        assert there.losses.tolist() == here.losses.tolist()

    @pytest.mark.parametrize("ids", [None, torch.arange(N) * 3])
    def test_a_store_moves_there_and_back(self, ids, tmp_path):
        store = IrreducibleLossStore(KNOWN.losses, ids)
        there = store.to("pretend")
        assert there.device.type == "pretend"
        assert there.to("pretend:0") is there
        index = torch.tensor([0, 6, 9, 3])
        with host_waits() as waits:
            found = there[index.to("pretend", non_blocking=True)]
        assert not waits
        assert found.tolist() == store[index].tolist()
        assert there[torch.tensor([-1, 10**6]).to("pretend")].isnan().tolist() == [True, True]
        back = there.to("cpu")
        there.save(tmp_path / "there.npz")
        for other in (back, IrreducibleLossStore.load(tmp_path / "there.npz"), copy.deepcopy(there).to("cpu")):
            assert torch.equal(other.losses, store.losses)
        assert there.coverage == 1
        assert repr(there).endswith("device=pretend:0)")

    def test_losses_and_ids_may_be_on_the_device(self):
        ids = torch.arange(N).flip(0)
        there = IrreducibleLossStore(KNOWN.losses.to("pretend"), ids.to("pretend"))
        assert there[torch.tensor([0]).to("pretend")].tolist() == [KNOWN.losses[-1].item()]
        with pytest.raises(ValueError, match=r"got 1 that are negative: indices 1"):
            IrreducibleLossStore(torch.tensor([0.5, -1.0]).to("pretend"))

    def test_an_index_of_another_device_is_looked_up_too(self):
        index = torch.tensor([3, 1])
        for store, asked in ((KNOWN.to("pretend"), index), (KNOWN, index.to("pretend"))):
            assert store[asked].device == store.device
            assert store[asked].tolist() == KNOWN[index].tolist()

    def test_a_report_and_a_merge_are_those_of_the_cpu(self):
        labels = DATA.tensors[1]
        even, odd = (torch.where(torch.arange(N) % 2 == rest, KNOWN.losses, torch.nan) for rest in (0, 1))
        merged = IrreducibleLossStore(even).to("pretend").merge(IrreducibleLossStore(odd))
        assert torch.equal(merged.losses.cpu(), KNOWN.losses)
        there = TensorDataset(DATA.tensors[0], labels.to("pretend"))
        for shown in (labels, labels.to("pretend"), there):
            assert str(KNOWN.to("pretend").report(shown)) == str(KNOWN.report(labels))


class TestFits:
    def test_a_fit_ends_with_the_weights_of_the_cpu(self, tmp_path):
        data, fits = make_learnable_data(160), []
        training, holdout, validation = split(data, holdout=64, validation=32, seed=0)
        for where in ("cpu", "pretend"):
            path = tmp_path / f"{where}.pt"
            how = {"batch_size": 16, "seed": 1, "checkpoint": path, "progress": False}
            fit_irreducible_model(on(where, without_dropout()), holdout, validation, epochs=2, **how)
            fits.append(fit_irreducible_model(on(where, without_dropout()), holdout, validation, epochs=3, **how))  # resumes
        here, there = fits
        for one, other in zip(here.epochs, there.epochs, strict=True):
            assert (other.train_loss, other.validation_loss) == pytest.approx((one.train_loss, one.validation_loss))
        assert next(there.model.parameters()).device.type == "pretend"
        stores = [IrreducibleLossStore.from_model(fit, training) for fit in fits]
        assert torch.allclose(stores[0].losses, stores[1].losses, atol=1e-5)

    def test_every_fold_is_scored_as_on_the_cpu(self):
        def store(where):
            def fit(part):
                _, training, validation = split(part, holdout=0.8, validation=0.2, seed=0)
                return fit_irreducible_model(on(where, without_dropout()), training, validation, epochs=1, progress=False)

            return cross_fit(DATA, fit)

        assert torch.allclose(store("cpu").losses, store("pretend").losses, atol=1e-5)

    def test_a_rehearsal_finds_what_it_finds_on_the_cpu(self):
        training, made = make_learnable_data(560), {"proxy": lambda: nn.Linear(6, 4), "progress": False, "steps": 100}
        loader = DataLoader(training, batch_size=8)
        one, other = (auto(loader, on(where, nn.Linear(6, 4)), **made).rehearsal for where in ("cpu", "pretend"))
        assert (one.helps, one.examples) == (other.helps, other.examples)
        assert one.wrong == pytest.approx(other.wrong, abs=0.02)


class TestDataThere:
    """A dataset may be in the memory of the device."""

    there = property(lambda self: TensorDataset(*(tensor.to("pretend") for tensor in DATA.tensors)))

    @pytest.mark.parametrize("where", ["cpu", "pretend"])
    def test_it_is_scored_and_selected_from_as_on_the_host(self, where):
        store = IrreducibleLossStore.from_model(on(where, make_net(1)), self.there)
        assert torch.allclose(store.losses, KNOWN.losses, atol=1e-6)
        chosen = []
        for data, device in ((DATA, "cpu"), (self.there, where)):
            selector = RhoLossSelector(batches_of(data=data), on(device, make_net(0)), KNOWN, keep=KEEP)
            chosen.append([selector.last.index.tolist() for _ in selector])
        assert chosen[1] == chosen[0]

    def test_it_is_split_and_divided_into_folds_by_its_labels(self):
        labels = DATA.tensors[1].to("pretend")
        for parts in (split(self.there, holdout=0.4, seed=1), split(DATA, holdout=0.4, seed=1, labels=labels)):
            for one, other in zip(split(DATA, holdout=0.4, seed=1), parts, strict=True):
                assert one.indices.tolist() == other.indices.tolist()
        fit = make_net(1)
        stores = [
            cross_fit(data, lambda part: copy.deepcopy(fit), labels=given)
            for data in (DATA, self.there)
            for given in (None, labels)
        ]
        assert all(torch.allclose(store.losses, stores[0].losses, atol=1e-6) for store in stores)
        assert all(store.meta.cross_fit.plan == stores[0].meta.cross_fit.plan for store in stores)

    def test_pinned_batches_are_moved_without_waiting(self):
        selector = RhoLossSelector(batches_of(pin_memory=True), on("pretend", make_net(0)), KNOWN, keep=KEEP, device="model")
        with host_waits() as waits:
            batch = next(iter(selector))
        assert batch[0].device.type == "pretend"
        assert not waits


class TestTokens:
    def batch(self, where):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(*TOKENS.shape, WORDS, generator=generator)
        return (logits.to(where).requires_grad_(), LABELS.to(where), REFERENCE.float().to(where)), DOCUMENTS.to(where)

    @pytest.mark.parametrize("per", ["batch", "sequence"])
    def test_the_loss_and_its_gradient_are_those_of_the_cpu_without_waiting(self, per):
        found = []
        for where in ("cpu", "pretend"):
            given, documents = self.batch(where)
            criterion = RhoTokenLoss(0.6, per=per)
            with host_waits() as waits:
                loss = criterion(*given, document_ids=documents, num_tokens=criterion.num_tokens(given[1], documents))
                loss.backward()
            assert not waits
            found.append([loss.item(), given[0].grad.tolist(), criterion.selected.tolist()])
        assert found[1] == found[0]

    def test_a_reference_loss_that_is_nan_makes_the_loss_nan(self):
        (logits, labels, reference), _ = self.batch("pretend")
        assert RhoTokenLoss(0.6)(logits, labels, reference * torch.nan).isnan().item()
        assert select_tokens(reference * torch.nan, reference, labels != -100, 0.5).any().item()

    def test_reference_losses_and_their_cache(self):
        class Words(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Embedding(WORDS, 5), nn.Linear(5, WORDS)

            def forward(self, tokens):
                return self.head(self.body(tokens))

        torch.manual_seed(0)
        model = Words()
        here, there = reference_losses(model, (TOKENS, LABELS)), reference_losses(on("pretend", model), (TOKENS, LABELS))
        assert there.device.type == "pretend"
        assert torch.allclose(there.cpu(), here)
        mask = LABELS != -100
        batches = [(torch.arange(4), losses, mask.to(losses.device)) for losses in (here, there)]
        caches = [ReferenceLossCache.from_batches([batch]) for batch in batches]
        assert torch.allclose(caches[0].values, caches[1].values)
        moved = ReferenceLossCache(*(each.to("pretend") for each in (caches[0].index, caches[0].lengths, caches[0].values)))
        assert torch.equal(moved[torch.arange(4)], caches[0][torch.arange(4)])
        looked_up = caches[1].lookup(torch.arange(4).to("pretend"), mask.to("pretend"))
        assert looked_up.device.type == "pretend"
        assert torch.allclose(looked_up.cpu(), caches[0].lookup(torch.arange(4), mask))


@pytest.mark.parametrize("name", ["rho_loss", "proxy_rho_loss", "selective_backprop", "kakurenbo", "stale_rho_loss", "bald"])
@pytest.mark.parametrize("moved", [None, "cpu"])
def test_a_run_resumes_exactly_from_a_file(name, moved):
    whole = Run(name, "pretend", epochs=2)
    part = Run(name, "pretend", epochs=1)
    part.epoch(steps=2)
    file = io.BytesIO()
    states = {"selector": part.selector, "model": part.model, "optimizer": part.optimizer}
    torch.save([{what: holder.state_dict() for what, holder in states.items()}, torch.pretend.get_rng_state()], file)
    file.seek(0)
    resumed = Run(name, "pretend", epochs=0)
    saved, random = torch.load(file, map_location=moved, weights_only=False)
    resumed.selector.load_state_dict(saved["selector"])
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    torch.pretend.set_rng_state(random)
    resumed.epoch()
    assert part.chosen + resumed.chosen == whole.chosen
    assert part.losses + resumed.losses == whole.losses


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("inner", [TrainLossSelector, UniformSelector])
def test_a_global_selection_is_that_of_the_cpu(inner, group):
    here, there = (Run(drawn_by_hand(GlobalSelector, inner), where) for where in ("cpu", "pretend"))
    assert (there.chosen, there.losses) == (here.chosen, here.losses)
    assert all(there.waits), "gloo sends from the host"


class OnTheOther(nn.Module):
    """A model in two parts, on two accelerators; the outputs are on the second."""

    def __init__(self, net):
        super().__init__()
        self.body, self.head = on("pretend:0", net[:3]), on("pretend:1", net[4])

    def forward(self, x):
        return self.head(self.body(x).to("pretend:1"))


class TestSeveralDevices:
    """What the loader, the model, the store and another model are on may differ."""

    def run(self, model, loader=None, store=KNOWN, build=RhoLossSelector, **options):
        selector = build(batches_of() if loader is None else loader, model, store, keep=KEEP, **options)
        return selector, [(batch[0].device.type, batch[0].tolist(), selector.last.index.tolist()) for batch in selector]

    def expected(self, **options):
        return self.run(make_net(0), **options)[1]

    @pytest.mark.parametrize("model", ["cpu", "pretend"])
    @pytest.mark.parametrize("store", ["cpu", "pretend"])
    @pytest.mark.parametrize("loader", ["cpu", "pretend"])
    @pytest.mark.parametrize("back", [None, "model", "cpu", "pretend"])
    def test_any_combination_chooses_the_same(self, model, store, loader, back):
        class Moved(DataLoader):
            def __iter__(self):
                return (tuple(each.to(loader) for each in batch) for batch in super().__iter__())

        def moved(examples):
            return [each.to(loader) for each in torch.utils.data.default_collate(examples)]

        _, found = self.run(on(model, make_net(0)), batches_of(collate_fn=moved), KNOWN.to(store), device=back)
        where = {None: loader, "model": model}.get(back, back)
        assert found == [(where, rows, index) for _, rows, index in self.expected()]

    @pytest.mark.parametrize("model", ["cpu", "pretend"])
    @pytest.mark.parametrize("ids", ["cpu", "pretend"])
    def test_the_index_may_be_on_the_device(self, model, ids):
        x, y = DATA.tensors
        batches = [(torch.arange(start, start + 32).to(ids), (x[start : start + 32], y[start : start + 32])) for start in (0, 32)]
        chosen = []
        for where, given in ((model, batches), ("cpu", [(index.cpu(), batch) for index, batch in batches])):
            selector = RhoLossSelector(IndexedBatches(given), on(where, make_net(0)), KNOWN, batch_size=8)
            chosen.append([selector.last.index.tolist() for _ in selector])
        assert chosen[0] == chosen[1]

    @pytest.mark.parametrize("other", ["cpu", "pretend", "pretend:1"])
    @pytest.mark.parametrize("model", ["cpu", "pretend"])
    @pytest.mark.parametrize("name", ["proxy_rho_loss", "online_rho_loss", "lazy_rho_loss"])
    def test_a_second_model_may_be_elsewhere(self, name, model, other):
        def build(loader, model, store, **options):
            more = {"proxy": on(other, make_net(1)), "irreducible_model": on(other, make_net(1))}
            return build_selector(name, loader, model, store=store, **more, **options)

        _, found = self.run(on(model, make_net(0)), build=build, store=half_known() if name == "lazy_rho_loss" else KNOWN)
        other = "cpu"
        _, expected = self.run(make_net(0), build=build, store=half_known() if name == "lazy_rho_loss" else KNOWN)
        assert found == expected

    def test_a_model_may_span_two(self):
        def forward(model, batch):
            return model(batch[0]), batch[1].to("pretend:1")

        _, found = self.run(OnTheOther(make_net(0)), forward=forward)
        assert found == self.expected()

    def test_a_lazy_selector_leaves_the_store_on_the_host(self):
        selector, _ = self.run(
            on("pretend", make_net(0)),
            store=half_known().to("pretend"),
            build=lambda *given, **options: build_selector(
                "lazy_rho_loss", *given[:2], store=given[2], irreducible_model=given[1], **options
            ),
        )
        assert selector.store.device.type == "cpu"

    def test_a_mapped_store_stays_on_the_disk(self, tmp_path):
        KNOWN.save(tmp_path / "mapped", mapped=True)
        selector, found = self.run(on("pretend", make_net(0)), store=IrreducibleLossStore.load(tmp_path / "mapped"))
        assert selector.store.is_mapped
        assert found == self.expected()

    def test_columns_of_the_host_are_cut_to_the_same_rows(self):
        def collate(examples):
            x, y = torch.utils.data.default_collate(examples)
            return {"x": x, "labels": y, "text": [str(float(row[0])) for row in x], "array": x.numpy()}

        def forward(model, batch):
            return model(batch["x"]), batch["labels"]

        loader = batches_of(collate_fn=collate)
        selector = TrainLossSelector(loader, on("pretend", make_net(0)), keep=KEEP, device="model", forward=forward)
        for batch in selector:
            assert batch["x"].device.type == "pretend"
            assert batch["text"] == [str(float(row[0])) for row in batch["x"].cpu()]
            assert torch.equal(torch.from_numpy(batch["array"]), batch["x"].cpu())


class Plain(nn.Module):
    """A model without parameters."""

    def forward(self, x):
        return x[:, :4] * 2


class TestModels:
    def loader(self, where):
        return batches_of(collate_fn=lambda examples: [c.to(where) for c in torch.utils.data.default_collate(examples)])

    def test_a_model_without_parameters_is_scored_where_device_says(self):
        found = []
        for loader, options in (("cpu", {}), ("cpu", {"device": "pretend"}), ("pretend", {"device": "pretend"}), ("pretend", {})):
            selector = TrainLossSelector(self.loader(loader), Plain(), keep=KEEP, **options)
            found.append([selector.last.index.tolist() for _ in selector])
            assert selector.last.scores.device.type == options.get("device", "cpu")
        assert all(each == found[0] for each in found)

    def test_its_outputs_elsewhere_are_an_error_with_a_cure_that_works(self):
        cure = "or pass device='pretend:0' if the model has no parameters"
        with pytest.raises(ValueError, match=f"score must be on the scoring device, cpu, got pretend:0; compute .* {cure}"):
            next(iter(build_selector("gradient_norm", self.loader("pretend"), Plain(), keep=KEEP)))
        next(iter(build_selector("gradient_norm", self.loader("pretend"), Plain(), keep=KEEP, device="pretend:0")))

    @pytest.mark.parametrize("use", [
        lambda model: next(iter(TrainLossSelector(batches_of(), model, keep=KEEP))),
        lambda model: next(iter(UniformSelector(batches_of(), model, keep=KEEP))),
        lambda model: IrreducibleLossStore.from_model(model, DATA),
        lambda model: fit_irreducible_model(model, DATA, make_data(20, seed=4), epochs=1, progress=False),
    ])  # fmt: skip
    def test_a_model_on_the_meta_device_is_an_error_with_a_cure_that_works(self, use):
        model = make_net(0).to("meta")
        cure = r"load them, or move it with model.to_empty\(device=...\) and initialize it"
        with pytest.raises(ValueError, match=f"Sequential is on the meta device, where it has no weights; {cure}"):
            use(model)
        model = model.to_empty(device="pretend")
        model.load_state_dict(make_net(0).state_dict())
        use(model)

    def test_a_selector_may_be_built_before_its_model_has_weights(self):
        model = make_net(0).to("meta")
        selector = TrainLossSelector(batches_of(), model, keep=KEEP)
        model.to_empty(device="pretend").load_state_dict(make_net(0).state_dict())
        chosen = [selector.last.index.tolist() for _ in selector]
        there = TrainLossSelector(batches_of(), on("pretend", make_net(0)), keep=KEEP)
        assert chosen == [there.last.index.tolist() for _ in there]


def test_a_killed_recording_with_dropout_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("rholoss.plans.proxy_run._SAVE_EVERY", 2)

    def record(name, progress=None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.Dropout(0.5), nn.Linear(16, 4))
        net(DATA[0][0][None])
        path = tmp_path / name
        sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.5)  # noqa: E731
        loader = DataLoader(DATA, batch_size=N_B, shuffle=True)
        options = {"steps": 8, "path": path, "keep": KEEP, "optimizer": sgd, "progress": progress}
        rholoss.record_plan(loader, net.to(pretend_device.TYPE), KNOWN, **options)
        return path.read_bytes()

    def killed(done, total):
        if done == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        record("killed.plan", killed)
    assert record("killed.plan") == record("whole.plan")
