"""The default forward and loss, their errors, and the hooks."""

import types
from collections import UserDict
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, Selector, build_selector
from rholoss.scoring import default_forward, default_loss


class HardestSelector(Selector):
    def score(self, candidates):
        return candidates.loss


def first(loader_or_data, model=None, **options):
    loader = loader_or_data if isinstance(loader_or_data, DataLoader) else DataLoader(loader_or_data, batch_size=8)
    selector = HardestSelector(loader, make_net(0) if model is None else model, keep=0.25, **options)
    return next(iter(selector)), selector.last


def test_classes_get_a_cross_entropy_each():
    logits, targets = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    assert torch.equal(default_loss(logits, targets), F.cross_entropy(logits, targets, reduction="none"))


def test_a_sequence_gets_the_mean_over_the_tokens_that_count():
    logits, targets = torch.randn(3, 4, 7), torch.randint(7, (3, 4))
    targets[0, 2:] = -100
    targets[1] = -100
    losses = default_loss(logits, targets)
    assert losses[0] == pytest.approx(F.cross_entropy(logits[0, :2], targets[0, :2]).item(), rel=1e-5)
    assert losses[1] == 0
    assert losses[2] == pytest.approx(F.cross_entropy(logits[2], targets[2]).item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2, 3)])
def test_values_get_a_squared_error_each(shape):
    outputs, targets = torch.randn(shape), torch.randn(shape)
    expected = [((o - t) ** 2).mean().item() for o, t in zip(outputs, targets, strict=True)]
    assert default_loss(outputs, targets).tolist() == pytest.approx(expected)


def test_low_precision_outputs_get_their_loss_in_float32():
    assert default_loss(torch.randn(5, 3).bfloat16(), torch.zeros(5, dtype=torch.long)).dtype == torch.float32


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.randn(4, 1), torch.randn(4), r"one shape, got \(4, 1\) and \(4,\)"),
        (torch.randn(4), torch.randint(3, (4,)), r"expected logits \(n, C\).*got outputs \(4,\) and targets \(4,\)"),
        (torch.randn(4, 3), torch.randint(3, (4, 1)), r"targets \(4, 1\)"),
        (torch.randn(4, 3, 5, 5), torch.randint(3, (4, 5, 5)), r"outputs \(4, 3, 5, 5\).*pass loss="),
    ],
)
def test_outputs_and_targets_that_do_not_fit_are_refused_rather_than_broadcast(outputs, targets, message):
    with pytest.raises(ValueError, match=message):
        default_loss(outputs, targets)


def test_outputs_that_are_no_tensor_need_a_loss():
    with pytest.raises(TypeError, match=r"outputs list and targets Tensor; let forward= return tensors, or pass loss="):
        default_loss([1.0], torch.zeros(1))


@dataclass
class Output:
    logits: torch.Tensor


class Tagger(nn.Module):
    """Called by name and answers with logits, as the models of transformers do."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap, self.layer = wrap, nn.Linear(6, 4)

    def forward(self, x):
        return self.wrap(self.layer(x))


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: Output(z), lambda z: {"logits": z}])
@pytest.mark.parametrize("name", ["labels", "label"])
@pytest.mark.parametrize("mapping", [dict, UserDict])
def test_a_mapping_is_passed_by_name_without_its_labels(wrap, name, mapping):
    model = Tagger(wrap)
    batch = mapping({"x": torch.randn(3, 6), name: torch.tensor([0, 1, 2])})
    outputs, targets = default_forward(model, batch)
    assert torch.equal(outputs, model.layer(batch["x"]))
    assert targets is batch[name]


class Counts(nn.Module):
    """Takes an input that is no tensor, and adds its lengths."""

    def forward(self, x, pieces=()):
        return x + torch.tensor([[len(each)] for each in pieces] or [[0]])


def test_inputs_that_are_no_tensors_reach_the_model_or_are_refused():
    batch = {"x": torch.zeros(2, 3), "pieces": [[1, 2], [3]], "labels": torch.zeros(2)}
    assert default_forward(Counts(), batch)[0][:, 0].tolist() == [2, 1]
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'text'; the batch has \['x', 'text'\]: pass forward="):
        default_forward(Tagger(lambda z: z), {"x": torch.zeros(2, 6), "labels": torch.zeros(2), "text": ["a", "b"]})


class Adapter(nn.Module):
    """As PEFT's: keeps the model inside."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def get_base_model(self):
        return self.base_model

    def forward(self, **inputs):
        return self.base_model(**inputs)


class Causal(nn.Module):
    """What a causal language model of transformers looks like from outside."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 5)
        self.config = types.SimpleNamespace(is_encoder_decoder=False)

    def can_generate(self):
        return True

    def forward(self, input_ids):
        return self.layer(input_ids.float()[..., None])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        nn.DataParallel,
        Adapter,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.compile(Adapter(model), backend="eager"),
        lambda model: Adapter(nn.DataParallel(model)),
        lambda model: model.forward,
        lambda model: Adapter(model).forward,
        lambda model: partial(model),
        lambda model: partial(nn.DataParallel(model).forward),
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
)
def test_a_causal_model_is_refused_through_every_wrapper(wrap):
    tokens = torch.randint(5, (8, 4))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    with pytest.raises(ValueError, match=r"Causal predicts the next token.* pass loss=rholoss.tokens.causal_loss"):
        IrreducibleLossStore.from_model(wrap(Causal()), data, progress=False)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((1, 2, 3), "got a tuple of 3; pass forward="),
        ({"x": 1}, r"got the keys \['x'\]; pass forward="),
        (torch.zeros(3), "got Tensor; pass forward="),
    ],
)
def test_a_batch_of_another_form_needs_a_forward(batch, message):
    with pytest.raises(TypeError, match=message):
        default_forward(nn.Identity(), batch)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (nn.CrossEntropyLoss(), ValueError, r"one value per example, shape \(32,\), got \(\); pass reduction='none'"),
        (lambda o, t: F.cross_entropy(o, t, reduction="none")[:, None], ValueError, r"got \(32, 1\); reduce it to one value"),
        (lambda o, t: F.cross_entropy(o, t, reduction="none")[1:], ValueError, r"got \(31,\)"),
        (lambda o, t: 1.0, TypeError, "got float"),
    ],
)
@pytest.mark.parametrize("chunk_size", [None, 32])
def test_a_loss_that_is_not_one_value_per_example_is_refused(loss, error, message, chunk_size):
    with pytest.raises(error, match=message):
        first(make_data(64), loss=loss, chunk_size=chunk_size)
    with pytest.raises(error, match=message.replace("32", "64").replace("31", "63")):
        IrreducibleLossStore.from_model(make_net(0), make_data(64), loss=loss)


def test_a_forward_that_does_not_return_a_pair_is_refused():
    with pytest.raises(TypeError, match=r"must return a pair \(outputs, targets\), got Tensor"):
        first(make_data(64), forward=lambda model, batch: model(batch[0]))


def test_a_selector_that_reads_the_loss_needs_a_model():
    with pytest.raises(ValueError, match="need a model; pass it as the second argument"):
        next(iter(HardestSelector(DataLoader(make_data(64), batch_size=8))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "test"}, "mode must be 'eval' or 'train', got 'test'"),
        ({"chunk_size": 0}, "chunk_size must be .* at least 1"),
        ({"chunk_size": 2.5}, "chunk_size must be .* got 2.5"),
        ({"dtype": torch.float64}, "dtype must be torch.bfloat16, torch.float16, or None"),
        ({"dtype": "bf16"}, "got 'bf16'"),
    ],
)
def test_wrong_scoring_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HardestSelector(DataLoader(make_data(64), batch_size=8), make_net(0), **options)


def test_the_hooks_serve_the_store_and_the_candidates_alike():
    def forward(model, batch):
        return model(batch["picture"]), batch["answer"]

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none") * 3

    data = make_data(64)

    def collate(examples):
        return {"picture": torch.stack([x for x, _ in examples]), "answer": torch.stack([y for _, y in examples])}

    model, loader = make_net(0), DataLoader(data, batch_size=8, collate_fn=collate)
    store = IrreducibleLossStore.from_model(model, loader, forward=forward, loss=loss)
    selector = build_selector("rho_loss", loader, model, store=store, forward=forward, loss=loss, keep=0.25)
    next(iter(selector))
    torch.testing.assert_close(selector.last.scores, torch.zeros(32), atol=1e-5, rtol=0.0)
    expected = 3 * F.cross_entropy(model.eval()(data.tensors[0]), data.tensors[1], reduction="none")
    torch.testing.assert_close(store[torch.arange(64)], expected.detach())


def test_regression_and_sequences_are_selected_with_the_defaults():
    x = torch.randn(64, 6)
    regression = torch.utils.data.TensorDataset(x, torch.randn(64, 2))
    (inputs, values), last = first(regression, nn.Linear(6, 2))
    assert inputs.shape == (8, 6)
    assert values.shape == (8, 2)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 5)

        def forward(self, x):
            return self.embedding(x)

    sequences = torch.utils.data.TensorDataset(torch.randint(10, (64, 7)), torch.randint(5, (64, 7)))
    (tokens, tags), last = first(sequences, Tokens())
    assert tokens.shape == tags.shape == (8, 7)
    assert last.scores.shape == (32,)


def test_outputs_that_cannot_be_joined_over_chunks_are_refused_with_a_way_out():
    class Outputs(Selector):
        def score(self, candidates):
            return candidates.outputs.logits.sum(1)

    def forward(model, batch):
        return Output(model(batch[0])), batch[1]

    loader = DataLoader(make_data(64), batch_size=8)
    next(iter(Outputs(loader, make_net(0), forward=forward)))
    with pytest.raises(TypeError, match="outputs of type Output cannot be joined over chunks; .* chunk_size=None"):
        next(iter(Outputs(loader, make_net(0), forward=forward, chunk_size=8)))


@pytest.mark.parametrize("method", ["gradient_norm", "bald", "gradient_norm_importance_sampling"])
def test_a_method_for_classifiers_says_so_to_a_model_of_another_kind(method):
    data = torch.utils.data.TensorDataset(torch.randn(64, 6), torch.randn(64))
    model = nn.Sequential(nn.Linear(6, 1), nn.Dropout(), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"logits must have shape .*needs the logits of a classifier"):
        next(iter(build_selector(method, DataLoader(data, batch_size=8), model)))


def test_bald_says_when_the_model_has_no_dropout():
    with pytest.raises(ValueError, match="BaldSelector needs a model with dropout"):
        next(iter(build_selector("bald", DataLoader(make_data(64), batch_size=8), nn.Linear(6, 4))))


def test_mean_loss_applies_the_weights_of_the_batch_selected_last():
    model, loader = make_net(0), DataLoader(make_data(64), batch_size=8)
    plain = build_selector("train_loss", loader, model)
    weighted = build_selector("gradient_norm_importance_sampling", loader, model)
    next(iter(plain)), next(iter(weighted))
    losses = torch.rand(8)
    assert plain.mean_loss(losses) == losses.mean()
    assert weighted.mean_loss(losses) == pytest.approx((losses * weighted.last.weights).mean().item())
    for selector in (plain, weighted):
        with pytest.raises(ValueError, match=r"one per selected example, shape \(8,\), got \(\); pass reduction='none'"):
            selector.mean_loss(losses.mean())
