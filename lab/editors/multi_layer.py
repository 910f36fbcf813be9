"""What MEMIT and AlphaEdit share: they find a hidden state at one block and reach it by changing several blocks.

Meng, Sen Sharma, Andonian, Belinkov, Bau 2023, "Mass-Editing Memory in a Transformer", arXiv 2210.07229, algorithm 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from wise.edits import Edit
from wise.errors import ConfigError
from wise.lab.editors.base import Applied
from wise.lab.editors.context import EditingContext, as_weight, target_losses
from wise.lab.editors.statistics import MomentSettings
from wise.lab.editors.values import SubjectEditor, ValueSettings, contexts_of, read, search


@dataclass(frozen=True, kw_only=True)
class MultiLayerSettings(MomentSettings, ValueSettings):
    layers: tuple[int, ...] | None = None
    """Indices of the changed blocks, ascending; None takes those of the window."""
    window: tuple[float, float] = (0.0, 0.35)
    """First and last of the changed blocks, as fractions of the model's depth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            whole = isinstance(self.layers, tuple) and all(type(i) is int and i >= 0 for i in self.layers)
            right = whole and bool(self.layers) and list(self.layers) == sorted(set(self.layers))
            self.expect("layers", right, "indices of blocks, ascending, each once")
        pair = isinstance(self.window, tuple) and len(self.window) == 2
        right = pair and all(type(x) in (int, float) for x in self.window) and 0 <= self.window[0] <= self.window[1] < 1
        self.expect("window", right, "two fractions in [0, 1), the first not above the second")


S = TypeVar("S", bound=MultiLayerSettings)


class MultiLayerEditor(SubjectEditor[S]):
    """An editor that spreads what is missing at the last of its blocks over all of them."""

    def __init__(self, context: EditingContext, settings: S) -> None:
        if settings.layers is None:
            first, last = (int(fraction * context.depth) for fraction in settings.window)
            self.layers = tuple(range(first, last + 1))
        else:
            self.layers = settings.layers
        projections = [context.projection(layer) for layer in self.layers]
        if len({p.in_features for p in projections}) > 1:
            raise ConfigError(f"layers={list(self.layers)}: their feed-forward sizes differ; choose blocks of one size")
        self.paths = tuple(p.path for p in projections)
        self.last = f"{projections[-1].blocks}.{self.layers[-1]}"
        """Path of the block whose output is searched for."""
        super().__init__(context, settings, [f"{path}.weight" for path in self.paths])

    @abstractmethod
    def _change(self, place: int, keys: Tensor, residual: Tensor) -> Tensor:
        """`[d, f]` what is added to the weight of the block at `place` of the window so that `keys`, `[edits, f]`, are
        mapped to `residual`, `[edits, d]`, more than they were; float64 all."""

    def _note_keys(self, keys: Mapping[str, Tensor]) -> None:
        """Sees the keys of the edits that were just written: path -> `[edits, f]`."""

    def _apply(self, edits: Sequence[Edit], progress: Callable[[int], None]) -> list[Applied]:
        contexts = [contexts_of(self.context, edit, self.prefixes) for edit in edits]
        values = search(self.context, contexts, self.layers[-1], self.last, self.settings, progress)
        targets = values.start + values.offset
        for place, path in enumerate(self.paths):
            keys, out = read(self.context, contexts, keys=[path], out=[self.last])
            residual = (targets - out[self.last]) / (len(self.paths) - place)
            change = self._change(place, keys[path].double(), residual.double())
            name = f"{path}.weight"
            self.put({name: self.weights[name].double() + as_weight(self.model.get_submodule(path), change)})
        self._note_keys(read(self.context, contexts, keys=self.paths)[0])
        results = zip(values.steps, target_losses(self.context, [c.rows[0] for c in contexts]), strict=True)
        return [Applied(steps=steps, loss=loss) for steps, loss in results]
