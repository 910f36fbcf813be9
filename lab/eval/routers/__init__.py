"""Routers side by side: every way of finding an edit again, on the same prompts and calibrated alike."""
