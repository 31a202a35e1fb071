"""Record a selection once, and replay it in every later run."""

from rholoss.plans.plan import SelectionPlan
from rholoss.plans.proxy_run import record_plan
from rholoss.plans.recorder import PlanRecorder
from rholoss.plans.replay import PlanBatchSampler

__all__ = ["PlanBatchSampler", "PlanRecorder", "SelectionPlan", "record_plan"]
