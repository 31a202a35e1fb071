"""rholoss_loop.py on several processes: torchrun --nproc_per_node 2 --standalone examples/several_processes.py.

First each rank selects from its own candidates. Then all ranks select together, from the candidates of all.
"""

import gc

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed import barrier, destroy_process_group, get_rank, get_world_size, init_process_group
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector, fit_irreducible_model
from rholoss.wrappers import GlobalSelector

init_process_group("gloo")
torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
trusted, validation, training, test = torch.randperm(len(images)).split([250, 50, 1000, 497])
given_labels = labels[training]
given_labels[:300] = (given_labels[:300] + torch.randint(1, 10, (300,))) % 10
trusted_set, validation_set = (TensorDataset(images[part], labels[part]) for part in (trusted, validation))
train_set = TensorDataset(images[training], given_labels)


def make_model():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))


def train(model, loader, epochs):
    steps = 0
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(parallel(x), y).backward()
            optimizer.step()
            steps += 1
    model.eval()
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
    if get_rank() == 0:
        print(f"{accuracy:.1%} of the test digits are right after {steps:,} steps of {get_world_size()} ranks")


small_model = make_model()
fit_irreducible_model(small_model, trusted_set, validation_set)
store = IrreducibleLossStore.from_model(small_model, train_set, distributed=True)

for together in (False, True):
    model = make_model()
    loader = DataLoader(train_set, batch_size=16, sampler=DistributedSampler(train_set))
    selector = RhoLossSelector(loader, model, store, keep=0.1)
    if together:
        selector = GlobalSelector(loader, model, selector, keep=0.1)
    train(model, selector, epochs=40)
gc.collect()  # the models in DDP, which hold the process group for as long as they are there
barrier()  # no rank ends while another still talks to it
destroy_process_group()
