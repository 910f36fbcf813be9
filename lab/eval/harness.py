"""Runs tasks of EleutherAI's lm-evaluation-harness on the base and on the edited model.

What an edit did to everything else shows on tasks that have nothing to do with it. The harness (`lm_eval`, Gao et al.
2024, doi:10.5281/zenodo.12608602) is an extra and loaded when used. It asks both models the same documents, so the
difference is tested over them (`wise.lab.eval.significance.sign_flip`).

The harness seeds random numbers for the whole process, draws bars and starts other programs to describe the machine.
None of that is left or seen here.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from wise.errors import ConfigError
from wise.lab.eval.significance import sign_flip
from wise.model import WiseModel

INSTALL = 'pip install "wise-runtime[harness]"'
BATCH = 16
LOGGERS = ("lm_eval", "datasets", "evaluate", "huggingface_hub", "transformers")
PROGRAMS = ("get_git_commit_hash", "add_env_info")
"""Functions of the harness that start other programs, for entries of its result that are not read here."""
ENTRIES = ("name", "alias", "sample_len", "samples")
"""What stands among the figures of a task and is none."""


def evaluate_harness(
    model: WiseModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include_path: str | PathLike[str] | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    verbose: bool = False,
) -> dict[str, Any]:
    """Runs tasks of the harness on the base and on the edited model, which is handed back as it was.

    include_path: folder of further task files (YAML), which may name Python functions, which the harness runs. limit:
    documents of each task, the first ones; None takes all. batch_size: requests at once. seed: of everything that the
    harness draws, such as few-shot examples. verbose: lets the harness show its bars and notes, on stderr.

    Returns `results`, a row for every task and metric, ready for JSON: `base` and `edited` with their standard errors
    (None where the harness has none), their `difference`, how many documents came out otherwise (`changed`), and `p` of
    the paired permutation test over documents; both None where the metric is not a mean over documents.

    Raises ConfigError: the harness is not installed, a task that there is not or whose data cannot be loaded, or a
    tokenizer that cannot be made to put a beginning-of-sequence where the base needs it.
    """
    check_request(tasks, include_path)
    harness, language_models, managers = _harness()
    with model.evaluating(), _contained(model, harness, verbose):
        manager = task_manager(managers, tasks, include_path)
        answering = language_models.HFLM(
            pretrained=model.model,
            tokenizer=tokenizer_of(model),
            add_bos_token=True if model.encoder.bos else None,
            max_length=model.encoder.context,
            batch_size=batch_size,
        )
        with model.disabled():
            base = _run(harness, answering, tasks, manager, limit, seed)
        edited = _run(harness, answering, tasks, manager, limit, seed)
    return {
        "results": [
            _row(task, key, base, edited, seed)
            for task, entries in base["results"].items()
            for key, value in entries.items()  # `metric,filter` of every figure
            if key not in ENTRIES and "_stderr" not in key and _number(value) is not None
        ],
        "edits": len(model.edits),
        "limit": limit,
        "seed": seed,
        "lm_eval": harness.__version__,
    }


def check_request(tasks: Sequence[str], include_path: str | PathLike[str] | None) -> None:
    """What can be known before a model is loaded: raises ConfigError without a task, a folder or the harness."""
    if not all(name.strip() for name in tasks):
        raise ConfigError(f"tasks={tasks!r}: names of tasks were expected")
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"include_path={os.fspath(include_path)}: no such folder; give one that holds task files")
    if find_spec("lm_eval") is None:
        raise ConfigError(f"lm-evaluation-harness is an extra that is not installed: {INSTALL}")


def _harness() -> tuple[ModuleType, ModuleType, ModuleType]:
    """`lm_eval`, its models and its tasks; what it sets in the environment is taken back."""
    before = set(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package, *parts = map(
                import_module, ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks", "lm_eval.evaluator")
            )
    except ImportError as error:
        raise ConfigError(f"lm-evaluation-harness cannot be imported ({error}): {INSTALL}") from error
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]
    return package, parts[0], parts[1]


def tokenizer_of(model: WiseModel) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer, since the harness changes it, that gives the ids of `model.encoder.prompt`."""
    tokenizer = copy.deepcopy(model.tokenizer)
    if not model.encoder.bos:
        return tokenizer
    from tokenizers.processors import Sequence as Processors
    from tokenizers.processors import TemplateProcessing

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            "this base was trained behind a beginning-of-sequence that its tokenizer does not put there, and a slow "
            "tokenizer cannot be made to: load a fast one, or wrap the model with bos=False"
        )
    bos = str(tokenizer.bos_token)
    opening = TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", "$B:1"], special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    processor = backend.post_processor
    backend.post_processor = opening if processor is None else Processors([processor, opening])
    return tokenizer


def task_manager(managers: ModuleType, tasks: Sequence[str], include_path: str | PathLike[str] | None) -> Any:
    """Knows the tasks. The index of the harness's own thousands takes long to read, so it is read where needed."""
    folder = None if include_path is None else os.fspath(include_path)
    if folder is not None:
        local = managers.TaskManager(include_path=folder, include_defaults=False)
        if set(tasks) <= set(local.all_tasks):
            try:
                local.load(list(tasks))
                return local
            except KeyError:  # a group among them names tasks of the harness
                pass
            except OSError:  # said where the tasks are run
                return local
    manager = managers.TaskManager(include_path=folder)
    names = manager.all_tasks
    for name in tasks:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "'lm-eval ls tasks' lists them"
            raise ConfigError(f"task {name!r} is not known; {remedy}")
    return manager


@contextmanager
def _contained(model: WiseModel, harness: ModuleType, verbose: bool) -> Iterator[None]:
    """Random state, loggers and warnings are afterwards as before; stdout gets nothing, stderr what is asked for. How
    much is generated is the task's to say; transformers puts a limit of the model's own before it."""
    generation: Any = model.model.generation_config
    limit = getattr(generation, "max_new_tokens", None)
    drawn, numbers = random.getstate(), np.random.get_state()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    evaluator = import_module(f"{harness.__name__}.evaluator")
    programs = {name: getattr(evaluator, name) for name in PROGRAMS if hasattr(evaluator, name)}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(redirect_stdout(sys.stderr if verbose else io.StringIO()))
        if not verbose:
            warnings.simplefilter("ignore")
            stack.enter_context(redirect_stderr(io.StringIO()))
        try:
            if limit is not None:
                generation.max_new_tokens = None
            for logger in loggers if not verbose else ():
                logger.setLevel(logging.ERROR)
            for name in programs:
                setattr(evaluator, name, lambda *_: None)
            yield
        finally:
            if limit is not None:
                generation.max_new_tokens = limit
            for name, program in programs.items():
                setattr(evaluator, name, program)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            random.setstate(drawn)
            np.random.set_state(numbers)


def _run(
    harness: ModuleType, answering: Any, tasks: Sequence[str], manager: Any, limit: int | None, seed: int
) -> Mapping[str, Any]:
    seeds = {f"{name}_seed": seed for name in ("random", "numpy_random", "torch_random", "fewshot_random")}
    try:
        results: Mapping[str, Any] = harness.simple_evaluate(
            answering, tasks=list(tasks), task_manager=manager, limit=limit, **seeds
        )
    except OSError as error:  # of datasets: no network, no such data
        raise ConfigError(
            f"tasks {', '.join(tasks)}: their data cannot be loaded ({error}); connect to the hub once, or give tasks "
            "with files of their own (dataset_path: json, data_files) by include_path"
        ) from error
    return results


def _row(task: str, key: str, base: Mapping[str, Any], edited: Mapping[str, Any], seed: int) -> dict[str, Any]:
    metric, _, name = key.partition(",")
    before, after = (_number(entry["results"][task].get(key)) for entry in (base, edited))
    errors = [_number(entry["results"][task].get(f"{metric}_stderr,{name}")) for entry in (base, edited)]
    ours, theirs = (_documents(entry, task, metric, name) for entry in (base, edited))
    changes = [theirs[document] - ours[document] for document in sorted(ours.keys() & theirs.keys())]
    return {
        "task": task,
        "metric": metric if name in ("", "none") else f"{metric}, {name}",
        "documents": base.get("n-samples", {}).get(task, {}).get("effective"),
        "base": before,
        "base_stderr": errors[0],
        "edited": after,
        "edited_stderr": errors[1],
        "difference": None if before is None or after is None else after - before,
        "changed": sum(change != 0 for change in changes) if changes else None,
        "p": sign_flip(changes, seed=seed) if changes else None,
        "higher_is_better": base.get("higher_is_better", {}).get(task, {}).get(metric),
    }


def _documents(results: Mapping[str, Any], task: str, metric: str, name: str) -> dict[int, float]:
    """Document -> its value of the metric, of those that have one."""
    samples = [sample for sample in results.get("samples", {}).get(task, ()) if sample.get("filter", name) == name]
    values = {sample["doc_id"]: _number(sample.get(metric)) for sample in samples}
    return {document: value for document, value in values.items() if value is not None}


def _number(value: Any) -> float | None:
    """The harness has "N/A" where it has no figure."""
    return float(value) if isinstance(value, int | float | np.number) and math.isfinite(value) else None
