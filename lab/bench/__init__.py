"""Editors compared with each other on the same records, and runs compared with paired tests."""
