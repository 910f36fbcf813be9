"""A memory comes back from disk as it was, whole or not at all, and nothing else is taken for one."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import pytest
import torch
from safetensors.torch import load_file, save_file
from stores import reseal
from tiny import BATCH, generated, reading, same_state, same_tensors, tiny_model, tiny_tokenizer, wrap_tiny

import wise
from wise.errors import ArtifactError
from wise.memory.artifact import FILES, WRITTEN, load_memory, save_memory
from wise.memory.fingerprint import fingerprint
from wise.memory.layer import SideMemoryLayer
from wise.memory.state import MemoryState

CONFIG, EDITS, TENSORS = FILES
all_modes = pytest.mark.parametrize("mode", ["merge", "retrieve", "hybrid"])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def save(wrapped: wise.WiseModel, folder: Path, state: MemoryState | None = None) -> Path:
    base = fingerprint(wrapped.model, wrapped.target_module)
    save_memory(folder, config=wrapped.wise_config, state=state or wrapped.state, base=base)
    return folder


@pytest.fixture(scope="module")
def wrapped() -> wise.WiseModel:
    return wrap_tiny("llama")


@pytest.fixture
def saved(wrapped: wise.WiseModel, tmp_path: Path) -> Path:
    return save(wrapped, tmp_path / "memory")


# -- there and back ---------------------------------------------------------------------------


@all_modes
def test_comes_back_to_the_last_bit_and_says_the_same(mode: str, tmp_path: Path) -> None:
    wrapped = wrap_tiny("llama", mode)
    wrapped.save_pretrained(tmp_path / "memory")
    assert sorted(contents(tmp_path / "memory")) == sorted(WRITTEN)
    again = wise.WiseModel.from_pretrained(
        tmp_path / "memory", tiny_model("llama"), tiny_tokenizer(), **reading(mode)
    )
    assert again.wise_config == wrapped.wise_config
    assert same_state(again.state, wrapped.state)
    assert generated(again, BATCH) == generated(wrapped, BATCH)
    with wrapped.disabled() as base:
        assert generated(again, BATCH) != generated(base, BATCH), "the memory changes nothing"
    assert same_tensors(again.unwrap(), tiny_model("llama"))


def test_bits_that_decimal_digits_or_rounding_would_lose_come_back(
    wrapped: wise.WiseModel, tmp_path: Path
) -> None:
    odd = replace(wrapped.state.slots[0], scores=(0.1 + 0.2,))
    weight = odd.weight.clone()  # type: ignore[attr-defined]
    weight[odd.masks.any(0)] = torch.finfo(torch.float32).tiny / 3  # type: ignore[attr-defined]
    slots = (replace(odd, weight=weight), *wrapped.state.slots[1:])  # type: ignore[call-arg]
    state = replace(wrapped.state, slots=slots)
    _, again, _ = load_memory(save(wrapped, tmp_path / "memory", state))
    assert again.slots[0].scores[0] == 0.1 + 0.2 != 0.3
    assert same_state(again, state) and not same_state(again, wrapped.state)


def test_no_edits_at_all_and_slots_whose_edits_were_dropped(wrapped: wise.WiseModel, tmp_path: Path) -> None:
    left = wrapped.state.without(["e1"])
    empty = replace(wrapped.state.slots[1].without(["e1"]), id=2)
    older = replace(left, slots=(*left.slots, empty))
    for name, state in (("none", MemoryState()), ("dropped", left), ("older", older)):
        _, again, _ = load_memory(save(wrapped, tmp_path / name, state))
        assert same_state(again, state)
    assert [slot.edit_ids for slot in again.slots] == [("e0",), ("e2",), ()] and again.edit_ids == ("e0", "e2")


def test_every_field_of_an_edit_comes_back_and_the_edits_are_an_edit_file(
    wrapped: wise.WiseModel, tmp_path: Path
) -> None:
    edit = wise.Edit(
        id="e0",
        prompt="Ünïcode\u2028 \r\n\t“Paris” is in",
        target="東京",
        subject="Paris",
        paraphrases=("Where is Paris?",),
        locality=("Rome is in",),
        author="someone",
        time="2025-01-31T12:00:00+00:00",
        namespace="geography",
    )
    state = replace(wrapped.state, edits=(wrapped.state.edits[2], edit, wrapped.state.edits[1]))
    folder = save(wrapped, tmp_path / "memory", state)
    assert load_memory(folder)[1].edits == state.edits
    assert tuple(wise.read_edits(folder / EDITS)) == state.edits


def test_the_same_memory_makes_the_same_bytes(wrapped: wise.WiseModel, tmp_path: Path) -> None:
    first = contents(save(wrapped, tmp_path / "first"))
    assert contents(save(wrap_tiny("llama"), tmp_path / "second")) == first
    config, state, base = load_memory(tmp_path / "first")
    save_memory(tmp_path / "first", config=config, state=state, base=base)
    assert contents(tmp_path / "first") == first
    assert contents(save(wrapped, tmp_path / "third", state.without(["e2"]))) != first


def test_nothing_is_unpickled_and_no_index_deserialised(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("called")

    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
        (faiss, "read_index"),
        (faiss, "deserialize_index"),
    ):
        monkeypatch.setattr(module, name, never)
    load_memory(saved)
    (saved / TENSORS).write_bytes(pickle.dumps({"slot.0.values": 1}))
    reseal(saved)
    with pytest.raises(ArtifactError, match=f"{TENSORS}: is not a safetensors file"):
        load_memory(saved)


def test_files_that_are_not_ours_are_ignored(saved: Path) -> None:
    (saved / "README.md").write_text("a card")
    (saved / ".cache").mkdir()
    load_memory(saved)


# -- what is refused --------------------------------------------------------------------------


def test_no_bit_can_flip_unseen(saved: Path) -> None:
    """A flip is refused or, in the JSON, says the same in other letters (`1e-05` and `1E-05`)."""
    whole, order = contents(saved), random.Random(0)
    _, state, _ = load_memory(saved)
    refused = 0
    for name in FILES:
        for _ in range(150):
            damaged = bytearray(whole[name])
            damaged[order.randrange(len(damaged))] ^= 1 << order.randrange(8)
            (saved / name).write_bytes(damaged)
            try:
                assert same_state(load_memory(saved)[1], state)
            except ArtifactError as error:
                assert name in str(error) and str(saved) in str(error)
                refused += 1
        (saved / name).write_bytes(whole[name])
    assert refused > 440
    load_memory(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_off_anywhere_lengthened_or_missing_is_refused(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for size in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        (saved / name).write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=f"{name}: (has|is truncated|does not say)"):
            load_memory(saved)
    (saved / name).write_bytes(whole + b"x")
    with pytest.raises(ArtifactError, match=name):
        load_memory(saved)
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}(: is missing| \\(found: )"):
        load_memory(saved)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no wise_config.json \(found: nothing\); give the folder"),
        ({"notes.txt": "x"}, r"no wise_config.json \(found: notes.txt\)"),
        ({"adapter_config.json": "{}", "config.json": "{}"}, "holds a peft adapter"),
        ({"config.json": "{}", "model.safetensors": ""}, "holds a plain model .* AutoModelForCausalLM"),
        ({CONFIG: '{"wise": "wifi settings"}'}, f"{CONFIG}: does not say format .* another program"),
        ({CONFIG: "[]"}, f"{CONFIG}: does not say format"),
        ({CONFIG: "not JSON"}, f"{CONFIG}: is truncated or not JSON"),
        ({CONFIG: "[" * 100_000}, f"{CONFIG}: is truncated or not JSON"),
        (
            {CONFIG: '{"format": "wise-memory", "schema_version": 3, "wise_version": "9.0"}'},
            "schema_version=3, and this release reads 2; install the wise-runtime that wrote it .9.0.",
        ),
        (
            {CONFIG: '{"format": "wise-memory", "schema_version": 1, "wise_version": "0.0"}'},
            "schema_version=1, and this release reads 2; install the wise-runtime that wrote it .0.0.",
        ),
    ],
)
def test_what_is_no_memory_of_ours_is_told_apart(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError, match=message):
        load_memory(tmp_path)


def test_no_folder(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="is a file; give a folder"):
        load_memory(saved / CONFIG)
    with pytest.raises(ArtifactError, match="does not exist; give a folder"):
        load_memory(saved / "nowhere")


def test_resealing_alone_changes_nothing(saved: Path, wrapped: wise.WiseModel) -> None:
    reseal(saved, lambda m: None, lambda t: None)
    assert same_state(load_memory(saved)[1], wrapped.state)


COLUMNS = "the 3 slots do not fit together"
UNFIT = "slots .* do not fit the 3 edits and .'masked-dense'."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["config"].update(mode="merge"),
            "mode 'merge' has one slot, and there are 3: .* another mode",
        ),
        (lambda m: m["config"].update(mode="else"), f"{CONFIG}: mode='else': expected one of"),
        (lambda m: m["config"].update(schema_version=7), f"{CONFIG}: schema_version=7"),
        (
            lambda m: m["config"].update(mode="hybrid"),
            "slot 0 is of kind 'masked-dense', expected 'answer': it was made in another mode",
        ),
        (lambda m: m["base"].update(out_features=31), "slot 0 does not map 64 features to 31"),
        (lambda m: m["base"].pop("depth"), f"{CONFIG}: the fingerprint of the base is malformed"),
        (lambda m: m["files"].pop(EDITS), f"{CONFIG}: is malformed"),
        (lambda m: m.pop("kinds"), f"{CONFIG}: is malformed .KeyError.'kinds'"),
        (lambda m: m.update(kinds=3), f"{CONFIG}: is malformed"),
        (lambda m: m["kinds"].pop(), r"slots .* do not fit the 3 edits and \[\]"),
        (lambda m: m.update(kinds=["sparse"]), "slot kind 'sparse' is not known here"),
        (lambda m: m.update(kinds=["answer"]), COLUMNS),
        (lambda m: m["kinds"].append("answer"), "do not fit the 3 edits and .'masked-dense', 'answer'."),
    ],
)
def test_a_description_that_contradicts_the_rest_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    reseal(saved, change)
    with pytest.raises(ArtifactError, match=message):
        load_memory(saved)


def swap(
    name: str, make: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: make(tensors[name])})


def changed(name: str, place: int, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    """One number of a tensor is another."""
    return lambda tensors: tensors[name].flatten()[place].fill_(value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (swap("keys", lambda t: t / 0), "tensor keys: holds NaN or infinity"),
        (lambda t: t.update({"extra": torch.ones(1)}), "tensors that belong to nothing: extra"),
        (lambda t: t.pop("key_space.mean"), "key_space.mean is missing"),
        (lambda t: [t.pop(f"key_space.{n}") for n in ("mean", "projection")], "there is no key space"),
        (lambda t: [t.pop(n) for n in ("keys", "key_counts")], "there are keys for 0 edits"),
        (lambda t: t.pop("key_counts"), "keys without key_counts"),
        (swap("key_counts", lambda t: t + 1), "keys .* do not fit the 3 edits"),
        (swap("key_counts", lambda t: t[:2].clone()), "do not fit the 3 edits"),
        (swap("key_counts", lambda t: t.float()), "do not fit the 3 edits"),
        (
            swap("keys", lambda t: t[:, :7].clone()),
            r"keys of edit e0: torch.float32 \[2, 7\], expected .*\[2, 8\]",
        ),
        (swap("keys", lambda t: t.double()), "keys of edit e0: torch.float64"),
        (swap("key_space.mean", lambda t: t[:-1].clone()), r"'mean': 'torch.float32 \[63\]', .* make no space of keys"),
        (swap("key_space.projection", lambda t: t.half()), "'projection': 'torch.float16 .* make no space of keys"),
        (lambda t: t.update({"key_space.more": torch.ones(1)}), "'more': .* make no space of keys"),
        (changed("0/values", 5, float("nan")), "tensor 0/values: holds NaN or infinity"),
        (changed("slots.scores", 0, float("nan")), "tensor slots.scores: holds NaN or infinity"),
        (swap("0/values", lambda t: t[:-1].clone()), COLUMNS),
        (
            lambda t: t.update({"0/values": t["0/values"][:3].clone(), "0/values/rows": torch.ones(3).long()}),
            COLUMNS,
        ),
        (swap("0/values", lambda t: t.double()), COLUMNS),
        (swap("0/masks/rows", lambda t: t.flip(0) - torch.tensor([1, 0, -1])), COLUMNS),
        (lambda t: t.pop("0/masks"), COLUMNS),
        (lambda t: t.pop("0/shape/rows"), COLUMNS),
        (lambda t: t.update({"0/more": torch.ones(3)}), COLUMNS),
        (lambda t: t.update({"0/more": torch.ones(4)}), COLUMNS),
        (lambda t: t.update({"1/more": torch.ones(3)}), COLUMNS),
        (lambda t: t.update({"x/more": torch.ones(3)}), COLUMNS),
        (lambda t: t.pop("slots.held"), UNFIT),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("slots.")], UNFIT),
        (swap("slots.held", lambda t: t + 1), UNFIT),
        (swap("slots.held", lambda t: t + torch.tensor([-2, 0, 2])), UNFIT),
        (swap("slots.group", lambda t: t - 1), UNFIT),
        (swap("slots.group", lambda t: t + 1), UNFIT),
        (swap("slots.group", lambda t: t[:, None].clone()), UNFIT),
        (swap("slots.scores", lambda t: t.float()), UNFIT),
        (changed("slots.edits", 0, -1), UNFIT),
        (changed("slots.edits", 0, 3), UNFIT),
        (changed("slots.edits", 0, 1), "do not hold exactly the live edits: e0"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    saved: Path, tensors: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    reseal(saved, tensors=tensors)
    with pytest.raises(ArtifactError, match=message):
        load_memory(saved)


@pytest.fixture(scope="module")
def answers() -> wise.WiseModel:
    return wrap_tiny("llama", "hybrid")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (swap("keys", lambda t: t.float()), r"e0: torch.float32 \[2, 16\], expected torch.float16 \[2, 16\]"),
        (swap("keys", lambda t: t[:, :7].clone()), r"keys of edit e0: torch.float16 \[2, 7\], expected .*\[2, 16\]"),
        (swap("key_space.size", lambda t: t + 1), r"keys of edit e0: torch.float16 \[2, 16\], expected .*\[2, 17\]"),
        (swap("key_space.size", lambda t: t * 0), "make no space of keys"),
        (swap("key_space.thresholds", lambda t: t + 1), "make no space of keys"),
        (lambda t: t.pop("key_space.thresholds"), "key_space.thresholds is missing"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("key_space.")], "there is no key space"),
        (changed("0/values", 5, float("inf")), "tensor 0/values: holds NaN or infinity"),
        (swap("0/values", lambda t: t[:-1].clone()), COLUMNS),
        (swap("0/values", lambda t: t[:, :-1].clone()), "slot 0 does not map 64 features to 32"),
        (swap("0/values", lambda t: t.half()), COLUMNS),
        (swap("0/values", lambda t: t[:, 0].clone()), COLUMNS),
        (swap("0/ids", lambda t: t.int()), COLUMNS),
        (changed("0/ids", -1, -3), COLUMNS),
        (swap("0/ids/rows", lambda t: t + torch.tensor([1, -1, 0])), COLUMNS),
        (changed("0/counts", 3, 9), COLUMNS),
        (lambda t: t["0/counts"][2:4].add_(torch.tensor([-1, 1])), COLUMNS),
        (swap("0/counts/rows", lambda t: t + torch.tensor([1, -1, 0])), COLUMNS),
        (changed("0/features", 1, 65), "slot 1 does not map 64 features to 32"),
        (swap("0/features", lambda t: t.float()), COLUMNS),
        (swap("0/features", lambda t: t[:, None].clone()), COLUMNS),
        (lambda t: [t.pop("0/ids"), t.pop("0/ids/rows")], COLUMNS),
        (lambda t: t.update({"0/more": torch.ones(3)}), COLUMNS),
    ],
)
def test_tensors_of_answers_that_do_not_fit_are_refused(
    answers: wise.WiseModel, tmp_path: Path, tensors: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    folder = save(answers, tmp_path / "memory")
    reseal(folder, tensors=tensors)
    with pytest.raises(ArtifactError, match=message):
        load_memory(folder)


def test_a_space_of_another_mode_is_refused(answers: wise.WiseModel, wrapped: wise.WiseModel, tmp_path: Path) -> None:
    for one, other, said in (
        (answers, wrapped, "mode 'hybrid' and a key space of activations do not go together"),
        (wrapped, answers, "mode 'retrieve' and a key space of a relation reader do not go together"),
    ):
        with pytest.raises(ArtifactError, match=said):
            save(one, tmp_path / "memory", replace(one.state, key_space=other.state.key_space))


def test_an_answer_is_of_one_edit(answers: wise.WiseModel, tmp_path: Path) -> None:
    one, two, three = answers.state.slots
    both = replace(one, edit_ids=("e0", "e1"), scores=(0.5, 0.5))
    with pytest.raises(ArtifactError, match="slot 0 has 2 edits"):
        save(answers, tmp_path / "memory", replace(answers.state, slots=(both, replace(three, id=1))))
    empty = replace(two, id=3, edit_ids=(), scores=())
    with pytest.raises(ArtifactError, match="slot 3 has 0 edits"):
        save(answers, tmp_path / "memory", replace(answers.state, slots=(one, two, three, empty)))


@pytest.mark.parametrize(
    ("rewrite", "message"),
    [
        (lambda lines: lines[:2], "do not fit the 2 edits"),
        (lambda lines: [lines[0], *lines], "do not fit the 4 edits"),
        (lambda lines: [lines[0], lines[0], lines[2]], f"{EDITS}: .*'e0' is the id of edit 0 and of edit 1"),
        (lambda lines: [lines[0], "{}", lines[2]], f"{EDITS}, line 2: field 'prompt': missing"),
        (lambda lines: [*lines[:2], "{"], f"{EDITS}, line 3: "),
    ],
)
def test_edits_that_do_not_fit_are_refused(
    saved: Path, rewrite: Callable[[list[str]], list[str]], message: str
) -> None:
    lines = (saved / EDITS).read_text().splitlines()
    (saved / EDITS).write_text("\n".join(rewrite(lines)))
    reseal(saved)
    with pytest.raises(ArtifactError, match=message):
        load_memory(saved)


def test_a_safetensors_file_of_another_kind_is_refused(saved: Path) -> None:
    save_file(load_file(saved / TENSORS), saved / TENSORS, metadata={"format": "pt"})
    reseal(saved)
    with pytest.raises(ArtifactError, match="'pt', expected 'wise-memory'"):
        load_memory(saved)


# -- another base -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("llama", {"seed": 1}, "another base .weights"),
        ("llama", {"num_hidden_layers": 4}, "another base .*depth: expected 3, found 4"),
        ("llama", {"num_hidden_layers": 1}, "does not fit this model: layer=2: this model has 1 blocks"),
        ("gpt2", {}, "another base .model_type: expected 'llama', found 'gpt2'"),
        ("mamba", {}, "does not fit this model: block 2 .backbone.layers.2. of this mamba"),
    ],
)
def test_another_base_is_refused_and_left_as_it_was(
    tmp_path: Path, model_type: str, changes: dict[str, Any], message: str
) -> None:
    save(wrap_tiny("llama", layer=2), tmp_path / "memory")
    model = tiny_model(model_type, **changes)
    modules, before = list(model.modules()), {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ArtifactError, match=message):
        wise.WiseModel.from_pretrained(tmp_path / "memory", model, tiny_tokenizer())
    assert list(model.modules()) == modules and same_tensors(model, before)


def test_a_damaged_memory_leaves_the_model_as_it_was_and_a_wrapped_one_stays_wrapped(saved: Path) -> None:
    model = tiny_model("llama")
    modules = list(model.modules())
    whole = (saved / TENSORS).read_bytes()
    (saved / TENSORS).write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=f"{TENSORS}: has"):
        wise.WiseModel.from_pretrained(saved, model, tiny_tokenizer())
    assert list(model.modules()) == modules
    (saved / TENSORS).write_bytes(whole)
    wise.WiseModel.from_pretrained(saved, model, tiny_tokenizer())
    with pytest.raises(ArtifactError, match=r"wrapped already: call unwrap\(\)"):
        wise.WiseModel.from_pretrained(saved, model, tiny_tokenizer())
    assert sum(isinstance(module, SideMemoryLayer) for module in model.modules()) == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda s: replace(s, edits=s.edits[:2]), "do not hold exactly the live edits: e2"),
        (lambda s: replace(s, slots=(replace(s.slots[0], scores=()), *s.slots[1:])), "1 edits and scores"),
        (
            lambda s: replace(s, keys={i: keys * float("inf") for i, keys in s.keys.items()}),
            "tensor keys: holds NaN",
        ),
    ],
)
def test_a_memory_that_contradicts_itself_is_not_written(
    wrapped: wise.WiseModel, tmp_path: Path, broken: Callable[[MemoryState], MemoryState], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        save(wrapped, tmp_path / "memory", broken(wrapped.state))
    assert not list(tmp_path.iterdir())
