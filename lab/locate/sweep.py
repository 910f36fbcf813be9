"""Edits at one layer after another, each measured: the evidence on which a layer is recommended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.edits import Record
from wise.lab.eval.run import evaluate
from wise.lab.locate.results import TRACED, LayerResult, Location, Sweep
from wise.lab.locate.sites import check_layers
from wise.progress import Progress, silent

EDITOR = "wise-retrieve"


def sweep(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    location: Location,
    *,
    first: int = 0,
    layers: Sequence[int] | None = None,
    progress: Progress = silent,
) -> Sweep:
    """Edits the model at each layer with all of `records`, measures that, and hands it back as it was. The recommended
    layer is chosen on these records; measure what it is worth on others. first: number of the first record in its file,
    for the result. layers: those to edit; None takes all.

    Raises ConfigError for a layer that there is not, and EditError for a record that the model cannot take.
    """
    chosen = check_layers(layers, location.layers)
    # Sampled text and probes take most of a measurement, and decide nothing here.
    bare = [replace(record, probes=(), generation_prompts=(), free_paraphrases=(), answer=None) for record in records]

    results = []
    for layer in chosen:

        def shown(name: str, done: int, total: int, layer: int = layer) -> None:
            progress(f"layer {layer}: {name}", done, total)

        result = evaluate(
            model,
            tokenizer,
            bare,
            editor=EDITOR,
            settings={"layer": layer, "seed": location.seed},
            progress=shown,
        )
        figures = result.quality.generated
        results.append(
            LayerResult(
                layer=layer,
                reliability=figures["reliability"],
                generalization=figures["generalization"],
                locality=figures["locality"],
                failed=len(result.failed),
                cpu_seconds_per_edit=result.cpu_seconds / len(records),
                effects={name: location.effect(*where)[layer] for name, where in TRACED.items()},
            )
        )
    described = {"first": first, "count": len(records), "ids": [record.edit.id for record in records]}
    return Sweep(results=tuple(results), records=described)
