"""Which models can be edited: tries a tiny random model of every type that transformers has.

    python scripts/check_models.py
    python scripts/check_models.py qwen3_5 gpt_oss --output docs/results/models.json

Each is wrapped with the default mode and given one edit, which it must say alone, in a batch, and without a cache. The
edit is deleted and the model unwrapped; before and after, logits and greedy tokens must be those of the bare model, bit
for bit. `tests/helpers/zoo.py` makes the models and `tests/helpers/trial.py` tries them. Progress goes to stderr. The
file holds the outcome of each type; where types are named, the others keep what the file says of them.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import transformers

from wise.lab.eval.results_file import write_json
from wise.loading import prepare

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from trial import attempt  # noqa: E402
from zoo import EXCLUDED, model_types  # noqa: E402

LIMIT = 120
"""CPU seconds after which a trial counts as failed."""


def main() -> int:
    args = parse_args()
    prepare(args.threads)
    unknown = {*args.types} - {*model_types()}
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: not a type of the zoo; they are {', '.join(model_types())}")
    signal.signal(signal.SIGPROF, _out_of_time)
    results = json.loads(args.output.read_text())["models"] if args.types and args.output.exists() else {}
    types = args.types or model_types()
    for number, model_type in enumerate(types, 1):
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        trial = attempt(model_type)
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.perf_counter() - start
        line = f"{number}/{len(types)} {model_type}: {trial.outcome} {trial.reason}".rstrip()
        print(f"{line} ({seconds:.1f} s)", file=sys.stderr, flush=True)
        results[model_type] = asdict(trial)
        write(args.output, results)
    counts = Counter(one["outcome"] for one in results.values())
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    return int(counts["failed"] > 0)


def write(file: Path, results: dict[str, dict[str, object]]) -> None:
    data = {"transformers": transformers.__version__, "models": dict(sorted(results.items())), "excluded": EXCLUDED}
    write_json(file, data)


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"not done after {LIMIT} CPU seconds")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="types to try; all of them if none is named")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/models.json", help="file of outcomes")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
