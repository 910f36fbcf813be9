"""Edits measured in conversations with a chat model."""
