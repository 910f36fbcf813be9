"""Measures the router: its scores on classes of prompts, and the results with perfect routing."""
