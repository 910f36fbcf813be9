"""Writers, which put edits into slots. To add one, implement `Writer` and name it in `build_trainer`.

A writer gets whole slots: the edits that they must hold, and the old slot if there was one. It works on cached
activations and changes nothing else: the trainer decides what is served.
"""

if __name__ != "wise.training.writers":
    raise ImportError("import wise.training.writers: the repository root is on sys.path")
