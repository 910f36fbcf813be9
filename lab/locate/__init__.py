"""Causal tracing: through which tokens and layers a model's answer to a fact runs, and where to edit it."""
