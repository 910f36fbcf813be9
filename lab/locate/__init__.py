"""Causal tracing: which tokens and layers a model's answer depends on, and which layer to edit."""
