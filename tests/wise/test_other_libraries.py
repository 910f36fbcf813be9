"""The ways in which other libraries meet a wrapped model: peft, trainers, pipelines, pickle."""

from __future__ import annotations

import copy
import importlib.util
import io
import multiprocessing
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BATCH, generated, padded, put, reading, same_tensors, text, tiny_model, tiny_tokenizer, wrap_tiny
from torch import Tensor
from transformers import AutoModelForCausalLM

import wise
import wise.explain
import wise.model
from wise.memory.layer import SideMemoryLayer
from wise.memory.state import MemoryState
from wise.router.encoder import load_encoder

pytestmark = [  # what these libraries still call in one another
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
modes = pytest.mark.parametrize("mode", ["merge", "retrieve", "hybrid"])


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install {package}")


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(**padded(BATCH), use_cache=False).logits  # type: ignore[no-any-return]


# -- peft -------------------------------------------------------------------------------------


def lora(**settings: Any) -> Any:
    """An adapter that changes the model, as a trained one does."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **{"target_modules": ["q_proj"], **settings})


@pytest.fixture
def tuned() -> Any:
    """A tiny model with two adapters, on the edited layer too, of which the first is in effect."""
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), lora(target_modules=["q_proj", "down_proj"]), adapter_name="one")
    model.add_adapter("two", lora(target_modules=["q_proj", "v_proj"]))
    return model.eval()


def adapter_layers(model: Any) -> int:
    return sum(hasattr(module, "merged_adapters") for module in model.modules())


@needs("peft")
@modes
def test_a_peft_model_is_wrapped_and_its_adapters_are_still_switched(tuned: Any, mode: str) -> None:
    one = logits(tuned)
    with tuned.disable_adapter():
        bare = logits(tuned)
    modules = list(tuned.named_modules())
    wrapped = wrap_tiny(tuned, mode)
    assert not torch.equal(logits(wrapped), one) and torch.equal(logits(wrapped), logits(tuned))
    with wrapped.disabled():
        assert torch.equal(logits(tuned), one) and generated(wrapped, BATCH) == generated(tuned, BATCH)
        with wrapped.disable_adapter():
            assert torch.equal(logits(wrapped), bare)
        wrapped.set_adapter("two")
        assert not torch.equal(logits(wrapped), one)
        wrapped.set_adapter("one")
        assert torch.equal(logits(wrapped), one)
    assert wrapped.unwrap() is tuned
    assert [(n, id(m)) for n, m in modules] == [(n, id(m)) for n, m in tuned.named_modules()]


@needs("peft")
def test_an_adapter_is_merged_and_taken_off_below_the_side_memory(tuned: Any) -> None:
    before = logits(tuned)
    wrapped = wrap_tiny(tuned)
    edited, state = logits(wrapped), wrapped.state
    merged = wrapped.merge_and_unload()
    assert merged is wrapped.model and wrapped.is_wrapped and not adapter_layers(merged)
    torch.testing.assert_close(logits(wrapped), edited, atol=1e-4, rtol=1e-4)
    assert wrapped.state is state and not torch.allclose(logits(wrapped), before)
    wrapped.unwrap()
    torch.testing.assert_close(logits(merged), before, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, SideMemoryLayer) for module in merged.modules())


@needs("peft")
@pytest.mark.parametrize("targets", [["q_proj"], "all-linear"])
def test_an_adapter_put_on_a_wrapped_model_is_saved_merged_and_taken_off(targets: Any, tmp_path: Path) -> None:
    from peft import PeftModel, get_peft_model, get_peft_model_state_dict

    torch.manual_seed(0)
    wrapped = wrap_tiny("llama")
    plain, (inputs, outputs) = logits(wrapped), (wrapped.target_module.in_features, wrapped.target_module.out_features)
    tuned = get_peft_model(wrapped.model, lora(target_modules=targets)).eval()
    with_adapter = logits(tuned)
    assert not torch.allclose(with_adapter, plain)
    tuned.save_pretrained(tmp_path)
    saved = get_peft_model_state_dict(tuned)
    assert len(saved) == 2 * adapter_layers(tuned), "a tensor of the adapter is not saved"
    assert (targets == "all-linear") == any(t.shape == (4, inputs) for n, t in saved.items() if "layers.2.mlp" in n)
    again = PeftModel.from_pretrained(wrap_tiny("llama").model, tmp_path).eval()
    assert torch.equal(logits(again), with_adapter) and outputs
    merged = tuned.merge_and_unload()
    assert merged is wrapped.model and wrapped.is_wrapped and not adapter_layers(merged)
    torch.testing.assert_close(logits(wrapped), with_adapter, atol=1e-4, rtol=1e-4)


@needs("peft")
def test_an_adapter_for_the_edited_layer_itself_is_refused_once_it_is_wrapped() -> None:
    from peft import get_peft_model

    wrapped = wrap_tiny("llama")
    with pytest.raises(ValueError, match="the side memory of wise: put adapters for this module on before wise.wrap"):
        get_peft_model(wrapped.model, lora(target_modules=["down_proj"]))


@needs("peft")
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_virtual_tokens_are_refused_and_other_adapters_are_not(kind: str) -> None:
    import peft

    model = peft.get_peft_model(tiny_model("llama"), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    modules = list(model.named_modules())
    with pytest.raises(wise.UnsupportedModelError, match="puts embeddings before each prompt"):
        wrap_tiny(model)
    assert modules == list(model.named_modules())
    scaling = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    assert wrap_tiny(peft.get_peft_model(tiny_model("llama"), scaling)).is_wrapped


@needs("peft")
def test_the_parts_of_an_adapter_are_no_candidates(tuned: Any) -> None:
    config = wise.WiseConfig(target_module="base_model.model.model.layers.{i}.mlp.down_proj")
    candidates = r"candidates: model.layers.\{i\}.mlp.down_proj, model.layers.\{i\}.mlp$"
    with pytest.raises(wise.UnsupportedModelError, match=candidates):
        wise.wrap(tuned, tiny_tokenizer(), config)


@pytest.mark.parametrize("thing", [None, 3, {"a": 1}, torch.nn.Linear(2, 2), tiny_tokenizer()])
def test_what_is_no_model_is_refused(thing: Any) -> None:
    with pytest.raises(wise.UnsupportedModelError, match=f"given a {type(thing).__name__}: expected a causal LM"):
        wise.wrap(thing, tiny_tokenizer())


# -- another base than the one that was edited --------------------------------------------------


@pytest.fixture(params=["retrieve", "hybrid"])
def edited(request: pytest.FixtureRequest, tmp_path: Path) -> wise.WiseModel:
    """A tiny model with a memory that was checked against it."""
    by_hand = wrap_tiny("llama", request.param)
    by_hand.save_pretrained(tmp_path / "memory")
    base = by_hand.unwrap()
    return wise.WiseModel.from_pretrained(tmp_path / "memory", base, by_hand.tokenizer, **reading(request.param))


def about_edits(heard: list[warnings.WarningMessage]) -> list[str]:
    return [str(one.message) for one in heard if "live edits" in str(one.message)]


EDIT = wise.Edit(prompt="w30 w31", target="w32", subject="w30")


def refusal(model: wise.WiseModel) -> str:
    """Why nothing is edited; empty where something is."""
    before = model.state
    try:
        model.edit(EDIT)
    except wise.EditError as error:
        assert model.state is before
        return str(error)
    return ""


@needs("peft")
def test_an_adapter_that_is_put_on_after_editing_is_warned_about_once_and_stops_edits(edited: wise.WiseModel) -> None:
    from peft import get_peft_model

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        logits(edited)
        assert not about_edits(heard)
        tuned = get_peft_model(edited.model, lora()).eval()
        for _ in range(3):
            logits(tuned)
        generated(tuned, BATCH)
        with tuned.disable_adapter():  # the base that was edited
            logits(tuned)
    (warning,) = about_edits(heard)
    assert "the live edits were verified with no adapter in effect, and now default is" in warning
    assert "edits = model.edits; model.reset(); model.edit(edits)" in warning
    assert warning.partition(":")[0] in refusal(edited)
    with tuned.disable_adapter():
        assert not refusal(edited)


@needs("peft")
def test_another_adapter_than_the_one_that_was_edited_is_warned_about(tuned: Any, tmp_path: Path) -> None:
    by_hand = wrap_tiny(tuned)
    by_hand.save_pretrained(tmp_path / "memory")
    by_hand.unwrap()
    tuned.set_adapter("two")
    with pytest.raises(wise.ArtifactError, match="adapters: expected 'one', found 'two'"):
        wise.WiseModel.from_pretrained(tmp_path / "memory", tuned, tiny_tokenizer())
    tuned.set_adapter("one")
    wrapped = wise.WiseModel.from_pretrained(tmp_path / "memory", tuned, tiny_tokenizer())
    tuned.set_adapter("two")
    with pytest.warns(UserWarning, match="verified with one in effect, and now two is"):
        logits(tuned)
    tuned.set_adapter("one")
    logits(tuned)  # nothing is left to warn about
    wrapped.merge_and_unload()
    with pytest.warns(UserWarning, match="verified with one in effect, and now no adapter is"):
        logits(wrapped)


def trained(model: Any) -> None:
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.01)
    model(torch.tensor(BATCH[:1]), labels=torch.tensor(BATCH[:1])).loss.backward()
    optimizer.step()


def test_a_base_that_is_trained_under_live_edits_is_warned_about(edited: wise.WiseModel) -> None:
    trained(edited)
    with pytest.warns(UserWarning, match="the weights of the base were changed, as training does"):
        logits(edited.model)
    trained(edited)  # once
    assert "weights of the base were changed" in refusal(edited)
    with pytest.raises(wise.EditError, match="weights of the base were changed"):
        edited.replace(wise.Edit(id="e0", prompt="w4", target="w5"))
    if edited.wise_config.mode == "hybrid":
        edited.delete("e0")  # which needs no base
    edited.reset()
    logits(edited)
    edited.edit(EDIT)
    trained(wrap_tiny("llama", mode=None))  # nothing is edited, so nothing is lost


def test_moving_casting_and_freezing_a_base_are_no_training(edited: wise.WiseModel) -> None:
    edited.requires_grad_(False)
    edited.to(torch.float64)
    edited.to(torch.float32)
    edited.train()
    edited.eval()
    logits(edited)
    assert not refusal(edited)


def test_a_snapshot_knows_its_base(edited: wise.WiseModel) -> None:
    before = edited.snapshot()
    edited.reset()
    trained(edited)
    edited.edit(EDIT)
    logits(edited)
    edited.rollback(before)
    with pytest.warns(UserWarning, match="weights of the base were changed"):
        logits(edited)


# -- trainers ---------------------------------------------------------------------------------


def texts() -> list[dict[str, Any]]:
    rows = [row[:3] for row in BATCH]
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * 3, "note": "not for the model"} for row in rows]


def base_of(folder: Path, wrapped: wise.WiseModel) -> Any:
    """The base in a checkpoint; all its weights are there."""
    wrapped.config.save_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@modes
@pytest.mark.parametrize("inner", [False, True])
def test_the_trainer_of_transformers_trains_evaluates_saves_and_resumes(mode: str, inner: bool, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    def trainer(steps: int) -> tuple[wise.WiseModel, Any]:
        torch.manual_seed(0)
        wrapped = wrap_tiny("llama", mode)
        settings = {"max_steps": steps, "save_steps": 1, "learning_rate": 0.01, "report_to": [], "use_cpu": True}
        arguments = TrainingArguments(str(tmp_path), disable_tqdm=True, **settings)
        model = wrapped.model if inner else wrapped
        return wrapped, Trainer(model=model, args=arguments, train_dataset=texts(), eval_dataset=texts())

    wrapped, first = trainer(2)
    before = first.evaluate()["eval_loss"]
    first.train()
    assert first.evaluate()["eval_loss"] < before
    first.save_model(tmp_path / "saved")
    saved = base_of(tmp_path / "saved", wrapped)
    with wrapped.disabled() as base:
        assert torch.equal(logits(base.eval()), logits(saved))
    assert not torch.equal(logits(wrapped), logits(saved)), "the memory changes nothing"
    again, second = trainer(2)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same_tensors(again.model, wrapped.model)


@needs("trl")
@pytest.mark.parametrize("inner", [False, True])
def test_trls_trainer_trains_a_wrapped_model_and_saves_its_base(inner: bool, tmp_path: Path) -> None:
    import datasets
    from trl import SFTConfig, SFTTrainer

    wrapped = wrap_tiny("llama", "hybrid")
    data = datasets.Dataset.from_dict({"text": [text(row) for row in BATCH]})
    settings = {"max_steps": 1, "report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    trainer = SFTTrainer(
        model=wrapped.model if inner else wrapped,
        processing_class=tiny_tokenizer(),
        args=SFTConfig(str(tmp_path), disable_tqdm=True, **settings),
        train_dataset=data,
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    saved = base_of(tmp_path / "saved", wrapped)
    with wrapped.disabled() as base:
        torch.testing.assert_close(logits(base.eval()), logits(saved))
    assert not torch.allclose(logits(saved), logits(tiny_model("llama"))), "nothing was trained"


@modes
def test_the_state_dict_of_a_wrapped_model_is_that_of_its_base(mode: str) -> None:
    wrapped, other = wrap_tiny("llama", mode), tiny_model("llama", seed=1)
    assert same_tensors(dict(wrapped.state_dict()), dict(tiny_model("llama").state_dict()))
    wrapped.load_state_dict(other.state_dict())
    assert same_tensors(wrapped.model, other)
    missing = dict(other.state_dict())
    del missing["lm_head.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        wrapped.load_state_dict(missing)


# -- pipelines and the harness ------------------------------------------------------------------


@needs("lm_eval")
def test_the_harness_takes_the_wrapper_as_it_takes_the_model_in_it() -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    wrapped = wrap_tiny("llama", "hybrid")

    def answers(model: Any) -> Any:
        harness = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=2)
        likely = [Instance("loglikelihood", {}, (text(row[:2]), f" {text(row[2:])}"), 0) for row in BATCH]
        until = [Instance("generate_until", {}, (text(row), {"until": ["w9"], "max_gen_toks": 4}), 0) for row in BATCH]
        return harness.loglikelihood(likely), harness.generate_until(until)

    edited = answers(wrapped)
    assert edited == answers(wrapped.model)
    with wrapped.disabled() as base:
        assert edited != answers(base)


# -- copies and other processes -----------------------------------------------------------------


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def said_elsewhere(wrapped: wise.WiseModel, results: Any) -> None:
    torch.set_num_threads(1)
    results.put((generated(wrapped, BATCH), generated(wrapped.model, BATCH), refusal(wrapped)))


def saved_and_loaded(wrapped: wise.WiseModel) -> wise.WiseModel:
    stream = io.BytesIO()
    torch.save(wrapped, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded])
@modes
def test_a_copy_is_a_wrapped_model_of_its_own(mode: str, copied: Any) -> None:
    wrapped = wrap_tiny("llama", mode)
    said = generated(wrapped, BATCH)
    wrapped.snapshot()
    twin = copied(wrapped)
    assert generated(twin, BATCH) == said and torch.equal(logits(twin), logits(wrapped))
    assert twin.edits == wrapped.edits and twin.layer is not wrapped.layer
    if mode == "hybrid":
        twin.edit(EDIT)
        twin.delete("e0")
    twin.reset()
    assert generated(wrapped, BATCH) == said != generated(twin, BATCH)
    base: Any = twin.unwrap()
    assert not any(isinstance(module, SideMemoryLayer) for module in base.modules())
    assert hooks(base) == hooks(wrapped.model) - (3 if mode == "hybrid" else 1)
    assert wrapped.is_wrapped and generated(wrapped, BATCH) == said


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@modes
def test_a_copy_of_the_model_inside_says_the_same(mode: str, copied: Any) -> None:
    wrapped = wrap_tiny("llama", mode)
    assert torch.equal(logits(copied(wrapped.model)), logits(wrapped))


def test_a_reader_is_pickled_without_what_it_has_read() -> None:
    reader = load_encoder()
    vectors = reader.read(["What does Ada Lovelace drink in secret?"])
    data = pickle.dumps(reader)
    assert b"Lovelace" not in data and b"Lovelace" in pickle.dumps(list(reader._vectors))
    # Not bit for bit: the last bits of a product depend on where in memory a tensor begins.
    torch.testing.assert_close(pickle.loads(data).read(["What does Ada Lovelace drink in secret?"]), vectors)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["retrieve", "hybrid"])
def test_a_spawned_process_gets_a_wrapped_model(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    worker = context.Process(target=said_elsewhere, args=(wrapped, results))
    worker.start()
    said, inside, refused = results.get(timeout=120)
    worker.join()
    assert said == inside == generated(wrapped, BATCH) and not refused
    with wrapped.disabled() as base:
        assert said != generated(base, BATCH)


# -- errors -----------------------------------------------------------------------------------


def test_an_error_inside_a_property_is_the_one_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = wrap_tiny("llama", "hybrid")
    monkeypatch.setattr(wise.model, "learn_encoder", lambda *_: None.nothing)  # type: ignore[attr-defined]
    for name in ("encoder", "trainer"):
        with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'nothing'"):
            getattr(wrapped, name)
    with pytest.raises(AttributeError, match="neither WiseModel nor the LlamaForCausalLM in it has .* 'trane'"):
        _ = wrapped.trane
    assert not hasattr(wrapped, "trane") and getattr(wrapped, "trane", 3) == 3
    with pytest.raises(AttributeError, match="'_outer'"):
        _ = wise.WiseModel.__new__(wise.WiseModel).config


def test_routes_are_told_of_one_memory_with_its_own_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may swap the memory while a text is read."""
    wrapped, asked = wrap_tiny("llama"), torch.tensor([[5, 6, 7, 8, 9]])

    def routes() -> Any:
        return wrapped.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=4, return_routes=True)[1]

    [expected] = routes()
    assert any(route.fired or route.missed for route in expected.tokens)
    read = wise.explain.read_rows

    def swapped(*arguments: Any) -> Tensor:
        activation = read(*arguments)
        put(wrapped, MemoryState())
        return activation

    monkeypatch.setattr(wise.explain, "read_rows", swapped)
    assert routes() == (expected,)
    assert not wrapped.edits
