"""Measures edits: `quality` asks an edited model, `candidates` lists the editors that can be compared."""
