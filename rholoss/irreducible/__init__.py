"""How a store is filled: fitting irreducible-loss models, and scoring datasets at once or cross-fitted."""

from rholoss.irreducible.cross_fit import cross_fit as cross_fit
from rholoss.irreducible.fit import Fit as Fit, FitEpoch as FitEpoch, fit_irreducible_model as fit_irreducible_model
from rholoss.irreducible.models import Checkpoints as Checkpoints
from rholoss.irreducible.scorer import IrreducibleLossScorer as IrreducibleLossScorer
