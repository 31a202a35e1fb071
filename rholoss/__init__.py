"""Train on the examples worth training on: online batch selection by reducible holdout loss (RHO-LOSS).

Start with ``IrreducibleLossStore`` (for each example, its loss under a model that was not trained on it) and ``RhoLossSelector``
(wraps a loader and a model and yields selected batches). To read the method: ``selectors/rho_loss.py``, ``selector.py``,
``candidates.py``, ``store/store.py``. Where the rest is:

    data            which example is which: indices, subsets, samplers, fingerprints
    store           the irreducible losses by index, and their files
    irreducible     how a store is filled: fit, score, cross-fit
    report          can this store be trusted?
    selectors       one method a file; by name, ``build_selector``; your own: subclass ``Selector``, ``testing.check_selector``
    wrappers        selectors that take a selector: schedules, gates, all ranks together
    diagnostics     what did this run select?
    tokens          the same for the tokens of a language model
    integrations    adapters for frameworks
    functional      the formulas of all methods
"""

from rholoss._version import __version__ as __version__
from rholoss.candidates import Candidates as Candidates
from rholoss.data import DrawRule as DrawRule
from rholoss.data import IndexedBatch as IndexedBatch
from rholoss.data import IndexedBatches as IndexedBatches
from rholoss.data import IndexedSubset as IndexedSubset
from rholoss.data import hash_ids as hash_ids
from rholoss.data import split as split
from rholoss.irreducible import Checkpoints as Checkpoints
from rholoss.irreducible import Fit as Fit
from rholoss.irreducible import cross_fit as cross_fit
from rholoss.irreducible import fit_irreducible_model as fit_irreducible_model
from rholoss.presets import fast_rho_loss as fast_rho_loss
from rholoss.registry import build_selector as build_selector
from rholoss.registry import register as register
from rholoss.registry import selector_names as selector_names
from rholoss.report import Report as Report
from rholoss.scoring import Task as Task
from rholoss.selection import Selection as Selection
from rholoss.selector import Selector as Selector
from rholoss.selectors import RhoLossSelector as RhoLossSelector
from rholoss.store import IrreducibleLossStore as IrreducibleLossStore

__all__ = [
    "Candidates",
    "Checkpoints",
    "DrawRule",
    "Fit",
    "IndexedBatch",
    "IndexedBatches",
    "IndexedSubset",
    "IrreducibleLossStore",
    "Report",
    "RhoLossSelector",
    "Selection",
    "Selector",
    "Task",
    "build_selector",
    "cross_fit",
    "fast_rho_loss",
    "fit_irreducible_model",
    "hash_ids",
    "register",
    "selector_names",
    "split",
]
