"""What puts edits into slots. To add one, implement `Writer` and name it in the trainer.

A writer gets whole slots: the edits they are to hold and, where a slot held some before, what it was. It
works on cached activations and touches nothing else: the trainer decides what is served.
"""

if __name__ != "wise.training.writers":
    raise ImportError("import wise.training.writers: the repository root is on sys.path")
