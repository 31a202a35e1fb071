"""Selection by training loss: the hardest examples, noise included."""

from torch import Tensor

from rholoss.candidates import Candidates
from rholoss.registry import register
from rholoss.selector import Selector


@register("train_loss")
class TrainLossSelector(Selector):
    """Keeps the examples with the highest loss.

    References:
        Loshchilov and Hutter, "Online Batch Selection for Faster Training of Neural Networks", 2015.
        Kawaguchi and Lu, "Ordered SGD: A New Stochastic Optimization Framework for Empirical Risk Minimization", AISTATS 2020.
    """

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.loss
