"""Code that only measures or compares. Nothing outside imports it, except a command while it runs."""

if __name__ != "wise.lab":
    raise ImportError("import wise.lab, not lab: the repository root is on sys.path")
