"""One method a module; importing this package registers them all."""

from rholoss.selectors.boltzmann import BoltzmannRhoLossSelector as BoltzmannRhoLossSelector
from rholoss.selectors.composite import CompositeSelector as CompositeSelector
from rholoss.selectors.composite import StaleSelector as StaleSelector
from rholoss.selectors.composite import SwitchSelector as SwitchSelector
from rholoss.selectors.composite import rho_loss_then_uniform as rho_loss_then_uniform
from rholoss.selectors.composite import stale_rho_loss as stale_rho_loss
from rholoss.selectors.gradient_norm import GradientNormImportanceSampler as GradientNormImportanceSampler
from rholoss.selectors.gradient_norm import GradientNormSelector as GradientNormSelector
from rholoss.selectors.irreducible_loss import IrreducibleLossSelector as IrreducibleLossSelector
from rholoss.selectors.mc_dropout import BaldSelector as BaldSelector
from rholoss.selectors.mc_dropout import ConditionalEntropySelector as ConditionalEntropySelector
from rholoss.selectors.mc_dropout import DropoutSelector as DropoutSelector
from rholoss.selectors.mc_dropout import EntropySelector as EntropySelector
from rholoss.selectors.mc_dropout import LossMinusConditionalEntropySelector as LossMinusConditionalEntropySelector
from rholoss.selectors.mc_dropout import LossPlusConditionalEntropySelector as LossPlusConditionalEntropySelector
from rholoss.selectors.needs_store import StoreSelector as StoreSelector
from rholoss.selectors.online import OnlineRhoLossSelector as OnlineRhoLossSelector
from rholoss.selectors.proxy import ProxyRhoLossSelector as ProxyRhoLossSelector
from rholoss.selectors.rho_loss import RhoLossSelector as RhoLossSelector
from rholoss.selectors.short_list import ShortListRhoLossSelector as ShortListRhoLossSelector
from rholoss.selectors.train_loss import TrainLossSelector as TrainLossSelector
from rholoss.selectors.uniform import UniformSelector as UniformSelector
from rholoss.selectors.via_proxy import ForgettingCounts as ForgettingCounts
from rholoss.selectors.via_proxy import SelectionViaProxy as SelectionViaProxy
from rholoss.selectors.via_proxy import proxy_scores as proxy_scores
