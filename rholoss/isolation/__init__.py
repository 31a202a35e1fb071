"""No side effects: the user's model, batch and random states are as they were after a block."""

from rholoss.isolation.lending import Lender as Lender
from rholoss.isolation.memory_order import channels_last_weights as channels_last_weights
from rholoss.isolation.modes import Mode as Mode, preserve_state as preserve_state
from rholoss.isolation.random_states import (
    derived_seed as derived_seed,
    fork_rng as fork_rng,
    own_generators_kept as own_generators_kept,
    seeded as seeded,
    set_torch_states as set_torch_states,
    torch_states as torch_states,
)
from rholoss.isolation.unwrapping import (
    device_of as device_of,
    module_of as module_of,
    undistributed as undistributed,
    unwrapped as unwrapped,
)
