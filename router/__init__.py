if __name__ != "wise.router":
    raise ImportError("import wise.router, not router: the repository root is on sys.path")
