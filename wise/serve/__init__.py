"""The service: completions from an edited model, and edits, over HTTP. Needs the extra `serve`."""
