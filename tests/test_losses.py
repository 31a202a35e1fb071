"""Losses by name, what the default one is applied to, and what is noticed about outputs and targets."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, make_data, make_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import rholoss
from rholoss import IrreducibleLossStore, RhoLossSelector, build_selector, fit_irreducible_model, split
from rholoss.losses import callable_name, classes_of, cross_entropy, default_loss, squared_error
from rholoss.tokens import causal_loss
from rholoss.wrappers import SwitchSelector


def soft(examples):
    x, y = default_collate(examples)
    return x, F.one_hot(y, CLASSES).float()


def hard_or_soft(examples):
    return soft(examples) if float(examples[0][0][0]) > 0 else default_collate(examples)


def squared(examples):
    x, y = default_collate(examples)
    return x, torch.stack([y, -y, y, 2 * y], 1).float()


def select(data, store, collate=default_collate, steps=1, **options):
    loader = DataLoader(data, batch_size=8, collate_fn=collate)
    selector = RhoLossSelector(loader, make_net(1), store, keep=0.5, **options)
    for _, _ in zip(range(steps), selector, strict=False):
        pass
    return selector


class TestNamedLosses:
    @pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 4), (6, 2, 3)])
    def test_binary_cross_entropy_is_the_mean_over_the_labels(self, shape):
        logits, targets = torch.randn(shape), torch.randint(2, shape).float()
        p = torch.sigmoid(logits)
        expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).reshape(6, -1).mean(1)
        for given in (targets, targets.long(), targets.bool()):
            assert torch.allclose(rholoss.binary_cross_entropy(logits, given), expected, atol=1e-6)

    @pytest.mark.parametrize("shapes", [((6,), (6, 1)), ((6, 1), (6,))])
    def test_binary_cross_entropy_takes_a_column_for_a_vector(self, shapes):
        logits, targets = torch.randn(shapes[0]), torch.ones(shapes[1])
        assert torch.allclose(rholoss.binary_cross_entropy(logits, targets), F.softplus(-logits).flatten())

    def test_soft_cross_entropy_of_one_hot_rows_is_the_cross_entropy_and_of_others_torchs(self):
        logits, y = torch.randn(6, 4), torch.randint(4, (6,))
        assert torch.allclose(rholoss.soft_cross_entropy(logits, F.one_hot(y, 4).float()), cross_entropy(logits, y))
        p = torch.randn(6, 4).softmax(1)
        assert torch.allclose(rholoss.soft_cross_entropy(logits, p), F.cross_entropy(logits, p, reduction="none"))
        tokens, q = torch.randn(2, 3, 4), torch.randn(2, 3, 4).softmax(-1)
        of_tokens = F.cross_entropy(tokens.flatten(0, 1), q.flatten(0, 1), reduction="none").reshape(2, 3).mean(1)
        assert torch.allclose(rholoss.soft_cross_entropy(tokens, q), of_tokens)

    @pytest.mark.parametrize(
        ("loss", "outputs", "targets", "message"),
        [
            (rholoss.binary_cross_entropy, torch.zeros(6, 4), torch.zeros(6), r"one shape, .* got \(6, 4\) and \(6,\)"),
            (rholoss.binary_cross_entropy, torch.zeros(6, 1), torch.zeros(5), "one shape"),
            (rholoss.soft_cross_entropy, torch.zeros(6, 4), torch.zeros(6).long(), r"probability for each class.*F\.one_hot"),
            (rholoss.soft_cross_entropy, torch.zeros(6), torch.zeros(6), "probability for each class"),
            (default_loss, torch.zeros(6, 1), torch.zeros(6).long(), r"rholoss\.binary_cross_entropy for one logit per label"),
            (default_loss, torch.zeros(6, 1), torch.zeros(6), r"0 or 1, pass loss=rholoss\.binary_cross_entropy"),
            (default_loss, torch.zeros(6, 4), torch.zeros(6), r"classes, pass them as integers, targets\.long\(\)"),
        ],
    )
    def test_shapes_that_do_not_fit_are_refused(self, loss, outputs, targets, message):
        with pytest.raises(ValueError, match=message):
            loss(outputs, targets)

    @pytest.mark.parametrize(
        ("loss", "targets", "message"),
        [
            (rholoss.binary_cross_entropy, 2.0 * torch.ones(64, CLASSES), "binary_cross_entropy expects targets from 0 to 1"),
            (rholoss.soft_cross_entropy, torch.ones(64, CLASSES), f"sum to 1, got {CLASSES} in row 0; .*binary_cross_entropy"),
        ],
    )
    def test_targets_of_another_kind_are_refused(self, loss, targets, message):
        data = TensorDataset(make_data(64).tensors[0], targets)
        with pytest.raises(ValueError, match=message):
            IrreducibleLossStore.from_model(make_net(0), data, loss=loss)

    def test_soft_labels_of_padded_sequences_are_zeros_at_the_end(self):
        targets = torch.rand(64, 5, CLASSES).softmax(-1)
        targets[:, 3:] = 0.0
        data = TensorDataset(torch.rand(64, 5, 6), targets)
        IrreducibleLossStore.from_model(nn.Linear(6, CLASSES), data, loss=rholoss.soft_cross_entropy)
        targets[2, 1] = 1.0
        with pytest.raises(ValueError, match=f"sum to 1, got {CLASSES} in row 11"):
            IrreducibleLossStore.from_model(nn.Linear(6, CLASSES), data, loss=rholoss.soft_cross_entropy)


class TestIdentity:
    def test_a_store_knows_what_the_default_loss_computed(self, tmp_path):
        data = make_data(64)
        store = IrreducibleLossStore.from_model(make_net(0), data, path=tmp_path / "il.npz")
        assert store.meta.formula == IrreducibleLossStore.load(tmp_path / "il.npz").meta.formula == "cross_entropy"
        loader = DataLoader(data, batch_size=8, collate_fn=squared)
        assert IrreducibleLossStore.from_model(make_net(0), loader).meta.formula == "squared_error"
        assert IrreducibleLossStore.from_predictions(torch.randn(4, 3), [0, 1, 2, 0]).meta.formula == "cross_entropy"
        hinge = nn.MultiMarginLoss(reduction="none")
        assert IrreducibleLossStore.from_model(make_net(0), data, loss=hinge).meta.formula == ""

    def test_a_loss_and_a_forward_may_call_what_is_defined_after_the_selector(self):
        data = make_data(64)
        store = IrreducibleLossStore(torch.zeros(64))

        def run(forward, loss):
            return RhoLossSelector(DataLoader(data, batch_size=8), make_net(0), store, keep=0.5, forward=forward, loss=loss)

        selector = run(lambda model, batch: called(model, batch), lambda outputs, targets: computed(outputs, targets))
        selector.state_dict()

        def called(model, batch):
            return model(batch[0]), batch[1]

        def computed(outputs, targets):
            return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

        assert len(list(selector)) == 8 // 2

    def test_the_default_loss_and_its_formula_by_name_are_the_same(self):
        data = make_data(64)
        stores = [IrreducibleLossStore.from_model(make_net(0), data, loss=loss) for loss in (None, cross_entropy)]
        for store in stores:
            select(data, store)
            select(data, store, loss=cross_entropy)
            with pytest.raises(ValueError, match="in one run"):
                select(data, store, squared)

    def test_a_store_of_before_is_read_and_what_it_shows_is_compared(self):
        data = make_data(64)
        meta = IrreducibleLossStore.from_model(make_net(0), data).meta.to_json()
        del meta["calibration"]["formula"]
        old = IrreducibleLossStore(torch.zeros(64), meta=meta)
        assert old.meta.formula == "cross_entropy", "it has counts of classes"
        select(data, old)
        meta["calibration"]["classes"] = 0
        assert IrreducibleLossStore(torch.zeros(64), meta=meta).meta.formula == ""

    @pytest.mark.parametrize("chunk_size", [None, 3])
    def test_targets_of_another_kind_than_the_stores_are_refused_with_a_cure_that_works(self, chunk_size):
        data = make_data(64)
        store = IrreducibleLossStore.from_model(make_net(0), data)
        what = "cross-entropies of integer classes and squared errors of floating targets in one run.*soft_cross_entropy"
        with pytest.raises(ValueError, match=what):
            select(data, store, soft, chunk_size=chunk_size)
        loss = rholoss.soft_cross_entropy
        cured = IrreducibleLossStore.from_model(make_net(0), DataLoader(data, batch_size=8, collate_fn=soft), loss=loss)
        assert torch.allclose(cured.losses, store.losses, atol=1e-6)
        last = select(data, cured, soft, loss=loss, chunk_size=chunk_size).last
        assert torch.equal(last.index, select(data, store).last.index)

    def test_the_other_way_round_as_well(self):
        data = make_data(64)
        store = IrreducibleLossStore.from_model(make_net(0), DataLoader(data, batch_size=8, collate_fn=squared))
        with pytest.raises(ValueError, match="in one run"):
            select(data, store)

    def test_a_fit_that_is_validated_on_another_kind_is_refused(self):
        one, other = make_data(64), make_data(64, seed=3)
        validation = DataLoader(other, batch_size=8, collate_fn=squared)
        with pytest.raises(ValueError, match="in one run"):
            fit_irreducible_model(make_net(0), one, validation, epochs=1)

    def test_batches_of_two_kinds_are_refused(self):
        data = make_data(64)
        loader = DataLoader(data, batch_size=4, collate_fn=hard_or_soft)
        with pytest.raises(ValueError, match="in one run, in the store or in other batches"):
            IrreducibleLossStore.from_model(make_net(0), loader)

    def test_methods_of_a_wrapper_and_proxies_are_compared_too(self):
        data, model = make_data(64), make_net(1)
        store = IrreducibleLossStore.from_model(make_net(0), data)
        loader = DataLoader(data, batch_size=8, collate_fn=squared)
        rho = RhoLossSelector(loader, model, store, keep=0.5)
        proxy = build_selector("proxy_rho_loss", loader, model, store=store, proxy=make_net(2), keep=0.5)
        for selector in (SwitchSelector(loader, model, {0: rho}, unit="step", keep=0.5), proxy):
            with pytest.raises(ValueError, match="in one run"):
                next(iter(selector))

    def test_stores_of_two_formulas_are_not_merged(self):
        data = make_data(64)
        one = IrreducibleLossStore.from_model(make_net(0), DataLoader(data, batch_size=8, sampler=range(32)))
        loader = DataLoader(data, batch_size=8, sampler=range(32, 64), collate_fn=squared)
        with pytest.raises(ValueError, match="another formula of the default loss, 'cross_entropy' and 'squared_error'"):
            one.merge(IrreducibleLossStore.from_model(make_net(0), loader))

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)),
            (nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss(reduction="none", weight=torch.arange(4.0))),
            (
                functools.partial(F.cross_entropy, reduction="none"),
                functools.partial(F.cross_entropy, reduction="none", label_smoothing=0.1),
            ),
            (functools.partial(causal_loss, normalise=False), causal_loss),
        ],
    )
    def test_options_are_a_part_of_a_name(self, one, other):
        assert callable_name(one) == callable_name(one) != callable_name(other)

    def test_lambdas_and_local_functions_are_told_apart_by_their_code_and_what_they_hold(self):
        def made(eps, model=None):
            def loss(outputs, targets):
                return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=eps)

            return loss

        def itself(outputs, targets):
            return itself(outputs, targets) if outputs is None else made(0.1)(outputs, targets)

        one, other = (lambda outputs, targets: outputs), (lambda outputs, targets: targets)

        def unmade(outputs, targets):
            return later(outputs, targets)

        defaults = [lambda outputs, targets, k=k: k * outputs for k in (1, 2)]
        inside = [lambda outputs, targets: (lambda z: 2 * z)(outputs), lambda outputs, targets: (lambda z: 3 * z)(outputs)]
        losses = [made(0.1), made(0.2), one, other, itself, unmade, *defaults, *inside]
        names = [callable_name(loss) for loss in losses]
        assert len(set(names)) == len(losses)
        later = one
        assert callable_name(made(0.1)) == names[0]
        assert "eps=0.1" in names[0]

    def test_another_option_of_the_loss_warns_and_the_same_does_not(self):
        data = make_data(64)
        loss = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)
        store = IrreducibleLossStore.from_model(make_net(0), data, loss=loss)
        select(data, store, loss=nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1))
        with pytest.warns(UserWarning, match="label_smoothing=0.1.*label_smoothing=0.2.*pass one loss="):
            select(data, store, loss=nn.CrossEntropyLoss(reduction="none", label_smoothing=0.2))


def warned(data, model, **options):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        IrreducibleLossStore.from_model(model, data, progress=False, batch_size=16, **options)
    return [str(each.message) for each in seen]


class TestNoticed:
    def test_floating_0_and_1_are_noticed_once_and_the_cure_is_silent(self):
        x, y = make_data(64).tensors
        several = F.one_hot(y, CLASSES).float()
        several[:, 0] = 1
        data = TensorDataset(x, several)
        (message,) = warned(data, make_net(0))
        assert "targets are 0 or 1, and the outputs look like logits: pass loss=rholoss.binary_cross_entropy" in message
        assert warned(data, make_net(0), loss=rholoss.binary_cross_entropy) == []
        assert warned(data, make_net(0), loss=squared_error) == []
        store = IrreducibleLossStore.from_model(make_net(0), data, loss=squared_error)
        with pytest.warns(UserWarning, match="0 or 1") as seen:
            select(data, IrreducibleLossStore(store.losses), steps=3)
        assert len(seen) == 1

    def test_soft_labels_are_noticed_and_the_cure_is_silent(self):
        x, _ = make_data(64).tensors
        data = TensorDataset(x, torch.randn(64, CLASSES).softmax(1))
        (message,) = warned(data, make_net(0))
        assert "targets are rows of probabilities" in message
        assert "pass loss=rholoss.soft_cross_entropy" in message
        assert warned(data, make_net(0), loss=rholoss.soft_cross_entropy) == []

    def test_one_column_of_0_and_1_is_noticed_by_the_fit_as_well(self):
        x, y = make_data(128).tensors
        parts = [TensorDataset(x[part], (y[part, None] > 1).float()) for part in (slice(64), slice(64, 128))]
        model = nn.Sequential(nn.Linear(x.shape[1], 1))
        with pytest.warns(UserWarning, match=r"rholoss\.binary_cross_entropy") as seen:
            fit_irreducible_model(model, *parts, epochs=2)
        assert len(seen) == 1
        fit_irreducible_model(model, *parts, epochs=1, loss=rholoss.binary_cross_entropy)

    @pytest.mark.parametrize("targets", [torch.rand(64, CLASSES), torch.randn(64, CLASSES), torch.zeros(64, CLASSES)])
    def test_values_are_left_alone(self, targets):
        assert warned(TensorDataset(make_data(64).tensors[0], targets), make_net(0)) == []

    @pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(reduction="none")])
    def test_a_model_that_ends_in_a_softmax_is_noticed_and_the_cure_gives_its_loss(self, loss):
        data, net = make_data(64), make_net(0)
        model = nn.Sequential(net, nn.Softmax(1))
        (message,) = warned(data, model, loss=loss)
        assert "expected logits, got outputs that look like probabilities: none is negative, and rows sum to 1" in message
        logarithm = {"forward": lambda model, batch: (model(batch[0]).log(), batch[1])}
        assert warned(data, model, loss=loss, **logarithm) == []
        cured = IrreducibleLossStore.from_model(model, data, loss=loss, **logarithm)
        assert torch.allclose(cured.losses, IrreducibleLossStore.from_model(net, data, loss=loss).losses, atol=1e-4)

    def test_a_model_that_ends_in_a_softmax_is_noticed_when_it_first_scores(self):
        data = make_data(64)
        model = nn.Sequential(make_net(0), nn.Softmax(1))
        selector = build_selector("train_loss", DataLoader(data, batch_size=8), model, keep=0.25)
        with pytest.warns(UserWarning, match="look like probabilities") as seen:
            list(selector)
        assert len(seen) == 1

    def test_a_sigmoid_is_noticed_by_the_binary_cross_entropy(self):
        x, y = make_data(64).tensors
        model = nn.Sequential(nn.Linear(x.shape[1], CLASSES), nn.Sigmoid())
        data = TensorDataset(x, F.one_hot(y, CLASSES).float())
        (message,) = warned(data, model, loss=rholoss.binary_cross_entropy)
        assert "all are from 0 to 1; take the sigmoid out of the model" in message
        logit = {"forward": lambda model, batch: (torch.logit(model(batch[0])), batch[1])}
        assert warned(data, model, loss=rholoss.binary_cross_entropy, **logit) == []


class TestLabels:
    def test_the_row_named_is_that_of_the_value_the_cure_names(self):
        labels = torch.tensor([0, CLASSES, 1, CLASSES + 5])
        message = rf"got {CLASSES + 5} at row 3; if {CLASSES + 5} marks what does not count"
        with pytest.raises(ValueError, match=message):
            default_loss(torch.zeros(4, CLASSES), labels)

    @pytest.mark.parametrize(("label", "cure"), [(CLASSES + 3, "correct these labels"), (-1, "if -1 marks what does not count")])
    def test_outside_the_classes_name_the_example(self, label, cure):
        data = make_data(64)
        data.tensors[1][45] = label
        message = rf"classes from 0 to {CLASSES - 1}, got {label} at row 13; .*{cure}.*\(the example with index 45\)"
        with pytest.raises(ValueError, match=message):
            IrreducibleLossStore.from_model(make_net(0), data, batch_size=16)
        for collate in (None, lambda rows: torch.utils.data.default_collate(rows)):
            holdout, other = DataLoader(data, batch_size=16, collate_fn=collate), make_data(20, seed=5)
            where = r"\(the example with index 45\)" if collate is None else f"got {label} at row"
            with pytest.raises(ValueError, match=where):
                fit_irreducible_model(make_net(0), holdout, other, epochs=1, progress=False)
        loader = DataLoader(data, batch_size=16, sampler=[*range(16), *range(50, 32, -1)])
        selector = RhoLossSelector(loader, make_net(1), IrreducibleLossStore(torch.zeros(64)), batch_size=4)
        with pytest.raises(ValueError, match=r"row 5; .*index 45\)"):
            list(selector)

    def test_that_begin_at_1_are_told_to_begin_at_0(self):
        x, y = make_data(64).tensors
        with pytest.raises(ValueError, match="these begin at 1: subtract 1"):
            IrreducibleLossStore.from_model(make_net(0), TensorDataset(x, y + 1))

    def test_of_minus_100_are_ignored(self):
        data = make_data(64)
        data.tensors[1][3] = -100
        assert IrreducibleLossStore.from_model(make_net(0), data).losses[3] == 0

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32])
    def test_of_any_integer_type_are_classes(self, dtype):
        x, y = make_data(64).tensors
        data, expected = TensorDataset(x, y.to(dtype)), IrreducibleLossStore.from_model(make_net(0), TensorDataset(x, y))
        store = IrreducibleLossStore.from_model(make_net(0), data)
        assert torch.equal(store.losses, expected.losses)
        assert torch.equal(select(data, store).last.index, select(TensorDataset(x, y), expected).last.index)
        assert len(split(data, holdout=0.5).holdout) == 32


class TestPredictions:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = (0, 1, 2, 0, 1, 2)

    def losses(self, predictions=None, targets=None, **options):
        predictions = self.logits if predictions is None else predictions
        return IrreducibleLossStore.from_predictions(
            predictions, list(self.targets) if targets is None else targets, **options
        ).losses

    @pytest.mark.parametrize(
        ("predictions", "kind", "cure", "cured"),
        [
            (logits.softmax(1), "logits", "pass kind='probabilities'", lambda p: (p, "probabilities")),
            (100 * logits.softmax(1), "logits", "divide them by 100, and pass kind", lambda p: (p / 100, "probabilities")),
            (100 * logits.softmax(1), "probabilities", "divide them by 100", lambda p: (p / 100, "probabilities")),
            (logits.log_softmax(1), "probabilities", "log-probabilities, pass kind='logits'", lambda p: (p, "logits")),
            (logits, "probabilities", "for logits or .* pass kind='logits'", lambda p: (p, "logits")),
        ],
    )
    def test_of_another_kind_are_refused_and_the_cure_works(self, predictions, kind, cure, cured):
        with pytest.raises(ValueError, match=cure):
            self.losses(predictions, kind=kind)
        predictions, kind = cured(predictions)
        assert torch.allclose(self.losses(predictions, kind=kind), self.losses(), atol=1e-5)

    def test_of_one_class_get_a_second(self):
        p, targets = torch.tensor([0.25, 0.75]), [0, 1]
        with pytest.raises(
            ValueError, match=r"pass torch\.stack\(\[1 - p, p\], 1\); for its logit z, torch\.stack\(\[0 \* z, z\], 1\)"
        ):
            self.losses(p, targets, kind="probabilities")
        losses = self.losses(torch.stack([1 - p, p], 1), targets, kind="probabilities")
        z = torch.logit(p)
        assert torch.allclose(losses, self.losses(torch.stack([0 * z, z], 1), targets))
        assert torch.allclose(losses, torch.full((2,), 0.75).log().neg())

    def test_for_words_say_how_to_number_them(self):
        words = ["cat", "dog", "owl", "cat", "dog", "owl"]
        with pytest.raises(ValueError, match=r"got 'cat' at row 0; number them: names = sorted\(set\(targets\)\)"):
            self.losses(targets=words)
        names = sorted(set(words))
        assert torch.equal(self.losses(targets=[names.index(name) for name in words]), self.losses())

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            ([0.0, 1.0, 2.0] * 2, r"got \(6,\), torch.float64; convert them to int64"),
            (torch.eye(3).repeat(2, 1), r"got \(6, 3\), torch.float32; pass targets.argmax\(1\)"),
            ([1, 2, 3] * 2, "got 3 at row 2; these begin at 1: subtract 1"),
            ([0, 1, -100] * 2, "got -100 at row 2; leave these rows out"),
            ([0, None, 1] * 2, "got None at row 1"),
            ("abcdef", "got 'abcdef'"),
        ],
    )
    def test_for_targets_that_are_no_classes_are_refused(self, targets, message):
        with pytest.raises(ValueError, match=message):
            self.losses(targets=targets)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint64, torch.int32])
    def test_for_any_integer_type_are_scored(self, dtype):
        assert torch.equal(self.losses(targets=torch.tensor(self.targets).to(dtype)), self.losses())


@pytest.mark.parametrize(
    ("outputs", "targets", "classes"),
    [
        (torch.zeros(3, 4), torch.zeros(3).long(), 4),
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.uint8), 4),
        (torch.zeros(3, 1), torch.zeros(3).long(), 0),
        (torch.zeros(3, 4), torch.zeros(3), 0),
        (torch.zeros(3, 4), torch.zeros(2).long(), 0),
        (torch.zeros(3, 5, 4), torch.zeros(3).long(), 0),
        (torch.zeros(3), torch.zeros(3).long(), 0),
        ([[0.0, 1.0]], torch.zeros(1).long(), 0),
        (torch.zeros(1, 2), [0], 0),
    ],
)
def test_a_classifier_is_known_by_its_outputs_and_targets(outputs, targets, classes):
    assert classes_of(outputs, targets) == classes
