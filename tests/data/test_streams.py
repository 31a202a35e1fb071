"""Data that come as a stream: their examples are known by name, they are read once, and nothing of them is kept."""

import io
import itertools
import json
import re
import subprocess
import sys
import tarfile
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FEATURES, make_data
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector, build_selector, hash_ids

N, N_B, N_SELECTED = 64, 16, 4
X, Y = make_data(N).tensors
NAMES = [f"shelf/{i:03d}" for i in range(N)]
MODEL, IL_MODEL = (nn.Linear(FEATURES, 4) for _ in range(2))


def losses_under(model):
    with torch.no_grad():
        return nn.functional.cross_entropy(model(X), Y, reduction="none")


LOSSES = losses_under(IL_MODEL)
REDUCIBLE = losses_under(MODEL) - LOSSES


class Stream(IterableDataset):
    """Yields the examples of its rows, each worker its own, and remembers what was read of it in this process."""

    def __init__(self, rows=range(N)):
        self.rows = rows
        self.read = []

    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for i in itertools.islice(self.rows, first, None, step):
            self.read.append(i)
            yield {"id": 1000 + i, "name": NAMES[i], "x": X[i], "y": Y[i]}


def forward(model, batch):
    return model(batch["x"]), batch["y"]


def door(stream=None, index="name", batch_size=N_B, **options):
    return IndexedBatches(DataLoader(Stream() if stream is None else stream, batch_size=batch_size, **options), index=index)


def store_of(data, forward=forward):
    return IrreducibleLossStore.from_model(IL_MODEL, data, forward=forward)


def rho_loss(data, store, forward=forward, **options):
    how = {"batch_size": N_SELECTED} if "keep" not in options else {}
    return RhoLossSelector(data, MODEL, store, forward=forward, **how, **options)


def check_choice(selector, row_of):
    """Each batch holds the candidates with the highest reducible loss; returns the rows of all candidates."""
    seen = []
    for batch in selector:
        candidates = [row_of(int(i)) for i in selector.last.candidate_index]
        best = sorted(candidates, key=lambda i: -REDUCIBLE[i])[: selector.n_b]
        chosen = [row_of(int(i)) for i in selector.last.index]
        assert sorted(chosen) == sorted(best)
        yield batch, chosen
        seen += candidates
    assert sorted(seen) == list(range(N)), "every example is a candidate once in an epoch"


ROW_OF_NAME = {int(i): row for row, i in enumerate(hash_ids(NAMES))}
ROW_OF = {"id": lambda i: i - 1000, "name": ROW_OF_NAME.__getitem__}


# An IterableDataset.


@pytest.mark.parametrize("index", ["id", "name"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", [{}, {"keep": 0.25}], ids=["batch_size", "keep"])
def test_a_stream_is_scored_and_selected_from_by_what_its_examples_are_called(index, workers, how):
    store = store_of(door(index=index, num_workers=workers))
    assert len(store) == N
    selector = rho_loss(door(index=index, num_workers=workers, batch_size=4 if how else N_B), store, **how)
    assert (selector.n_b, selector.n_B) == (4, 16)
    for batch, rows in check_choice(selector, ROW_OF[index]):
        assert list(batch) == ["id", "name", "x", "y"]
        assert batch["name"] == [NAMES[i] for i in rows]
        assert torch.equal(batch["x"], X[rows])


def test_the_irreducible_losses_of_a_stream_are_those_of_its_examples():
    for index, ids in (("id", torch.arange(1000, 1000 + N)), ("name", hash_ids(NAMES))):
        torch.testing.assert_close(store_of(door(index=index, num_workers=2))[ids], LOSSES)


def test_examples_without_a_name_are_known_by_their_content():
    def content(batch):
        return hash_ids(x.numpy().tobytes() for x in batch["x"])

    store = store_of(door(index=content))
    torch.testing.assert_close(store[hash_ids(x.numpy().tobytes() for x in X)], LOSSES)
    assert len(list(rho_loss(door(index=content), store))) == N // N_B


def test_a_stream_that_makes_its_own_batches_is_selected_from_with_batch_size_and_told_so_otherwise():
    class Batches(IterableDataset):
        def __iter__(self):
            return iter([{"id": torch.arange(8), "x": X[:8], "y": Y[:8]}])

    data = IndexedBatches(DataLoader(Batches(), batch_size=None), index="id")
    store = store_of(data)
    assert [len(batch["y"]) for batch in rho_loss(data, store)] == [N_SELECTED]
    with pytest.raises(ValueError, match=r"keep= keeps.*its dataset returns whole batches; pass batch_size="):
        rho_loss(data, store, keep=0.5)


@pytest.mark.parametrize("workers", [0, 2])
def test_examples_may_come_again_in_a_stream(workers):
    again = door(Stream([*range(N), *range(N)]), num_workers=workers)
    selector = rho_loss(again, store_of(door()))
    assert sum(len(selector.last.candidate_index) for _ in selector) == 2 * N


def test_copies_have_one_irreducible_loss_in_a_store():
    again = door(Stream([*range(N), *range(0, N, 3)]), batch_size=10, num_workers=2)
    torch.testing.assert_close(store_of(again)[hash_ids(NAMES)], LOSSES)


def test_examples_that_share_a_name_are_refused():
    class Shelves(Stream):
        """Numbers its examples from 0 on every shelf."""

        def __iter__(self):
            return ({"name": f"{i % 32:03d}", "x": X[i], "y": Y[i]} for i in range(N))

    with pytest.raises(ValueError, match=r"\d+ ids were yielded more than once, with different losses: .*the shard and the key"):
        store_of(door(Shelves()))


# The ends of the workers.


@pytest.mark.parametrize(("drop_last", "expected"), [(True, [8] * 2), (False, [8] * 2 + [5, 5])])
def test_each_worker_of_a_stream_may_end_short(drop_last, expected):
    data = door(Stream(range(42)), batch_size=8, num_workers=2, drop_last=drop_last)
    assert [len(batch["y"]) for batch in build_selector("uniform", data, keep=0.5)] == expected


def test_one_worker_may_end_before_the_other():
    class Lopsided(IterableDataset):
        def __iter__(self):
            return ({"id": i, "y": 0} for i in range([3, 20][get_worker_info().id]))

    data = door(Lopsided(), "id", batch_size=5, num_workers=2)
    assert [len(batch["y"]) for batch in build_selector("uniform", data, batch_size=4)] == [3, 4, 4, 4, 4]


def test_short_batches_that_no_end_explains_are_an_error():
    class Uneven(IterableDataset):
        def __iter__(self):
            return iter([{"id": torch.arange(n)} for n in (5, 3, 5, 3, 3)])

    for workers in (0, 2):
        data = IndexedBatches(DataLoader(Uneven(), batch_size=None, num_workers=workers), index="id")
        with pytest.raises(
            ValueError, match=r"3 examples, fewer than n_b = 4, and it is not the last; pass a smaller batch_size"
        ):
            list(build_selector("uniform", data, batch_size=4))


# Examples that the store does not know.


def test_an_example_that_the_store_does_not_know_is_named():
    store = store_of(door(Stream(range(N - 2))))
    with pytest.raises(ValueError, match=r"2 of 16 examples have no finite .*: indices shelf/062, shelf/063\. .*lazy_rho_loss"):
        list(rho_loss(door(), store))
    with pytest.raises(ValueError, match=r"indices 1062, 1063\."):
        list(rho_loss(door(index="id"), store_of(door(Stream(range(N - 2)), index="id"))))


@pytest.mark.parametrize("mapped", [False, True])
def test_what_the_store_of_a_growing_stream_lacks_is_scored_as_it_comes(mapped, tmp_path):
    store = store_of(door(Stream(range(0, N, 4))))
    store.save(tmp_path / "il", mapped=mapped)
    scored = []

    def counting(model, batch):
        if model is IL_MODEL:
            scored.extend(batch["name"])
        return forward(model, batch)

    selector = build_selector(
        "lazy_rho_loss", door(), MODEL, store=IrreducibleLossStore.load(tmp_path / "il"), irreducible_model=IL_MODEL,
        batch_size=N_SELECTED, forward=counting,
    )  # fmt: skip
    assert len(list(check_choice(selector, ROW_OF["name"]))) == N // N_B
    assert scored == [name for i, name in enumerate(NAMES) if i % 4]
    assert selector.last.notes["unknown"] == 0.75


def test_nothing_is_scored_again_where_the_store_knows_everything():
    def never(x):
        raise AssertionError("the irreducible-loss model was run")

    selector = build_selector(
        "lazy_rho_loss", door(), MODEL, store=store_of(door()), irreducible_model=never, batch_size=4, forward=forward
    )
    assert len(list(selector)) == N // N_B
    assert selector.last.notes["unknown"] == 0


def test_a_dataset_read_by_index_may_grow_too():
    data, known = TensorDataset(X, Y), torch.arange(0, N, 2)
    store, loader = IrreducibleLossStore(LOSSES[known], ids=known), DataLoader(data, batch_size=N_B)
    with pytest.raises(ValueError, match="32 of 64 examples have no finite irreducible loss"):
        RhoLossSelector(loader, MODEL, store, batch_size=N_SELECTED)
    selector = build_selector("lazy_rho_loss", loader, MODEL, store=store, irreducible_model=IL_MODEL, batch_size=N_SELECTED)
    assert len(list(check_choice(selector, int))) == N // N_B


# Tar shards.


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four tar files with an array, a class and a text for each example."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(shard, N, 4):
                array = io.BytesIO()
                np.save(array, X[i].numpy())
                members = {
                    "npy": array.getvalue(),
                    "cls": str(int(Y[i])).encode(),
                    "json": json.dumps({"text": f"no {i}"}).encode(),
                }
                for kind, content in members.items():
                    info = tarfile.TarInfo(f"{NAMES[i]}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder / "{0..3}.tar")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["DataLoader", "batched", "WebLoader"])
def test_tar_shards_are_known_by_their_keys(shards, workers, how):
    wds = pytest.importorskip("webdataset")
    samples = wds.WebDataset(shards, shardshuffle=False).decode()
    if how == "DataLoader":
        data = IndexedBatches(DataLoader(samples, batch_size=N_B, num_workers=workers), index="__key__")
        key, x, y, text = "__key__", "npy", "cls", lambda batch: batch["json"]["text"]
    else:
        loader, size = (DataLoader, 10) if how == "batched" else (wds.WebLoader, N_B)  # of 10, each worker has a short end
        whole = samples.to_tuple("__key__", "npy", "cls", "json").batched(size)
        data = IndexedBatches(loader(whole, batch_size=None, num_workers=workers), index=0)
        key, x, y, text = 0, 1, 2, lambda batch: [each["text"] for each in batch[3]]

    def call(model, batch):
        return model(torch.as_tensor(batch[x])), torch.as_tensor(batch[y])

    store = store_of(data, call)
    torch.testing.assert_close(store[hash_ids(NAMES)], LOSSES)
    for batch, rows in check_choice(rho_loss(data, store, call), ROW_OF["name"]):
        assert list(batch[key]) == [NAMES[i] for i in rows]
        assert text(batch) == [f"no {i}" for i in rows]


# Hugging Face datasets, streamed.


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Four files of JSON lines."""
    folder = tmp_path_factory.mktemp("lines")
    for shard in range(4):
        rows = [{"id": 1000 + i, "name": NAMES[i], "x": X[i].tolist(), "y": int(Y[i])} for i in range(shard, N, 4)]
        (folder / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / f"{shard}.jsonl") for shard in range(4)]


@pytest.fixture
def streamed(lines, tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.load_dataset("json", data_files=lines, streaming=True, split="train", cache_dir=str(tmp_path))
    return data.with_format("torch")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("index", ["id", "name"])
def test_a_streamed_dataset_is_selected_from_in_any_order(streamed, index, workers):
    store = store_of(door(streamed, index, num_workers=workers))
    shuffled = streamed.shuffle(seed=1, buffer_size=20)
    orders = []
    selector = rho_loss(door(shuffled, index, num_workers=workers), store)
    for epoch in (0, 1):
        selector.set_epoch(epoch)
        orders.append([])
        for batch, rows in check_choice(selector, ROW_OF[index]):
            assert batch["name"] == [NAMES[i] for i in rows]
            orders[-1] += selector.last.candidate_index.tolist()
    assert orders[0] != orders[1], "set_epoch reaches the dataset, and shuffles it anew"


def test_a_streamed_dataset_without_ids_gets_them_by_map():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": NAMES, "x": X.tolist(), "y": Y.tolist()}).to_iterable_dataset(num_shards=4)
    hashed = rows.map(lambda batch: {"id": hash_ids(batch["text"]).numpy()}, batched=True).with_format("torch")
    torch.testing.assert_close(store_of(door(hashed, "id", num_workers=2))[hash_ids(NAMES)], LOSSES)


def test_each_node_scores_its_part_of_a_streamed_dataset_and_the_stores_are_merged(streamed):
    from datasets.distributed import split_dataset_by_node

    parts = [split_dataset_by_node(streamed, rank=rank, world_size=2) for rank in range(2)]
    stores = [store_of(door(part)) for part in parts]
    assert [len(store) for store in stores] == [N // 2] * 2
    torch.testing.assert_close(stores[0].merge(stores[1])[hash_ids(NAMES)], LOSSES)


# Resume.


def run(selector, state=None, stop=None, epochs=3):
    """What is selected, and the states of selector and loader at step ``stop``."""
    chosen, saved = [], None
    if state:
        selector.load_state_dict(state)
    for epoch in range(selector.next_epoch, epochs):
        selector.set_epoch(epoch)
        for _ in selector:
            chosen.append(selector.last.index.tolist())
            if selector.step == stop:
                keeps = hasattr(selector.loader.batches, "state_dict")
                saved = selector.state_dict(), selector.loader.batches.state_dict() if keeps else None
    return chosen, saved


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_dataset_with_a_shuffle_buffer_is_resumed_exactly(streamed, workers):
    def new():
        return rho_loss(door(streamed.shuffle(seed=1, buffer_size=20), num_workers=workers), store)

    store = store_of(door())
    whole, (state, _) = run(new(), stop=6)
    assert run(new(), state)[0] == whole[6:]


def stateful(data, **options):
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")
        return loader(data, batch_size=N_B, **options)


class Rewindable(Stream):
    """A stream that keeps its position."""

    def __init__(self, n):
        super().__init__(range(n))
        self.position = 0

    def __iter__(self):
        while self.position < len(self.rows):
            i = self.position
            self.position += 1
            self.read.append(i)
            yield {"name": NAMES[i], "x": X[i], "y": Y[i]}
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


@pytest.mark.parametrize("n", [N, N - 14], ids=["full batches", "short end"])
def test_a_loader_that_was_put_back_by_its_own_state_is_not_read_up_to_there(n):
    def new():
        return rho_loss(IndexedBatches(stateful(Rewindable(n)), index="name"), store)

    store = store_of(door())
    for stop in range(1, 13):
        whole, (state, position) = run(new(), stop=stop)
        passes, batches = divmod(stop, 4)
        resumed = new()
        resumed.loader.batches.load_state_dict(position)
        assert run(resumed, state)[0] == whole[stop:]
        assert len(resumed.loader.batches.dataset.read) == (3 - passes) * n - batches * N_B
        reading = new()
        assert run(reading, state)[0] == whole[stop:], "without the loader's state it is read"
        assert len(reading.loader.batches.dataset.read) == (3 - (stop - 1) // 4) * n


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_dataset_keeps_its_own_position(streamed, workers):
    def new():
        return rho_loss(IndexedBatches(stateful(streamed, num_workers=workers), index="name"), store)

    store = store_of(door())
    whole, (state, position) = run(new(), stop=6)
    resumed = new()
    resumed.loader.batches.load_state_dict(position)
    assert run(resumed, state)[0] == whole[6:]


# Without an end.


def test_an_endless_stream_is_read_as_far_as_it_is_used_and_nothing_of_it_is_kept():
    alive = []

    def watched(examples):
        batch = torch.utils.data.default_collate(examples)
        alive.append(weakref.ref(batch["x"]))
        return batch

    endless = Stream(itertools.cycle(range(N)))
    selector = rho_loss(door(endless, collate_fn=watched), store_of(door()))
    steps = 50
    for step, batch in enumerate(selector, 1):
        assert len(endless.read) == step * N_B
        assert sum(ref() is not None for ref in alive) == 1, "only the candidate batch at hand is held"
        assert len(batch["y"]) == N_SELECTED
        if step == steps:
            break
    assert len(endless.read) == steps * N_B
    with pytest.raises(TypeError, match="has no len"):
        len(selector)


def test_an_endless_stream_needs_no_table():
    endless = door(Stream(itertools.cycle(range(N))))
    selector = build_selector(
        "online_rho_loss", endless, MODEL, irreducible_model=IL_MODEL, batch_size=N_SELECTED, forward=forward
    )
    for _ in itertools.islice(selector, 6):
        rows = [ROW_OF_NAME[int(i)] for i in selector.last.candidate_index]
        torch.testing.assert_close(selector.last.scores, REDUCIBLE[rows])


# The example.


def test_the_example_avoids_wrong_labels_and_says_so(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "stream.py"
    command = [sys.executable, str(script), "--seeds", "1", "--steps", "60"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(uniform|RHO-LOSS) +([\d.]+) \(.*?\) +([\d.]+) ", done.stdout, re.MULTILINE)
    (_, plain, plain_wrong), (_, selected, selected_wrong) = rows
    assert 25 < float(plain_wrong) < 35
    assert float(selected_wrong) < 5
    assert float(selected) > float(plain)
    assert not list(tmp_path.iterdir())
