"""KN: finds the knowledge neurons of a fact and rewrites their values from the old answer to the new one.

Dai et al. 2022 ("Knowledge Neurons in Pretrained Transformers", ACL, arXiv 2104.08696). A neuron is one of the f
activations that a block's value projection reads, w_i; P_x is the probability of the answer after prompt x, as a
function of the activations at its last token.

* Attribution (equations 2 to 4): Attr(w_i) = w_i * integral over a in [0, 1] of dP_x(a w) / dw_i, as a sum over m
  steps. As released, all neurons of a block are scaled together, so the attributions of a block sum to
  P_x - P_x(its activations put to zero).
* Refining (section 3.3): of each of several prompts for the fact the neurons with at least `threshold` of the largest
  attribution are kept, and of these the ones that `share` of the prompts have in common; the share moves by 5 % at a
  time until there are 2 to 5 of them.
* Updating (section 5.1): the neuron's value slot v_i, a column of the value projection, becomes
  v_i - lambda_1 E(old) + lambda_2 E(new), E being the output embedding, lambda in units of |v_i| / |E| as released.

Where this departs, since it was written for a masked model with answers of one token:

* The old answer is what the model itself says. A target of several tokens is written token by token, each behind the
  prompt and the tokens before it, where the model does not say it yet.
* The several prompts are the edit's, its `paraphrases`, and the edit's behind texts of the corpus, as in the baseline
  of Meng et al. 2022 (arXiv 2202.05262).
* An activation may be negative, above all in gated layers, and would then write the reverse: the change takes its sign.
* |v_i| is of the base, so that edits that share a neuron add up and do not multiply.
* Where a block normalises what its value projection puts out (Gemma), P_x hardly depends on the scale of all its
  neurons together, and their attributions sum to nothing: they still rank, but the method has less to go by.
* Neurons that many facts of a relation share are not left out: an edit does not name its relation.
* A fact of which no two prompts share neurons is left as it is; the paper does not count these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import DynamicCache

from wise.edits import Edit
from wise.errors import UnsupportedModelError
from wise.lab.editors.base import Applied, WeightEditor
from wise.lab.editors.context import EditingContext, as_weight, module_inputs, target_losses
from wise.lab.editors.fine_tuning import logits_with
from wise.lab.editors.settings import Count, CountOrZero, Nonnegative, Settings, Share
from wise.memory.modules import hooked
from wise.memory.sequences import CACHE_NAMES

Neuron = tuple[int, int]
"""Block, and place among the f activations that its value projection reads."""
SHARE_STEP = 0.05


@dataclass(frozen=True, kw_only=True)
class KnowledgeNeuronsSettings(Settings):
    search = {
        "threshold": (0.1, 0.2, 0.3),
        "most": (5, 10, 20),
        "new_scale": (2.0, 4.0, 8.0),
        "old_scale": (0.0, 1.0, 4.0),
    }

    integration_steps: Count = 20
    threshold: Share = 0.2
    """Share of a prompt's largest attribution that a neuron must have."""
    share: Share = 0.7
    """Share of the prompts that a neuron must be kept of, to begin with."""
    fewest: Count = 2
    """The share is lowered while it leaves fewer neurons."""
    most: Count = 5
    """The share is raised while it leaves more neurons."""
    prefixes: CountOrZero = 4
    """Texts that the prompt is put behind, one prompt each."""
    old_scale: Nonnegative = 1.0
    """lambda_1, in units of |v_i| / |E(old)|."""
    new_scale: Nonnegative = 4.0
    """lambda_2, in units of |v_i| / |E(new)|; the paper's is 8, which many edits do not survive."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("most", self.most >= self.fewest, f"a whole number from fewest={self.fewest}")


class KnowledgeNeurons(WeightEditor[KnowledgeNeuronsSettings]):
    Config = KnowledgeNeuronsSettings

    def __init__(self, context: EditingContext, settings: KnowledgeNeuronsSettings) -> None:
        """Raises UnsupportedModelError where an output embedding is not as wide as a block."""
        super().__init__(context, settings, [weight_name(context, layer) for layer in range(context.depth)])
        self.embeddings: Tensor = embeddings(context)
        self.prefixes: tuple[str, ...] = ()

    def _prepare(self) -> None:
        beginnings = self.context.beginnings(self.settings.prefixes, seed=self.settings.seed)
        self.prefixes = tuple(text.rstrip(".") for text in beginnings)

    def _apply(self, edits: Sequence[Edit], progress: Callable[[int], None]) -> list[Applied]:
        for done, edit in enumerate(edits):
            progress(done)
            self._write(edit)
        progress(len(edits))
        losses = target_losses(self.context, [self.context.row(edit) for edit in edits])
        return [Applied(loss=loss) for loss in losses]

    def _write(self, edit: Edit) -> None:
        """Writes a target token by token, where the model does not say it yet."""
        prompt, target = self.context.row(edit)
        others = [self.encoder.prompt(text) for text in self.wordings(edit)]
        for i, new in enumerate(target):
            row = [*prompt, *target[:i]]
            old = int(next_token(self.context, row).argmax())
            if old != new:
                rows = [row, *([*other, *target[:i]] for other in others)]
                scores = [attributions(self.context, r, old, self.settings.integration_steps) for r in rows]
                self._update(refined(scores, self.settings), row, old, new)

    def wordings(self, edit: Edit) -> list[str]:
        """The other prompts for a fact, as far as the model can read them."""
        room = self.encoder.context - len(self.encoder.target(edit.prompt, edit.target))
        texts = [*edit.paraphrases, *(f"{prefix}. {edit.prompt}" for prefix in self.prefixes)]
        return [text for text in texts if len(self.encoder.prompt(text)) <= room]

    @torch.no_grad()
    def _update(self, neurons: Sequence[Neuron], row: Sequence[int], old: int, new: int) -> None:
        """Changes value slots, in float32; what comes of it is served at once."""
        active = activations(self.context, row)
        change = {layer: {i for at, i in neurons if at == layer} for layer, _ in neurons}
        for layer, chosen in change.items():
            name, places = weight_name(self.context, layer), sorted(chosen)
            weight = self.weights[name].clone()
            slots = columns(self.context, layer, weight)
            norms = columns(self.context, layer, self.original[name])[:, places].float().norm(dim=0)
            signs = active[layer][places].sign()
            unit_old, unit_new = (torch.nn.functional.normalize(self.embeddings[t].float(), dim=0) for t in (old, new))
            step = self.settings.new_scale * unit_new - self.settings.old_scale * unit_old
            step = step.to(norms.device)
            slots[:, places] = (slots[:, places].float() + step[:, None] * norms * signs).to(slots.dtype)
            self.put({name: weight})


def refined(scores: Sequence[Tensor], settings: KnowledgeNeuronsSettings) -> list[Neuron]:
    """The neurons of a fact, from the attributions `[layers, f]` of each of its prompts; none that one prompt alone
    has, where there are several."""
    strong = [(s >= settings.threshold * s.max()) & (s > 0) for s in scores]
    counts = torch.stack(strong).sum(0)
    least = min(2, len(scores))

    def shared(steps: int) -> Tensor:
        needed = (settings.share + steps * SHARE_STEP) * len(scores)
        return counts >= max(least, needed - 1e-6)

    steps = 0
    while int(shared(steps).sum()) > settings.most and settings.share + steps * SHARE_STEP < 1:
        steps += 1
    while int(shared(steps).sum()) < settings.fewest and settings.share + steps * SHARE_STEP > 0:
        steps -= 1
    result = shared(steps).nonzero().tolist()
    mean = torch.stack(list(scores)).mean(0)
    result.sort(key=lambda at: -float(mean[at[0], at[1]]))
    return [(int(layer), int(i)) for layer, i in result[: settings.most]]


def attributions(context: EditingContext, row: Sequence[int], token: int, steps: int) -> Tensor:
    """Attr of equation 4 for every neuron at the last token of a row, of the probability that `token` comes next.

    `[layers, f]`, float32, on the CPU. One forward and backward of `steps` single tokens per block.
    """
    reading = _LastToken(context, row, steps)
    shares = torch.arange(1, steps + 1, dtype=torch.float32)[:, None] / steps
    results = []
    for layer, activation in enumerate(activations(context, row)):
        scaled = (shares.to(activation.device) * activation).requires_grad_()
        with torch.enable_grad(), replaced(context, layer, lambda _, new=scaled: new, rows=steps):  # type: ignore[misc]
            (gradient,) = torch.autograd.grad(reading.probabilities()[:, token].sum(), [scaled])
        results.append((activation * gradient.sum(0) / steps).cpu())
    return torch.stack(results)


class _LastToken:
    """A row, read but for its last token, which is then read again and again, `rows` times at once."""

    @torch.no_grad()
    def __init__(self, context: EditingContext, row: Sequence[int], rows: int) -> None:
        self.model = context.model
        self.ids = torch.tensor([list(row)], device=context.device)
        self.rows = rows
        parameters = inspect.signature(context.model.forward).parameters
        self.name = next(name for name in CACHE_NAMES if name in parameters)
        self.before = DynamicCache()
        if len(row) > 1:
            ids = self.ids[:, :-1]
            mask = torch.ones_like(ids)
            context.model(input_ids=ids, attention_mask=mask, use_cache=True, **{self.name: self.before})
            self.before.batch_repeat_interleave(rows)

    def probabilities(self) -> Tensor:
        """Of the token after the row: `[rows, vocabulary]`, float32."""
        ids = self.ids.expand(self.rows, -1)
        cached = {"use_cache": True, self.name: deepcopy(self.before)}
        return logits_with(self.model, {}, ids[:, -1:], torch.ones_like(ids), **cached)[:, -1].float().softmax(-1)


@torch.no_grad()
def activations(context: EditingContext, row: Sequence[int]) -> list[Tensor]:
    """What the value projection of each block reads at the last token of a row: `[f]` each, float32."""
    paths = [context.projection(layer).path for layer in range(context.depth)]
    ids = torch.tensor([list(row)], device=context.device)
    inputs = module_inputs(context.model, paths, ids, torch.ones_like(ids))
    return [inputs[path].reshape(-1, inputs[path].shape[-1])[-1].float() for path in paths]


@torch.no_grad()
def next_token(context: EditingContext, row: Sequence[int]) -> Tensor:
    """Probabilities of the token after a row: `[vocabulary]`, float32."""
    ids = torch.tensor([list(row)], device=context.device)
    logits: Tensor = context.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits[0, -1].float().softmax(-1)


@contextmanager
def replaced(context: EditingContext, layer: int, change: Callable[[Tensor], Tensor], *, rows: int) -> Iterator[None]:
    """For the length of a `with` block a block's value projection reads `change(x)` at the last token of each row in
    the place of x, `[rows, f]`."""

    def hook(module: Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]  # `[rows, seq, f]`; some architectures flatten the first two
        by_row = x.reshape(rows, -1, x.shape[-1])
        last = change(by_row[:, -1]).to(x.dtype)
        return (torch.cat([by_row[:, :-1], last[:, None]], 1).reshape(x.shape), *args[1:])

    with hooked([(value_projection(context, layer), hook)], before=True):
        yield


def value_projection(context: EditingContext, layer: int) -> Module:
    return context.model.get_submodule(context.projection(layer).path)


def weight_name(context: EditingContext, layer: int) -> str:
    return f"{context.projection(layer).path}.weight"


def columns(context: EditingContext, layer: int, weight: Tensor) -> Tensor:
    """A block's value projection as `[d, f]`, a view of `weight` whichever way round it lies: a value slot a column."""
    return as_weight(value_projection(context, layer), weight)


def embeddings(context: EditingContext) -> Tensor:
    """The output embeddings, `[vocabulary, d]`."""
    head = context.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    width = context.projection(0).out_features
    if head is None or head.weight.shape[-1] != width:
        result = "none" if head is None else str(head.weight.shape[-1])
        raise UnsupportedModelError(
            f"output embeddings of width {width} expected, which is what a block puts out, {result} found: KN writes "
            "them into the blocks; choose another model or another editor"
        )
    weight: Tensor = head.weight.detach()
    return weight
