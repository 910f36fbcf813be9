"""Measuring edits: `quality` asks an edited model, `editors` says which ways of editing can be compared."""
