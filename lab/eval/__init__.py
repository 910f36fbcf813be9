"""Measures edits: `run` edits a model and measures it, `quality` asks it, `routing` measures its router.

To add a measure, give it a file here and its figures a field of `quality.Quality`, or of `run.Evaluation`.
"""
