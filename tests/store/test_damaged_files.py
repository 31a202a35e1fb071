"""Damaged and foreign files: an error that names the file or the right numbers, never a wrong number, and nothing executed."""

import json
import os
import pickle
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from rholoss import IrreducibleLossStore
from rholoss.tokens import ReferenceLossCache

N = 300
NAME = "il-of-mine"
ERRORS = (ValueError, FileNotFoundError)


class Evil:
    """What leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


@pytest.fixture(params=["npz", "npz with ids", "mapped", "mapped with ids"])
def saved(request, tmp_path):
    """A store, where it is saved, and its files."""
    losses = torch.rand(N, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(N) * 7 - 900 if "ids" in request.param else None
    store = IrreducibleLossStore(losses, ids, meta={"data": {"length": N}, "views": 1})
    path = tmp_path / NAME
    store.save(path, mapped="mapped" in request.param)
    return store, path, sorted(path.iterdir()) if path.is_dir() else [path]


def outcome(store, path):
    """Whether loading is refused; it must then name the file, and else give the right numbers."""
    try:
        loaded = IrreducibleLossStore.load(path)
    except ERRORS as error:
        assert NAME in str(error), error  # noqa: PT017
        return True
    assert torch.equal(loaded.losses, store.losses)
    assert (loaded.ids is None) == (store.ids is None)
    assert store.ids is None or torch.equal(loaded.ids, store.ids)
    assert loaded.meta == store.meta
    return False


def foreign(mark):
    """Contents of files of other kinds."""
    evil = Evil(mark)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps(evil, protocol)
    folder = mark.parent
    np.save(folder / "a.npy", np.array([evil], dtype=object))
    yield (folder / "a.npy").read_bytes()
    for field in ("header", "losses", "ids"):
        header = {"format": 1, "kind": "rholoss.IrreducibleLossStore", "meta": {}}
        arrays = {"header": np.array(json.dumps(header)), "losses": np.zeros(N, "f4"), "ids": np.arange(N)}
        np.savez(folder / "a.npz", **{**arrays, field: np.array([evil] * N, dtype=object)})
        yield (folder / "a.npz").read_bytes()
    torch.save({"losses": torch.zeros(N), "evil": evil}, folder / "a.pt")
    yield (folder / "a.pt").read_bytes()
    for dtype in ("f4", "f8", "i8", "<U5", "?"):
        np.save(folder / "a.npy", np.zeros(N).astype(dtype))
        yield (folder / "a.npy").read_bytes()
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        file.writestr("losses.npy", b"0.5")
    yield (folder / "a.zip").read_bytes()
    yield b""
    yield b"\n"
    yield b"losses,0.5,0.25\n" * 20
    yield json.dumps({"losses": [0.5] * N}).encode()
    yield b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(200))
    yield b"\x93NUMPY" + bytes(130)
    yield b"PK\x05\x06" + bytes(18)
    yield b"\x1f\x8b\x08" + bytes(50)
    yield bytes(10_000)
    for name in ("a.npy", "a.npz", "a.pt", "a.zip"):
        (folder / name).unlink()


def test_what_was_changed_by_chance_is_refused_by_name_or_right(saved, tmp_path):
    store, path, files = saved
    rng = np.random.default_rng(0)
    refused = tried = 0
    for file in files:
        whole = file.read_bytes()
        size = len(whole)
        directory = whole.rfind(b"PK\x01\x02") if whole[:2] == b"PK" else 0
        places = [*rng.integers(size, size=90), *rng.integers(min(256, size), size=60), *rng.integers(directory, size, size=60)]
        changed = [bytes([*whole[:i], whole[i] ^ (1 << rng.integers(8)), *whole[i + 1 :]]) for i in places]
        changed += [whole[: rng.integers(size)] for _ in range(40)]
        changed += [whole + bytes(rng.integers(256, size=rng.integers(1, 200), dtype=np.uint8)) for _ in range(20)]
        changed += [whole[:i] + bytes(rng.integers(256, size=8, dtype=np.uint8)) + whole[i + 8 :] for i in places[::4]]
        changed += [whole[:i] + whole[i + rng.integers(1, 9) :] for i in places[::6]]
        changed += [whole[:i] + bytes(rng.integers(1, 9)) + whole[i:] for i in places[::6]]
        changed += [whole[: size // 2], whole * 2, whole[::-1], bytes(size), whole[size // 2 :] + whole[: size // 2]]
        for content in changed:
            file.write_bytes(content)
            refused += outcome(store, path)
        file.write_bytes(whole)
        tried += len(changed)
    assert tried >= 350 * len(files)
    assert refused > 0.7 * tried
    assert not outcome(store, path)


def test_what_is_of_another_kind_is_refused_by_name_and_never_executed(saved, tmp_path):
    store, path, files = saved
    mark = tmp_path / "executed"
    contents = list(foreign(mark))
    for file in files:
        whole = file.read_bytes()
        for content in contents:
            file.write_bytes(content)
            assert outcome(store, path), content[:60]
        file.write_bytes(whole)
    assert not mark.exists()
    assert len(contents) > 20


def test_files_of_a_folder_that_are_missing_swapped_or_of_another_store_are_refused(tmp_path):
    store = IrreducibleLossStore(torch.rand(N), torch.arange(N) * 3)
    other = IrreducibleLossStore(torch.rand(N), torch.arange(N) * 5)
    path, theirs = tmp_path / NAME, tmp_path / "other"
    for each, where in ((store, path), (other, theirs)):
        each.save(where, mapped=True)
    ids, losses, manifest = sorted(path.iterdir())
    names = (ids, losses, manifest)
    its = dict(zip(names, sorted(theirs.iterdir()), strict=True))
    whole = {file: file.read_bytes() for file in names}

    def refused(change):
        change()
        assert outcome(store, path)
        shutil.rmtree(path)
        path.mkdir()
        for file, content in whole.items():
            file.write_bytes(content)
        assert not outcome(store, path)

    for file in names:
        refused(file.unlink)
        refused(lambda file=file: shutil.copy(its[file], file))
        refused(lambda file=file: file.rename(f"{file}.old"))
        refused(lambda file=file: (file.unlink(), file.mkdir()))
    refused(lambda: (ids.write_bytes(whole[losses]), losses.write_bytes(whole[ids])))
    refused(lambda: [file.unlink() for file in names])
    for file in (ids, losses):
        refused(lambda file=file: (shutil.copy(its[file], path), file.unlink()))


EDITS = {
    "another count": lambda m: m.update(rows=N - 1),
    "no count": lambda m: m.pop("rows"),
    "no arrays": lambda m: m.pop("arrays"),
    "arrays that are a list": lambda m: m.update(arrays=list(m["arrays"])),
    "no losses": lambda m: m["arrays"].pop("losses"),
    "an unknown array": lambda m: m["arrays"].update(weights=m["arrays"]["losses"]),
    "losses for ids": lambda m: m["arrays"].update(ids=m["arrays"]["losses"]),
    "ids for losses": lambda m: m["arrays"].update(losses=m["arrays"]["ids"]),
    "a name without a checksum": lambda m: m["arrays"].update(losses="losses.npy"),
    "no name": lambda m: m["arrays"].update(losses=None),
    "the manifest as an array": lambda m: m["arrays"].update(losses="store.json"),
    "no header": lambda m: m.pop("header"),
    "a header that is a list": lambda m: m.update(header=[]),
    "another program's": lambda m: m["header"].update(kind="other"),
    "format 0": lambda m: m["header"].update(format=0),
    "a newer format": lambda m: m["header"].update(format=2),
    "metadata that are a number": lambda m: m["header"].update(meta=5),
    "metadata that are a list": lambda m: m["header"].update(meta=[["a", 1]]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_refused_by_name(tmp_path, edit):
    store = IrreducibleLossStore(torch.rand(N), torch.arange(N) * 3)
    path = tmp_path / NAME
    store.save(path, mapped=True)
    manifest = json.loads((path / "store.json").read_bytes().split(b"\n")[1])
    EDITS[edit](manifest)
    for text in (json.dumps(manifest), json.dumps([manifest])):
        (path / "store.json").write_text(f"{zlib.crc32(text.encode()):08x}\n{text}\n")
        assert outcome(store, path)


@pytest.mark.parametrize("change", [{"losses": "lozzes"}, {"ids": "idz"}, {"header": "head"}, {"losses": "ids", "ids": "losses"}])
def test_renamed_arrays_are_refused_by_name(tmp_path, change):
    store = IrreducibleLossStore(torch.rand(N), torch.arange(N) * 3)
    store.save(tmp_path / NAME)
    with np.load(tmp_path / NAME) as file:
        arrays = {change.get(name, name): file[name] for name in file.files}
    with open(tmp_path / NAME, "wb") as file:
        np.savez(file, **arrays)
    assert outcome(store, tmp_path / NAME)


@pytest.mark.parametrize("meta", [5, [["a", 1]], "text", None])
def test_metadata_that_are_no_mapping_are_refused_by_name(tmp_path, meta):
    header = np.array(json.dumps({"format": 1, "kind": "rholoss.IrreducibleLossStore", "meta": meta, "fields": ["losses"]}))
    with open(tmp_path / NAME, "wb") as file:
        np.savez(file, header=header, losses=np.zeros(2, "f4"))
    with pytest.raises(ValueError, match=f"{NAME} is not a store that can be read .its metadata are no mapping"):
        IrreducibleLossStore.load(tmp_path / NAME)


@pytest.mark.parametrize("name", ["nothing here", "folder/", "folder"])
def test_what_is_not_there_or_an_empty_folder_is_refused_by_name(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=name):
        IrreducibleLossStore.load(f"{tmp_path}/{name}")


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_may_not_be_read_is_an_os_error(tmp_path, monkeypatch, mapped):
    IrreducibleLossStore([0.5]).save(tmp_path / NAME, mapped=mapped)

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / NAME))

    monkeypatch.setattr(np, "load", forbidden)
    monkeypatch.setattr(np, "memmap", forbidden)
    with pytest.raises(PermissionError, match=NAME):
        IrreducibleLossStore.load(tmp_path / NAME)
    assert Path(tmp_path / NAME).exists()


def test_no_bit_of_the_directory_at_the_end_of_a_file_hides_a_field(tmp_path):
    store = IrreducibleLossStore(torch.rand(8), torch.arange(8) * 2)
    store.save(tmp_path / NAME)
    content = (tmp_path / NAME).read_bytes()
    for at in range(content.index(b"PK\x01\x02"), len(content)):
        for bit in range(8):
            (tmp_path / NAME).write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            outcome(store, tmp_path / NAME)


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    IrreducibleLossStore(torch.rand(8)).save(tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as old, zipfile.ZipFile(tmp_path / NAME, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *arguments, **options: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=f"{NAME} is not a store that can be read .it is compressed"):
        IrreducibleLossStore.load(tmp_path / NAME)


@pytest.mark.parametrize("load", [IrreducibleLossStore.load, ReferenceLossCache.load])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, load):
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(ValueError, match="it is no regular file"):
        load(tmp_path / NAME)


@pytest.mark.parametrize("load", [IrreducibleLossStore.load, ReferenceLossCache.load])
def test_a_file_that_the_system_refuses_stays_an_os_error(tmp_path, monkeypatch, load):
    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / NAME).touch()
    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(PermissionError):
        load(tmp_path / NAME)
