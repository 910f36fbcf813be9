"""Where a store keeps its rows and its bytes: a folder with SQLite, or PostgreSQL."""
