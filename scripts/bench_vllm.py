"""What the plug-in costs in vLLM: tokens per second by number of clients, beside vLLM alone and other engines.

    python scripts/bench_vllm.py --output docs/results/vllm.json
    python scripts/bench_vllm.py --model FOLDER --encoder FOLDER --clients 1 8 --transformers transformers

What is asked names no edited subject, as most of what a service is asked. Each engine runs in a process of its own, and
only one of them works at a time: in each round all are asked the same, one after another, and its figure of a round is
divided by that of vLLM alone in this round. The median of the rounds is shown.

The plug-in's figure holds all that edits cost: the decision about the prompt, the workers' share of each step, and the
provenance of each token that was generated. Tokens are counted per second of the processor, all processes of an engine
together, into which other work on the machine hardly enters, and per second of the clock.

*plug-in N* has N edits, made of two by giving each a subject of its own. *wise* is the service's own engine, with the
edits of the smallest such memory. *transformers* is `transformers serve`, of which `--transformers` names the command:
it may lie in another environment. Those two end an answer where the model does, vLLM gives `--tokens` tokens.

Needs the extra `vllm`. The figures go to `--output`, where those of other models and of `check_vllm.py` stay.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from socket import socket
from tempfile import TemporaryDirectory
from typing import Any

from bench_cost import multiplied
from check_vllm import COMMON, CONFIGURATIONS, ENVIRONMENT, load, started, write

FORMS = ("plain", "chat")
ALONE, OWN, SERVED = "vLLM", "wise", "transformers"
STARTING = 900.0
"""Seconds that an engine may take to start."""
Measure = Callable[[int, str, int], tuple[int, float]]
"""Of a number of clients, a form and a number of edits: the tokens that were generated, and the processor's seconds."""


def prepare(folder: Path, model: str, encoder: str | None, sizes: Sequence[int], clients: int) -> None:
    """Writes the memories, and the prompts of each form as text and as ids."""
    import wise
    from wise.demo.records import demo_records
    from wise.lab.eval.routing.texts import shipped_passages
    from wise.memory.artifact import save_memory

    wrapped = wise.wrap(*load(model), wise.WiseConfig(encoder=encoder))
    wrapped.edit([r.edit for r in demo_records(2, seed=0)])
    for size in sizes:
        state = multiplied(wrapped.state, size)
        save_memory(folder / str(size), config=wrapped.wise_config, state=state, base=wrapped.fingerprint())
    texts = [" ".join(passage.split()[:40]) for passage in shipped_passages()]
    texts = (texts * clients)[:clients]
    forms = FORMS if wrapped.encoder.in_chat else FORMS[:1]
    prompts = {form: [wrapped.encoder.question(text, chat=form == "chat").ids for text in texts] for form in forms}
    layer = wrapped.target_module.path
    reference = {"model": model, "encoder": encoder, "layer": layer, "texts": texts, "prompts": prompts}
    (folder / "reference.json").write_text(json.dumps(reference))


def in_vllm(folder: Path, reference: dict[str, Any], tokens: int, sizes: Sequence[int]) -> Measure:
    """sizes: of the memories; empty for vLLM alone."""
    from vllm import LLM, SamplingParams

    import wise
    from wise.memory.artifact import load_memory
    from wise.router.hybrid import HybridRouter
    from wise.vllm.answers import FollowedAnswer
    from wise.vllm.requests import NOTHING_CARRIED, carried_edits

    wrapped = wise.wrap(*load(reference["model"]), wise.WiseConfig(encoder=reference["encoder"]))
    memories = {}
    if sizes:
        llm, _ = started(CONFIGURATIONS["eager"], reference, wrapped)
        for size in sizes:
            llm.collective_rpc("wise_load", args=(size, str(folder / str(size))))
            llm.collective_rpc("wise_take", args=(size,))
            state = load_memory(folder / str(size))[1]
            memories[size] = HybridRouter(state, wrapped.inputs), state
    else:
        llm = LLM(
            model=reference["model"], max_model_len=min(512, wrapped.encoder.context), enforce_eager=True,
            distributed_executor_backend="uni", **COMMON,
        )  # fmt: skip

    def measure(clients: int, form: str, edits: int) -> tuple[int, float]:
        prompts = reference["prompts"][form][:clients]
        start = time.process_time()
        carried = [NOTHING_CARRIED] * clients
        if edits:
            router, state = memories[edits]
            options = {"version": edits, "namespace": "default", "stops": wrapped.encoder.stops}
            carried = [carried_edits(ids, router, state, **options) for ids in prompts]
        outputs = llm.generate(
            [one.prompt(ids) for one, ids in zip(carried, prompts, strict=True)],
            [
                SamplingParams(
                    temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=one.extra_args
                )
                for one in carried
            ],
            use_tqdm=False,
        )
        answers = [output.outputs[0].token_ids for output in outputs]
        for one, ids, new in zip(carried, prompts, answers, strict=True):
            if one.course is not None:
                followed = FollowedAnswer(ids, one.course)
                for token in new:  # as they come
                    followed.add([token])
        return sum(map(len, answers)), time.process_time() - start

    return measure


def in_wise(folder: Path, reference: dict[str, Any], tokens: int, sizes: Sequence[int]) -> Measure:
    """The service's own engine, with the smallest memory and all threads."""
    import torch

    import wise
    from wise.serving.engines import GenerationRequest, MemoryHandle
    from wise.serving.engines.grammar import Grammars
    from wise.serving.engines.local import LocalEngine
    from wise.serving.metrics import Metrics
    from wise.serving.settings import Settings

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread, as in the service
    memory = str(folder / str(min(sizes)))
    wrapped = wise.WiseModel.from_pretrained(memory, *load(reference["model"]))
    handle = MemoryHandle(version=1, namespace="default", state=wrapped.state, memory=wrapped.layer.memory)
    settings = Settings(store=":unused:", max_batch_size=COMMON["max_num_seqs"], threads=threads)
    engine = LocalEngine(wrapped, settings, Metrics(), Grammars(wrapped.tokenizer, wrapped.encoder.stops))
    engine.start()

    async def answers(requests: list[GenerationRequest]) -> int:
        job, count, remaining = engine.submit(requests, seconds=STARTING), 0, len(requests)
        while remaining:
            delta = await job.deltas.get()
            if isinstance(delta, Exception):
                raise delta
            count, remaining = count + len(delta.tokens), remaining - (delta.finish is not None)
        return count

    def measure(clients: int, form: str, _edits: int) -> tuple[int, float]:
        start = time.process_time()
        prompts = reference["prompts"][form][:clients]
        requests = [GenerationRequest(prompt=tuple(ids), handle=handle, max_new_tokens=tokens) for ids in prompts]
        return asyncio.run(answers(requests)), time.process_time() - start

    return measure


def in_transformers(command: str, reference: dict[str, Any], tokens: int, stack: ExitStack) -> Measure:
    """`transformers serve` as a process; its clients are threads of this one, whose time is not counted."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen([command, "serve", reference["model"], *options], stdout=sys.stderr)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    address = f"http://127.0.0.1:{port}"
    wait_for(f"{address}/health", process)

    def seconds() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(form: str, text: str) -> int:
        kind = {"messages": [{"role": "user", "content": text}]} if form == "chat" else {"prompt": text}
        body = {"model": reference["model"], "max_tokens": tokens, "temperature": 0.0} | kind
        path = "/v1/chat/completions" if form == "chat" else "/v1/completions"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=STARTING) as answer:
            return int(json.loads(answer.read())["usage"]["completion_tokens"])

    def measure(clients: int, form: str, _edits: int) -> tuple[int, float]:
        start = seconds()
        with ThreadPoolExecutor(clients) as pool:
            counts = list(pool.map(lambda text: ask(form, text), reference["texts"][:clients]))
        return sum(counts), seconds() - start

    return measure


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + STARTING
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{address} does not answer")


def engine(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Answers one line of JSON, what to measure, with another, until there is none."""
    reference = json.loads((folder / "reference.json").read_text())
    with ExitStack() as stack:
        if name == SERVED:
            measure = in_transformers(options.transformers, reference, options.tokens, stack)
        elif name == OWN:
            measure = in_wise(folder, reference, options.tokens, options.sizes)
        else:
            measure = in_vllm(folder, reference, options.tokens, [] if name == ALONE else options.sizes)
        answers = os.fdopen(options.answers, "w")
        print(json.dumps("ready"), file=answers, flush=True)
        for line in sys.stdin:
            start = time.perf_counter()
            tokens, cpu = measure(*json.loads(line))
            print(json.dumps([tokens / cpu, tokens / (time.perf_counter() - start)]), file=answers, flush=True)


class EngineProcess:
    def __init__(self, name: str, folder: Path) -> None:
        answers, theirs = os.pipe()
        command = [sys.executable, *sys.argv, "--engine", name, "--folder", str(folder), "--answers", str(theirs)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=sys.stderr, pass_fds=[theirs], text=True
        )
        os.close(theirs)
        self._answers = os.fdopen(answers)
        self._read()

    def _read(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise SystemExit("an engine ended; what it wrote says why")
        return json.loads(line)

    def measure(self, clients: int, form: str, edits: int) -> list[float]:
        assert self._process.stdin is not None
        print(json.dumps([clients, form, edits]), file=self._process.stdin, flush=True)
        figures: list[float] = self._read()
        return figures

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """By form, clients and engine: tokens per second, and the medians of the ratios to vLLM alone."""
    forms = json.loads((folder / "reference.json").read_text())["prompts"]
    with ExitStack() as stack:
        names = [ALONE, "plug-in", OWN, *([SERVED] if options.transformers else [])]
        engines = {name: stack.enter_context(closing(EngineProcess(name, folder))) for name in names}
        runs = [(ALONE, engines[ALONE], 0)]
        runs += [(f"plug-in {edits}", engines["plug-in"], edits) for edits in (0, *options.sizes)]
        runs += [(name, engines[name], 0) for name in names[2:]]
        cells: dict[str, Any] = {}
        for form in forms:
            for clients in options.clients:
                rounds: dict[str, list[list[float]]] = {name: [] for name, *_ in runs}
                for number in range(options.rounds + 1):
                    for name, one, edits in runs if number % 2 else runs[::-1]:  # who goes first changes
                        figures = one.measure(clients, form, edits)
                        if number:  # the first round allocates
                            rounds[name].append(figures)
                cell = {name: summary(own_rounds, rounds[ALONE]) for name, own_rounds in rounds.items()}
                cells.setdefault(form, {})[str(clients)] = cell
                print(f"{form}, {clients} clients: {json.dumps(cell)}", flush=True)
    return cells


def summary(rounds: list[list[float]], alone: list[list[float]]) -> dict[str, float]:
    ratios = ([one[i] / other[i] for one, other in zip(rounds, alone, strict=True)] for i in (0, 1))
    cpu, clock = map(statistics.median, ratios)
    per_cpu, per_second = (statistics.median(one[i] for one in rounds) for i in (0, 1))
    return {
        "ratio_cpu": round(cpu, 4),
        "ratio_clock": round(clock, 4),
        "tokens_per_cpu_second": round(per_cpu, 1),
        "tokens_per_second": round(per_second, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a base; default: the shipped model")
    parser.add_argument("--encoder", help="folder of a sentence encoder")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 10_000], help="edits of the memories")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transformers", help="command `transformers`, to measure `transformers serve` too")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--answers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for key, value in (ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}).items():
        os.environ.setdefault(key, value)
    if options.engine:
        engine(options.engine, options.folder, options)
        return
    with TemporaryDirectory() as workplace:
        from wise.demo import model_path

        folder = Path(workplace)
        prepare(folder, options.model or str(model_path()), options.encoder, options.sizes, max(options.clients))
        costs = measured(folder, options)
    if options.output:
        key = Path(options.model).name if options.model else "demo"
        figures = {"rounds": options.rounds, "tokens": options.tokens, "forms": costs}
        write(options.output, ["costs", key], figures)


if __name__ == "__main__":
    main()
