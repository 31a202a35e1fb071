"""The irreducible losses by index: the store, its files, and what made it."""

from rholoss.store.metadata import CalibrationCounts as CalibrationCounts
from rholoss.store.metadata import CrossFit as CrossFit
from rholoss.store.metadata import StoreMetadata as StoreMetadata
from rholoss.store.store import IrreducibleLossStore as IrreducibleLossStore
