"""Published editing methods, run on the same base, records and measures as the side memory.

To add one, subclass `Baseline` (`base.py`), or `WeightEditor` where it changes parameters, and name it in
`registry.py`. Each file cites the paper whose method it is, and says where it departs from it.
"""

if __name__ != "wise.lab.editors":
    raise ImportError("import wise.lab.editors: the repository root is on sys.path")
