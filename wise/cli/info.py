"""`wise info`: where a model would be edited and how it speaks; what a memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from wise.cli.common import ROWS, show_table
from wise.cli.options import EditedModelOptions, JsonOption, MemoryOptions, with_options
from wise.cli.terminal import show_json
from wise.safe_text import finite

if TYPE_CHECKING:
    from wise.config import WiseConfig
    from wise.memory.state import MemoryState
    from wise.model import WiseModel


@with_options
def info(
    memory: Annotated[Path | None, Option(help="Folder of a saved memory; alone, no model is loaded.")] = None,
    *,
    edited: EditedModelOptions,
    memory_options: MemoryOptions,
    as_json: JsonOption = False,
) -> None:
    """Show where a model would be edited, how its answers end and how its questions are compared; or what a memory
    holds.

    With both --model and --memory it is checked that the memory was made for that model.
    """
    config = memory_options.config(memory)
    from wise.memory.artifact import load_memory
    from wise.model import WiseModel

    result: dict[str, Any] = {}
    if memory is None:
        result["model"] = _model(WiseModel(*edited.base.load(), config))
    elif edited.is_named:
        wrapped = edited.load(memory)
        result["model"] = _model(wrapped)
        result["memory"] = _memory(memory, wrapped.wise_config, wrapped.state)
        if wrapped.precision_report is not None:
            result["precision"] = wrapped.precision_report.to_dict()
    else:
        config, state, _ = load_memory(memory)
        result["memory"] = _memory(memory, config, state)
    _show(result)
    if as_json:
        show_json(result)


def _model(wrapped: WiseModel) -> dict[str, Any]:
    place, encoder = wrapped.target_module, wrapped.encoder
    description = {
        "type": wrapped.model.config.model_type,
        "parameters": wrapped.model.num_parameters(),
        "dtype": str(wrapped.model.dtype).removeprefix("torch."),
        "target_module": place.path,
        "layer": place.layer,
        "depth": place.depth,
        "f": place.in_features,
        "d": place.out_features,
        "bos": [wrapped.tokenizer.decode([i]) for i in encoder.bos],
        "terminator": [wrapped.tokenizer.decode([i]) for i in encoder.terminator],
        "mode": wrapped.wise_config.mode,
    }
    if wrapped.inputs is not None:
        reader, template = wrapped.inputs.reader, wrapped.inputs.template
        description["reader"] = reader.name
        names = ("threshold", "sentence_threshold", "unnamed_threshold", "nameless_threshold")
        description |= {name: getattr(reader, name) for name in names}
        description["chat_template"] = "found" if template is not None else "none: chats are read as plain text"
    return description


def _memory(folder: Path, config: WiseConfig, state: MemoryState) -> dict[str, Any]:
    return {
        "path": str(folder),
        "mode": config.mode,
        "reader": getattr(state.key_space, "reader", None),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "edits": [{"id": e.id, "prompt": e.prompt, "target": e.target, "namespace": e.namespace} for e in state.edits],
        "slots": [
            {"id": s.id, "kind": s.kind, "edits": len(s.edit_ids), "threshold": finite(s.threshold)}
            for s in state.slots
        ],
    }


def _show(result: dict[str, Any]) -> None:
    if model := result.get("model"):
        show_table("Model", ("", ""), model.items())
    if memory := result.get("memory"):
        edits, slots = memory["edits"], memory["slots"]
        counted = memory | {"edits": len(edits), "slots": len(slots)}
        show_table("Memory", ("", ""), counted.items())
        for title, rows in (("Slots", slots), ("Edits", edits)):
            show_table(title, tuple(rows[0]) if rows else (), [tuple(row.values()) for row in rows], limit=ROWS)
