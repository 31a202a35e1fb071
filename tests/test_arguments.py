"""Wrong arguments, to everything public: a sentence of this package that names the argument, and nothing is accepted in silence.

The calls are found by introspection: a new public class or function is tried with the others, and a parameter of a new name fails
until ``right`` has an argument for it. ``VALID`` says which of the wrong values are right for which parameter. More examples, by
hand: ``RHOLOSS_WRONG_ARGUMENTS=20000 python -m pytest tests/test_arguments.py``.
"""

import importlib.util
import inspect
import itertools
import math
import os
import traceback
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, FEATURES, make_data, make_net
from hypothesis import HealthCheck, given, settings, strategies as st
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

import rholoss
from rholoss import IrreducibleLossStore, cost, diagnostics, forwards, schedules, selectors, tokens, wrappers
from rholoss.diagnostics import SelectionLog
from rholoss.options import ScoringOptions, SelectorOptions
from rholoss.registry import build_selector
from rholoss.report import find_suspects, report_on
from rholoss.selectors.selection_via_proxy import ForgettingCounts, proxy_scores
from rholoss.testing import check_selector

PACKAGE = str(Path(rholoss.__file__).parent)
N = 24
BY_HAND = int(os.environ.get("RHOLOSS_WRONG_ARGUMENTS", "0"))


class Empty(Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


# --- what is called -------------------------------------------------------------------------------------------------------------

NOUNS = {
    "Candidates",
    "Fit",
    "Report",
    "Selection",
    "SelectionPlan",
    "IndexedBatch",
    "Rehearsal",
}  # users get these, and make none
ELSEWHERE = {  # need ranks, or minutes; or are for other modules, or formulas
    *(
        "GlobalSelector",
        "compiled",
        "auto",
        "FilteredUniformSelector",
        "record_plan",
        "binary_cross_entropy",
        "soft_cross_entropy",
    ),
    *(
        "MethodWrapper",
        "checked",
        "Cost",
        "ScoredCounts",
        "StepTimer",
        "already_correct",
        "overlaps",
        "rank_correlations",
        "spearman",
    ),
}
METHODS = [
    IrreducibleLossStore.from_model,
    IrreducibleLossStore.score_share,
    IrreducibleLossStore.from_predictions,
    IrreducibleLossStore.from_table,
    IrreducibleLossStore.write_table,
    IrreducibleLossStore.load,
    IrreducibleLossStore.save,
    IrreducibleLossStore.to,
    SelectionLog.over_time,
    SelectionLog.every,
    SelectionLog.metrics,
    SelectionLog.by_class,
    SelectionLog.attach,
]


def public():
    """Whatever users call, by name."""
    own = [forwards, schedules, cost]
    found = {
        name: each for module in own for name, each in vars(module).items() if getattr(each, "__module__", 0) == module.__name__
    }
    for module in (rholoss, selectors, wrappers, diagnostics):
        found |= vars(module)
    found |= {each.__qualname__: each for each in (*METHODS, find_suspects, report_on, proxy_scores, ForgettingCounts)}
    found |= {each.__name__: each for each in (tokens.RhoTokenLoss, tokens.reference_losses)}
    return {
        name: each
        for name, each in found.items()
        if not (name.startswith("_") or name in NOUNS | ELSEWHERE or inspect.isabstract(each))
        and (inspect.isclass(each) or inspect.isroutine(each))
        and "rholoss" in getattr(each, "__module__", "")
    }


def parameters(call):
    """The names of the parameters of a call, those of its options included."""
    names = []
    for name, parameter in inspect.signature(call).parameters.items():
        written = str(parameter.annotation)
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            names.append(name)
        else:
            names += [*SelectorOptions.__annotations__] if "SelectorOptions" in written else []
            names += [*ScoringOptions.__annotations__] if "ScoringOptions" in written else []
    return names


# --- arguments that are right ---------------------------------------------------------------------------------------------------


def uniform():
    return selectors.UniformSelector(LOADER)


def fresh_store():
    return IrreducibleLossStore(torch.rand(N))


DATA = make_data(N)
LOADER = DataLoader(DATA, batch_size=4)
MODEL = torch.nn.Linear(FEATURES, CLASSES)
OTHER = make_net(1)
RIGHT = {
    "model_factory": lambda: lambda: MODEL,
    "source": lambda: {"id": [1, 0], "irreducible_loss": [0.5, 0.25]},
    **dict.fromkeys(("making", "plain", "replayed"), lambda: 2.0),
    "loader": lambda: LOADER,
    "model": lambda: MODEL,
    "store": fresh_store,
    "proxy": lambda: OTHER,
    "irreducible_model": lambda: OTHER,
    "reference": lambda: OTHER,
    "pair_losses": lambda: lambda model, outputs: outputs @ outputs.T,
    "max_irreducible_loss": lambda: 1.0,
    "method": uniform,
    "selector": uniform,
    "build_selector.selector": lambda: "uniform",
    "schedule": lambda: schedules.Linear(0.5, 1.0, steps=3),
    "holdout": lambda: make_data(N, seed=5),
    "split.holdout": lambda: 0.5,
    "validation": lambda: make_data(N, seed=6),
    "stages": lambda: {0: uniform(), 2: selectors.TrainLossSelector(LOADER, MODEL)},
    "unit": lambda: "step",
    "from_step": lambda: 3,
    "start": lambda: 0.5,
    "end": lambda: 1.0,
    "steps": lambda: 4,
    "at": lambda: 2,
    "scale": lambda: 0.5,
    "length": lambda: 3,
    "change": lambda: lambda tensor: tensor,
    "trunk": lambda: MODEL,
    "head": lambda: MODEL,
    "keep": lambda: 0.5,
    "data": lambda: DATA,
    "dataset": lambda: DATA,
    "indices": lambda: [0, 2],
    "names": lambda: ["a"],
    "name": lambda: "of this test",
    "batches": lambda: [(torch.arange(4), torch.zeros(4, 2))],
    "states": lambda: [MODEL.state_dict()],
    "fit": lambda: lambda part: make_net(2),
    "losses": lambda: torch.rand(N),
    "predictions": lambda: torch.rand(N, CLASSES),
    "targets": lambda: DATA.tensors[1],
    "process": lambda: 0,
    "processes": lambda: 2,
    "device": lambda: "cpu",
    "n": lambda: N,
    "labels": lambda: DATA.tensors[1],
    "methods": lambda: {"uniform": uniform()},
    "batch": lambda: (torch.arange(4), [tensor[:4] for tensor in DATA.tensors]),
    "reference_losses.model": lambda: lambda x: torch.zeros(*x.shape, 5),
    "reference_losses.batch": lambda: (torch.zeros(2, 3).long(), torch.zeros(2, 3).long()),
    "find_suspects.store": lambda: IrreducibleLossStore.from_predictions(torch.rand(N, CLASSES), DATA.tensors[1], top_classes=2),
    "SelectionLog.self": lambda: SelectionLog(N),
    "self": fresh_store,
    "epochs": lambda: 1,
    "tracker": lambda: lambda metrics, step: None,
}
GIVEN_TOO = {"keep", "from_step", "model", "store"}  # though they are optional; of functions that take a loader
NEEDED = {  # of several arguments, one is needed
    "SelectionViaProxy": {"proxy"},
    "fit_irreducible_model": {"epochs"},
    "GatedUniformSelector": {"store"},
}


def right(call, path):
    """Right arguments for a call, by name: those that it requires, and some that make it quick."""
    signature, owner = inspect.signature(call).parameters, call.__qualname__.split(".")[0]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [name for name, each in signature.items() if each.default is each.empty and each.kind not in kinds]
    if "loader" in signature:
        wanted += [name for name in parameters(call) if name in GIVEN_TOO and name not in wanted]
    wanted += [name for name in NEEDED.get(call.__qualname__, ()) if name not in wanted]
    if call is build_selector:
        wanted.remove("store")
    known = {**RIGHT, "path": lambda: path}
    if call == IrreducibleLossStore.load:
        fresh_store().save(path)
    return {name: known.get(f"{call.__qualname__}.{name}", known.get(f"{owner}.{name}", known.get(name)))() for name in wanted}


# --- values that are wrong, and for which parameters they are right -------------------------------------------------------------

FIXED = [
    *(None, "abc", "", b"x", "cud", math.nan, math.inf, -math.inf, -1, 0, 1, 7.0, 1.5, True, 1e-300, 10**30, 10**400, 2 + 3j),
    *(object(), [], {}, (), [1, 2], ["a"], {"a": 1}, lambda: None, lambda one, two, three, four, five: None),
    *(torch.zeros(3, 2), torch.zeros(0), torch.tensor(math.nan), np.zeros((2, 2)), np.array("x")),
    *(Empty(), torch.float64, torch.device("meta")),
]
GENERATED = st.one_of(
    st.integers(-(10**25), 10**25),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.lists(st.integers(-3, 30), max_size=3),
    st.dictionaries(st.integers(-3, 3), st.none(), max_size=2),
    st.builds(lambda shape: torch.zeros(shape), st.lists(st.integers(0, 3), max_size=3)),
    st.builds(lambda value: np.float64(value), st.floats()),
)


def number(value):
    value = value.item() if isinstance(value, (torch.Tensor, np.generic, np.ndarray)) and value.ndim == 0 else value
    return value if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def whole(least=1, most=2**63 - 1):
    return lambda value: isinstance(number(value), Integral) and least <= number(value) <= most


def real(low, high, ends=(False, True)):
    return lambda value: low < number(value) < high or (ends[0] and number(value) == low) or (ends[1] and number(value) == high)


def takes(n):
    def fits(value):
        try:
            inspect.signature(value).bind(*range(n))
        except (TypeError, ValueError):
            return callable(value) and isinstance(value, type)
        return True

    return fits


def is_none(value):
    return value is None


def either(*checks):
    return lambda value: any(check(value) for check in checks)


def of(*kinds):
    return lambda value: isinstance(value, kinds)


TRUTH = of(bool, np.bool_)
FINITE = real(-math.inf, math.inf, (False, False))
LIMIT = real(0, math.inf)


def path(value):
    return isinstance(value, (str, bytes)) and len(value) > 0 and "\0" not in os.fsdecode(value)


def sized(value):
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, (str, bytes, Mapping))


VALID = {
    "keep": either(is_none, real(1e-9, 1, (True, True))),
    "batch_size": either(is_none, whole(1, 4)),
    "fit_irreducible_model.batch_size": either(is_none, whole()),
    "task": is_none,
    "forward": either(is_none, takes(2)),
    "loss": either(is_none, takes(2)),
    "dtype": is_none,
    "mode": of(()),
    "chunk_size": either(is_none, whole(), lambda value: isinstance(value, str) and value == "auto"),
    "device": either(is_none, of(torch.device)),
    "drop_last": either(is_none, TRUTH),
    "seed": whole(-(2**63), 2**64 - 1),
    "model": either(is_none, callable),
    "progress": either(is_none, TRUTH),
    "views": whole(),
    "store": is_none,
    "build_selector.proxy": either(is_none, callable),
    "build_selector.irreducible_model": either(is_none, callable),
    "proxy": callable,
    "irreducible_model": callable,
    "reference": callable,
    "irreducible_optimizer": is_none,
    "proxy_optimizer": is_none,
    "max_irreducible_loss": either(is_none, LIMIT),
    "bounded": TRUTH,
    "temperature": LIMIT,
    "pressure": real(1, math.inf, (True, False)),
    "window": either(is_none, whole()),
    "beta": either(is_none, real(0, math.inf, (True, False))),
    "features": is_none,
    "full_from": either(is_none, whole(0)),
    "chunks": whole(),
    "bound": real(-math.inf, math.inf, (True, True)),
    "KakurenboSelector.stages": lambda value: isinstance(value, (list, tuple)) and all(map(whole(0), value)) and len(value) < 4,
    "passes": whole(),
    "share": real(0, 1),
    "oldest": real(0, 1, (True, True)),
    "compare_every": either(is_none, whole()),
    "on_duplicates": is_none,
    "scores": is_none,
    "PlanRecorder.scores": TRUTH,
    "PlanRecorder.weights": TRUTH,
    "every": whole(),
    "PayoffGatedSelector.batches": whole(2),
    "PayoffGatedSelector.validation": sized,
    "otherwise": is_none,
    "cost": either(is_none, real(0, math.inf, (False, False))),
    "from_epoch": is_none,
    "from_step": whole(),
    "Geometric.start": real(0, math.inf),
    "Geometric.end": real(0, math.inf),
    "start": FINITE,
    "end": FINITE,
    "steps": whole(),
    "at": whole(0),
    "scale": real(0, 1),
    "break_even.keep": real(0, 1),
    "break_even.scoring": real(0, math.inf, (True, False)),
    "break_even.forward": real(0, 1, (False, False)),
    **{f"runs_to_pay_back.{name}": real(0, math.inf, (True, False)) for name in ("making", "plain", "replayed")},
    "length": whole(),
    "members": either(is_none, takes(0)),
    "prefilter": is_none,
    "n_B": either(is_none, whole()),
    "IndexedBatches.batches": lambda value: sized(value) and np.ndim(value) > 0,
    "index": either(is_none, of(str), whole(-(10**500), 10**500)),
    "indices": lambda value: sized(value) and (len(value) == 0 or (isinstance(value, list) and len(set(value)) == len(value))),
    "dataset": sized,
    "find_suspects.dataset": either(is_none, sized),
    "find_suspects.top": either(is_none, whole(0)),
    "names": lambda value: not isinstance(value, (str, bytes)) and all(isinstance(name, str) for name in value),
    "name": of(str),
    "holdout": either(is_none, whole(1, N), real(0, 1, (False, False))),
    "split.validation": either(whole(0, N), real(-1, 1, (False, False))),
    "labels": is_none,
    "report_on.labels": either(is_none, of(Empty)),
    "RhoTokenLoss.keep": real(0, 1),
    "states": sized,
    "folds": whole(2, N),
    "only": either(is_none, whole(0, 1)),
    "epochs": either(is_none, whole()),
    "fit_irreducible_model.steps": either(is_none, whole()),
    "patience": either(is_none, whole()),
    "optimizer": is_none,
    "scheduler": is_none,
    "checkpoint": either(is_none, path),
    "path": either(is_none, path),
    "mapped": TRUTH,
    "suggest": TRUTH,
    "model_factory": takes(0),
    "IrreducibleLossScorer.batch_size": whole(),
    "IrreducibleLossScorer.ids": of(str),
    "IrreducibleLossStore.from_table.losses": of(()),
    "IrreducibleLossStore.from_table.ids": is_none,
    "IrreducibleLossStore.from_table.data": lambda value: value is None or (sized(value) and len(value) == 2),
    "distributed": of(()),
    "losses": lambda value: len(value) == 0,
    "ids": is_none,
    "meta": either(is_none, of(Mapping)),
    "process": whole(0, 1),
    "processes": whole(),
    "log": either(is_none, takes(0)),
    "tracker": takes(2),
    "group": is_none,
    "since": whole(0),
    "flags": either(is_none, lambda value: isinstance(value, Mapping) and not value),
    "methods": lambda value: isinstance(value, Mapping) and not value,
    "n": whole(),
    "correct": TRUTH,
    "classes": either(is_none, whole(2)),
    "other": is_none,
    "validation_loss": either(is_none, FINITE),
    "plain_accuracy": either(is_none, real(0, 1, (True, True))),
    "top": whole(0),
    "class_names": either(is_none, lambda value: not isinstance(value, str) and all(isinstance(name, str) for name in value)),
    "top_classes": lambda value: whole(0)(value) and value != 1,
    "IrreducibleLossStore.predictions": is_none,
    "shift": TRUTH,
    "ignore_index": whole(-(2**63)),
}
OTHER_WORDS = {  # for what an argument holds, which has messages of its own
    "data": ("batch", "example", "folds"),
    "path": ("not a store",),
    "source": ("column", "file"),
    "meta": ("extra",),
    "dataset": ("examples",),
    "holdout": ("batch",),
    "validation": ("batch",),
    "loader": ("DataLoader",),
    "predictions": ("targets",),
    "batch_size": ("keep",),
    "keep": ("batch_size",),
    "steps": ("epochs",),
}
CODE_OF_USERS = {"model", "proxy", "irreducible_model", "reference", "fit", "forward", "loss", "batch", "selector"}


DOCUMENTED = {"path": OSError, "source": OSError, "mapped": OSError, "checkpoint": OSError, "distributed": RuntimeError}
COSTS_TIME = {"epochs", "views", "n", "processes"}  # right values that are large


def wrong_with(call, name, value, folder):
    """Call with one argument: None if it is right, or refused in a sentence that names it; else what happened."""
    label = f"{call.__qualname__}.{name}"
    valid = VALID.get(label, VALID.get(name, lambda value: False))
    is_code = callable(value) and name in CODE_OF_USERS
    if is_code or label == "reference_losses.batch" or (name in COSTS_TIME and number(value) > N and valid(value)):
        return None
    given = {**right(call, f"{folder}/{next(PLACES)}.npz"), name: value}
    owner = given.pop("self", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(*([] if owner is None else [owner]), **given)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        is_named = any(word in str(error) for word in (name, *OTHER_WORDS.get(name, ())))
        if isinstance(error, DOCUMENTED.get(name, ())) or (
            isinstance(error, (ValueError, TypeError, IndexError)) and last.startswith(PACKAGE) and is_named
        ):
            return None
        return f"{label} = {value!r:.60}: {type(error).__name__} in {last}: {error}"
    return None if valid(value) else f"{label} = {value!r:.60} was accepted"


PLACES = itertools.count()
CALLS = public()
ALL = sorted((call, name) for call in CALLS for name in parameters(CALLS[call]) if name != "self")


def is_common(call, name):
    """Whether an option is one that all selectors, or all scorings, take and hand on."""
    common = {*SelectorOptions.__annotations__, *ScoringOptions.__annotations__} - {"seed"}
    return name in common and name not in inspect.signature(CALLS[call]).parameters


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # "abc" is a path


def lacks_its_package(call):
    return call.endswith("_table") and importlib.util.find_spec("pyarrow") is None


def with_its_package(call):
    if lacks_its_package(call):
        pytest.skip("pyarrow is not installed")
    return CALLS[call]


@pytest.mark.parametrize("call", sorted(CALLS))
def test_right_arguments_are_accepted(call, tmp_path):
    given = right(with_its_package(call), f"{tmp_path}/store.npz")
    owner = given.pop("self", None)
    CALLS[call](*([] if owner is None else [owner]), **given)


@pytest.mark.parametrize("call", sorted(CALLS))
def test_wrong_arguments_are_refused_by_name(call, tmp_path):
    names = [name for each, name in ALL if each == call and not is_common(call, name)]
    function = with_its_package(call)
    found = [wrong_with(function, name, value, tmp_path) for name in names for value in FIXED]
    assert [each for each in found if each is not None] == []


@settings(
    max_examples=BY_HAND or 150,
    deadline=None,
    derandomize=not BY_HAND,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from([each for each in ALL if not lacks_its_package(each[0])]), st.one_of(GENERATED, st.sampled_from(FIXED)))
def test_whatever_else_is_wrong_is_refused_by_name_too(tmp_path, which, value):
    call, name = which
    found = wrong_with(CALLS[call], name, value, tmp_path)
    assert found is None, found


def test_what_is_raw_or_accepted_in_silence_is_found(tmp_path):
    def raw(keep):
        return 1 / keep.numerator

    def silent(keep):
        return keep

    def nameless(keep):
        raise ValueError("wrong")

    assert "AttributeError" in wrong_with(raw, "keep", "abc", tmp_path)
    assert "was accepted" in wrong_with(silent, "keep", "abc", tmp_path)
    assert "ValueError" in wrong_with(nameless, "keep", "abc", tmp_path)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, torch.tensor, np.int32])
def test_whole_numbers_of_numpy_and_torch_are_those_of_python(kind):
    options = {"batch_size": 2, "chunk_size": 3, "seed": 5}
    plain = selectors.TrainLossSelector(LOADER, MODEL, **options)
    same = selectors.TrainLossSelector(LOADER, MODEL, **{name: kind(value) for name, value in options.items()})
    assert type(same.n_b) is int
    assert (same.n_b, same.scorer, same.generator.initial_seed()) == (2, plain.scorer, 5)
    assert [len(y) for _, y in same] == [2] * 6
    for sizes in ({"holdout": kind(4), "validation": kind(2), "seed": kind(3)}, {"holdout": 4, "validation": 2, "seed": 3}):
        parts = rholoss.split(DATA, **sizes)
        assert [len(part) for part in parts] == [18, 4, 2]
    assert parts.holdout.indices.tolist() == rholoss.split(DATA, holdout=4, validation=2, seed=kind(3)).holdout.indices.tolist()


@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.tensor, np.array])
def test_numbers_of_numpy_and_torch_are_those_of_python(kind):
    selector = rholoss.RhoLossSelector(
        LOADER, MODEL, fresh_store(), keep=kind(0.5), max_irreducible_loss=kind(0.25), bounded=np.True_
    )
    assert (selector.n_B, selector.formula.max_irreducible_loss, selector.formula.bounded) == (8, 0.25, True)
    assert schedules.Linear(kind(0.5), 1.0, steps=np.int64(2))(1) == 0.75


@pytest.mark.parametrize(("name", "bad", "good"), [("device", "cuda:99", "cpu"), ("seed", 1.0, 1), ("keep", 1e-300, 0.1)])
def test_what_the_message_asks_for_works(name, bad, good):
    with pytest.raises(ValueError, match=name):
        selectors.UniformSelector(LOADER, **{name: bad})
    selector = selectors.UniformSelector(LOADER, **{name: good})
    assert len(list(selector)) == len(selector) > 0


class TestEmptyData:
    @pytest.mark.parametrize("method", ["uniform", "rho_loss", "infobatch", "lazy_rho_loss", "prefiltered_rho_loss"])
    @pytest.mark.parametrize("sampler", [[], SubsetRandomSampler([])])
    def test_is_an_empty_epoch_as_of_a_plain_loader(self, method, sampler):
        loader = DataLoader(DATA, batch_size=4, sampler=sampler)
        selector = build_selector(method, loader, MODEL, store=fresh_store(), irreducible_model=OTHER)
        assert (len(selector), list(selector)) == (len(loader), list(loader)) == (0, [])

    @pytest.mark.parametrize("empty", [Subset(DATA, []), rholoss.IndexedSubset(DATA, []), TensorDataset(torch.zeros(0, 3))])
    def test_cannot_be_scored_or_fitted_or_divided(self, empty):
        with pytest.raises(ValueError, match="expected at least one example to score, got none"):
            IrreducibleLossStore.from_model(MODEL, empty)
        with pytest.raises(ValueError, match="holdout must have at least 1 example, got an empty"):
            rholoss.fit_irreducible_model(MODEL, empty, DATA)
        with pytest.raises(ValueError, match="dataset must have at least 1 example, got an empty"):
            rholoss.split(empty)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.uint8])
class TestUnsignedLabels:
    def test_are_what_the_same_labels_as_int64_are(self, dtype):
        x, y = DATA.tensors
        unsigned = TensorDataset(x, y.to(dtype))
        assert torch.equal(rholoss.split(unsigned).holdout.indices, rholoss.split(DATA).holdout.indices)
        scored, plain = (IrreducibleLossStore.from_model(OTHER, data) for data in (unsigned, DATA))
        assert torch.equal(scored.losses, plain.losses)
        assert scored.meta.calibration == plain.meta.calibration
        assert torch.equal(
            IrreducibleLossStore.from_predictions(x[:, :CLASSES], y.to(dtype)).losses,
            IrreducibleLossStore.from_predictions(x[:, :CLASSES], y).losses,
        )
        assert torch.equal(SelectionLog(N).by_class(y.to(dtype))["data"], SelectionLog(N).by_class(y)["data"])

    @pytest.mark.parametrize("method", ["train_loss", "gradient_norm", "divbs"])
    def test_are_selected_with_their_examples(self, method, dtype):
        x, y = DATA.tensors
        loader = DataLoader(TensorDataset(x, y.to(dtype)), batch_size=4)
        chosen = [labels.long().tolist() for _, labels in build_selector(method, loader, MODEL, keep=0.5)]
        assert chosen == [labels.tolist() for _, labels in build_selector(method, LOADER, MODEL, keep=0.5)]


@pytest.mark.parametrize("method", ["gradient_norm", "divbs"])
def test_a_label_outside_the_classes_is_named(method):
    loader = DataLoader(TensorDataset(DATA.tensors[0], torch.full((N,), 7)), batch_size=4)
    with pytest.raises(ValueError, match="targets must be classes from 0 on, below 4, as the logits have 4, got 7 to 7"):
        next(iter(build_selector(method, loader, MODEL)))


class Decides(rholoss.Selector):
    """Has the draw rule that it is given."""

    rule = rholoss.DrawRule()

    def score(self, candidates):
        return candidates.rand()

    def draw_rule(self):
        return self.rule


class TestDrawRules:
    def test_a_prefilter_takes_the_index_and_the_step(self):
        with pytest.raises(TypeError, match=r"prefilter must be a function \(index, step\) -> positions, got .*too many"):
            rholoss.DrawRule(prefilter=lambda index: index)

    @pytest.mark.parametrize("members", [lambda: [True] * N, torch.ones(3, dtype=torch.bool), lambda: torch.ones(N)])
    def test_members_are_one_bool_per_example(self, members):
        selector = Decides(LOADER)
        selector.rule = rholoss.DrawRule(members=members)
        with pytest.raises(ValueError, match=rf"members must be one bool per example, a tensor of shape \({N},\)"):
            next(iter(selector))

    def test_a_rule_is_a_draw_rule(self):
        selector = Decides(LOADER)
        selector.rule = [1]
        with pytest.raises(TypeError, match=r"draw_rule must return a DrawRule, got \[1\]"):
            len(selector)

    def test_a_prefilter_that_returns_a_list_fails_the_check_in_a_sentence(self):
        class Lists(Decides):
            rule = rholoss.DrawRule(prefilter=lambda index, step: list(range(len(index))))

        with pytest.raises(AssertionError, match="prefilter must return positions, an int64 tensor, or None for all, got list"):
            check_selector(Lists)


class TestParts:
    def test_sizes_of_a_part_are_those_of_its_wrapper_or_left_out(self):
        part = selectors.UniformSelector(LOADER, keep=0.5)
        message = "must be those of its wrapper, got a UniformSelector with n_b = 4 and n_B = 8 in a SwitchSelector with 4 and 16"
        with pytest.raises(ValueError, match=message):
            wrappers.SwitchSelector(LOADER, None, {0: part}, unit="step", keep=0.25)
        for options in ({}, {"keep": 0.25}, {"keep": np.float64(0.25)}):
            part = selectors.UniformSelector(LOADER, **options)
            assert len(wrappers.SwitchSelector(LOADER, None, {0: part}, unit="step", keep=0.25)) == 2

    def test_a_part_that_chooses_its_own_subset_keeps_its_share(self):
        part = selectors.RepeatedRandomSubsetSelector(LOADER, keep=0.25)
        assert len(wrappers.SwitchSelector(LOADER, None, {0: part}, unit="epoch")) == 2

    def test_stages_that_decide_before_loading_are_named_with_batch_size(self):
        part = selectors.PrefilteredRhoLossSelector(LOADER, MODEL, fresh_store())
        message = r"PrefilteredRhoLossSelector decides before examples are loaded.*; pass keep= to SwitchSelector instead"
        with pytest.raises(ValueError, match=message):
            wrappers.SwitchSelector(LOADER, MODEL, {0: part}, unit="step", batch_size=2)
        assert len(wrappers.SwitchSelector(LOADER, MODEL, {0: part}, unit="step", keep=0.5)) == 3

    def test_stages_are_a_mapping(self):
        with pytest.raises(TypeError, match=r"stages must be a mapping of selectors by the first epoch of each, such as"):
            wrappers.SwitchSelector(LOADER, None, [uniform()], unit="epoch")

    def test_a_schedule_below_keep_is_said_once(self):
        selector = wrappers.KeepScheduleSelector(LOADER, MODEL, uniform(), lambda step: 0.25, keep=0.5)
        with pytest.warns(UserWarning, match=r"the schedule is 0.25 at step 0, below n_b / n_B = 4 / 8") as said:
            assert len(list(selector)) == 3
        assert len(said) == 1
        assert len(list(wrappers.KeepScheduleSelector(LOADER, MODEL, uniform(), lambda step: 0.25, keep=0.25))) == 2


class TestWrongWords:
    @pytest.mark.parametrize(
        ("call", "meant"),
        [
            (
                lambda: rholoss.fit_irreducible_model(MODEL, DATA, make_data(N, seed=3), taks=None),
                "fit_irreducible_model .* task=",
            ),
            (lambda: rholoss.cross_fit(DATA, lambda part: MODEL, taks=None), "cross_fit .* task="),
            (lambda: rholoss.auto(LOADER, MODEL, chunksize=3), "auto .* chunk_size="),
            (lambda: rholoss.RhoLossSelector(LOADER, MODEL, fresh_store(), bounde=True), "RhoLossSelector .* bounded="),
            (lambda: fresh_store().report(tops=3), "the report .* top="),
            (lambda: build_selector("bald", LOADER, MODEL, pases=3), "BaldSelector .* passes="),
        ],
    )
    def test_are_refused_with_the_right_one_before_any_work(self, call, meant):
        with pytest.raises(TypeError, match=meant.replace(".*", r"got an unexpected option \w+=; did you mean")):
            call()
