if __name__ != "wise.memory":
    raise ImportError("import wise.memory, not memory: the repository root is on sys.path")
