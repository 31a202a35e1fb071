"""Damage of every kind of file that is read: refused by name, or without any effect; tests/store/bit_flips.py has the kinds."""

import contextlib
import os
import shutil
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bit_flips import KINDS, files_of, flip, net, outcome, plain

from rholoss import IrreducibleLossStore
from rholoss.irreducible.models import Checkpoints
from rholoss.tokens import ReferenceLossCache

FILES = ["store with ids", "token cache", "fit checkpoint", "checkpoint of a model", "state of a selector"]  # one file each


@pytest.fixture(params=KINDS)
def made(request, tmp_path):
    read = KINDS[request.param](tmp_path)
    return request.param, read, plain(read())


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_refused_by_name_or_without_effect(kind):
    counts = flip(kind, 40 if kind == "fit checkpoint" else 150)
    assert counts.keys() <= {"refused", "unchanged"}, counts
    assert counts["refused"] > counts.total() / 2


def damages(whole, rng):
    """Contents of a damaged file: cut, longer, with a block of zeros or another one, moved, empty."""
    size = len(whole)
    yield from (b"", b"\n", bytes(size), whole[::-1], whole * 2, whole[: size // 2], whole[size // 2 :])
    for at in rng.integers(size, size=8):
        block = int(rng.integers(1, 64))
        yield whole[:at]
        yield whole + rng.bytes(block)
        yield rng.bytes(block) + whole
        yield whole[:at] + bytes(len(whole[at : at + block])) + whole[at + block :]
        yield whole[:at] + rng.bytes(len(whole[at : at + block])) + whole[at + block :]
        yield whole[:at] + whole[at + block :]
        yield whole[:at] + whole[at : at + block] + whole[at:]


def test_other_damage_is_refused_by_name_or_without_effect(made, tmp_path):
    _, read, right = made
    rng = np.random.default_rng(0)
    seen = []
    for path in files_of(tmp_path):
        whole = path.read_bytes()
        for content in damages(whole, rng):
            path.write_bytes(content)
            seen.append(outcome(tmp_path, read, right))
        path.write_bytes(whole)
    assert set(seen) <= {"refused", "unchanged"}
    assert seen.count("refused") > 0.4 * len(seen)  # a damaged part is scored again


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("other", FILES)
def test_the_file_of_another_kind_is_refused_by_name(tmp_path, kind, other):
    if kind == other or {kind, other} <= {"checkpoint of a model", "state of a selector"}:
        pytest.skip("may be read as one")
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    read, _ = KINDS[kind](tmp_path / "a"), KINDS[other](tmp_path / "b")
    shutil.copy(tmp_path / "b" / "file", tmp_path / "a" / "file")
    if kind == "state of a selector" and other == "fit checkpoint":
        pytest.skip("a state may be anything that torch.save writes")
    if kind == "checkpoint of a model":
        with pytest.raises((ValueError, RuntimeError), match=r"file|state_dict"):  # PyTorch names what is missing
            read()
    else:
        assert outcome(tmp_path, read, None) == "refused"


SPECIAL = {
    "a pipe": os.mkfifo,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": os.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_special_files_are_refused_and_not_waited_for(made, special, tmp_path, monkeypatch):
    _, read, right = made
    for path in files_of(tmp_path):
        whole = path.read_bytes()
        path.unlink()
        monkeypatch.chdir(path.parent)  # the path of a socket is short
        SPECIAL[special](Path(path.name))
        got = outcome(tmp_path, read, right)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.write_bytes(whole)
        assert got == "refused" or (got == "unchanged" and special == "a link to itself"), got
    assert plain(read()) == right


def test_saving_over_a_special_file_is_refused_and_a_link_is_followed(tmp_path):
    store = IrreducibleLossStore([0.5])
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(
            OSError, match="expected a regular file to replace, or none, got a (folder; name a file in it|special file)"
        ):
            store.save(place)
    (tmp_path / "link").symlink_to(tmp_path / "real.npz")
    for _ in range(2):
        store.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert IrreducibleLossStore.load(tmp_path / "real.npz").losses.tolist() == [0.5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "real.npz"]


class TestZip:
    """What a damaged or foreign zip file does to its readers."""

    def test_no_attribute_in_the_directory_of_a_torch_file_is_a_wrong_tensor(self, tmp_path):
        read = KINDS["checkpoint of a model"](tmp_path)
        right, path = plain(read()), tmp_path / "file"
        whole = path.read_bytes()
        at, seen = whole.index(b"PK\x01\x02"), set()
        while whole[at : at + 4] == b"PK\x01\x02":
            for bit in range(38 * 8, 42 * 8, 2):  # bit 4 is that of a folder, which PyTorch leaves unread
                content = bytearray(whole)
                content[at + bit // 8] ^= 1 << bit % 8
                path.write_bytes(content)
                seen.add(outcome(tmp_path, read, right))
            at += 46 + sum(struct.unpack("<3H", whole[at + 28 : at + 34]))
        assert seen == {"refused", "unchanged"}

    @pytest.mark.parametrize("load", [IrreducibleLossStore.load, ReferenceLossCache.load])
    def test_members_that_are_foreign_or_there_twice_are_refused_before_any_array_is_read(self, tmp_path, monkeypatch, load):
        kind = "store with ids" if load is IrreducibleLossStore.load else "token cache"
        KINDS[kind](tmp_path)
        whole = (tmp_path / "file").read_bytes()
        names = zipfile.ZipFile(tmp_path / "file").namelist()
        read = np.lib.npyio.NpzFile.__getitem__
        only_header = lambda self, name: read(self, name) if name == "header" else pytest.fail(f"{name} was read")  # noqa: E731
        monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", only_header)
        for name in (*names, "weights.npy", "losses", "a/b.npy", "../x.npy", "folder/"):
            (tmp_path / "file").write_bytes(whole)
            with zipfile.ZipFile(tmp_path / "file", "a") as file, pytest.warns() if name in names else contextlib.nullcontext():
                file.writestr(name, b"0" * 200)
            with pytest.raises(ValueError, match="there twice|fields are not those|a checksum does not fit"):
                load(tmp_path / "file")


class TestCheckpoints:
    def test_in_the_old_format_without_checksums_are_refused_and_the_cure_works(self, tmp_path):
        path = tmp_path / "old.pt"
        torch.save(net(1).state_dict(), path, _use_new_zipfile_serialization=False)
        with pytest.raises(
            ValueError, match=r"old\.pt is not a checkpoint that can be read .*torch.save the one that torch.load returns"
        ):
            list(Checkpoints(net(), [path]))
        torch.save(torch.load(path, weights_only=True), path)
        [loaded] = Checkpoints(net(), [path])
        assert len(list(loaded.parameters())) == 6

    def test_with_code_in_them_are_refused_and_it_is_not_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "ran"),))

        torch.save({"0.weight": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(ValueError, match=r"evil\.pt is not a checkpoint .*it holds pickled objects, which are never read"):
            list(Checkpoints(net(), [tmp_path / "evil.pt"]))
        assert not (tmp_path / "ran").exists()

    def test_that_a_run_overwrites_meanwhile_are_refused(self, tmp_path):
        torch.save(net(1).state_dict(), tmp_path / "last.pt")
        models = Checkpoints(net(), [tmp_path / "last.pt"])
        for _ in range(2):
            list(models)
        torch.save(net(2).state_dict(), tmp_path / "last.pt")
        with pytest.raises(ValueError, match=r"last\.pt .*it has changed since its weights were used first"):
            list(models)
        assert len(list(Checkpoints(net(), [tmp_path / "last.pt"]))) == 1

    def test_that_may_not_be_read_or_are_missing_are_an_os_error(self, tmp_path, monkeypatch):
        with pytest.raises(FileNotFoundError, match="none.pt"):
            list(Checkpoints(net(), [tmp_path / "none.pt"]))


def test_damaged_settings_of_a_scoring_are_written_again_beside_parts_of_it(tmp_path):
    read = KINDS["part and settings of a scoring"](tmp_path)
    right = plain(read()[0])
    settings = tmp_path / "file" / "scoring.json"
    whole = settings.read_bytes()
    settings.write_bytes(whole[:50] + b"?" + whole[51:])
    assert plain(read()[0]) == right
    assert settings.read_bytes() == whole
