"""The durable store of edits: its journal, the versions it keeps, and where both are stored."""
