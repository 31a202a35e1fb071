"""One method a module; importing this package registers them."""

from rholoss.selectors.boltzmann_rho_loss import BoltzmannRhoLossSelector as BoltzmannRhoLossSelector
from rholoss.selectors.co_training import CoTrainingSelector as CoTrainingSelector
from rholoss.selectors.divbs import DivBSSelector as DivBSSelector
from rholoss.selectors.epoch_pruning import (
    EpochPruningSelector as EpochPruningSelector,
    LossPruningSelector as LossPruningSelector,
)
from rholoss.selectors.filtered_uniform import FilteredUniformSelector as FilteredUniformSelector
from rholoss.selectors.gradient_norm import (
    GradientNormImportanceSampler as GradientNormImportanceSampler,
    GradientNormSelector as GradientNormSelector,
)
from rholoss.selectors.infobatch import InfoBatchSelector as InfoBatchSelector
from rholoss.selectors.irreducible_loss import (
    GatedUniformSelector as GatedUniformSelector,
    IrreducibleLossSelector as IrreducibleLossSelector,
)
from rholoss.selectors.jest import JestSelector as JestSelector
from rholoss.selectors.kakurenbo import KakurenboSelector as KakurenboSelector
from rholoss.selectors.lazy_rho_loss import LazyRhoLossSelector as LazyRhoLossSelector
from rholoss.selectors.mc_dropout import (
    BaldSelector as BaldSelector,
    ConditionalEntropySelector as ConditionalEntropySelector,
    DropoutSelector as DropoutSelector,
    EntropySelector as EntropySelector,
    LossMinusConditionalEntropySelector as LossMinusConditionalEntropySelector,
    LossPlusConditionalEntropySelector as LossPlusConditionalEntropySelector,
)
from rholoss.selectors.online_rho_loss import OnlineRhoLossSelector as OnlineRhoLossSelector
from rholoss.selectors.prefiltered_rho_loss import PrefilteredRhoLossSelector as PrefilteredRhoLossSelector
from rholoss.selectors.proxy_rho_loss import ProxyRhoLossSelector as ProxyRhoLossSelector
from rholoss.selectors.rank_based import RankBasedSelector as RankBasedSelector
from rholoss.selectors.repeated_random_subset import RepeatedRandomSubsetSelector as RepeatedRandomSubsetSelector
from rholoss.selectors.rho_loss import RhoLossSelector as RhoLossSelector
from rholoss.selectors.selection_via_proxy import SelectionViaProxy as SelectionViaProxy
from rholoss.selectors.selective_backprop import SelectiveBackpropSelector as SelectiveBackpropSelector
from rholoss.selectors.store_selector import StoreSelector as StoreSelector
from rholoss.selectors.train_loss import TrainLossSelector as TrainLossSelector
from rholoss.selectors.uniform import UniformSelector as UniformSelector
