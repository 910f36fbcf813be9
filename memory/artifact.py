"""A memory on disk: a folder of JSON and safetensors, written as a whole or not at all.

    wise_config.json     settings, fingerprint of the base, kinds of slots; a SHA-256 of itself and of the others
    edits.jsonl          the live edits in their order, one per line, as `wise.read_edits` reads them
    README.md            a model card, which is not read (`wise.memory.model_card`)
    memory.safetensors   keys and key_counts, by edit; slots.group and slots.held (how many edits), by slot; slots.edits
                         (their lines) and slots.scores, by slot and edit; the columns of the slots (`columns_of`); in
                         retrieve key_space.{mean,projection}, in hybrid key_space.{reader,size,thresholds}

So a memory of 100,000 edits is about ten tensors.

The same memory always gives the same bytes. Nothing in the files is executed or unpickled, and the search index is
built again from the keys. Everything is checked before anything is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wise import __version__
from wise.config import WiseConfig
from wise.edits import Edit, check_unique
from wise.errors import ArtifactError, ConfigError, EditError
from wise.memory.bounded_file import MOST_JSON, MOST_TEXT, bounded, check_header
from wise.memory.fingerprint import Fingerprint
from wise.memory.folder import replaced_folder, set_aside
from wise.memory.key_space import KeySpace, RelationSpace, Space, space_from_tensors
from wise.memory.model_card import CARD_FILE, HUB_ID, keep_card, model_card
from wise.memory.slot import AnswerSlot, MaskedDenseSlot, Slot, columns_of, is_column, slots_of
from wise.memory.state import MemoryState, gc_paused

FORMAT = "wise-memory"
SCHEMA_VERSION = 2
CONFIG_FILE = "wise_config.json"
EDITS_FILE = "edits.jsonl"
TENSORS_FILE = "memory.safetensors"
FILES = (CONFIG_FILE, EDITS_FILE, TENSORS_FILE)
"""What is read."""
WRITTEN = (*FILES, CARD_FILE)

LARGEST = 1e6
"""Of the numbers of a memory: activations of language models reach some thousands."""
UNIT = 0.01
"""By how much the length of a key may differ from 1: keys are stored in half precision."""
AT_ONCE = 4096
"""Edits whose keys are measured at once."""
_AGAIN = "copy the folder again, or take an older save"


def save_memory(folder: str | PathLike[str], *, config: WiseConfig, state: MemoryState, base: Fingerprint) -> None:
    """Writes a memory to `folder`, which is made, or replaced as a whole where it holds a memory.

    What a cut-off save leaves behind: see `wise.memory.folder`.

    Raises ArtifactError, with nothing written, where the memory contradicts itself or `folder` holds anything
    else; OSError, likewise, where the disk does not take it.
    """
    check_state(config, state, base)
    kinds, tensors = _pack(state)
    check_tensors(tensors)
    with replaced_folder(Path(folder), ours=WRITTEN) as new:
        lines = [json.dumps(edit.to_dict(), ensure_ascii=False) + "\n" for edit in state.edits]
        (new / EDITS_FILE).write_bytes("".join(lines).encode())
        # One entry: safetensors writes several in a random order.
        # Written from bytes, since save_file makes a file that only its owner can read.
        (new / TENSORS_FILE).write_bytes(save(tensors, metadata={"format": FORMAT}))
        manifest = {
            "format": FORMAT, "schema_version": SCHEMA_VERSION, "wise_version": __version__,
            "config": config.to_dict(), "base": base.to_dict(), "kinds": kinds,
            "files": {name: _measure(new / name) for name in (EDITS_FILE, TENSORS_FILE)},
        }
        (new / CONFIG_FILE).write_bytes(sealed(manifest))
        (new / CARD_FILE).write_bytes(model_card(config, state, base).encode())
        keep_card(Path(folder), new)


def load_memory(
    path: str | PathLike[str], *, revision: str | None = None, token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None
) -> tuple[WiseConfig, MemoryState, Fingerprint]:
    """Reads the memory at `path`, a folder or else a hub id; files that are not part of a memory are ignored.

    `revision`, `token` and `cache_dir` are those of `huggingface_hub.snapshot_download`.

    Raises ArtifactError, naming the file and what to do, where there is no memory, or it is incomplete,
    damaged, foreign, newer than this release, or contradicts itself.
    """
    folder = Path(path)
    if isinstance(path, str) and not folder.exists() and "/" in path and HUB_ID.fullmatch(path):
        folder = _download(path, revision=revision, token=token, cache_dir=cache_dir)
    _check_folder(folder)
    try:
        with gc_paused():
            return _read(folder)
    except ArtifactError as error:
        raise ArtifactError(f"the memory in {folder} is refused: {error}") from error


# -- writing ----------------------------------------------------------------------------------


@gc_paused()
def _pack(state: MemoryState) -> tuple[list[str], dict[str, Tensor]]:
    """The kind of each group of slots, and all tensors of a memory by name, on the CPU."""
    groups, tensors = columns_of(state.slots)
    places = {edit.id: place for place, edit in enumerate(state.edits)}
    if state.slots:
        tensors["slots.group"] = torch.tensor(groups)
        tensors["slots.held"] = torch.tensor([len(slot.edit_ids) for slot in state.slots])
        slot_places = [places[edit_id] for slot in state.slots for edit_id in slot.edit_ids]
        tensors["slots.edits"] = torch.tensor(slot_places, dtype=torch.int64)
        scores = [score for slot in state.slots for score in slot.scores]
        tensors["slots.scores"] = torch.tensor(scores, dtype=torch.float64)
    if state.key_space is not None:
        tensors |= {f"key_space.{part}": tensor for part, tensor in state.key_space.tensors().items()}
    keys = [state.keys[edit.id] for edit in state.edits if edit.id in state.keys]
    if keys:
        tensors["keys"] = torch.cat(keys)
        tensors["key_counts"] = torch.tensor([len(rows) for rows in keys])
    kinds = dict(zip(groups, (slot.kind for slot in state.slots), strict=True))
    return list(kinds.values()), {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _measure(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def sealed(data: Mapping[str, Any]) -> bytes:
    """An object as JSON, with a SHA-256 of itself."""
    return json.dumps({**data, "sha256": digest_of_json(data)}, indent=1, ensure_ascii=False).encode()


def digest_of_json(value: object) -> str:
    """SHA-256 of what the JSON says, however it is laid out."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# -- finding ----------------------------------------------------------------------------------


def _download(repo_id: str, **options: Any) -> Path:
    """Our files of a hub repository, and no others."""
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(FILES), **options))
    except Exception as error:  # whatever the client fails with is the reason
        raise ArtifactError(
            f"{repo_id!r} is neither a folder here nor can it be loaded from the hub: {error}; check the name, or "
            "give a local folder"
        ) from error


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        if aside := set_aside(folder):
            _refuse(f"{folder} is missing: a save was cut off; rename {aside[-1]}, the whole memory before it")
        what = "is a file" if folder.exists() else "does not exist"
        _refuse(f"{folder} {what}; give a folder that save_pretrained wrote, or a hub id such as 'owner/name'")
    names = sorted(file.name for file in folder.iterdir())
    if CONFIG_FILE in names:
        return
    wanted = "give the folder that save_pretrained of a wrapped model wrote"
    if "adapter_config.json" in names:
        _refuse(f"{folder} holds a peft adapter (adapter_config.json), which peft loads; {wanted}")
    if "config.json" in names:
        _refuse(f"{folder} holds a plain model (config.json), which AutoModelForCausalLM loads; {wanted}")
    _refuse(f"{folder} holds no {CONFIG_FILE} (found: {', '.join(names[:8]) or 'nothing'}); {wanted}")


# -- reading ----------------------------------------------------------------------------------


def _read(folder: Path) -> tuple[WiseConfig, MemoryState, Fingerprint]:
    config, base, kinds, files = _read_manifest(folder / CONFIG_FILE)
    for name in (EDITS_FILE, TENSORS_FILE):
        _check_file(folder / name, files[name])
    edits = _read_edits(folder / EDITS_FILE)
    tensors = _read_tensors(folder / TENSORS_FILE)
    check_tensors(tensors)
    state = MemoryState(
        slots=_unpack_slots(kinds, edits, tensors),
        key_space=_unpack_key_space(tensors),
        keys=_unpack_keys(edits, tensors),
        edits=edits,
    )
    if tensors:
        _refuse(f"{TENSORS_FILE}: tensors that belong to nothing: {', '.join(sorted(tensors)[:4])}; {_AGAIN}")
    check_state(config, state, base)
    return config, state, base


def _read_manifest(file: Path) -> tuple[WiseConfig, Fingerprint, list[str], dict[str, dict[str, Any]]]:
    """Settings, base, the kind of each group of slots, and size and digest of the other files."""
    whole = bounded(file, MOST_JSON).read_bytes()
    try:
        data = json.loads(whole)
    except (ValueError, RecursionError) as error:
        _refuse(f"{file.name}: is truncated or not JSON ({error}); {_AGAIN}")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        _refuse(f"{file.name}: does not say format {FORMAT!r}: another program wrote it; give a folder of ours")
    version = data.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        _refuse(
            f"{file.name}: schema_version={version!r}, and this release reads {SCHEMA_VERSION}; install "
            f"the wise-runtime that wrote it ({data.get('wise_version')})"
        )
    if data.pop("sha256", None) != digest_of_json(data):
        _refuse(f"{file.name}: was changed after it was written (its SHA-256 differs); {_AGAIN}")
    try:
        config, base = WiseConfig.from_dict(data["config"]), Fingerprint.from_dict(data["base"])
        files = {name: dict(data["files"][name]) for name in (EDITS_FILE, TENSORS_FILE)}
        return config, base, list(map(str, data["kinds"])), files
    except (ConfigError, ArtifactError) as error:
        _refuse(f"{file.name}: {error}")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        _refuse(f"{file.name}: is malformed ({error!r}); {_AGAIN}")


def _check_file(file: Path, wanted: Mapping[str, Any]) -> None:
    size = bounded(file, MOST_TEXT if file.name == EDITS_FILE else None).stat().st_size
    if size != wanted.get("bytes"):
        _refuse(f"{file.name}: has {size} bytes of {wanted.get('bytes')}; {_AGAIN}")
    if _measure(file) != wanted:
        _refuse(f"{file.name}: is damaged (its SHA-256 differs from the one in {CONFIG_FILE}); {_AGAIN}")


def _read_edits(file: Path) -> tuple[Edit, ...]:
    edits = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            edits.append(Edit.from_dict(json.loads(line.decode())))
        except (ValueError, RecursionError) as error:  # EditError too
            _refuse(f"{file.name}, line {number}: {error}; {_AGAIN}")
    return tuple(edits)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    check_header(file)
    try:
        with safe_open(file, framework="pt", device="cpu") as archive:
            file_format = (archive.metadata() or {}).get("format")
            if file_format != FORMAT:
                _refuse(f"{file.name}: its metadata says format {file_format!r}, expected {FORMAT!r}; {_AGAIN}")
            return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except SafetensorError as error:
        _refuse(f"{file.name}: is not a safetensors file ({error}); {_AGAIN}")


def _unpack_slots(kinds: Sequence[str], edits: Sequence[Edit], tensors: dict[str, Tensor]) -> tuple[Slot, ...]:
    """Takes the columns of all slots out of `tensors`."""
    columns = {name: tensors.pop(name) for name in list(tensors) if is_column(name)}
    dtypes = {"group": torch.int64, "held": torch.int64, "edits": torch.int64, "scores": torch.float64}
    indices = {name: tensors.pop(f"slots.{name}", torch.empty(0)) for name in dtypes}
    if not columns and not any(tensor.numel() for tensor in indices.values()):
        return ()
    lists = all((tensor.dtype, tensor.ndim) == (dtypes[name], 1) for name, tensor in indices.items())
    group, held, places, scores = (tensor.tolist() if lists else [] for tensor in indices.values())
    if (
        not lists
        or len(group) != len(held)
        or not sum(held) == len(places) == len(scores)
        or {*group} != {*range(len(kinds))}
        or not all(0 <= place < len(edits) for place in places)
        or min(held, default=0) < 0
    ):
        shapes = {name: list(tensor.shape) for name, tensor in indices.items()}
        _refuse(f"{TENSORS_FILE}: slots {shapes} do not fit the {len(edits)} edits and {kinds}; {_AGAIN}")
    fields = []
    ids, all_scores = iter([edits[place].id for place in places]), iter(scores)
    for number, size in enumerate(held):
        fields.append({"id": number, "edit_ids": tuple(islice(ids, size)), "scores": tuple(islice(all_scores, size))})
    try:
        return tuple(slots_of(columns, dict(enumerate(kinds)), group, fields))
    except ArtifactError as error:
        _refuse(f"{TENSORS_FILE} and {CONFIG_FILE}: the {len(group)} slots do not fit together: {error}; {_AGAIN}")


def _unpack_key_space(tensors: dict[str, Tensor]) -> Space | None:
    """Takes the tensors of the key space out of `tensors`. They are copied, since they are multiplied with: a tensor of
    a file begins anywhere in memory, and the last bits of a product depend on that."""
    prefix = "key_space."
    names = [name for name in tensors if name.startswith(prefix)]
    space_tensors = {name.removeprefix(prefix): tensors.pop(name).clone() for name in names}
    try:
        return space_from_tensors(space_tensors) if space_tensors else None
    except KeyError as error:
        _refuse(f"{TENSORS_FILE}: {prefix}{error.args[0]} is missing; {_AGAIN}")
    except ValueError as error:
        _refuse(f"{TENSORS_FILE}: key_space: {error}; {_AGAIN}")


def _unpack_keys(edits: Sequence[Edit], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    keys, counts = (tensors.pop(name, None) for name in ("keys", "key_counts"))
    if keys is None and counts is None:
        return {}
    if keys is None or counts is None:
        _refuse(f"{TENSORS_FILE}: holds keys without key_counts, or the reverse; {_AGAIN}")
    fit = counts.dtype == torch.int64 and counts.shape == (len(edits),) and bool((counts > 0).all())
    if not fit or keys.ndim != 2 or int(counts.sum()) != len(keys):
        _refuse(
            f"{TENSORS_FILE}: keys {list(keys.shape)} and key_counts {list(counts.shape)} {counts.dtype} do "
            f"not fit the {len(edits)} edits of {EDITS_FILE}; {_AGAIN}"
        )
    parts = torch.split(keys, counts.tolist())
    return {edit.id: part for edit, part in zip(edits, parts, strict=True)}


# -- what must hold of every memory -----------------------------------------------------------


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # NaN and infinity show in the extremes, which takes no second tensor of the size.
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        extremes = tensor.aminmax()
        if not all(e.isfinite() for e in extremes):
            _refuse(f"tensor {name}: holds NaN or infinity: editing diverged; take an older save, or edit anew")
        if not name.startswith("key_space.") and max(abs(float(e)) for e in extremes) > LARGEST:
            _refuse(f"tensor {name}: holds numbers beyond {LARGEST:g}, which no edit needs; take an older save")


def check_state(config: WiseConfig, state: MemoryState, base: Fingerprint) -> None:
    """Settings, edits, slots and keys belong together. Raises ArtifactError with the first reason why not."""
    try:
        check_unique(state.edits)
    except EditError as error:
        _refuse(f"{EDITS_FILE}: {error}")
    for problem in (*_slot_problems(config, state, base), *_key_problems(config, state, base)):
        _refuse(f"{problem}; take an older save, or make the edits anew")


def _slot_problems(config: WiseConfig, state: MemoryState, base: Fingerprint) -> Iterator[str]:
    if config.mode == "merge" and len(state.slots) > 1:
        yield f"mode 'merge' has one slot, and there are {len(state.slots)}: it was made in another mode"
    if [slot.id for slot in state.slots] != list(range(len(state.slots))):
        yield f"the slots are numbered {[slot.id for slot in state.slots]}, expected 0, 1, 2, ..."
    slot_edits = [edit_id for slot in state.slots for edit_id in slot.edit_ids]
    if len(slot_edits) != len(state.edits) or {*slot_edits} != {*state.edit_ids}:
        wrong = sorted({*map(str, slot_edits)} ^ {*state.edit_ids}) or ["one edit in two slots"]
        yield f"the slots do not hold exactly the live edits: {', '.join(wrong[:4])}"
    wanted = AnswerSlot.kind if config.mode == "hybrid" else MaskedDenseSlot.kind
    most = 1.0 if config.mode == "hybrid" else LARGEST  # a cosine, and else the size of what is added
    for slot in state.slots:
        if slot.kind != wanted:
            yield f"slot {slot.id} is of kind {slot.kind!r}, expected {wanted!r}: it was made in another mode"
        elif config.mode == "hybrid" and len(slot.edit_ids) != 1:
            yield f"slot {slot.id} has {len(slot.edit_ids)} edits, expected one of its own"
        if slot.maps != (base.in_features, base.out_features):
            yield f"slot {slot.id} does not map {base.in_features} features to {base.out_features}"
        scores = [score for score in slot.scores if type(score) is float and 0 < score <= most]  # 0 opens every gate
        if not len(scores) == len(slot.scores) == len(slot.edit_ids):
            yield f"slot {slot.id} has {len(slot.edit_ids)} edits and scores {slot.scores!r:.80}"
        if isinstance(slot, AnswerSlot) and max(slot.ids.tolist(), default=0) >= base.vocabulary:
            yield f"slot {slot.id} says tokens that the base of {base.vocabulary} does not have"


def _key_problems(config: WiseConfig, state: MemoryState, base: Fingerprint) -> Iterator[str]:
    space = state.key_space
    if space is None:
        if state.keys or (state.edits and config.mode != "merge"):
            yield "there is no key space: it was made in another mode"
        return
    if isinstance(space, RelationSpace) != (config.mode == "hybrid"):
        kind = "of a relation reader" if isinstance(space, RelationSpace) else "of activations"
        yield f"mode {config.mode!r} and a key space {kind} do not go together: it was made in another mode"
        return
    if set(state.keys) != set(state.edit_ids):
        yield f"there are keys for {len(state.keys)} edits, expected for the {len(state.edits)} live ones"
    dtype = torch.float16 if isinstance(space, RelationSpace) else torch.float32
    for i, keys in state.keys.items():
        shape = (max(1, len(keys)), space.size)
        if keys.dtype != dtype or keys.shape != shape:
            yield f"keys of edit {i}: {keys.dtype} {list(keys.shape)}, expected {dtype} {list(shape)}"
    yield from _length_problems(state.keys)
    parts = {"mean": (base.in_features,), "projection": (space.size, base.in_features)}
    for name, shape_ in parts.items() if isinstance(space, KeySpace) else ():
        tensor = getattr(space, name)
        if tensor.dtype != dtype or tensor.shape != shape_:
            yield f"{name}: {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape_)}"


def _length_problems(keys: Mapping[str, Tensor]) -> Iterator[str]:
    """Keys are unit vectors: a longer one would be near to everything."""
    ids = list(keys)
    for first in range(0, len(ids), AT_ONCE):
        some = ids[first : first + AT_ONCE]
        lengths = torch.cat([keys[i] for i in some]).float().norm(dim=-1)
        excess = (lengths - 1).abs().nan_to_num(0, posinf=0)  # `check_tensors` names those that are no numbers
        if bool((excess > UNIT).any()):
            owners = [i for i in some for _ in range(len(keys[i]))]
            worst = int(excess.argmax())
            yield f"keys of edit {owners[worst]}: one has length {float(lengths[worst]):g}, expected 1"
            return


def _refuse(reason: str) -> NoReturn:
    raise ArtifactError(reason)
