"""Train on the examples worth training on: online batch selection by reducible holdout loss (RHO-LOSS).

Start with ``IrreducibleLossStore`` (what a model that never trained on an example loses on it) and ``RhoLossSelector``
(wraps a loader and a model and yields selected batches). Other methods are in ``rholoss.selectors`` and, by name, behind
``build_selector``; a method of your own is a subclass of ``Selector``, tested by ``rholoss.testing.check_selector``.
``rholoss.functional`` holds the maths.
"""

from rholoss.candidates import Candidates as Candidates
from rholoss.crossfit import cross_fit as cross_fit
from rholoss.fitting import Fit as Fit
from rholoss.fitting import fit_irreducible_model as fit_irreducible_model
from rholoss.ids import hash_ids as hash_ids
from rholoss.indexing import IndexedBatch as IndexedBatch
from rholoss.indexing import IndexedBatches as IndexedBatches
from rholoss.models import Checkpoints as Checkpoints
from rholoss.parts import Part as Part
from rholoss.parts import split as split
from rholoss.presets import fast_rho_loss as fast_rho_loss
from rholoss.registry import build_selector as build_selector
from rholoss.registry import register as register
from rholoss.registry import selector_names as selector_names
from rholoss.report import Report as Report
from rholoss.selection import Selection as Selection
from rholoss.selector import Selector as Selector
from rholoss.selectors import RhoLossSelector as RhoLossSelector
from rholoss.store import IrreducibleLossStore as IrreducibleLossStore

__version__ = "0.1.0"
__all__ = [
    "Candidates",
    "Checkpoints",
    "Fit",
    "IndexedBatch",
    "IndexedBatches",
    "IrreducibleLossStore",
    "Part",
    "Report",
    "RhoLossSelector",
    "Selection",
    "Selector",
    "build_selector",
    "cross_fit",
    "fast_rho_loss",
    "fit_irreducible_model",
    "hash_ids",
    "register",
    "selector_names",
    "split",
]
