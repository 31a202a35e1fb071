"""Which example is which: indices, and the loaders, samplers and datasets that carry them."""

from rholoss.data.candidate_loader import CandidateLoader as CandidateLoader, DrawRule as DrawRule
from rholoss.data.index import IndexedBatch as IndexedBatch, IndexedBatches as IndexedBatches, hash_ids as hash_ids
from rholoss.data.loader_view import LoaderView as LoaderView
from rholoss.data.subset import IndexedSubset as IndexedSubset, labels_of as labels_of, split as split
