"""Which example is which: indices, and the loaders, samplers and datasets that carry them."""

from rholoss.data.candidate_loader import CandidateLoader as CandidateLoader
from rholoss.data.candidate_loader import DrawRule as DrawRule
from rholoss.data.index import IndexedBatch as IndexedBatch
from rholoss.data.index import IndexedBatches as IndexedBatches
from rholoss.data.index import hash_ids as hash_ids
from rholoss.data.loader_view import LoaderView as LoaderView
from rholoss.data.subset import IndexedSubset as IndexedSubset
from rholoss.data.subset import labels_of as labels_of
from rholoss.data.subset import split as split
