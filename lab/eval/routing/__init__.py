"""Measures the router: its scores on classes of prompts, and the results with perfect routing."""

from wise.lab.eval.routing.measure import Routing, measure_routing
from wise.lab.eval.routing.scores import gate_ratios

__all__ = ["Routing", "gate_ratios", "measure_routing"]
