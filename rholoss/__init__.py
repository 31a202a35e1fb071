"""Train on the examples worth training on: online batch selection by reducible holdout loss (RHO-LOSS).

Start with ``IrreducibleLossStore`` (for each example, its loss under a model that was not trained on it) and ``RhoLossSelector``
(wraps a loader and a model and yields selected batches). To read the method: ``selectors/rho_loss.py``, ``selector.py``,
``candidates.py``, ``store/store.py``. Where the rest is:

    data            which example is which: indices, subsets, samplers, fingerprints
    store           the irreducible losses by index, and their files
    irreducible     how a store is filled: fit, score, cross-fit
    report          can this store be trusted?
    rehearsal       does selection help here? small networks find out, and ``auto`` acts on it
    selectors       one method a file; by name, ``build_selector``; your own: subclass ``Selector``, ``testing.check_selector``
    plans           record a selection once, replay it in every later run
    wrappers        selectors that take a selector: schedules, gates, all ranks together
    diagnostics     what did this run select?
    tokens          the same for the tokens of a language model
    integrations    adapters for frameworks
    losses          losses by name: of classes, values, binary and soft labels
    functional      the formulas of all methods
"""

from rholoss import wrappers as wrappers  # registers its methods
from rholoss._version import __version__ as __version__
from rholoss.candidates import Candidates
from rholoss.data import DrawRule, IndexedBatch, IndexedBatches, IndexedSubset, hash_ids, split
from rholoss.irreducible import Checkpoints, Fit, IrreducibleLossScorer, cross_fit, fit_irreducible_model
from rholoss.losses import binary_cross_entropy, soft_cross_entropy
from rholoss.plans import PlanRecorder, SelectionPlan, record_plan
from rholoss.registry import build_selector, register, selector_names
from rholoss.rehearsal import Rehearsal, auto
from rholoss.report import Report
from rholoss.scoring import Task
from rholoss.selection import Selection
from rholoss.selector import Selector
from rholoss.selectors import RhoLossSelector
from rholoss.store import IrreducibleLossStore

# fmt: off
__all__ = [
    "Candidates", "Checkpoints", "DrawRule", "Fit", "IndexedBatch", "IndexedBatches", "IndexedSubset",
    "IrreducibleLossScorer", "IrreducibleLossStore", "PlanRecorder", "Rehearsal", "Report", "RhoLossSelector", "Selection",
    "SelectionPlan", "Selector", "Task", "auto", "binary_cross_entropy", "build_selector", "cross_fit",
    "fit_irreducible_model", "hash_ids", "record_plan", "register", "selector_names", "soft_cross_entropy", "split",
]
