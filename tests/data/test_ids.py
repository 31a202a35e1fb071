"""Names become ids."""

import torch
from hypothesis import given, settings, strategies as st

from rholoss import hash_ids


class TestHashIds:
    @given(st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.binary()), max_size=20))
    @settings(max_examples=60, deadline=None)
    def test_a_name_has_the_same_id_alone_and_among_others(self, names):
        ids = hash_ids(names)
        assert ids.dtype == torch.int64
        assert ids.tolist() == [hash_ids([name]).item() for name in names]
        assert torch.equal(hash_ids(iter(names)), ids)
