"""Selectors that take a selector: schedules, older weights, gates, and one selection over all ranks."""

from rholoss.wrappers.base import MethodWrapper as MethodWrapper, WrapperSelector as WrapperSelector
from rholoss.wrappers.global_selection import GlobalSelector as GlobalSelector
from rholoss.wrappers.keep_schedule import KeepScheduleSelector as KeepScheduleSelector
from rholoss.wrappers.payoff_gate import PayoffGatedSelector as PayoffGatedSelector
from rholoss.wrappers.stale import StaleSelector as StaleSelector, stale_rho_loss as stale_rho_loss
from rholoss.wrappers.switch import SwitchSelector as SwitchSelector, rho_loss_then_uniform as rho_loss_then_uniform
