"""The HTTP service: completions from an edited model, and edits while it runs. Needs the extra `serve`."""
