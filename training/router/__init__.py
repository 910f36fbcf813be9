"""How the router of `hybrid` is trained: questions, batches of wordings, the encoder, and its thresholds."""

if __name__ != "wise.training.router":
    raise ImportError("import wise.training.router: the repository root is on sys.path")
