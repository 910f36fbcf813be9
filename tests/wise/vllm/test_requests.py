"""The contents of a request, the sharing of its cache, and refusals before an engine is made."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from chats import EDITS, TEMPLATE, TURNS
from fake_vllm import installed
from followed import answer_router, answer_state
from tiny import EOS

import wise
from wise.memory.state import MemoryState
from wise.router.chat_template import conversation_ids
from wise.vllm.addition import check_options, check_version
from wise.vllm.requests import CarriedEdits, attach, carried_edits, check_probe, engine_options

STATE = answer_state()
ASKED, OTHER = (conversation_ids(answer_router(STATE).inputs.tokenizer, turns) for turns in (TURNS, TURNS[:1]))


def carry(
    ids: list[int], state: MemoryState, version: int, namespace: str = "default", template: str | None = TEMPLATE
) -> CarriedEdits:
    router = answer_router(state, template)
    return carried_edits(ids, router, state, version=version, namespace=namespace, stops={EOS})


def test_a_chat_shares_its_cache_as_far_as_the_same_is_added() -> None:
    nothing = carry(OTHER, STATE, 1)
    assert (nothing.extra_args, nothing.cache_salt) == (None, None) and "cache_salt" not in nothing.prompt(OTHER)
    first, second = carry(ASKED, STATE.without([EDITS[1].id]), 1), carry(ASKED, STATE, 2)
    assert first.cache_salt == second.cache_salt and first.prompt(ASKED)["cache_salt"] == first.cache_salt is not None
    assert first.extra_args is not None and first.extra_args["wise"]["version"] == 1
    assert carry(ASKED, STATE.without([EDITS[0].id]), 3).cache_salt is None


def test_plain_text_shares_its_cache_within_a_version() -> None:
    keys = ((1, "a"), (1, "a"), (2, "a"), (1, "b"))
    salts = [carry([33, 34], STATE, version, namespace, None).cache_salt for version, namespace in keys]
    assert salts[0] == salts[1] is not None and len({*salts}) == 3
    router = answer_router(STATE)  # a chat without an end is another text under the same version
    chat = carried_edits(OTHER, router, STATE, version=1, namespace="a", stops=())
    assert chat.cache_salt is not None and chat.cache_salt not in salts


def test_options_of_an_engine() -> None:
    config, path = wise.WiseConfig(), "model.layers.1.mlp.down_proj"
    options = engine_options(config, path, user_options={"dtype": "float32", "additional_config": {"other": 1}})
    assert options["additional_config"]["wise"]["layer"] == path and options["additional_config"]["other"] == 1
    assert options["dtype"] == "float32" and options["worker_extension_cls"] == "wise.vllm.worker.WiseWorker"
    with pytest.raises(wise.ConfigError, match="worker_extension_cls='mine.Worker'"):
        engine_options(config, path, user_options={"worker_extension_cls": "mine.Worker"})
    for mode in ("merge", "retrieve"):
        with pytest.raises(wise.ConfigError, match=f"mode='{mode}'.*token ids"):
            engine_options(wise.WiseConfig(mode=mode), path)


def test_the_self_test_wants_an_effect() -> None:
    before = {1: -0.5, 2: -1.5}
    check_probe(before, {1: -0.9, 2: -1.5})
    check_probe(before, {7: -0.5, 8: -1.5})
    for after in (dict(before), {1: -0.5001, 2: -1.5}):
        with pytest.raises(wise.ConfigError, match="no effect"):
            check_probe(before, after)
    with pytest.raises(wise.ConfigError, match="no effect"):
        check_probe({}, {})


@pytest.mark.parametrize(("engines", "ranks"), [(1, [None] * 2), (2, [0, 0, 1, 1])])
def test_every_engine_is_tested(monkeypatch: pytest.MonkeyPatch, engines: int, ranks: list[int | None]) -> None:
    llm = installed(monkeypatch)
    llm.vllm_config.parallel_config.data_parallel_size = engines
    asyncio.run(attach(llm))
    assert llm.ranks == ranks


def test_a_release_that_was_not_tested_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_version("0.32.0"), check_version("0.32.7"), check_version("0.32.0.post1")
    for release in ("0.31.2", "0.33.0", "1.0.0"):
        with pytest.raises(wise.ConfigError, match="WISE_VLLM_ANY_VERSION"):
            check_version(release)
    monkeypatch.setenv("WISE_VLLM_ANY_VERSION", "1")
    check_version("0.33.0")


def config(**changes: Any) -> Any:
    """The checked parts of vLLM's configuration."""
    options: dict[str, Any] = {"pipeline": 1, "prefill": 1, "quantization": None, "speculative": None}
    options |= dict.fromkeys(("fronts", "elastic", "batches", "sharing", "embeds", "asynchronous"), False) | changes
    return SimpleNamespace(
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=options["pipeline"],
            prefill_context_parallel_size=options["prefill"],
            local_engines_only=options["fronts"],
            enable_elastic_ep=options["elastic"],
            use_ubatching=options["batches"],
        ),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=options["sharing"]),
        model_config=SimpleNamespace(enable_prompt_embeds=options["embeds"], quantization=options["quantization"]),
        speculative_config=options["speculative"],
        scheduler_config=SimpleNamespace(async_scheduling=options["asynchronous"]),
    )


DRAFTS, ADAPTIVE = (SimpleNamespace(enable_adaptive_verification=adaptive) for adaptive in (False, True))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pipeline": 2}, "pipeline_parallel_size=2"),
        ({"prefill": 2}, "prefill_context_parallel_size=2"),
        ({"fronts": True}, "replicas"),
        ({"elastic": True}, "enable_elastic_ep"),
        ({"batches": True}, "dual batch"),
        ({"sharing": True}, "kv_sharing_fast_prefill"),
        ({"embeds": True}, "token ids"),
        ({"quantization": "awq"}, "quantization='awq'"),
        ({"speculative": DRAFTS, "asynchronous": True}, "async_scheduling=False"),
        ({"speculative": ADAPTIVE}, "enable_adaptive_verification"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    check_options(config())
    check_options(config(asynchronous=True))
    check_options(config(speculative=DRAFTS))
    with pytest.raises(wise.ConfigError, match=reason):
        check_options(config(**changes))
