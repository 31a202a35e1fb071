"""Reference losses of tokens, kept by example."""

import math
import os

import numpy as np
import pytest
import torch
from token_runs import TinyLM, micro_batch

from rholoss import IrreducibleLossStore
from rholoss.tokens import (
    ReferenceLossCache,
    RhoTokenLoss,
    reference_losses,
)

TOKENS, LABELS, REFERENCE = micro_batch(7, n=4, length=10)
INDEX = torch.tensor([30, 2**40, 7])
OWN = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
VALUES = torch.tensor([[0.0, 1.1, 2.2, 3.3], [0.0, 4.4, 9.9, 9.9], [0.0, 5.5, 6.6, 9.9]])


@pytest.fixture
def cache():
    return ReferenceLossCache.from_batches([(INDEX[:2], VALUES[:2], OWN[:2]), (INDEX[2:].tolist(), VALUES[2:], OWN[2:])])


class TestCache:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_what_is_saved_comes_back_padded_by_index(self, tmp_path, dtype):
        batches = [(INDEX, VALUES, OWN)]
        ReferenceLossCache.from_batches(batches, dtype=dtype, meta={"model": "ref"}).save(tmp_path / "ref.npz")
        cache = ReferenceLossCache.load(tmp_path / "ref.npz")
        right = (VALUES * OWN).to(dtype).float()
        assert torch.equal(cache[INDEX], right)
        assert torch.equal(cache[[7, 2**40, 7]], right[[2, 1, 2]][:, :3])
        assert torch.allclose(cache[INDEX], VALUES * OWN, rtol=1 / 2000)
        assert cache.meta == {"model": "ref"}
        assert len(cache) == 3
        assert [path.name for path in tmp_path.iterdir()] == ["ref.npz"]
        with np.load(tmp_path / "ref.npz", allow_pickle=False) as file:
            assert file["values"].dtype == (np.float32 if dtype == torch.float32 else np.float16)
            assert file["offsets"].tolist() == [0, 4, 6, 9]

    def test_a_mask_says_where_in_the_batch_the_tokens_are(self, cache):
        left = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]])
        found = cache.lookup(torch.tensor([7, 2**40]), left)
        assert torch.allclose(found, torch.tensor([[0, 0, 0, 5.5, 6.6], [0, 0, 0, 0, 4.4]]))

    def test_training_with_the_cache_is_training_with_the_model(self):
        reference, index = TinyLM(seed=1), torch.arange(3)
        losses = reference_losses(reference, (TOKENS[:3], LABELS[:3])).float()
        whole = torch.ones_like(LABELS[:3])
        cache = ReferenceLossCache.from_batches([(index, losses, whole)])
        a, b = RhoTokenLoss(0.4), RhoTokenLoss(0.4)
        a(TinyLM()(TOKENS[:3]), LABELS[:3], losses)
        b(TinyLM()(TOKENS[:3]), LABELS[:3], cache[index])
        assert torch.equal(a.selected, b.selected)

    def test_no_example_and_an_empty_one(self):
        cache = ReferenceLossCache(torch.tensor([4, 9]), torch.tensor([0, 2]), torch.tensor([0.5, 1.5]))
        assert cache[[]].shape == (0, 0)
        assert cache[[4, 9]].tolist() == [[0, 0], [0.5, 1.5]]

    def test_examples_that_are_missing_are_named(self, cache):
        with pytest.raises(KeyError, match=r"2 of 3 examples are not in the cache of 3: indices 8, 31; score them too"):
            cache[[7, 8, 31]]
        with pytest.raises(KeyError, match=r"1 of 1 examples are not in the cache of 3: indices 2199023255552"):
            cache[[2**41]]
        empty = ReferenceLossCache(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), torch.tensor([]))
        with pytest.raises(KeyError, match="1 of 1 examples are not in the cache of 0"):
            empty[[7]]

    def test_a_length_that_does_not_match_is_named(self, cache):
        with pytest.raises(
            ValueError, match=r"1 of 2 examples have another .*: index 7 has 2 positions in the batch and 3 in the"
        ):
            cache.lookup([30, 7], torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
        with pytest.raises(ValueError, match=r"mask must have shape \(2, T\) for 2 indices, got \(1, 4\)"):
            cache.lookup([30, 7], OWN[:1])

    def test_what_cannot_be_right_is_refused(self):
        from_batches = ReferenceLossCache.from_batches
        with pytest.raises(ValueError, match="every example must be there once, got more of indices 30"):
            from_batches([(INDEX, VALUES, OWN), (INDEX[:1], VALUES[:1], OWN[:1])])
        with pytest.raises(ValueError, match=r"must be finite in torch.float16, got 1 that are"):
            from_batches([(INDEX[:1], torch.tensor([[1.0, 1e6]]), torch.ones(1, 2))], dtype=torch.float16)
        with pytest.raises(ValueError, match="must be finite in torch.float32, got 1"):
            from_batches([(INDEX[:1], torch.tensor([[1.0, math.nan]]), torch.ones(1, 2))])
        with pytest.raises(
            ValueError, match=r"losses and mask must have shape \(3, T\) for 3 indices, got \(3, 4\) and \(2, 4\)"
        ):
            from_batches([(INDEX, VALUES, OWN[:2])])
        with pytest.raises(ValueError, match="at least one batch"):
            from_batches([])
        with pytest.raises(ValueError, match="lengths add up to 4, but there are 3 values"):
            ReferenceLossCache(torch.arange(2), torch.tensor([1, 3]), torch.zeros(3))
        with pytest.raises(ValueError, match=r"lengths \(N,\), at least 0, and values"):
            ReferenceLossCache(torch.arange(2), torch.tensor([4, -1]), torch.zeros(3))
        with pytest.raises(ValueError, match="values must be float32 or float16, got torch.bfloat16"):
            ReferenceLossCache(torch.arange(1), torch.tensor([3]), torch.zeros(3).bfloat16())
        with pytest.raises(ValueError, match=r"expected index \(N,\), lengths \(N,\).*got \(2,\), \(1,\), \(3,\)"):
            ReferenceLossCache(torch.arange(2), torch.tensor([3]), torch.zeros(3))

    def test_a_damaged_or_other_file_is_refused(self, cache, tmp_path):
        path = tmp_path / "ref.npz"
        cache.save(path)
        content = path.read_bytes()
        at = content.index(VALUES[0].numpy().tobytes())
        bad = {"flipped": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], "cut": content[:-30], "text": b"losses"}
        for name, damaged in bad.items():
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{name} is not a cache that can be read .*written by ReferenceLossCache.save"):
                ReferenceLossCache.load(tmp_path / name)
        big = torch.rand(500_000)  # which NumPy reads without looking at the checksum
        ReferenceLossCache(torch.arange(1), torch.tensor([len(big)]), big).save(path)
        content = path.read_bytes()
        at = content.index(big[250_000:250_010].numpy().tobytes())
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match="a checksum does not fit"):
            ReferenceLossCache.load(path)
        cache.save(path)
        IrreducibleLossStore([0.5]).save(tmp_path / "il.npz")
        with pytest.raises(ValueError, match="it is a store of irreducible losses"):
            ReferenceLossCache.load(tmp_path / "il.npz")
        with np.load(path) as file:
            arrays = dict(file)
        newer = str(arrays["header"]).replace('"format": 1', '"format": 2')
        wrong = [
            ({"header": newer}, "its format is 2, this rholoss reads up to 1"),
            ({"index": arrays["index"].astype(np.float64)}, "field 'index' has dtype float64"),
            ({"offsets": arrays["offsets"][1:]}, "its offsets do not fit"),
            ({"offsets": arrays["offsets"] + 1}, "its offsets do not fit"),
            ({"offsets": np.array([0, 4, 6, 8])}, "lengths add up to 8"),
            ({"values": np.array([print], dtype=object)}, "it holds pickled objects, which are never read"),
        ]
        for change, message in wrong:
            np.savez(path, **{**arrays, **change})
            with pytest.raises(ValueError, match=message):
                ReferenceLossCache.load(path)
        with pytest.raises(FileNotFoundError):
            ReferenceLossCache.load(tmp_path / "none.npz")

    def test_a_write_that_fails_leaves_the_file_that_was_there(self, cache, tmp_path, monkeypatch):
        cache.save(tmp_path / "ref.npz")
        before = (tmp_path / "ref.npz").read_bytes()
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            cache.save(tmp_path / "ref.npz")
        assert [path.name for path in tmp_path.iterdir()] == ["ref.npz"]
        assert (tmp_path / "ref.npz").read_bytes() == before
