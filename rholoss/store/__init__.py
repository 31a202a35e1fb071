"""The irreducible losses by index: the store, its files, and what made it."""

from rholoss.store.metadata import CalibrationCounts as CalibrationCounts, CrossFit as CrossFit, StoreMetadata as StoreMetadata
from rholoss.store.predictions import Predictions as Predictions
from rholoss.store.store import IrreducibleLossStore as IrreducibleLossStore
