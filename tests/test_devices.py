"""Where batches are handed back, and on an accelerator: no waiting, and the choices of the CPU.

Without a GPU, a pretend accelerator shows it: ``on_a_pretend_accelerator.py``.
"""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector, Selector, build_selector, selector_names

HERE = Path(__file__).parent


def collate(examples):
    x, y = torch.utils.data.default_collate(examples)
    return {"x": x, "labels": y, "text": [str(i) for i in range(len(x))]}


def forward(model, batch):
    return model(batch["x"]), batch["labels"]


def test_batches_stay_where_the_loader_left_them_unless_asked_for_elsewhere():
    loader = DataLoader(make_data(64), batch_size=8, collate_fn=collate)
    for device, expected in ((None, "cpu"), ("model", "cpu"), ("meta", "meta"), (torch.device("meta"), "meta")):
        selector = build_selector(
            "irreducible_loss", loader, make_net(0), store=IrreducibleLossStore(torch.zeros(64)), device=device
        )
        batch = next(iter(selector))
        assert batch["x"].device.type == batch["labels"].device.type == expected
        assert batch["x"].shape == (8, 6)
        assert len(batch["text"]) == 8


def test_everything_on_a_pretend_accelerator():
    registration = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch takes no device that is written in Python")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "on_a_pretend_accelerator.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=HERE.parent)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) > len(selector_names())
    assert "skipped" not in ran.stdout


@pytest.mark.gpu
@pytest.mark.parametrize(
    "method",
    ["rho_loss", "proxy_rho_loss", "uniform", "train_loss", "gradient_norm_importance_sampling", "boltzmann_rho_loss"],
)
def test_a_step_on_a_gpu_never_waits_for_it(method):
    data, model = make_data(640), make_net(0).cuda()
    store = IrreducibleLossStore.from_model(make_net(1), data)
    loader = DataLoader(data, batch_size=8, pin_memory=True)
    options = {}
    if method == "proxy_rho_loss":  # as where a small network scores
        proxy = make_net(2).cuda()
        options = {"proxy": proxy, "proxy_optimizer": torch.optim.AdamW(proxy.parameters()), "max_irreducible_loss": 1.0}
    selector = build_selector(method, loader, model, store=store, device="model", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = list(selector.candidate_batches)
    selector.select(batches[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for candidates in batches[1:]:
            x, y = selector.select(candidates)
            optimizer.zero_grad()
            selector.mean_loss(nn.functional.cross_entropy(model(x), y, reduction="none")).backward()
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("device", [None, "model"])
@pytest.mark.parametrize("method", ["rho_loss", "uniform", "bald"])
def test_a_gpu_chooses_what_the_cpu_chooses(method, device):
    data, model = make_data(640), make_net(0)
    model[3].p = 0.0 if method != "bald" else 0.4
    store = IrreducibleLossStore.from_model(make_net(1), data)
    chosen = []
    for twin in (model, copy.deepcopy(model).cuda()):
        selector = build_selector(method, DataLoader(data, batch_size=8), twin, store=store, device=device)
        chosen.append([(batch[0].device.type, selector.last.index.tolist()) for batch in selector])
    assert [where for where, _ in chosen[1]] == ["cuda" if device else "cpu"] * 8
    if method != "bald":  # each device draws its own dropout masks
        assert [index for _, index in chosen[0]] == [index for _, index in chosen[1]]


@pytest.mark.gpu
def test_a_diverged_model_on_a_gpu_is_reported_a_little_later_and_never_chosen():
    class Exploding(Selector):
        def score(self, candidates):
            return torch.where(candidates.index == 3, torch.nan, candidates.loss)

    selector = Exploding(DataLoader(make_data(640), batch_size=8), make_net(0).cuda(), device="model")
    batches = iter(selector)
    next(batches)
    assert 3 not in selector.last.index.tolist()
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=r"score of 1 of 80 candidates is NaN or infinite at step 0: indices \[3\]"):
        next(batches)


@pytest.mark.gpu
def test_scoring_on_a_gpu_leaves_its_random_state_as_it_was():
    model = make_net(0).cuda().train()
    selector = RhoLossSelector(
        DataLoader(make_data(64), batch_size=8), model, IrreducibleLossStore(torch.zeros(64)), mode="train"
    )
    before = torch.cuda.get_rng_state()
    next(iter(selector))
    assert torch.equal(torch.cuda.get_rng_state(), before)
