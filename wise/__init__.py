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
_HOME = {
    "Answer": "wise.explain",
    "ArtifactError": "wise.errors",
    "Claim": "wise.explain",
    "ConfigError": "wise.errors",
    "Conflict": "wise.training.report",
    "DeleteReport": "wise.training.report",
    "Edit": "wise.edits",
    "EditError": "wise.errors",
    "EditReport": "wise.training.report",
    "EditRequest": "wise.memory.store.edit_request",
    "Outcome": "wise.training.report",
    "RayTasks": "wise.workers",
    "Record": "wise.edits",
    "RowRoutes": "wise.explain",
    "Store": "wise.memory.store.store",
    "StoreError": "wise.errors",
    "TokenRoute": "wise.explain",
    "UnsupportedModelError": "wise.errors",
    "WiseConfig": "wise.config",
    "WiseError": "wise.errors",
    "WiseModel": "wise.model",
    "WorkerError": "wise.errors",
    "Workers": "wise.workers",
    "read_edits": "wise.formats.edit_file",
    "read_records": "wise.formats.edit_file",
    "wrap": "wise.model",
}

__all__ = sorted(_HOME)
__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'wise' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
