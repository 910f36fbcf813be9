"""WISE's writer (arXiv 2405.14768, section 2.3): masked gradient steps per shard, then a merge.

Each shard of a slot takes every k-th edit and changes only the entries of its own random mask (knowledge
sharding); the shards are merged into one change of W (knowledge merging). Shards of all slots own separate
parameters, so all of them are fitted in one batch, each edit until it is fitted.

One thing is added to the paper. A merge moves what each shard had settled, so the merged weight is fitted once
more, within the union of the masks, on the edits that the merge has broken and on the routing margins. The
paper serves the merged weight as it falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wise.config import WiseConfig
from wise.memory.masks import random_masks
from wise.memory.merging import merge
from wise.memory.slot import MaskedDenseSlot
from wise.router.activation import activation_score
from wise.training.encoding import Encoder
from wise.training.splice import SplicedModel
from wise.training.writers.base import EditsDone, FitResult, SlotResults, SlotTask, silent
from wise.training.writers.masked_dense_examples import Examples, prepare
from wise.training.writers.masked_dense_fitting import Fit, Fitting
from wise.training.writers.masked_dense_statistics import BaseStatistics

ROUNDING = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""How far under the smallest score of its edits a threshold lies, so that a sum taken in another order still passes."""
THRESHOLD_RATIO = {"merge": 0.9, "retrieve": 0.7}
"""Share of the smallest score of a slot's edits at which its gate opens. A lower one reaches more paraphrases, and more
of what should be left alone; in `retrieve` a token must also be near an edit key. The paper's is 1.0, its code's
0.88."""
SHARDS = 2
"""k: shards of a slot, each trained through its own random mask and then merged."""
MASK_RATIO = 0.2
"""rho: share of the entries of W that a shard may change."""


@dataclass(eq=False)
class MaskedDenseWriter:
    """Writes `MaskedDenseSlot`s."""

    efforts, at_once = 1, 16
    spliced: SplicedModel
    encoder: Encoder
    statistics: BaseStatistics
    config: WiseConfig
    dtype: torch.dtype
    """Precision in which slots are served."""

    def write(self, tasks: Sequence[SlotTask], progress: EditsDone = silent, effort: int = 0) -> SlotResults:
        """See `Writer`; there is one effort. What is written depends on tasks, config and base alone."""
        examples = prepare(
            tasks, spliced=self.spliced, encoder=self.encoder, statistics=self.statistics, seed=self.config.seed
        )
        masks = torch.stack([self._masks(task) for task in tasks]).to(self.spliced.layer_device)  # [slots, k, d, f]
        start = torch.stack([_start(task, masks[i]) for i, task in enumerate(tasks)])
        k = SHARDS
        shard = torch.tensor([slot * k + i % k for slot, task in enumerate(tasks) for i in range(len(task.edits))])
        shards = self._fit(examples, start.flatten(0, 1), masks.flatten(0, 1), shard, progress)
        merged = torch.stack([merge(deltas) for deltas in shards.weights.view(masks.shape)])
        served = self._fit(examples, merged, masks.any(1), examples.slot, silent)
        return self._collect(tasks, examples, masks, shards, served)

    def _masks(self, task: SlotTask) -> Tensor:
        if isinstance(task.start, MaskedDenseSlot):
            return task.start.masks
        shape = (self.spliced.target_module.out_features, self.spliced.target_module.in_features)
        seed = self.config.seed * 1_000_003 + task.id
        return random_masks(shape, shards=SHARDS, ratio=MASK_RATIO, seed=seed)

    def _fit(self, examples: Examples, start: Tensor, mask: Tensor, group: Tensor, progress: EditsDone) -> Fit:
        scale = self.statistics.scale
        return Fitting(self.spliced, examples, start, mask, group, scale, self.config).run(progress)

    def _collect(
        self, tasks: Sequence[SlotTask], examples: Examples, masks: Tensor, shards: Fit, served: Fit
    ) -> SlotResults:
        written: SlotResults = []
        first = 0
        for i, task in enumerate(tasks):
            slot = MaskedDenseSlot(
                id=task.id,
                edit_ids=tuple(edit.id for edit in task.edits),
                masks=masks[i].cpu(),
                weight=served.weights[i].cpu(),
            )
            outcomes, rounding = [], ROUNDING.get(self.dtype, 1e-2)
            for e in range(first, first + len(task.edits)):
                anchors = examples.bare.activations[e][examples.speaking[e]]
                score = float(activation_score(slot.delta(anchors.cpu().to(self.dtype))).min())
                outcome = FitResult(
                    fitted=served.fitted[e],
                    steps=shards.steps[e] + served.steps[e],
                    loss=served.loss[e],
                    keys=self.statistics.key_space.keys(anchors),
                    score=score * min(THRESHOLD_RATIO[self.config.mode], 1 - rounding),
                )
                outcomes.append(outcome)
            first += len(task.edits)
            written.append((slot, outcomes))
        return written


def _start(task: SlotTask, masks: Tensor) -> Tensor:
    """`[k, d, f]` where the shards begin: nothing, or the merged weight within each shard's mask.

    Merging these again gives the weight they were taken from, so an unfinished slot goes on where it was.
    """
    if isinstance(task.start, MaskedDenseSlot):
        return task.start.weight.to(masks.device) * masks
    return torch.zeros(masks.shape, device=masks.device)

