"""The router measured: evidence on prompts, classes of prompts to tell apart, and the ceiling of any router."""

from wise.eval.routing.measure import Routing, measure_routing
from wise.eval.routing.scores import gate_ratios

__all__ = ["Routing", "gate_ratios", "measure_routing"]
