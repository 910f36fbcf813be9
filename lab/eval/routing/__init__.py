"""The router measured: evidence on prompts, classes of prompts to tell apart, and the ceiling of any router."""

from wise.lab.eval.routing.measure import Routing, measure_routing
from wise.lab.eval.routing.scores import gate_ratios

__all__ = ["Routing", "gate_ratios", "measure_routing"]
