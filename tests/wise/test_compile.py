"""The wrapped forward compiles, and follows a memory swapped afterwards: into one graph in `merge` and `retrieve`, in
pieces in `hybrid`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, BATCH, generated, memory_by_hand, padded, put, text, tiny_model, wrap_tiny
from torch import Tensor
from torch.nn.functional import normalize

import wise
from wise.errors import ConfigError
from wise.memory.side_memory import Route, Router, SideMemory, SlotBank
from wise.memory.state import MemoryState

LAYER = 1
# Of torch and transformers themselves, while they compile.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
modes = pytest.mark.parametrize("mode", ["merge", "retrieve"])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(**padded(BATCH), use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_wrapped_forward_is_one_graph_equal_to_eager(model_type: str) -> None:
    wrapped = wrap_tiny(model_type, layer=LAYER)
    compiled = torch.compile(wrapped, fullgraph=True, backend="eager")
    edited = logits(compiled)
    torch.testing.assert_close(edited, logits(wrapped))
    with wrapped.disabled() as base:
        assert not torch.allclose(logits(base), edited)


@pytest.mark.parametrize("mode", ["merge", "retrieve", "hybrid"])
def test_a_memory_is_exported_or_it_is_said_which_can_be(mode: str) -> None:
    """An exported graph is what ONNX is made of."""
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    ids, options = torch.tensor([BATCH[0][:3]]), {"use_cache": False}
    if mode == "hybrid":
        with pytest.raises(ConfigError, match="a graph that is exported holds no lookup.*mode='merge' or 'retrieve'"):
            torch.export.export(wrapped.model, (ids,), options, strict=False)
        return
    exported = torch.export.export(wrapped.model, (ids,), options, strict=False).module()
    with torch.no_grad():
        edited = wrapped(ids, **options).logits
        torch.testing.assert_close(exported(ids, **options).logits, edited)
        with wrapped.disabled() as base:
            assert not torch.allclose(base(ids, **options).logits, edited)


@modes
def test_a_memory_that_is_swapped_takes_effect_and_compiles_nothing_anew(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    graphs: list[torch.fx.GraphModule] = []

    def eager(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(wrapped.model, fullgraph=True, backend=eager)
    states = [memory_by_hand(wrapped, seed) for seed in range(4)]
    seen = []
    for state, wanted in zip([*states, MemoryState(), states[0]], [1, 1, 1, 1, 2, 2], strict=True):
        put(wrapped, state)
        seen.append(logits(compiled))
        torch.testing.assert_close(seen[-1], logits(wrapped))
        assert len(graphs) == wanted
    assert all(not torch.allclose(a, b) for i, a in enumerate(seen[:-1]) for b in seen[:i])


def test_a_memory_that_grows_with_every_edit_does_not_compile_anew_with_every_edit() -> None:
    """torch gives up on a graph at the eighth size of something it takes for fixed."""
    wrapped = wrap_tiny("llama", layer=LAYER)
    graphs: list[int] = []

    def eager(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(len(graphs))
        return graph.forward

    compiled = torch.compile(wrapped.model, fullgraph=True, backend=eager)
    state, generator = wrapped.state, torch.Generator().manual_seed(0)
    for count in range(len(state.slots), 14):
        put(wrapped, state)
        torch.testing.assert_close(logits(compiled), logits(wrapped))
        name = f"e{count}"
        state = replace(
            state,
            edits=(*state.edits, replace(state.edits[0], id=name)),
            slots=(*state.slots, replace(state.slots[0], id=count, edit_ids=(name,))),
            keys={**state.keys, name: normalize(torch.randn(2, 8, generator=generator), dim=-1)},
        )
    assert len(graphs) <= 3


# -- hybrid, whose router reads ids and not tensors: the graph breaks around it --------------------


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "opt"])
def test_the_hybrid_forward_compiles_in_pieces_and_is_equal_to_eager(model_type: str) -> None:
    wrapped = wrap_tiny(model_type, "hybrid", layer=LAYER)
    compiled = torch.compile(wrapped, backend="eager")
    edited = logits(compiled)
    torch.testing.assert_close(edited, logits(wrapped))
    with wrapped.disabled() as base:
        assert not torch.allclose(logits(base), edited)
    torch.compiler.reset()
    # Traced whole, the ids of a call would be those of the graph for good.
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        logits(torch.compile(wrapped, fullgraph=True, backend="eager"))


@pytest.mark.slow
def test_a_compiled_hybrid_model_generates_what_an_eager_one_does() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=LAYER)
    expected = generated(wrapped, BATCH)
    wrapped.model.forward = torch.compile(wrapped.model.forward, backend="eager")
    assert generated(wrapped, BATCH) == expected
    assert generated(wrapped, BATCH, cache_implementation="static") == expected
    with wrapped.disabled() as base:
        assert generated(base, BATCH) != expected


@pytest.mark.slow
def test_a_hybrid_memory_that_grows_with_every_edit_does_not_compile_anew_with_every_edit() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=LAYER)
    graphs: list[int] = []

    def eager(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(len(graphs))
        return graph.forward

    compiled = torch.compile(wrapped.model, backend=eager)
    state, counts = wrapped.state, []
    for count in range(len(state.slots), 14):
        put(wrapped, state)
        torch.testing.assert_close(logits(compiled), logits(wrapped))
        counts.append(len(graphs))
        name = f"e{count}"
        state = replace(
            state,
            edits=(*state.edits, replace(state.edits[0], id=name, prompt=text([70 + count]), subject=None)),
            slots=(*state.slots, replace(state.slots[0], id=count, edit_ids=(name,))),
            keys={**state.keys, name: state.keys["e0"]},
        )
    assert counts[-1] == counts[3], "after a few sizes, no more"
    put(wrapped, MemoryState())
    torch.testing.assert_close(logits(compiled), logits(wrapped))


def test_wrapping_a_model_that_is_compiled_already_takes_effect() -> None:
    model = tiny_model("llama")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    plain = logits(compiled)
    wrapped = wrap_tiny(model, layer=LAYER)
    torch.testing.assert_close(logits(compiled), logits(wrapped))
    assert not torch.allclose(logits(compiled), plain)
    wrapped.unwrap()
    torch.testing.assert_close(logits(compiled), plain)


@pytest.mark.slow
def test_a_model_that_is_compiled_in_place_is_asked_compiled_and_edited_eagerly() -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=LAYER)
    alone = wrapped.ask("w5 w6", max_new_tokens=2)
    graphs: list[torch.fx.GraphModule] = []

    def eager(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    wrapped.model.compile(backend=eager)
    wrapped.edit(wise.Edit(prompt="w70 w71 w72", target="w80", subject="w70"))
    assert not graphs
    (said,), (before,) = wrapped.ask("w5 w6", max_new_tokens=2), alone
    assert graphs and said.text == before.text


class Branching(Router):
    """Looks at a score to decide what to compute: what a router must not do."""

    def __init__(self, inner: Router) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, activation: Tensor, bank: SlotBank) -> Route:
        route: Route = self.inner(activation, bank)
        return route if float(route.score.max()) > 0 else route._replace(score=-route.score)


def test_a_router_that_breaks_the_graph_would_be_noticed() -> None:
    wrapped = wrap_tiny("llama", layer=LAYER)
    memory = wrapped.layer.memory
    assert memory is not None
    wrapped.layer.memory = SideMemory(memory.bank, Branching(memory.router))
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        logits(torch.compile(wrapped.model, fullgraph=True, backend="eager"))


COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="machine code needs a C++ compiler")


@pytest.mark.parametrize(
    ("backend", "mode"),
    [
        ("aot_eager", "merge"),
        ("aot_eager", "retrieve"),
        pytest.param("inductor", "retrieve", marks=[COMPILER, pytest.mark.slow]),
    ],
)
def test_the_layer_compiled_further_down_is_equal_to_eager(backend: str, mode: str) -> None:
    wrapped = wrap_tiny("llama", mode, layer=LAYER)
    compiled = torch.compile(wrapped.layer, fullgraph=True, backend=backend)
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 9), (1, 1)):  # prefill and decode
        activation = torch.randn(*shape, wrapped.target_module.in_features, generator=generator)
        with torch.no_grad():
            torch.testing.assert_close(compiled(activation), wrapped.layer(activation))
