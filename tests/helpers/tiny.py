"""Tiny random models of every architecture, one tokenizer, and side memories made by hand.

Nothing is trained or loaded. Weights are drawn wider than transformers would, so that greedy text varies
and a dropped bias or a shifted position shows. Thresholds lie in gaps between scores, beyond rounding.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import wise
from wise.architectures import locate
from wise.memory.key_space import KeySpace
from wise.memory.keys import KeyIndex
from wise.memory.side_memory import Route
from wise.memory.slot import AnswerSlot, MaskedDenseSlot
from wise.memory.state import MemoryState
from wise.router.readers import RelationReader
from wise.router.subjects import PLACEHOLDER

PAD, BOS, EOS, UNK = 0, 1, 2, 3
VOCABULARY = 96
DEPTH = 3
# Shorter than the texts of the tests, so that a window that moves with padding or caches shows.
WINDOW = 6
# Cosine to the nearest of six random directions of eight: one token in five has none so near.
KEY_THRESHOLD = 0.3
# Cosine of two texts that have two words of three in common: a text asks as long as it says little else.
ASKED = 0.8

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
_GPT2 = {"n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 128, "tie_word_embeddings": False}
_GEMMA = _LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
_NEOX = {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": DEPTH, "n_head": 4, "tie_word_embeddings": False},
    "falcon": _NEOX,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "gptj": _GPT2 | {"rotary_dim": 4},
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": WINDOW},
    "opt": _NEOX | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi3": _LLAMA | {"sliding_window": WINDOW},
    "qwen2": _LLAMA | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": _LLAMA | {"head_dim": 8},
}
"""`model_type` -> what makes its configuration tiny."""

BATCH = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22], [40, 41, 42, 43, 44, 45]]
"""Prompts of unlike length."""


def tiny_model(
    model_type: str, *, seed: int = 0, attention: str | None = None, **changes: Any
) -> PreTrainedModel:
    """A random causal LM in evaluation mode, the same one for the same arguments."""
    settings = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "vocab_size": VOCABULARY}
    config = AutoConfig.for_model(model_type, **settings | ARCHITECTURES.get(model_type, _LLAMA) | changes)
    return draw_weights(AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval(), seed)


@torch.no_grad()
def draw_weights(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Draws every weight of the model, which is returned."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:  # norms keep their ones; every bias counts
            parameter.add_(0.2 * noise)
        else:
            inputs = parameter.shape[0] if model.config.model_type == "gpt2" else parameter.shape[-1]
            parameter.copy_(noise * (0.3 if "embed" in name or "wte" in name else 1.5 * inputs**-0.5))
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One word, one id: `w4` is 4."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(4, VOCABULARY))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )


def text(ids: Sequence[int]) -> str:
    """The text that `tiny_tokenizer` reads as these ids."""
    return " ".join(f"w{i}" for i in ids)


def wrap_tiny(
    base: str | PreTrainedModel,
    mode: str | None = "retrieve",
    *,
    layer: int | None = None,
    target_module: str | None = None,
    **changes: Any,
) -> wise.WiseModel:
    """A wrapped tiny model, with a side memory by hand; `mode` None leaves it without."""
    model = tiny_model(base, **changes) if isinstance(base, str) else base
    config = wise.WiseConfig(
        mode=mode or "retrieve", layer=layer, target_module=target_module, key_threshold=KEY_THRESHOLD
    )
    wrapped = wise.wrap(model, tiny_tokenizer(), config, **reading(config.mode))
    if mode is not None:
        put(wrapped, memory_by_hand(wrapped))
    return wrapped


class WordReader(RelationReader):
    """Texts are alike as far as they have the same words, in whatever order."""

    name = "words"
    size = 16
    threshold = sentence_threshold = 0.5
    unnamed_threshold = 0.9
    nameless_threshold = 0.7

    def _encode(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([normalize(sum(map(_word, sorted(set(text.split()))), _word("")), dim=0) for text in texts])


def _word(word: str) -> Tensor:
    """A random direction, the same one for the same word."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") >> 1
    return normalize(torch.randn(WordReader.size, generator=torch.Generator().manual_seed(seed)), dim=0)


def reading(mode: str) -> dict[str, Any]:
    """What a wrapped model of this mode must be given to read with."""
    return {"reader": WordReader()} if mode == "hybrid" else {}


def put(wrapped: wise.WiseModel, state: MemoryState) -> None:
    """Serves a memory that no edit made."""
    wrapped._serve(state)


def memory_by_hand(wrapped: wise.WiseModel, seed: int = 0, strength: float = 3.0) -> MemoryState:
    """Random slots, one in `merge` and else three, that speak at about half of the tokens.

    In `hybrid` each is of one of the prompts of `BATCH` and is not given in a chat.

    strength: norm of what a slot adds, in units of what the base itself puts out.
    """
    generator = torch.Generator().manual_seed(seed)
    activations, outputs = _observe(wrapped, generator)
    if wrapped.wise_config.mode == "hybrid":
        return _answers_by_hand(wrapped, activations.shape[1], outputs, generator, strength)
    d, f = outputs.shape[1], activations.shape[1]
    count = 1 if wrapped.wise_config.mode == "merge" else 3
    space = KeySpace(
        mean=activations.mean(0), projection=torch.randn(8, f, generator=generator) / activations.std()
    )
    keys = [normalize(torch.randn(2, 8, generator=generator), dim=-1) for _ in range(count)]
    near = (space.keys(activations) @ torch.cat(keys).T).max(-1)
    nearest = near.indices // 2
    slots = []
    for i in range(count):
        mask = torch.rand(2, d, f, generator=generator) < 0.4
        weight = torch.randn(d, f, generator=generator) * mask.any(0)
        weight *= strength * outputs.norm(dim=-1).mean() / (activations @ weight.T).norm(dim=-1).mean()
        scores = (activations[nearest == i] @ weight.T).norm(dim=-1)
        slots.append(
            MaskedDenseSlot(id=i, edit_ids=(f"e{i}",), scores=(_gap(scores),), masks=mask, weight=weight)
        )
    return MemoryState(
        edits=tuple(wise.Edit(id=f"e{i}", prompt=text([4 + i]), target=text([10 + i])) for i in range(count)),
        slots=tuple(slots),
        keys={f"e{i}": keys[i] for i in range(count)},
        key_space=space,
    )


def _answers_by_hand(
    wrapped: wise.WiseModel, features: int, outputs: Tensor, generator: torch.Generator, strength: float
) -> MemoryState:
    """Random values, and what each makes the base say behind its prompt and what came before."""
    assert wrapped.inputs is not None
    norm = strength * outputs.norm(dim=-1).mean()
    edits, slots, keys = [], [], {}
    for i, prompt in enumerate(BATCH):
        values = normalize(torch.randn(2 + i % 2, outputs.shape[1], generator=generator), dim=-1) * norm
        said = answer_by_hand(wrapped, prompt, values)
        subject, rest = text(prompt[:1]), text(prompt[1:])
        edit = wise.Edit(id=f"e{i}", prompt=f"{subject} {rest}", target=text(said), subject=subject)
        slots.append(
            AnswerSlot(
                id=i,
                edit_ids=(edit.id,),
                scores=(ASKED,),
                values=values,
                ids=torch.tensor(said),
                counts=torch.tensor([0, len(said)]),
                features=features,
            )
        )
        edits.append(edit)
        keys[edit.id] = wrapped.inputs.reader.read([edit.prompt, f"{PLACEHOLDER} {rest}"]).half()
    return MemoryState(
        edits=tuple(edits), slots=tuple(slots), keys=keys, key_space=wrapped.inputs.reader.key_space
    )


@torch.no_grad()
def answer_by_hand(wrapped: wise.WiseModel, prompt: Sequence[int], values: Tensor) -> list[int]:
    """The tokens that the base says behind a prompt where the values `[m, d]` are added one after the other."""
    said: list[int] = []

    def add(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        flat = out.flatten(0, -2).clone()  # some architectures flatten the rows
        flat[-len(said) - 1 :] += values[: len(said) + 1].to(out)
        return flat.view(out.shape)

    handle = wrapped.layer.base_module.register_forward_hook(add)
    with wrapped.disabled() as model:
        for _ in values:
            said.append(int(model(torch.tensor([[*prompt, *said]]), use_cache=False).logits[0, -1].argmax()))
    handle.remove()
    return said


@torch.no_grad()
def _observe(wrapped: wise.WiseModel, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What goes in and out of the base's value projection on random text: `[n, f]` and `[n, d]`, float32."""
    seen: list[tuple[Tensor, Tensor]] = []
    ids = torch.randint(4, VOCABULARY, (16, 20), generator=generator)
    handle = wrapped.layer.base_module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with wrapped.disabled() as model:
        model(ids, use_cache=False)
    handle.remove()
    into, out = seen[0]
    return into.reshape(-1, into.shape[-1]).float(), out.reshape(-1, out.shape[-1]).float()


def _gap(scores: Tensor, share: float = 0.5) -> float:
    """The middle of the widest gap among the scores about the one that so large a share of them reaches."""
    ranked = scores.sort().values
    middle = ranked[int((0.85 - share) * len(ranked)) : int((1.15 - share) * len(ranked)) + 2]
    at = int(middle.diff().argmax())
    return float(middle[at : at + 2].mean())


def route_of(wrapped: wise.WiseModel, ids: Sequence[int]) -> Route:
    """The route of every token of one row."""
    route = wrapped.route(torch.tensor([list(ids)]))
    assert route is not None
    return route


def nearest_keys(state: MemoryState, vectors: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """Of each of `vectors` `[n, f]` by the index of keys: score and slot of the nearest key, and the edit it is of."""
    assert isinstance(state.key_space, KeySpace)
    index = KeyIndex(state.key_space.size)
    index.add_rows([*state.keys], [len(own) for own in state.keys.values()], torch.cat([*state.keys.values()]))
    scores, ids = zip(*(index.search(key)[0] for key in state.key_space.keys(vectors)), strict=True)
    slots = {edit_id: slot.id for slot in state.slots for edit_id in slot.edit_ids}
    return torch.tensor(scores), torch.tensor([slots[own] for own in ids]), list(ids)


def padded(rows: Sequence[Sequence[int]], extra: int = 0) -> dict[str, Tensor]:
    """Left-padded `input_ids` and `attention_mask`, `extra` pads wider than needed."""
    width = max(map(len, rows)) + extra
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + list(row) for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def generated(
    model: Any, rows: Sequence[Sequence[int]], *, extra: int = 0, **options: Any
) -> list[list[int]]:
    """What is generated for each row, up to its end-of-sequence; greedy unless `options` say otherwise."""
    batch = padded(rows, extra)
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": PAD} | options
    out = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in out]


def same_tensors(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> bool:
    """Equal names in equal order, equal bits."""
    left, right = (dict(x.state_dict()) if isinstance(x, nn.Module) else x for x in (a, b))
    return list(left) == list(right) and all(torch.equal(left[k], right[k]) for k in left)


def same_state(a: MemoryState, b: MemoryState) -> bool:
    """Equal to the last bit."""
    slots = len(a.slots) == len(b.slots) and all(
        (type(x), x.id, x.edit_ids, x.scores) == (type(y), y.id, y.edit_ids, y.scores)
        and same_tensors(x.tensors(), y.tensors())
        for x, y in zip(a.slots, b.slots, strict=True)
    )
    spaces = [{} if s.key_space is None else s.key_space.tensors() for s in (a, b)]
    keys = same_tensors(dict(a.keys), dict(b.keys)) and all(k.dtype == b.keys[i].dtype for i, k in a.keys.items())
    return a.edits == b.edits and slots and same_tensors(*spaces) and keys


def small_batches(page: int = 16) -> ContinuousBatchingConfig:
    """Continuous batching in pieces of at most 16 tokens, with a cache in pages of so many."""
    known = inspect.signature(ContinuousBatchingConfig).parameters
    size = "page_size" if "page_size" in known else "block_size"  # before transformers 5.24
    return ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=16, **{size: page})


def located(model: PreTrainedModel, **settings: Any) -> Any:
    """`locate` with the settings as keywords."""
    return locate(model, wise.WiseConfig(**settings))
