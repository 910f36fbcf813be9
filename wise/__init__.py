"""wise: lifelong editing of Hugging Face language models.

    import wise

    model = wise.wrap(model, tokenizer)
    model.edit(wise.Edit(prompt="The capital of France is", target="Lyon"))
    model.ask("The capital of France is")[0].text
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wise.config import WiseConfig as WiseConfig
    from wise.edits import Edit as Edit
    from wise.edits import Record as Record
    from wise.errors import ArtifactError as ArtifactError
    from wise.errors import ConfigError as ConfigError
    from wise.errors import EditError as EditError
    from wise.errors import StoreError as StoreError
    from wise.errors import UnsupportedModelError as UnsupportedModelError
    from wise.errors import WiseError as WiseError
    from wise.errors import WorkerError as WorkerError
    from wise.explain import Answer as Answer
    from wise.explain import Claim as Claim
    from wise.explain import RowRoutes as RowRoutes
    from wise.explain import TokenRoute as TokenRoute
    from wise.formats.edit_file import read_edits as read_edits
    from wise.formats.edit_file import read_records as read_records
    from wise.memory.store.edit_request import EditRequest as EditRequest
    from wise.memory.store.store import Store as Store
    from wise.model import WiseModel as WiseModel
    from wise.model import wrap as wrap
    from wise.training.report import Conflict as Conflict
    from wise.training.report import DeleteReport as DeleteReport
    from wise.training.report import EditReport as EditReport
    from wise.training.report import Outcome as Outcome
    from wise.workers import RayTasks as RayTasks
    from wise.workers import Workers as Workers

# Loaded when first used, so that reading a file of edits or printing help does not load torch.
_NAMES = {
    "wise.config": "WiseConfig",
    "wise.edits": "Edit Record",
    "wise.errors": "ArtifactError ConfigError EditError StoreError UnsupportedModelError WiseError WorkerError",
    "wise.explain": "Answer Claim RowRoutes TokenRoute",
    "wise.formats.edit_file": "read_edits read_records",
    "wise.memory.store.edit_request": "EditRequest",
    "wise.memory.store.store": "Store",
    "wise.model": "WiseModel wrap",
    "wise.training.report": "Conflict DeleteReport EditReport Outcome",
    "wise.workers": "RayTasks Workers",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOME)
__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'wise' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
