"""Edits measured as users of a chat model meet them: by what the model says in a conversation."""
