"""Options that several commands take. A command that names a group of them takes each of its fields.

Nothing heavy is imported before a command runs, so that `wise --help` answers at once.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typer import Option

from wise.cli.common import progress_bars
from wise.cli.terminal import echo
from wise.config import WiseConfig
from wise.edits import check_one_namespace
from wise.errors import ConfigError
from wise.loading import DEVICE_MAPS, DTYPES, QUANTIZATIONS, Placement, load_model
from wise.training import cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wise.edits import Record
    from wise.model import WiseModel

LARGEST_SEED = 2**64 - 1
"""The largest that torch takes."""
MOST_THREADS = 1024
"""With far more than there are cores, torch ends the process."""
SeedOption = Annotated[int | None, Option("--seed", min=0, max=LARGEST_SEED, help="Random seed. Left out: 0.")]
ThreadsOption = Annotated[int | None, Option("--threads", min=1, max=MOST_THREADS, help="CPU threads to use.")]
DeviceOption = Annotated[str | None, Option("--device", help="Where the model runs, such as cuda. Left out: the CPU.")]
AllowPrecisionOption = Annotated[
    bool,
    Option(
        "--allow-precision",
        help="Take edits that were made on this base in another precision; each is asked again first.",
    ),
]
EncoderOption = Annotated[
    str | None,
    Option("--encoder", help="Folder or hub id of the sentence encoder (hybrid). Left out: the installed one."),
]
RelationsOption = Annotated[
    Path | None,
    Option("--relations", help="File that `wise train-router` wrote (hybrid). Left out: what ships with wise."),
]
JsonOption = Annotated[bool, Option("--json", help="End with one JSON object, in the last line of stdout.")]
ProgressOption = Annotated[bool, Option("--progress", help="Lines of progress on stderr, even if it is no terminal.")]
DataOption = Annotated[Path, Option("--data", help="File or folder of edits with the prompts that measure them.")]
SkipOption = Annotated[int, Option("--skip", min=0, help="Records of the file to leave out first.")]
SetOption = Annotated[
    list[str] | None,
    Option("--set", help="A setting of the editor, NAME=VALUE, the value JSON or else text. Repeat for more."),
]


@dataclass(frozen=True, kw_only=True)
class PlacementOptions(Placement):
    """Where the model runs and in which precision."""

    device: DeviceOption = None
    dtype: Annotated[
        str | None, Option(help=f"Precision of the model: {', '.join(DTYPES)}. Left out: as its folder says.")
    ] = None
    device_map: Annotated[
        str | None,
        Option(help=f"Spreads the model over devices: {', '.join(DEVICE_MAPS)}, or JSON of modules and devices."),
    ] = None
    quantization: Annotated[
        str | None,
        Option(
            help=f"Quantizes the model while it is loaded: {', '.join(QUANTIZATIONS)}. "
            "A folder that is quantized already needs no option.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: Annotated[
        str | None, Option(help="Folder or hub id of a causal LM. Left out: the demo model that ships with wise.")
    ] = None
    threads: ThreadsOption = None
    placement: PlacementOptions

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer. Raises ConfigError as `load_model` does."""
        return load_model(self.model, threads=self.threads, placement=self.placement)

    @property
    def called(self) -> str:
        """What the model is called in a report."""
        return "demo" if self.model is None else Path(self.model).name


@dataclass(frozen=True, kw_only=True)
class EditedModelOptions:
    """A model to which a saved memory is put."""

    base: ModelOptions
    allow_precision: AllowPrecisionOption = False

    @property
    def is_named(self) -> bool:
        """A model is asked for: which one, where it runs, or in which precision."""
        return self.base.model is not None or self.base.placement != PlacementOptions() or self.allow_precision

    def load(self, memory: Path, *, progress: bool = False) -> WiseModel:
        """The model with the memory. How many edits of another precision hold is said on stderr.

        Raises ConfigError as `load_model` does, and ArtifactError as `WiseModel.from_pretrained` does.
        """
        base, tokenizer = self.base.load()
        from wise.model import WiseModel

        with progress_bars(progress) as show:
            shown = partial(show, "edits asked again")
            allow = self.allow_precision
            wrapped = WiseModel.from_pretrained(memory, base, tokenizer, allow_precision=allow, progress=shown)
        report = wrapped.precision_report
        if report is not None and not report.lost:  # otherwise it is logged as a warning
            echo(str(report), err=True)
        return wrapped


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """Settings of a new memory."""

    mode: Annotated[
        str | None,
        Option(help="merge: one side memory; retrieve: one per slot; hybrid (the default): values for each answer."),
    ] = None
    encoder: EncoderOption = None
    relations: RelationsOption = None
    layer: Annotated[
        int | None, Option(help="Index of the edited block. Left out: at 85% of the depth, or 70% in hybrid.")
    ] = None
    target_module: Annotated[
        str | None,
        Option(
            help="Path of the module that the memory adds to, {i} for the block. Left out: it is found (`wise info`).",
        ),
    ] = None

    def config(self, memory: Path | None, **further: Any) -> WiseConfig:
        """The settings that were given, and `further` ones.

        Raises ConfigError for one out of range, or any beside a saved `memory`, which has its own.
        """
        values = settings(**asdict(self) | {"relations": absolute(self.relations)} | further)
        if memory is not None and values:
            option = next(iter(values)).replace("_", "-")
            raise ConfigError(f"--{option}: a memory keeps the settings it was made with; leave it out")
        return WiseConfig(**values)


@dataclass(frozen=True, kw_only=True)
class FormatOptions:
    """How a file of edits is read."""

    format: Annotated[str, Option(help="Format of the file; auto goes by its fields.")] = "auto"
    columns: Annotated[
        str | None, Option(help="Other names of columns: prompt=question,target=answer. Left out: those of edits.")
    ] = None

    def named_columns(self) -> dict[str, str]:
        """By field, the column that is named. Raises EditError, as `parsed_columns` does."""
        from wise.formats.columns import parsed_columns

        return parsed_columns(self.columns)

    def read(self, file: Path, limit: int | None = None) -> list[Record]:
        """The records of a file, all of one namespace. Raises EditError, as `wise.read_records` does."""
        from wise.formats.edit_file import read_records

        records = read_records(file, format=self.format, columns=self.named_columns(), limit=limit)
        check_one_namespace(record.edit for record in records)
        return records


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """What editors of the field take statistics of, and where these are kept."""

    corpus: Annotated[
        Path | None, Option(help="Texts that editors take statistics of. Left out: what the base says by itself.")
    ] = None
    cache: Annotated[
        Path | None,
        Option(help="Folder for statistics and hypernetworks. Left out: wise, in the user's folder of caches."),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """`corpus`, the texts, and `cache`, the folder; each None where there is none.

        Raises what `read_texts` raises.
        """
        from wise.lab.eval.routing.texts import read_texts

        texts = None if self.corpus is None else tuple(read_texts(self.corpus))
        return {"corpus": texts, "cache": self.cache or cache.cache_folder()}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes, in the place of each parameter that is a group of options, the options of the group."""
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    parameters = [option for name, each in signature.parameters.items() for option in _options(each, hints[name])]

    @wraps(command)
    def run(**arguments: Any) -> None:
        command(**{name: _option_value(name, hints[name], arguments) for name in signature.parameters})

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(parameter: inspect.Parameter, hint: Any) -> list[inspect.Parameter]:
    if not is_dataclass(hint):
        return [parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY)]
    hints = get_type_hints(hint, include_extras=True)
    each = (parameter.replace(name=field.name, default=field.default) for field in fields(hint))
    return [option for field in each for option in _options(field, hints[field.name])]


def _option_value(name: str, hint: Any, arguments: dict[str, Any]) -> Any:
    if not is_dataclass(hint):
        return arguments[name]
    group: Any = hint
    hints = get_type_hints(group, include_extras=True)
    return group(**{field.name: _option_value(field.name, hints[field.name], arguments) for field in fields(hint)})


def settings(**values: Any) -> dict[str, Any]:
    """The settings that were given on the command line."""
    return {name: value for name, value in values.items() if value is not None}


def named_values(pairs: Sequence[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs. Raises ConfigError for one that is none, or a name that is given twice."""
    values: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ConfigError(f"--set {pair}: NAME=VALUE was expected")
        if name in values:
            raise ConfigError(f"--set {pair}: {name} is given twice; leave one out")
        values[name] = value
    return values


def parsed_settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs, the values JSON or else text. Raises ConfigError as `named_values` does."""
    values: dict[str, Any] = dict(named_values(pairs))
    for name, value in values.items():
        with suppress(ValueError, RecursionError):  # which JSON of any size may raise
            values[name] = json.loads(value)
    return values


def absolute(file: Path | None) -> str | None:
    """A file as a memory must name it, which may be read in another folder. Raises ConfigError where there is none."""
    if file is not None and not file.is_file():
        raise ConfigError(f"{file}: no such file; `wise train-router` writes one")
    return None if file is None else str(file.resolve())
