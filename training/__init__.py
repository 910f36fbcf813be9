if __name__ != "wise.training":
    raise ImportError("import wise.training, not training: the repository root is on sys.path")
