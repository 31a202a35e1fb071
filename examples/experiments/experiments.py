"""The named experiments: those of the RHO-LOSS paper and its code, and some more.

Each is a handful of setups that share everything but what is compared: initial weights, order of the data, optimizer, number of
examples in a batch, evaluation. Those on data that anyone can get within a minute on a CPU have results in ``examples/results``;
the others run by the same command wherever their data are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from experiments.setups import Irreducible, Setup


@dataclass(frozen=True)
class Experiment:
    """Setups to compare.

    Attributes:
        name: what it is asked for by.
        about: what it compares, in a line.
        setups: by label. The first is the baseline.
        seeds: that its results are made of.
        kind: ``"methods"``; ``"pairs"`` of uniform and RHO-LOSS or a plan, with several settings; ``"paying"``, where seconds
            count; or ``"plans"``, where those of a first run and of a further one do.
        shown: the labels whose curves have a figure of their own.
        within: the experiment whose table shows these runs as well.
    """

    name: str
    about: str
    setups: Mapping[str, Setup]
    seeds: tuple[int, ...] = (0, 1, 2)
    kind: str = "methods"
    shown: tuple[str, ...] = ()
    within: str | None = None


# --- settings -------------------------------------------------------------------------------------------------------------------

SMALL = Irreducible(model_options={"width": 256, "depth": 1, "dropout": 0.5})
TINY = replace(SMALL, model_options={"width": 24, "depth": 1, "dropout": 0.0})
NET = {"width": 512, "depth": 1, "dropout": 0.0}
FASHION = Setup("fashion-mnist", model_options=NET, irreducible=SMALL, steps=1000)
LONG, SHORT = 4000, 400  # steps of plain training, and of all methods but RHO-LOSS
ENOUGH = 2000  # steps of plain training of the narrow network
COSINES = ((3e-4, "cosine"), (1e-3, "cosine"))
BOTH_SCHEDULES = ((1e-3, "constant"), (1e-3, "cosine"))
ALL_FOUR = ((1e-3, "constant"), (3e-4, "constant"), *COSINES)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)


def plain(setup: Setup, steps: int = LONG) -> Setup:
    """The same without selection: the plain loop, and as it needs no irreducible losses, for longer."""
    nothing: dict[str, Any] = {"method_options": {}, "irreducible": None, "proxy": None, "proxy_options": {}, "compared": {}}
    return replace(setup, method="uniform", keep=1.0, steps=steps, **nothing)


def by(setup: Setup, method: str, **options: Any) -> Setup:
    """The same with a method."""
    return replace(setup, method=method, method_options=options)


def rho(setup: Setup) -> Setup:
    return by(setup, "rho_loss")


def on(setup: Setup, **options: Any) -> Setup:
    """The same on other data of the task."""
    return replace(setup, task_options={**setup.task_options, **options})


def both(setup: Setup, steps: int = LONG) -> dict[str, Setup]:
    return {"uniform": plain(setup, steps), "RHO-LOSS": rho(setup)}


def tuned(setup: Setup, steps: int = LONG) -> dict[str, Setup]:
    """Plain training with other learning rates, constant and decaying."""
    uniform = plain(setup, steps)
    constant = {f"uniform, {rate(lr)}": replace(uniform, lr=lr) for lr in RATES if lr != setup.lr}
    cosine = {f"uniform, {rate(lr)}, cosine": replace(uniform, lr=lr, schedule="cosine") for lr in RATES[2:]}
    return constant | cosine


def slower(setup: Setup, steps: int) -> dict[str, Setup]:
    """The two of these that are mostly the best."""
    return {
        label: made for label, made in tuned(setup, steps).items() if label in ("uniform, lr 3e-4", "uniform, lr 1e-3, cosine")
    }


def rate(lr: float) -> str:
    return f"lr {lr:.0e}".replace("e-0", "e-")


# --- methods --------------------------------------------------------------------------------------------------------------------


def gates(setup: Setup) -> dict[str, Setup]:
    """RHO-LOSS with the options that the paper does not have."""
    return {
        "RHO-LOSS, gate": by(setup, "rho_loss", max_irreducible_loss="guess"),
        "RHO-LOSS, bounded": by(setup, "rho_loss", bounded=True),
    }


def boltzmann(setup: Setup) -> dict[str, Setup]:
    def soft(temperature: Any) -> Setup:
        return by(setup, "boltzmann_rho_loss", temperature=temperature)

    return {
        "Boltzmann, T 1": soft(1.0),
        "Boltzmann, T 2 to 0.1": soft({"schedule": "geometric", "start": 2.0, "end": 0.1}),
    }


def then_uniform(setup: Setup, step: int) -> dict[str, Setup]:
    return {f"RHO-LOSS, uniform from step {step}": by(setup, "rho_loss_then_uniform", from_step=step)}


def updated(setup: Setup) -> dict[str, Setup]:
    online = by(setup, "online_rho_loss")
    return {
        "RHO-LOSS, online": online,
        "RHO-LOSS, irreducible-loss model co-trained": replace(online, irreducible_lr=setup.lr / 100),
    }


def stale(setup: Setup) -> dict[str, Setup]:
    return {"RHO-LOSS, one step stale": by(setup, "stale_rho_loss")}


def smaller(setup: Setup) -> dict[str, Setup]:
    return {"RHO-LOSS, small irreducible-loss model": rho(replace(setup, irreducible=TINY))}


def proxies(setup: Setup, model: str, **options: Any) -> dict[str, Setup]:
    proxy = by(replace(setup, proxy=model, proxy_options=options), "proxy_rho_loss", compare_every=10)
    return {"RHO-LOSS by a small proxy": proxy}


def via_proxy(setup: Setup, model: str, **options: Any) -> dict[str, Setup]:
    small = replace(setup, proxy=model, proxy_options=options, irreducible=None)
    return {
        "SVP, entropy": by(small, "selection_via_proxy", by="entropy"),
    }


def simple(setup: Setup) -> dict[str, Setup]:
    """What the loss, its gradient or the irreducible loss choose on their own."""
    alone = replace(setup, irreducible=None)
    return {
        "train loss": by(alone, "train_loss"),
        "gradient norm": by(alone, "gradient_norm"),
        "gradient norm, importance sampling": by(alone, "gradient_norm_importance_sampling"),
        "irreducible loss": by(setup, "irreducible_loss"),
    }


def rivals(setup: Setup) -> dict[str, Setup]:
    """Other people's ways to choose."""
    alone = replace(setup, irreducible=None)
    epochs = replace(alone, steps=LONG, keep=0.5)  # what chooses a part for each epoch
    return {
        "InfoBatch": by(epochs, "infobatch"),
        "KAKURENBO": by(replace(epochs, keep=0.7), "kakurenbo", stages=[1, 2, 3]),  # 4,000 steps are about three epochs
        "repeated random subset": by(epochs, "repeated_random_subset"),
        "Selective-Backprop": by(alone, "selective_backprop"),
        "Selective-Backprop, ranks": by(alone, "selective_backprop", window=None),
        "DivBS": by(alone, "divbs", features="penultimate"),
        "rank-based, pressure 100 to 1": by(alone, "rank_based", pressure={"schedule": "geometric", "start": 100.0, "end": 1.0}),
    }


def active(setup: Setup, passes: int = 5) -> dict[str, Setup]:
    """Methods of active learning, for a model with dropout."""
    alone = replace(setup, irreducible=None, steps=300)
    names = ("bald", "entropy", "conditional_entropy", "loss_minus_conditional_entropy", "loss_plus_conditional_entropy")
    return {name.replace("_", " ").replace("bald", "BALD"): by(alone, name, passes=passes) for name in names}


def unscored(setup: Setup) -> dict[str, Setup]:
    """Without a forward pass, or with few of them."""
    return {
        "uniform below the gate": by(setup, "gated_uniform", max_irreducible_loss="guess"),
        "RHO-LOSS, prefiltered to a quarter": by(setup, "prefiltered_rho_loss", share=0.25),
    }


SMALL_PROXY = {"width": 64, "depth": 1, "dropout": 0.0}


def every_method(setup: Setup) -> dict[str, Setup]:
    """All registered methods but those for models with dropout."""
    setup = replace(setup, steps=SHORT)
    small = smaller(setup) | proxies(setup, "mlp", **SMALL_PROXY) | via_proxy(setup, "mlp", **SMALL_PROXY)
    groups = (boltzmann(setup), then_uniform(setup, 200), updated(setup), stale(setup), small, simple(setup), unscored(setup))
    return {label: made for group in (*groups, rivals(setup)) for label, made in group.items()}


# --- the table ------------------------------------------------------------------------------------------------------------------

FASHION_30 = on(FASHION, noise=0.3)
QUICK_30 = replace(FASHION_30, steps=SHORT)
SLOWER = {
    "RHO-LOSS, lr 3e-4": rho(replace(FASHION_30, lr=3e-4)),
    "RHO-LOSS, lr 1e-3, cosine": rho(replace(FASHION_30, schedule="cosine")),
}
LONGER = {
    "uniform, lr 1e-3, cosine, 12,000 steps": replace(plain(FASHION_30, 3 * LONG), schedule="cosine"),
    "RHO-LOSS, lr 1e-3, cosine, 4,000 steps": replace(rho(FASHION_30), schedule="cosine", steps=LONG),
}

NARROW = {"width": 128, "depth": 1, "dropout": 0.0}
LEAST = replace(SMALL, model_options={"width": 128, "depth": 1, "dropout": 0.5})
QUICK = replace(FASHION, model_options=NARROW, irreducible=LEAST)
NOISY = on(QUICK, noise=0.3)
WITH_DROPOUT = replace(NOISY, model_options={**NARROW, "dropout": 0.5})
CROSS = replace(LEAST, kind="cross-fit", epochs=30, patience=2)
CIFAR_10N = replace(QUICK, task="cifar10", task_options={"features": True, "holdout": "none"}, irreducible=CROSS)
COLA = replace(QUICK, task="cola")
SST2 = replace(QUICK, task="sst2", task_options={"rows": 20_000})
CENSUS = replace(QUICK, task="census", irreducible=replace(LEAST, epochs=5), every=50)

# What pays: a network that is worth scoring for, and a small one, fitted in seconds, that scores.
FITTED_FAST = Irreducible(model="small", epochs=8, lr=3e-3, batch_size=128)
FITTED_LONGER = replace(FITTED_FAST, epochs=14, lr=5e-3, schedule="one-cycle")  # a point and a half more for 4 seconds more
CONVOLUTIONAL = Setup("fashion-mnist", {"noise": 0.3}, "vgg", irreducible=FITTED_FAST, proxy="small", every=50)
CYCLE = Irreducible(model_options={"width": 256, "depth": 1}, epochs=12, lr=4e-3, batch_size=256, schedule="one-cycle")
WIDE = Setup(
    "fashion-mnist",
    model_options={"width": 1024, "depth": 3, "dropout": 0.0},
    irreducible=CYCLE,
    proxy="mlp",
    proxy_options={"width": 256, "depth": 1},
    schedule="cosine",
    keep=0.25,
)
WIDE_COST = 1.6  # times a plain step that one with keep = 0.25 takes, as measured

# Images of CIFAR-10 on one CPU thread: a residual network of 78,000 parameters, and one of 14,000 that sees half the resolution.
TINY_NET = {"of": "small", "pool": 2}
PIXELS_FIT = Irreducible(model="coarse", model_options=TINY_NET, epochs=4, lr=5e-3, schedule="one-cycle")
PIXELS = Setup(
    "cifar10",
    {"tested": 4000},
    "shifted",
    {"of": "resnet8", "width": 16, "pixels": 4, "mirror": True},
    irreducible=PIXELS_FIT,
    proxy="coarse",
    proxy_options=TINY_NET,
    lr=3e-3,
    schedule="cosine",
    steps=1000,
    every=100,
)

RESNET = {"model": "resnet18", "irreducible": Irreducible(model="resnet18", epochs=100, patience=10)}
CIFAR10 = Setup("cifar10", {"augment": True}, every=500, steps=30_000, **RESNET)
CINIC10 = replace(CIFAR10, task="cinic10", n_b=64)
CIFAR10_NONE = replace(on(CIFAR10, holdout="none"), irreducible=replace(CIFAR10.irreducible, kind="cross-fit"))
CINIC10_RELEVANCE = replace(CINIC10, task="cinic10-relevance")
CLOTHING = replace(CIFAR10, task="clothing1m", task_options={"holdout": "dirty"}, model="resnet50")
QMNIST = Setup("qmnist", irreducible=SMALL, model_options={"width": 512, "depth": 3}, steps=4000, every=50)
BERT = {"model": "transformer", "model_options": {"path": "minilm"}}
COLA_TUNED = Setup("cola", {"tokens": True}, irreducible=Irreducible(**BERT, epochs=10, lr=2e-5), lr=2e-5, **BERT)


# Fine-tuned on a CPU: the embedding and the lower three of MiniLM's six layers stay as they are.
BAG = Irreducible(model="bag", epochs=2, lr=5e-3, schedule="one-cycle")
OF_MINILM = {"path": "minilm", "dropout": 0.5}  # a bag of the transformer's own embeddings
CROSS_BAG = replace(BAG, kind="cross-fit", model_options=OF_MINILM, lr=3e-3)
TRUSTED_BAG = replace(BAG, model_options=OF_MINILM, epochs=20, patience=20, batch_size=64, lr=2e-3)
TUNED = Setup(
    "sst2",
    {"tokens": True, "noise": 0.3, "tested": 500},
    "transformer",
    {"path": "minilm", "frozen": 3},
    irreducible=BAG,
    schedule="cosine",
    keep=0.25,
    steps=120,
)
TUNED_CLEAN = replace(on(TUNED, noise=0.0), steps=40, every=20)
BY_ITSELF = Irreducible(model="transformer", model_options=TUNED.model_options, epochs=3, batch_size=32, lr=2e-4)
TUNED_COLA = replace(TUNED_CLEAN, task="cola", irreducible=BY_ITSELF, steps=300, every=50)
TUNED_TWEETS = replace(on(TUNED_CLEAN, holdout="none", length=48), task="tweets", irreducible=CROSS_BAG, steps=30, every=15)


def fine_tuned(setup: Setup, steps: int, *rates: float) -> dict[str, Setup]:
    """Plain training at some rates, and for as many steps as the others; RHO-LOSS; and uniform sampling below the gate.

    Args:
        setup: the other runs.
        steps: of plain training.
        *rates: learning rates of plain training, the best first, which is that of all others.
    """
    setup = replace(setup, lr=rates[0])
    tried = {f"uniform, {rate(lr)}": replace(plain(setup, steps), lr=lr) for lr in rates}
    short = {f"uniform, {rate(setup.lr)}, {setup.steps} steps": plain(setup, setup.steps)}
    return tried | short | {"RHO-LOSS, keep 0.25": at_once(setup), "filtered uniform": filtered(setup)}


def at_once(setup: Setup) -> Setup:
    """RHO-LOSS in one pass: the transformer itself puts sentences of about the same length together."""
    return by(setup, "rho_loss", chunk_size=None)


def filtered(setup: Setup, limit: float | str = "guess") -> Setup:
    """Uniform sampling of the examples up to an irreducible loss, in nats; the others are never read."""
    return by(replace(setup, keep=1.0), "filtered_uniform", max_irreducible_loss=limit)


def more_of_text(setup: Setup) -> dict[str, Setup]:
    """A plan, the highest rate, and less that is trusted."""
    high = replace(setup, lr=5e-4)
    bag = {"proxy": "bag", "proxy_options": {"path": "minilm"}}
    return {
        "half a plan, then below the gate": half_planned(replace(setup, **bag), proxy_lr=3e-3),
        "RHO-LOSS, keep 0.25, lr 5e-4": at_once(high),
        "filtered uniform, lr 5e-4": filtered(high),
        "half a plan, then below the gate, lr 5e-4": half_planned(replace(high, **bag), proxy_lr=3e-3),
        "filtered uniform, 1,000 trusted": filtered(replace(on(setup, holdout=1000), irreducible=TRUSTED_BAG)),
        "filtered uniform, nothing trusted": filtered(replace(setup, irreducible=CROSS_BAG)),
    }


def cifar10n(labels: str) -> dict[str, Setup]:
    """Labels that people gave, without a holdout."""
    return at_two_rates(on(CIFAR_10N, noise=labels)) | gated(on(CIFAR_10N, noise=labels))


def planned_cifar10n(labels: str) -> dict[str, Setup]:
    """The same by a plan."""
    return replayed(
        replace(on(CIFAR_10N, noise=labels), proxy="mlp", proxy_options=NARROW, keep=0.25, every=100), ENOUGH, ALL_FOUR
    )


def at_two_rates(setup: Setup) -> dict[str, Setup]:
    """Plain training at its best, and RHO-LOSS with a lower learning rate as well."""
    rhos = {"RHO-LOSS": rho(setup), "RHO-LOSS, lr 3e-4": rho(replace(setup, lr=3e-4))}
    return {"uniform": plain(setup, ENOUGH)} | slower(setup, ENOUGH) | rhos


def gated(setup: Setup) -> dict[str, Setup]:
    return {"RHO-LOSS, gate": gates(setup)["RHO-LOSS, gate"]}


def on_pixels(labels: str) -> dict[str, Setup]:
    """Labels that people gave, images, and 25,000 trusted ones: plain training with three learning rates, and what is faster."""
    setup = on(PIXELS, noise=labels)
    alone, uniform = replace(setup, proxy=None, proxy_options={}), replace(plain(setup, 1500), every=250)
    rates = {f"uniform, {rate(lr)}": replace(uniform, lr=lr) for lr in (3e-3, 1e-3, 1e-2)}
    front = by(replace(alone, keep=1.0, irreducible=None, steps=800), "auto")
    shorter, quick = replace(PIXELS_FIT, epochs=2), {"proxy_lr": 3e-3}
    return rates | {
        "RHO-LOSS": rho(alone),
        "filtered uniform": filtered(alone),
        "half a plan, then below the gate": half_planned(setup, **quick),
        "rholoss.auto": front,
        "RHO-LOSS, 300 steps": rho(replace(alone, steps=300, every=50)),
        "filtered uniform, 800 steps": filtered(replace(alone, steps=800)),
        "half a plan, 800 steps": half_planned(replace(setup, steps=800), **quick),
        "filtered uniform, 1.5 nats, 700 steps": filtered(replace(alone, steps=700), 1.5),
        "filtered uniform, 800 steps, fit of 2 epochs": filtered(replace(alone, irreducible=shorter, steps=800)),
        "half a plan of keep 0.25, 800 steps, fit of 2 epochs": half_planned(
            replace(setup, keep=0.25, irreducible=shorter, steps=800), **quick
        ),
    }


def paying(setup: Setup, steps: int, full: int, fast: int) -> dict[str, Setup]:
    """Plain training at its best, all of RHO-LOSS, and less and less of it.

    Args:
        setup: with a small network as the proxy.
        steps: of plain training.
        full: of RHO-LOSS, the model itself scoring.
        fast: of what costs less.
    """
    alone, limit = replace(setup, proxy=None, proxy_options={}), {"max_irreducible_loss": "guess"}
    chunked: dict[str, Any] = {"chunk_size": 64} if setup.model == "vgg" else {}
    return {
        "uniform": plain(setup, steps),
        "uniform, lr 3e-4": replace(plain(setup, steps), lr=3e-4),
        "uniform, lr 1e-3, cosine": replace(plain(setup, steps), schedule="cosine"),
        "RHO-LOSS, gate": by(replace(alone, steps=full), "rho_loss", **limit, **chunked),
        "RHO-LOSS, payoff-gated": by(replace(alone, steps=fast), "payoff_gated", **chunked),
        "by a small network": by(replace(setup, steps=fast), "proxy_rho_loss", **limit),
        "by a small network, payoff-gated": by(replace(setup, steps=fast), "payoff_gated"),
        "uniform below the gate": by(replace(alone, steps=fast), "gated_uniform", **limit),
    }


def by_plan(setup: Setup, **options: Any) -> Setup:
    """What a small network selected beforehand, replayed; its recording is among the seconds before the first step."""
    gate = {"max_irreducible_loss": "guess"} if "max_irreducible_loss" not in options else {}
    return by(setup, "plan", **gate, **options)


def half_planned(setup: Setup, **options: Any) -> Setup:
    """A plan for the first half of the steps, then uniform below the gate."""
    return by_plan(setup, steps=setup.steps // 2, then="below the gate", **options)


def plans(setup: Setup) -> dict[str, Setup]:
    """Plans by a small network, with cosine decay but for one."""
    cosine, quick = replace(setup, schedule="cosine"), {"proxy_lr": 3e-3}
    return {
        "a plan": by_plan(cosine, **quick),
        "a plan, constant": by_plan(replace(setup, schedule="constant"), **quick),
        "a plan, keep 0.1": by_plan(replace(cosine, keep=0.1), **quick),
        "half a plan, then below the gate": half_planned(cosine, **quick),
    }


def bounds(setup: Setup) -> dict[str, Setup]:
    """How far a plan can get: a plan that the model itself selects, and as many random batches without a wrong label."""
    cosine = replace(setup, schedule="cosine")
    return {
        "a plan by the model itself": by_plan(replace(cosine, proxy=setup.model, proxy_options=setup.model_options)),
        "random, correct labels only": plain(on(cosine, noise=0.0), setup.steps),
    }


def replayed(setup: Setup, steps: int, rates: Iterable[tuple[float, str]]) -> dict[str, Setup]:
    """Plain training with some learning rates and schedules, and plans."""
    uniform = plain(setup, steps)
    tried = {label_of(lr, schedule): replace(uniform, lr=lr, schedule=schedule) for lr, schedule in rates}
    return tried | plans(setup)


def label_of(lr: float, schedule: str) -> str:
    """What plain training with a learning rate and a schedule is called."""
    return "uniform" if (lr, schedule) == (1e-3, "constant") else f"uniform, {rate(lr)}{', cosine' * (schedule == 'cosine')}"


def plan_choices(setup: Setup) -> dict[str, Setup]:
    """A plan, and each choice in its making made otherwise; cosine decay for all."""
    small, gate = replace(setup, schedule="cosine"), {"max_irreducible_loss": "guess"}
    uniform = plain(small, 2 * setup.steps)
    return {
        "uniform": replace(uniform, schedule="constant"),
        "uniform, lr 1e-3, cosine": uniform,
        "uniform, lr 3e-4, cosine": replace(uniform, lr=3e-4),
        "uniform below the gate": by(replace(small, proxy=None), "gated_uniform", **gate),
        "keep 0.1": by_plan(small),
        "keep 0.05": by_plan(replace(small, keep=0.05)),
        "keep 0.25": by_plan(replace(small, keep=0.25)),
        "keep 0.5": by_plan(replace(small, keep=0.5)),
        "no gate": by_plan(small, max_irreducible_loss=None),
        "proxy: lr 3e-4": by_plan(small, proxy_lr=3e-4),
        "proxy: lr 3e-3": by_plan(small, proxy_lr=3e-3),
        "keep 0.25, proxy: lr 3e-3": by_plan(replace(small, keep=0.25), proxy_lr=3e-3),
        "keep 0.25, proxy: lr 1e-2": by_plan(replace(small, keep=0.25), proxy_lr=1e-2),
        "proxy: a third of the model": by_plan(replace(small, proxy="mlp", proxy_options={**NET, "width": 170})),
        "proxy: the model at half the resolution": by_plan(replace(small, proxy="coarse", proxy_options=NET)),
        "proxy: the model itself": by_plan(replace(small, proxy="mlp", proxy_options=NET)),
        "keep 0.25, 500 steps": by_plan(replace(small, keep=0.25, steps=setup.steps // 2)),
        "keep 0.25, 2,000 steps": by_plan(replace(small, keep=0.25, steps=2 * setup.steps)),
        "keep 0.25, half, then below the gate": half_planned(replace(small, keep=0.25)),
        "shuffled in time": by_plan(small, order="shuffled"),
        "its examples, without order": by_plan(small, order="subset"),
    }


def plan_transfer(setup: Setup) -> dict[str, Setup]:
    """Plain training and one plan with several networks, learning rates, batch sizes and an augmentation."""
    nets: dict[str, tuple[str, dict[str, Any]]] = {
        "MLP 128": ("mlp", {"width": 128, "depth": 1}),
        "MLP 2 x 256": ("mlp", {"width": 256, "depth": 2}),
        "MLP 512, dropout 0.5": ("mlp", {**NET, "dropout": 0.5}),
        "two convolutions": ("small", {}),
        "three convolutions": ("cnn", {"widths": [16, 32, 64]}),
        "MLP 512, shifted images": ("shifted", {"of": "mlp", **NET}),
    }
    settings = {name: replace(setup, model=model, model_options=options) for name, (model, options) in nets.items()}
    for lr, n_b in ((3e-4, 32), (1e-3, 16), (1e-3, 32), (1e-3, 64), (3e-3, 32)):
        steps = setup.steps * 32 // max(n_b, 32)  # a larger batch is at the end of the plan sooner
        settings[f"MLP 512, {rate(lr)}, n_b {n_b}"] = replace(setup, lr=lr, n_b=n_b, steps=steps)
    one = {"steps": setup.steps, "n_b": setup.n_b, "proxy_lr": 3e-3}  # the same recording for all of them
    made = {name: {"uniform": plain(each, 2 * setup.steps), "a plan": by_plan(each, **one)} for name, each in settings.items()}
    return {f"{method}, {name}": each for name, methods in made.items() for method, each in methods.items()}


def wide(setup: Setup) -> dict[str, Setup]:
    """The same for an MLP, whose forward pass is a small part of a step, with cosine decay for all."""
    alone, limit = replace(setup, proxy=None, proxy_options={}), {"max_irreducible_loss": "guess"}
    uniform = replace(plain(setup, 2000), every=100)
    strict = replace(alone, keep=0.1)
    return {
        "uniform": replace(uniform, schedule="constant"),
        "uniform, lr 3e-4": replace(uniform, schedule="constant", lr=3e-4),
        "uniform, lr 1e-3, cosine": uniform,
        "uniform, lr 3e-4, cosine": replace(uniform, lr=3e-4),
        "RHO-LOSS, gate, keep 0.25": by(replace(alone, steps=400), "rho_loss", **limit),
        "RHO-LOSS, gate, keep 0.25, bfloat16": by(replace(alone, steps=400), "rho_loss", dtype="bfloat16", **limit),
        "RHO-LOSS, gate, keep 0.1": by(replace(strict, steps=300), "rho_loss", **limit),
        "RHO-LOSS, gate, keep 0.1, bfloat16": by(replace(strict, steps=300), "rho_loss", dtype="bfloat16", **limit),
        "RHO-LOSS, payoff-gated": by(replace(alone, steps=400), "payoff_gated", cost=WIDE_COST),
        "by a small network": by(replace(setup, steps=500), "proxy_rho_loss", **limit),
        "uniform below the gate": by(replace(alone, steps=800), "gated_uniform", **limit),
    }


def clean(setup: Setup) -> dict[str, Setup]:
    """The same where there is nothing to stay away from, for about as many seconds each, irreducible losses included."""
    alone = replace(setup, proxy=None, proxy_options={}, every=50)
    return {
        "uniform": replace(plain(setup, 1500), every=100),
        "RHO-LOSS, keep 0.25": rho(replace(alone, steps=850)),
        "RHO-LOSS, keep 0.1": rho(replace(alone, keep=0.1, steps=550)),
        "RHO-LOSS, payoff-gated": by(replace(alone, steps=800), "payoff_gated", cost=WIDE_COST),
        "by a small network": by(replace(setup, every=50, steps=1100), "proxy_rho_loss"),
        "by a small network, payoff-gated": by(replace(setup, every=50, steps=1000), "payoff_gated"),
    }


def architectures(setup: Setup) -> dict[str, Setup]:
    shapes = {"64": (64, 1), "128": (128, 1), "256": (256, 1), "2 x 256": (256, 2), "3 x 256": (256, 3)}
    nets = {f"MLP {name}": {"width": width, "depth": depth, "dropout": 0.0} for name, (width, depth) in shapes.items()}
    nets["MLP 256, dropout 0.5"] = {"width": 256, "depth": 1, "dropout": 0.5}
    return pairs({name: replace(setup, model_options=net) for name, net in nets.items()})


def hyperparameters(setup: Setup) -> dict[str, Setup]:
    return pairs({f"{rate(lr)}, n_b {n_b}": replace(setup, lr=lr, n_b=n_b) for lr in RATES[1:] for n_b in (16, 64)})


def pairs(settings: Mapping[str, Setup]) -> dict[str, Setup]:
    """Uniform and RHO-LOSS with each of some settings."""
    made = {name: both(setup, ENOUGH) for name, setup in settings.items()}
    return {f"{method}, {name}": setup for name, methods in made.items() for method, setup in methods.items()}


def holdouts(setup: Setup) -> dict[str, Setup]:
    """What noisy training data are helped by."""
    small, dirty = on(setup, holdout=1000), on(setup, holdout="dirty")
    none = replace(on(setup, holdout="none"), irreducible=CROSS)
    return (
        {"uniform, 50,000": plain(setup, ENOUGH), "clean, 10,000": rho(setup), "clean, 1,000": rho(small)}
        | {"dirty, 10,000": rho(dirty), "dirty, 10,000, gate": gated(dirty)["RHO-LOSS, gate"]}
        | {"uniform, all 59,000": plain(none, ENOUGH), "none: cross-fitted": rho(none)}
        | {"none: cross-fitted, gate": gated(none)["RHO-LOSS, gate"]}
    )


def approximations(setup: Setup) -> dict[str, Setup]:
    """The irreducible-loss model is co-trained, as in the derivation. Approximations are compared with it during the run."""
    compared = {"small irreducible-loss model": TINY, "fitted for one epoch": replace(LEAST, epochs=1)}
    along = by(replace(setup, irreducible_lr=setup.lr / 100, compared=compared), "online_rho_loss")
    return {
        "uniform": plain(setup, ENOUGH),
        "co-trained": along,
        "fixed": rho(setup),
        "fixed, small": rho(replace(setup, irreducible=TINY)),
    }


def with_uniform(setup: Setup, *groups: Mapping[str, Setup], steps: int = LONG) -> dict[str, Setup]:
    """Plain training, RHO-LOSS, and what is compared with them."""
    made = both(setup, steps)
    for group in groups:
        made |= group
    return made


def others(setup: Setup, *groups: Mapping[str, Setup]) -> dict[str, Setup]:
    """The same on other data."""
    return with_uniform(setup, *groups, steps=ENOUGH)


def part(name: str, about: str, *groups: Mapping[str, Setup]) -> Experiment:
    """Runs that the table of noise-30 shows as well, by a name of their own."""
    return Experiment(name, about, with_uniform(FASHION_30, *groups), FIVE, within="noise-30")


FIVE = (0, 1, 2, 3, 4)
EVERY = with_uniform(FASHION_30, gates(FASHION_30), SLOWER, tuned(FASHION_30), LONGER, every_method(FASHION_30))
CURVES = (
    "uniform",
    "uniform, lr 1e-3, cosine",
    "RHO-LOSS",
    "RHO-LOSS, bounded",
    "train loss",
    "gradient norm",
    "SVP, entropy",
    "irreducible loss",
)
MAIN = [
    Experiment("noise-30", "Fashion-MNIST, 30 % of the labels wrong, clean holdout of 10,000", EVERY, FIVE, shown=CURVES),
    Experiment("active-learning", "30 % of the labels wrong, a network with dropout", others(WITH_DROPOUT, active(WITH_DROPOUT))),
    Experiment("noise-10", "Fashion-MNIST, 10 % of the labels wrong", others(on(QUICK, noise=0.1), gates(on(QUICK, noise=0.1)))),
    Experiment("noise-0", "Fashion-MNIST as it is", at_two_rates(QUICK)),
    Experiment("noise-similar", "30 % of the labels are those of a similar class", others(on(NOISY, noise_kind="similar"))),
    Experiment("holdout", "a clean, small, dirty or no holdout, 30 % wrong", holdouts(NOISY)),
    Experiment("approximations", "rankings compared with that of the exact score, 30 % wrong", approximations(NOISY)),
    Experiment("architectures", "one store, several networks", architectures(NOISY), kind="pairs"),
    Experiment("hyperparameters", "one store, several settings", hyperparameters(NOISY), kind="pairs"),
    Experiment("relevance", "Fashion-MNIST, half of the classes are irrelevant", others(on(QUICK, relevant=5))),
    Experiment("ambiguous", "Fashion-MNIST, 30 % of the inputs are blended with another class", others(on(QUICK, ambiguous=0.3))),
    Experiment("duplicates", "Fashion-MNIST, half of the examples are copies", others(on(QUICK, duplicates=1.0))),
    Experiment("cifar10n-aggre", "CIFAR-10N, 9 % wrong, features, cross-fitted", cifar10n("aggre")),
    Experiment("cifar10n-random1", "CIFAR-10N, 17 % wrong, features, cross-fitted", cifar10n("random1")),
    Experiment("cifar10n-worse", "CIFAR-10N, 40 % wrong, features, cross-fitted", cifar10n("worse")),
    Experiment("cola-features", "CoLA, frozen features", at_two_rates(COLA)),
    Experiment("sst2-features", "SST-2, frozen features", at_two_rates(SST2)),
    Experiment("census", "Census-Income, few positives", at_two_rates(CENSUS)),
]
CNN_PAYING = paying(CONVOLUTIONAL, 2000, 400, 1000)
PLANNED_CNN = replace(on(CONVOLUTIONAL, tested=4000), irreducible=FITTED_LONGER, steps=700, every=100, keep=0.25)
PLANNED_WIDE = replace(on(WIDE, noise=0.3, tested=4000), steps=800, every=100)
PLANNED_CLEAN = on(PLANNED_WIDE, noise=0.0)
TO_TRANSFER = replace(on(FASHION_30, tested=4000), irreducible=FITTED_FAST, proxy="small", keep=0.25, every=100)
PLANNED = replace(on(FASHION_30, tested=4000), irreducible=FITTED_FAST, proxy="small", every=100)
NOISY_WIDE, CLEAN_MNIST = wide(on(WIDE, noise=0.3)), clean(replace(WIDE, task="mnist"))
PAYING = [
    Experiment("fast", "30 % wrong, a convolutional network of 59 MFLOPs", CNN_PAYING, kind="paying"),
    Experiment("fast-wide", "30 % wrong, an MLP of 3 x 1,024", NOISY_WIDE, FIVE, kind="paying"),
    Experiment("fast-clean", "Fashion-MNIST as it is, an MLP of 3 x 1,024, cosine decay", clean(WIDE), FIVE, kind="paying"),
    Experiment("fast-clean-mnist", "MNIST as it is, an MLP of 3 x 1,024, cosine decay", CLEAN_MNIST, FIVE, kind="paying"),
]
PAYING += [
    Experiment(
        f"cifar10n-pixels-{labels}", f"CIFAR-10N, {wrong} % wrong, images, clean holdout", on_pixels(labels), kind="paying"
    )
    for labels, wrong in (("worse", 40), ("random1", 17), ("aggre", 9))
]
PLANS = [
    Experiment(
        "plans-cnn",
        "30 % wrong, a convolutional network of 59 MFLOPs",
        replayed(PLANNED_CNN, 2000, BOTH_SCHEDULES) | bounds(PLANNED_CNN),
        FIVE,
        kind="plans",
    ),
    Experiment("plans-wide", "30 % wrong, an MLP of 3 x 1,024", replayed(PLANNED_WIDE, 2000, COSINES), FIVE, kind="plans"),
    Experiment(
        "plans-clean", "Fashion-MNIST as it is, an MLP of 3 x 1,024", replayed(PLANNED_CLEAN, 2000, COSINES), kind="plans"
    ),
    Experiment("plans-choices", "how a plan is made, 30 % wrong, an MLP of 512", plan_choices(PLANNED), kind="plans"),
    Experiment("plans-transfer", "one plan, several networks and settings, 30 % wrong", plan_transfer(TO_TRANSFER), kind="pairs"),
    Experiment(
        "plans-cifar10n-random1", "CIFAR-10N, 17 % wrong, features, cross-fitted", planned_cifar10n("random1"), kind="plans"
    ),
    Experiment("plans-cifar10n-worse", "CIFAR-10N, 40 % wrong, features, cross-fitted", planned_cifar10n("worse"), kind="plans"),
]
TEXT_RATES = (2e-4, 5e-4, 1e-4)  # the best of plain training first
FINE_TUNED = [
    Experiment(
        "sst2-finetuned",
        "SST-2, 30 % wrong, fine-tuned MiniLM",
        fine_tuned(TUNED, 240, *TEXT_RATES) | more_of_text(replace(TUNED, lr=TEXT_RATES[0])),
    ),
    Experiment("sst2-finetuned-clean", "SST-2 as it is, fine-tuned MiniLM", fine_tuned(TUNED_CLEAN, 80, *TEXT_RATES)),
    Experiment("cola-finetuned", "CoLA as it is, fine-tuned MiniLM", fine_tuned(TUNED_COLA, 600, *TEXT_RATES)),
    Experiment("tweets-finetuned", "tweets with people's labels, fine-tuned MiniLM", fine_tuned(TUNED_TWEETS, 60, *TEXT_RATES)),
]
PARTS = [
    part("tuned-uniform", "plain training with other learning rates and with cosine decay", tuned(FASHION_30)),
    part("gate", "options that the paper does not have", gates(FASHION_30)),
    part("boltzmann", "drawn at a temperature, fixed and falling", boltzmann(QUICK_30)),
    part("rho-then-uniform", "selection at first, then none", then_uniform(QUICK_30, 200)),
    part("irreducible-updated", "the irreducible-loss model scored as it goes, and co-trained", updated(QUICK_30)),
    part("irreducible-small", "an irreducible-loss model of a fiftieth of the parameters", smaller(QUICK_30)),
    part("stale", "selection with weights one step old", stale(QUICK_30)),
    part("proxy", "a small model scores for the large one", proxies(QUICK_30, "mlp", **SMALL_PROXY)),
    part("svp", "selection via proxy", via_proxy(QUICK_30, "mlp", **SMALL_PROXY)),
    part("short-list", "candidates left out before they are loaded", unscored(QUICK_30)),
    part("importance-sampling", "by gradient norm, and the other simple scores", simple(QUICK_30)),
]
SEED = [
    Experiment("qmnist", "QMNIST: MNIST's 60,000, holdout the 50,000 that MNIST left out", both(QMNIST, 20_000)),
    Experiment("cifar10", "CIFAR-10, ResNet-18", both(CIFAR10, 100_000)),
    Experiment("cifar100", "CIFAR-100, ResNet-18", both(replace(CIFAR10, task="cifar100"), 100_000)),
    Experiment("cinic10", "CINIC-10, ResNet-18", both(CINIC10, 100_000)),
    Experiment("cifar10-cross-fitted", "CIFAR-10 without a holdout", both(CIFAR10_NONE, 100_000)),
    Experiment("cinic10-relevance", "CINIC-10, half of the classes are irrelevant", both(CINIC10_RELEVANCE, 100_000)),
    Experiment(
        "cifar100-relevance",
        "CIFAR-100, most data of a fifth of the classes",
        both(replace(CIFAR10, task="cifar100-relevance"), 100_000),
    ),
    Experiment("clothing1m", "Clothing-1M, ResNet-50", both(CLOTHING, 100_000)),
    Experiment("cola", "CoLA, a pretrained transformer", both(COLA_TUNED, 3000)),
    Experiment("sst2", "SST-2, a pretrained transformer", both(replace(COLA_TUNED, task="sst2"), 10_000)),
]
EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in MAIN + PAYING + PLANS + FINE_TUNED + PARTS + SEED
}
