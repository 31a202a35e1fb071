"""Methods by name: finding, registering, and what they need."""

import pytest
import torch
from conftest import make_data, make_net
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector, Selector, build_selector, register, registry, selector_names
from rholoss.selectors import UniformSelector
from rholoss.wrappers import StaleSelector, SwitchSelector


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


@pytest.fixture
def loader():
    return DataLoader(make_data(64), batch_size=8)


class Newest(Selector):
    def score(self, candidates):
        return candidates.index


def test_a_wrong_name_gets_the_closest_and_all_of_them(loader):
    with pytest.raises(ValueError, match=r"no selector is named 'rho_los'; did you mean 'rho_loss'\? The names are bald, boltz"):
        build_selector("rho_los", loader)
    with pytest.raises(ValueError, match="no selector is named 'xyz'; The names are bald"):
        build_selector("xyz", loader)


def test_names_are_sorted_and_registering_adds_one():
    names = selector_names()
    assert names == sorted(names)
    register("newest")(Newest)
    assert set(selector_names()) - set(names) == {"newest"}


def test_a_name_is_registered_once_but_the_same_class_may_come_again():
    register("newest")(Newest)
    register("newest")(Newest)
    with pytest.raises(ValueError, match="'newest' is registered already, Newest; choose another name"):
        register("newest")(UniformSelector)


def test_register_without_a_name_says_how_it_is_used():
    with pytest.raises(TypeError, match=r"as in @register\('newest'\), got <class"):
        register(Newest)


def test_classes_functions_and_instances_pass_through(loader):
    assert type(build_selector(Newest, loader)) is Newest
    assert type(build_selector(lambda loader, model, **options: Newest(loader, model, **options), loader)) is Newest
    built = Newest(loader)
    assert build_selector(built, loader) is built
    with pytest.raises(ValueError, match="keeps its own loader and options"):
        build_selector(built, loader, keep=0.5)
    with pytest.raises(ValueError, match="keeps its own loader and options"):
        build_selector(built, DataLoader(make_data(64), batch_size=8))


@pytest.mark.parametrize(
    ("name", "missing"),
    [("rho_loss", "store"), ("proxy_rho_loss", "store and proxy"), ("online_rho_loss", "irreducible_model")],
)
def test_an_ingredient_that_is_missing_is_named(name, missing, loader):
    with pytest.raises(ValueError, match=f"needs {missing}; pass {missing.split(' and ')[0]}="):
        build_selector(name, loader, make_net(0))


def test_an_ingredient_that_a_method_does_not_take_is_left_out(loader):
    build_selector(
        "uniform", loader, store=IrreducibleLossStore(torch.zeros(64)), proxy=make_net(0), irreducible_model=make_net(1)
    )


def test_an_option_that_does_not_exist_is_an_error(loader):
    with pytest.raises(TypeError, match="UniformSelector got an unexpected option kep=; did you mean keep=\\?"):
        build_selector("uniform", loader, kep=0.1)


@pytest.mark.parametrize("wrong", [{}, {"from_epoch": 0}, {"from_step": 0}, {"from_epoch": 1, "from_step": 1}])
def test_rho_loss_then_uniform_needs_to_know_when(wrong, loader):
    with pytest.raises(
        ValueError, match="from_epoch or from_step, at least 1|from_(epoch|step) must be a whole number, at least 1, got 0"
    ):
        build_selector("rho_loss_then_uniform", loader, make_net(0), store=IrreducibleLossStore(torch.zeros(64)), **wrong)


def test_stages_and_methods_of_another_loader_are_refused(loader):
    other = UniformSelector(DataLoader(make_data(32), batch_size=8))
    with pytest.raises(ValueError, match="stages must have a selector from 0 on"):
        SwitchSelector(loader, None, {1: UniformSelector(loader)}, unit="step")
    with pytest.raises(ValueError, match="unit must be 'epoch' or 'step', got 'steps'"):
        SwitchSelector(loader, None, {0: UniformSelector(loader)}, unit="steps")
    with pytest.raises(ValueError, match="built on the same loader"):
        SwitchSelector(loader, None, {0: other}, unit="step")
    with pytest.raises(ValueError, match="built on the same loader"):
        StaleSelector(loader, make_net(0), other)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bald", {"passes": 0}, "passes must be a whole number of forward passes, at least 1, got 0"),
        ("boltzmann_rho_loss", {"temperature": 0.0}, "temperature must be a number above 0 nats, .*got 0.0"),
        ("selective_backprop", {"window": 0}, "window must be a number of losses, at least 1, or None for ranks, got 0"),
        ("selective_backprop", {"beta": -1.0}, "beta must be a number, at least 0, .*got -1.0"),
        ("rank_based", {"pressure": 0.5}, "pressure must be a number, at least 1, .*got 0.5"),
        ("proxy_rho_loss", {"compare_every": 0}, "compare_every must be a number of steps, at least 1, or None, got 0"),
        ("selection_via_proxy", {"by": "margin"}, r"by must be 'entropy' or 'least_confidence', got 'margin'"),
        ("selection_via_proxy", {"scores": torch.zeros(64)}, "pass either a proxy that ranks the dataset or scores by index"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message, loader):
    ingredients = {"store": IrreducibleLossStore(torch.zeros(64)), "proxy": make_net(1), "irreducible_model": make_net(1)}
    with pytest.raises(ValueError, match=message):
        build_selector(name, loader, make_net(0), **ingredients, **options)


@pytest.mark.parametrize(("scores", "got"), [(torch.zeros(63), r"\(63,\)"), (torch.zeros(64, 1), r"\(64, 1\)")])
def test_scores_of_another_dataset_are_refused(scores, got, loader):
    with pytest.raises(ValueError, match=f"scores must be one number per example.* got .*{got}"):
        build_selector("selection_via_proxy", loader, scores=scores)


def test_a_selector_cannot_wrap_a_selector(loader):
    store = IrreducibleLossStore(torch.zeros(64))
    with pytest.raises(TypeError, match="a selector cannot wrap a selector, RhoLossSelector; give it the DataLoader"):
        RhoLossSelector(RhoLossSelector(loader, make_net(0), store), make_net(0), store)
    with pytest.raises(TypeError, match=r"expected a DataLoader .*got TensorDataset"):
        RhoLossSelector(loader.dataset, make_net(0), store)
