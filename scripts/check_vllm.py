"""Compares answers in vLLM with those of the library: texts, which edit was added at which token, two versions at once.

    python scripts/check_vllm.py --output docs/results/vllm.json
    python scripts/check_vllm.py --model FOLDER --encoder FOLDER --prompts 100 --only eager chunked
    python scripts/check_vllm.py --gpu --output vllm-gpu.json    # what only a GPU can show, in ten minutes

The library edits a model in two steps, and is asked all prompts under the base and under both versions. Then each
configuration of vLLM runs in a process of its own. It is asked the same, all versions in one batch, and must give the
same texts and report the same edits at the same tokens. What its workers have added is recorded and compared too, apart
from tokens that came from the prefix cache, which are not run again.

A configuration that did not do what it is there for (no preemption, no accepted draft, no cached token) fails too.

Needs the extra `vllm`. The figures go to `--output`, by configuration; those of configurations that were not run stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"enforce_eager": False},
    "chunked": {"max_num_batched_tokens": 16, "max_num_seqs": 8},
    "cached": {"enable_prefix_caching": True},
    "preempted": {"num_gpu_blocks_override": 12, "max_model_len": 256},
    "speculative": {
        "speculative_config": {
            "method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1,
        }
    },
    "lora": {"enable_lora": True, "max_lora_rank": 8},
    "tensor_parallel": {"distributed_executor_backend": "mp"},
}  # fmt: skip
"""Arguments of vLLM by which each configuration differs from the first; see also `arguments_of`."""
GPU: dict[str, dict[str, Any]] = {
    "gpu_eager": {},
    "gpu_graphs": {"enforce_eager": False, "compilation_config": {"cudagraph_mode": "FULL_AND_PIECEWISE"}},
    "gpu_pieces": {"enforce_eager": False, "compilation_config": {"cudagraph_mode": "PIECEWISE"}},
    "gpu_async": {"enforce_eager": False, "async_scheduling": True},
    "gpu_bf16": {"enforce_eager": False, "dtype": "bfloat16"},
}
"""The same on a GPU, where vLLM takes its second model runner. In bf16 kernels round, so some texts may
differ: it then ends with 1, and says how many."""
COMMON = {
    "dtype": "float32", "max_num_seqs": 32, "max_num_batched_tokens": 512, "block_size": 32, "seed": 0,
    "enable_prefix_caching": False,
}  # fmt: skip
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
ALL = CONFIGURATIONS | GPU
TOKENS = 16
"""Of the longest answer that is compared."""
GROWN = 48
"""Tokens that each sequence gets where memory is to run out, past the end of its answer."""
COUNTERS = {
    "preemptions": "vllm:num_preemptions",
    "drafts_accepted": "vllm:spec_decode_num_accepted_tokens",
    "cached_tokens": "vllm:prefix_cache_hits",
}
COUNTED = {"preempted": "preemptions", "speculative": "drafts_accepted", "cached": "cached_tokens"}
"""What must not be 0 in a configuration."""
PREFACE = "The weather was fine, and people walked along the river. They talked about bread, boats and paper. " * 2
"""More tokens than a block of the cache."""
MOST_SHOWN = 3
VERSIONS = ("base", "first", "second")


def asked(records: Sequence[Any]) -> list[str]:
    """The texts of records: in turn by themselves, behind a preface that all share, which caches keep, and behind what
    the record's edit says, whose words can be drafted."""
    texts = [(r.edit, text) for r in records for text in (r.edit.prompt, *r.paraphrases, *r.neighbours)]
    kinds = [("", PREFACE, f"{edit.prompt} {edit.target}. ") for edit, _ in texts]
    return [kinds[place][(place + place // 9) % 3] + text for place, (_, text) in enumerate(texts)]


def prepare(folder: Path, model: str | None, encoder: str | None, edits: int, prompts: int) -> None:
    """Writes two versions of a memory, and what the library answers under each, into a folder."""
    import wise
    from wise.demo import model_path
    from wise.demo.records import demo_records

    path = model or str(model_path())
    wrapped = wise.wrap(*load(path), wise.WiseConfig(encoder=encoder))
    records = demo_records(max(edits, prompts // 9 + 1), seed=0)
    texts = asked(records)[:prompts]
    answers = {"base": wrapped.ask(texts, max_new_tokens=TOKENS)}
    for version, start, stop in (("first", 0, edits * 2 // 3), ("second", edits * 2 // 3, edits)):
        report = wrapped.edit([r.edit for r in records[start:stop]])
        print(f"{version} version: {len(report.failed)} of {stop - start} edits failed", file=sys.stderr)
        wrapped.save_pretrained(folder / version)
        answers[version] = wrapped.ask(texts, max_new_tokens=TOKENS)
    base_answers = {
        version: [
            {
                "text": one.text,
                "edits": [[token.place, token.fired.edit] for token in one.routes.tokens if token.fired is not None],
            }
            for one in own
        ]
        for version, own in answers.items()
    }
    reference = {"model": path, "encoder": encoder, "layer": wrapped.target_module.path, "edits": edits}
    reference |= {"prompts": texts, "answers": base_answers}
    (folder / "reference.json").write_text(json.dumps(reference))


def run(folder: Path, name: str) -> dict[str, Any]:
    import wise

    reference = json.loads((folder / "reference.json").read_text())
    wrapped = wise.wrap(*load(reference["model"]), wise.WiseConfig(encoder=reference["encoder"]))
    start = time.perf_counter()
    arguments = arguments_of(name, wrapped.model.config)
    llm, runner = started(arguments, reference, wrapped)
    start_seconds = time.perf_counter() - start
    memories = loaded(llm, folder, wrapped)
    requests = planned(reference, wrapped, memories)
    start = time.perf_counter()
    outputs = generated(llm, requests, wrapped.encoder.stops, grown=name == "preempted")
    seconds = time.perf_counter() - start
    counters = {m.name: getattr(m, "value", None) for m in llm.get_metrics()}
    return {
        "arguments": arguments,
        "runner": runner,
        "edits": reference["edits"],
        "prompts": len(reference["prompts"]),
        **compared(reference, wrapped, memories, requests, outputs, recorded(llm)),
        "requests": len(requests),
        "requests_carrying": sum(carried.extra_args is not None for *_, carried in requests),
        "start_seconds": round(start_seconds, 1),
        "seconds": round(seconds, 1),
        "counters": {key: counters.get(metric) for key, metric in COUNTERS.items()},
    }


def load(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def arguments_of(name: str, config: Any) -> dict[str, Any]:
    """Of a configuration, for a base. Its heads are shared among as few ranks as they can be."""
    if name != "tensor_parallel":
        return ALL[name]
    heads, kept = config.num_attention_heads, config.num_key_value_heads
    ranks = next(ranks for ranks in range(2, heads + 1) if heads % ranks == kept % ranks == 0)
    return ALL[name] | {"tensor_parallel_size": ranks}


def started(configuration: dict[str, Any], reference: dict[str, Any], wrapped: Any) -> tuple[Any, str]:
    """vLLM with the plug-in, which has passed its self-test, and the kind of its model runner."""
    from vllm import LLM, SamplingParams

    from wise.vllm.requests import check_probe, engine_options, logprobs_of, probe_request

    given = {
        "model": reference["model"], "max_model_len": min(512, wrapped.encoder.context), "enforce_eager": True,
        "distributed_executor_backend": "uni", "disable_log_stats": False,
    }  # fmt: skip
    options = given | COMMON | configuration
    llm = LLM(**engine_options(wrapped.wise_config, reference["layer"], record=True, user_options=options))
    workers = llm.collective_rpc("wise_attach")
    probes = []
    for probe in (False, True):
        prompt, arguments = probe_request(probe)
        probes.append(logprobs_of(llm.generate(prompt, SamplingParams(**arguments), use_tqdm=False)[0]))
    check_probe(*probes)
    return llm, workers[0]["runner"]


def loaded(llm: Any, folder: Path, wrapped: Any) -> dict[str, Any]:
    """Number, router and state of each version, which the workers have too; None for the base."""
    from wise.memory.artifact import load_memory
    from wise.router.hybrid import HybridRouter

    memories: dict[str, Any] = {"base": None}
    for number, version in enumerate(VERSIONS[1:], start=1):
        llm.collective_rpc("wise_load", args=(number, str(folder / version)))
        llm.collective_rpc("wise_take", args=(number,))
        _, state, _ = load_memory(folder / version)
        memories[version] = (number, HybridRouter(state, wrapped.inputs), state)
    return memories


def planned(reference: dict[str, Any], wrapped: Any, memories: dict[str, Any]) -> list[tuple[str, int, Any, Any]]:
    """Version, place of the prompt, question and what it carries, of each request."""
    from wise.vllm.requests import NOTHING_CARRIED, carried_edits

    requests = []
    for place, text in enumerate(reference["prompts"]):
        question = wrapped.encoder.question(text)
        for version, memory in memories.items():
            carried = NOTHING_CARRIED
            if memory is not None:
                number, router, state = memory
                stops = wrapped.encoder.stops
                carried = carried_edits(question.ids, router, state, version=number, namespace="default", stops=stops)
            requests.append((version, place, question, carried))
    return requests


def generated(llm: Any, requests: list[tuple[str, int, Any, Any]], stops: Collection[int], *, grown: bool) -> list[Any]:
    """grown: every sequence gets `GROWN` tokens, also past the end of its answer."""
    from vllm import SamplingParams

    ends = {"ignore_eos": True} if grown else {"stop_token_ids": sorted(stops)}
    sampling = {"temperature": 0.0, "max_tokens": GROWN if grown else TOKENS, "detokenize": False} | ends
    prompts = [carried.prompt(question.ids) for _, _, question, carried in requests]
    params = [SamplingParams(**sampling, extra_args=carried.extra_args) for *_, carried in requests]
    outputs: list[Any] = llm.generate(prompts, params, use_tqdm=False)
    return outputs


def recorded(llm: Any) -> dict[str, dict[int, str]]:
    """By request and position, the edit that a worker has added."""
    records: dict[str, dict[int, str]] = {}
    for rank in llm.collective_rpc("wise_recorded"):
        records |= {request.rpartition("-")[0] or request: dict(map(tuple, own)) for request, own in rank.items()}
    return records


def compared(
    reference: dict[str, Any],
    wrapped: Any,
    memories: dict[str, Any],
    requests: list[tuple[str, int, Any, Any]],
    outputs: list[Any],
    added: dict[str, dict[int, str]],
) -> dict[str, Any]:
    """How many texts, reported edits and added edits are those of the library, by version; and, to show what a run
    without edits would count, how many texts of the base are those of the second version."""
    from wise.training.generation import until_stop

    equal = {version: dict.fromkeys(("texts", "edits", "added"), 0) for version in VERSIONS}
    unedited, differences = 0, 0
    for (version, place, question, carried), output in zip(requests, outputs, strict=True):
        ids, prompt = until_stop([*output.outputs[0].token_ids], wrapped.encoder.stops)[:TOKENS], len(question.ids)
        routed = edits_of(carried, [*question.ids, *ids], prompt, memories[version])
        ran = {p: edit for p, edit in routed.items() if p >= (output.num_cached_tokens or 0)}
        own = {p: edit for p, edit in added.get(output.request_id, {}).items() if p < prompt + len(ids) - 1}
        answer = reference["answers"][version][place]
        pairs = {
            "texts": (wrapped.encoder.answer(ids, chat=question.chat), answer["text"]),
            "edits": (routed, dict(map(tuple, answer["edits"]))),
            "added": (own, ran),  # a draft that lies behind the end was not kept
        }
        for what, (actual, expected) in pairs.items():
            equal[version][what] += actual == expected
            if actual != expected and (differences := differences + 1) <= MOST_SHOWN:
                prompt_text = reference["prompts"][place]
                print(f"{what} of {prompt_text!r}, {version}: {actual}, not {expected}", file=sys.stderr)
        unedited += version == "base" and pairs["texts"][0] == reference["answers"]["second"][place]["text"]
    return {"equal": equal, "equal_without_edits": unedited}


def edits_of(carried: Any, ids: Sequence[int], prompt: int, memory: Any) -> dict[int, str]:
    """By position, the edit that the front end reports."""
    import numpy as np

    if carried.course is None:
        return {}
    steps = [*carried.steps, *carried.course.read(np.array(ids[:-1]), prompt)]
    return {place: memory[2].slots[decision.slot].edit_ids[0] for place, decision, value in steps if value >= 0}


def installed(name: str) -> str | None:
    """The release of a package, under whichever of its names it was installed."""
    return next((d.version for d in distributions() if d.metadata["Name"] in (name, f"{name}-cpu")), None)


def write(file: Path, keys: Sequence[str], figures: dict[str, Any]) -> None:
    """Adds figures at a path of keys, with the day, the releases and the machine; what else is there stays."""
    from wise.lab.eval.results_file import write_json

    results = json.loads(file.read_text()) if file.exists() else {}
    place = results
    for key in keys:
        place = place.setdefault(key, {})
    place.clear()
    place |= {"date": datetime.now(UTC).date().isoformat(), "vllm": installed("vllm"), "torch": installed("torch")}
    place |= {"cores": os.cpu_count()} | figures
    write_json(file, results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a base; default: the shipped model")
    parser.add_argument("--encoder", help="folder of a sentence encoder; default: the base's own or the installed one")
    parser.add_argument("--edits", type=int, default=18)
    parser.add_argument("--prompts", type=int, default=504)
    parser.add_argument("--only", nargs="+", choices=ALL)
    parser.add_argument("--gpu", action="store_true", help="the configurations of a GPU; default: those of a CPU")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--folder", type=Path, help="keeps the memories and the library's answers, or has them already")
    parser.add_argument("--run", choices=ALL, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if options.run:
        if ALL[options.run].get("tensor_parallel_size") is None:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        (options.folder / f"{options.run}.json").write_text(json.dumps(run(options.folder, options.run)))
        return 0
    from wise.demo import model_path

    good = True
    with TemporaryDirectory() as workplace:
        folder = options.folder or Path(workplace)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "reference.json").exists():
            prepare(folder, options.model, options.encoder, options.edits, options.prompts)
        model = json.loads((folder / "reference.json").read_text())["model"]
        if options.model not in (None, model):
            parser.error(f"--folder has the answers of {model}, not of {options.model}: give another folder")
        for name in options.only or (GPU if options.gpu else CONFIGURATIONS):
            command = [sys.executable, __file__, "--run", name, "--folder", str(folder)]
            if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
                print(f"{name}: failed", flush=True)
                good = False
                continue
            figures = json.loads((folder / f"{name}.json").read_text())
            same = all(count == figures["prompts"] for own in figures["equal"].values() for count in own.values())
            did = name not in COUNTED or bool(figures["counters"][COUNTED[name]])
            print(f"{name}: {json.dumps(figures['equal'])} of {figures['prompts']}, {figures['counters']}", flush=True)
            good = good and same and did
            if options.output:
                key = "demo" if model == str(model_path()) else Path(model).name
                write(options.output, ["models", key, name], figures)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
