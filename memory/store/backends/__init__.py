"""The backends of a store, which keep its rows and bytes: a folder with SQLite, or PostgreSQL."""
