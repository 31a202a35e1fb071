"""Train on the examples worth training on: online batch selection by reducible holdout loss (RHO-LOSS).

Start with ``IrreducibleLossStore`` (what a model that never trained on an example loses on it) and ``RhoLossSelector``
(wraps a loader and a model and yields selected batches). Other methods are in ``rholoss.selectors`` and, by name, behind
``build_selector``; a method of your own is a subclass of ``Selector``, tested by ``rholoss.testing.check_selector``.
``rholoss.functional`` holds the maths.
"""

from rholoss.candidates import Candidates as Candidates
from rholoss.indexing import IndexedBatch as IndexedBatch
from rholoss.indexing import IndexedBatches as IndexedBatches
from rholoss.registry import build_selector as build_selector
from rholoss.registry import register as register
from rholoss.registry import selector_names as selector_names
from rholoss.selection import Selection as Selection
from rholoss.selector import Selector as Selector
from rholoss.selectors import RhoLossSelector as RhoLossSelector
from rholoss.store import IrreducibleLossStore as IrreducibleLossStore

__version__ = "0.1.0"
__all__ = [
    "Candidates",
    "IndexedBatch",
    "IndexedBatches",
    "IrreducibleLossStore",
    "RhoLossSelector",
    "Selection",
    "Selector",
    "build_selector",
    "register",
    "selector_names",
]
