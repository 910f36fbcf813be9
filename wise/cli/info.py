"""`wise info`: where a model would be edited and how it speaks; what a memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wise.cli.common import (
    ROWS,
    JsonOption,
    LayerOption,
    ModelOption,
    ThreadsOption,
    finite,
    load_model,
    make_config,
    show_json,
    show_table,
)
from wise.errors import ConfigError

if TYPE_CHECKING:
    from wise.config import WiseConfig
    from wise.memory.state import MemoryState
    from wise.model import WiseModel


def info(
    model: ModelOption = None,
    memory: Annotated[
        Path | None, typer.Option("--memory", help="Folder of a saved memory; alone, no model is loaded.")
    ] = None,
    layer: LayerOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where a model would be edited and how its answers end, and what a memory holds.

    With both --model and --memory it is checked that the memory was made for that model.
    """
    if memory is not None and layer is not None:
        raise ConfigError("--layer: a memory keeps the settings it was made with; leave it out")
    from wise.memory.artifact import load_memory
    from wise.model import WiseModel

    result: dict[str, Any] = {}
    if memory is None:
        config = make_config(layer=layer)
        result["model"] = _model(WiseModel(*load_model(model, threads=threads), config))
    elif model is not None:
        wrapped = WiseModel.from_pretrained(*load_model(model, threads=threads), memory)
        result["model"] = _model(wrapped)
        result["memory"] = _memory(memory, wrapped.wise_config, wrapped.state)
    else:
        config, state, _ = load_memory(memory)
        result["memory"] = _memory(memory, config, state)
    _show(result)
    if as_json:
        show_json(result)


def _model(wrapped: WiseModel) -> dict[str, Any]:
    place, encoder = wrapped.projection, wrapped.encoder
    return {
        "type": wrapped.model.config.model_type,
        "parameters": wrapped.model.num_parameters(),
        "dtype": str(wrapped.model.dtype).removeprefix("torch."),
        "value_projection": place.path,
        "layer": place.layer,
        "depth": place.depth,
        "f": place.in_features,
        "d": place.out_features,
        "bos": [wrapped.tokenizer.decode([i]) for i in encoder.bos],
        "terminator": [wrapped.tokenizer.decode([i]) for i in encoder.terminator],
    }


def _memory(folder: Path, config: WiseConfig, state: MemoryState) -> dict[str, Any]:
    return {
        "path": str(folder),
        "mode": config.mode,
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "edits": [
            {"id": edit.id, "prompt": edit.prompt, "target": edit.target, "namespace": edit.namespace}
            for edit in state.edits
        ],
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
            show_table(title, tuple(rows[0]) if rows else (), [tuple(row.values()) for row in rows[:ROWS]])
            if len(rows) > ROWS:
                typer.echo(f"... and {len(rows) - ROWS} more")
