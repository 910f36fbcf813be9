"""The side memory layer against its formula, token by token, and the grouped product it rests on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import BATCH, nearest_keys, put, route_of, wrap_tiny
from torch import Tensor, nn
from torch.nn.functional import normalize

from wise.config import WiseConfig
from wise.memory.key_space import KeySpace
from wise.memory.layer import SideMemoryLayer
from wise.memory.modules import execution_device
from wise.memory.side_memory import NO_SLOT, SideMemory, SlotBank, grouped_linear
from wise.memory.state import MemoryState
from wise.router.activation import ActivationRouter, RetrievalRouter, activation_score
from wise.router.assemble import assemble

D, F, R, SLOTS = 5, 7, 4, 3
KEY_THRESHOLD = 0.5

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
grouped = pytest.mark.parametrize(
    "product", [grouped_linear, torch.ops.wise.grouped_linear], ids=["eager", "compiled"]
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def merged(threshold: float) -> SideMemory:
    return SideMemory(SlotBank(random(1, D, F)), ActivationRouter(torch.tensor([threshold])))


def retrieved(thresholds: tuple[float, ...] = (4.0, 2.0, 1e9)) -> SideMemory:
    router = RetrievalRouter(
        thresholds=torch.tensor(thresholds),
        keys=normalize(random(2 * SLOTS, R, seed=1), dim=-1),
        key_slots=torch.arange(SLOTS).repeat(2),
        space=KeySpace(projection=random(R, F, seed=2), mean=random(F, seed=3)),
        key_threshold=KEY_THRESHOLD,
    )
    return SideMemory(SlotBank(random(SLOTS, D, F)), router)


@pytest.mark.parametrize("shape", [(F,), (1, F), (6, F), (2, 6, F), (2, 1, F)])
@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_a_token_gets_the_delta_of_its_slot_where_its_score_reaches_the_threshold(
    mode: str, shape: tuple[int, ...]
) -> None:
    memory = merged(6.0) if mode == "merge" else retrieved()
    base = nn.Linear(F, D)
    layer = SideMemoryLayer(base)
    layer.memory = memory
    activation = random(*shape, seed=4)
    expected = base(activation).detach().clone()
    for token, said in zip(activation.view(-1, F), expected.view(-1, D), strict=True):
        slot, threshold = 0, 6.0
        if mode == "retrieve":
            cosines = memory.router.keys @ normalize(
                memory.router.projection @ (token - random(F, seed=3)), dim=0
            )
            slot = int(cosines.argmax()) % SLOTS
            threshold = (
                float(memory.router.thresholds[slot]) if float(cosines.max()) >= KEY_THRESHOLD else float("inf")
            )
        delta = memory.bank.weights[slot] @ token
        if float(delta.norm()) >= threshold:
            said += delta
    torch.testing.assert_close(layer(activation), expected)


def test_some_gates_of_the_cases_above_open_and_others_do_not() -> None:
    for memory in (merged(6.0), retrieved()):
        route = memory.route(random(2, 6, F, seed=4))
        assert 0 < int(route.open.sum()) < 12
        assert torch.equal(route.score, activation_score(route.delta))
    assert 0 < int((route.slot == NO_SLOT).sum()) < 12
    assert not route.open[route.slot == NO_SLOT].any()


def test_without_a_memory_the_layer_is_its_base_layer() -> None:
    base = nn.Linear(F, D)
    layer = SideMemoryLayer(base)
    activation = random(2, 6, F)
    assert torch.equal(layer(activation), base(activation))
    assert layer.device() == execution_device(base) == torch.device("cpu")


def test_a_closed_gate_leaves_even_negative_zero_and_infinite_deltas_out() -> None:
    memory = merged(float("inf"))
    memory.bank.weights.fill_(1e38)
    output = torch.tensor([[-0.0, 0.0, 1.0, -1.0, 2.0]])
    assert not torch.equal(bits(memory(torch.ones(1, F), output)), bits(output))  # an infinite score opens it
    memory.router.threshold.fill_(float("nan"))  # which no score reaches
    assert torch.equal(bits(memory(torch.ones(1, F), output)), bits(output))


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32)


def test_the_score_is_taken_in_float32() -> None:
    delta = torch.full((1, 64), 300.0, dtype=torch.float16)  # the sum of squares overflows float16
    assert float(activation_score(delta)) == pytest.approx(300 * 8)
    assert activation_score(delta).dtype == torch.float32


@grouped
@pytest.mark.parametrize("n", [0, 1, 2, 40])
def test_the_grouped_product_is_one_weight_per_token(product: Product, n: int) -> None:
    x, weights = random(n, F), random(SLOTS, D, F, seed=1)
    for groups in ((0, 2), (NO_SLOT, 2)):  # group 1 has no token
        group = torch.tensor(groups).repeat(n)[:n]
        expected = torch.zeros(n, D)
        for token in (group != NO_SLOT).nonzero():
            expected[token] = x[token] @ weights[group[token]].mT.squeeze(0)
        torch.testing.assert_close(product(x, weights, group), expected)


@grouped
@pytest.mark.parametrize("n", [1, 6])
def test_the_grouped_product_passes_the_gradient_to_its_input(product: Product, n: int) -> None:
    x = random(n, F, dtype=torch.float64).requires_grad_()
    weights = random(SLOTS, D, F, seed=1, dtype=torch.float64)
    group = torch.arange(n) % (SLOTS + 1) - int(n > 1)  # NO_SLOT among them
    assert torch.autograd.gradcheck(lambda t: product(t, weights, group), (x,))
    assert not torch.autograd.gradcheck(
        lambda t: product(t, weights, group) + t.detach().sum(), (x,), raise_exception=False
    )


def test_the_grouped_product_keeps_the_rules_of_an_operator() -> None:
    x = random(6, F).requires_grad_()
    torch.library.opcheck(
        torch.ops.wise.grouped_linear.default, (x, random(SLOTS, D, F, seed=1), torch.arange(6) % 4 - 1)
    )


@pytest.mark.parametrize("memory", [merged(6.0), retrieved()])
def test_the_gradient_of_an_open_gate_goes_through_the_slot_too(memory: SideMemory) -> None:
    base = nn.Linear(F, D).requires_grad_(False)
    layer = SideMemoryLayer(base)
    layer.memory = memory
    activation = random(12, F, seed=4).requires_grad_()
    (grad,) = torch.autograd.grad(layer(activation).sum(), activation)
    route = memory.route(activation.detach())
    slots = memory.bank.weights[route.slot.clamp(min=0)]
    through = torch.where(route.open[:, None, None], slots, 0.0) + base.weight
    torch.testing.assert_close(grad, through.sum(1))
    assert route.open.any() and not route.open.all()


def test_the_resident_router_finds_the_slot_that_the_index_finds() -> None:
    wrapped = wrap_tiny("llama", "retrieve")
    seen: list[Tensor] = []
    handle = wrapped.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    route = route_of(wrapped, sum(BATCH, []))
    handle.remove()
    scores, slots, _ = nearest_keys(wrapped.state, seen[0][0])
    near = scores >= wrapped.wise_config.key_threshold
    assert torch.equal(route.slot, slots.where(near, NO_SLOT))
    assert len(set(route.slot.tolist()) - {NO_SLOT}) > 1 and not near.all()
    thresholds = torch.tensor([slot.threshold for slot in wrapped.state.slots])
    assert torch.equal(route.threshold, thresholds[route.slot].where(near, float("inf")))


def test_a_slot_says_itself_what_the_served_memory_adds() -> None:
    for mode in ("merge", "retrieve"):
        wrapped = wrap_tiny("llama", mode)
        memory = wrapped.layer.memory
        assert memory is not None
        activation = random(20, wrapped.target_module.in_features)
        route = memory.route(activation)
        for slot in wrapped.state.slots:
            mine = route.slot == slot.id
            torch.testing.assert_close(route.delta[mine], slot.delta(activation[mine]))


def test_a_memory_without_edits_is_none_and_the_served_one_is_frozen() -> None:
    assert assemble(MemoryState(), WiseConfig(), inputs=None, device=torch.device("cpu"), dtype=torch.float32) is None
    memory = wrap_tiny("llama").layer.memory
    assert memory is not None
    assert not list(memory.parameters()) and not memory.state_dict()
    tensors = [t for part in memory.children() for t in vars(part).values() if isinstance(t, Tensor)]
    assert len(tensors) == 6 and not any(t.requires_grad for t in tensors)


def test_what_was_verified_is_served_as_it_is_and_made_anew_where_the_model_changed() -> None:
    wrapped = wrap_tiny("llama")
    with wrapped.serving(wrapped.state):
        verified = wrapped.layer.memory
    put(wrapped, wrapped.state)
    assert wrapped.layer.memory is verified
    wrapped.model.to(torch.bfloat16)
    put(wrapped, wrapped.state)
    memory = wrapped.layer.memory
    assert memory is not None and memory is not verified and memory.bank.weights.dtype == torch.bfloat16


def test_a_memory_that_another_thread_takes_away_meanwhile_is_used_to_the_end() -> None:
    class Swapped(SideMemoryLayer):
        """Another thread takes its memory away whenever it was looked at."""

        def __getattr__(self, name: str) -> Any:
            found = super().__getattr__(name)
            if name == "memory":
                self._modules["memory"] = None
            return found

    base, activation = nn.Linear(F, D), random(6, F, seed=4)
    whole, swapped = SideMemoryLayer(base), Swapped(base)
    whole.memory = swapped.memory = merged(0.0)
    expected = whole(activation)
    assert not torch.equal(expected, base(activation))
    assert torch.equal(swapped(activation), expected) and torch.equal(swapped(activation), base(activation))
