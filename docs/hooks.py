"""Writes the reference pages of the site from the code.

A page has a line `<!-- generated: NAME -->` for each table. The hook replaces the line by what the function of that
name in `GENERATED` returns. A settings table, the list of commands and the HTTP reference are therefore never out of
date. `mkdocs.yml` names this file.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from wise.cli.app import EXIT_CODES, app
from wise.config import WiseConfig
from wise.lab.bench.benchmark_table import markdown
from wise.serving.app import build_app
from wise.serving.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
SCHEMA_FILE = "reference/openapi.json"
MODELS_FILE = ROOT / "docs/results/models.json"
VLLM_FILE = ROOT / "docs/results/vllm.json"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; nothing without rows."""
    return markdown(head, rows).rstrip() if rows else ""


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def code(value: object) -> str:
    return f"`{value}`"


def field_docs(cls: type) -> dict[str, str]:
    """The docstring behind each field of a class."""
    (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body if hasattr(node, "body"))
    found = {}
    for field, following in zip(body, body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[ast.unparse(field.target)] = one_line(str(following.value.value))
    return found


def wise_config() -> str:
    docs = field_docs(WiseConfig)
    rows = [(code(f.name), code(f.type), code(repr(f.default)), docs.get(f.name, "")) for f in fields(WiseConfig)]
    return table(("Field", "Type", "Default", "Meaning"), rows)


def service_settings() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None or field.is_required() else code(field.default)
        if field.default_factory is not None:
            default = "`wise/store` in the user's data folder"
        rows.append((code(name), code(f"WISE_{name.upper()}"), default, one_line(field.description)))
    return table(("Setting", "Environment", "Default", "Meaning"), rows)


def subcommands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Each command with its full name, groups before what is in them."""
    yield name, command
    for child, inner in getattr(command, "commands", {}).items():
        yield from subcommands(inner, f"{name} {child}")


def described(parameter: Any) -> tuple[str, str, str]:
    argument = parameter.param_type_name == "argument"
    names = [parameter.metavar or parameter.name.upper()] if argument else [*parameter.opts, *parameter.secondary_opts]
    default = parameter.default
    shown = "required" if parameter.required else "" if default in (None, False) or callable(default) else code(default)
    return ", ".join(map(code, names)), shown, one_line(getattr(parameter, "help", ""))


def commands() -> str:
    parts = [EXIT_CODES]
    for name, command in subcommands(typer.main.get_command(app), "wise"):
        parts.append(f"## `{name}`" if name.count(" ") < 2 else f"### `{name}`")
        parts.append(inspect.cleandoc(command.help or "").replace("\f", ""))
        rows = [described(p) for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
        parts.append(table(("Option", "Default", "Meaning"), rows))
    return "\n\n".join(filter(None, parts))


def openapi() -> dict[str, Any]:
    """The schema of the service, as `GET /openapi.json` returns it."""
    schema: dict[str, Any] = build_app(SimpleNamespace(settings=Settings(), metrics=None)).openapi()  # type: ignore[arg-type]
    return schema


def type_of(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_of(one) for one in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    if "enum" in schema or "const" in schema:
        return ", ".join(code(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    return str(schema.get("type", "any"))


def body_of(content: dict[str, Any]) -> str:
    return " or ".join(type_of(media["schema"]) for media in content.values() if media.get("schema"))


def operation(method: str, path: str, spec: dict[str, Any]) -> str:
    parts = [f"### `{method.upper()} {path}`", inspect.cleandoc(spec.get("description", ""))]
    parts.append("Needs a token." if spec.get("security") else "Needs no token.")
    rows = [
        (code(p["name"]), p["in"], type_of(p["schema"]), one_line(p.get("description")))
        for p in spec.get("parameters", ())
    ]
    parts.append(table(("Parameter", "In", "Type", "Meaning"), rows))
    if "requestBody" in spec:
        parts.append(f"Body: {body_of(spec['requestBody']['content'])}.")
    answers = [
        f"{code(status)} {body_of(answer.get('content', {}))}".strip()
        for status, answer in sorted(spec["responses"].items())
        if status < "400"
    ]
    errors = [code(status) for status in sorted(spec["responses"]) if status >= "400"]
    parts.append(f"Returns {', '.join(answers)}." + (f" Errors: {', '.join(errors)}." if errors else ""))
    return "\n\n".join(filter(None, parts))


def http_routes() -> str:
    paths = openapi()["paths"].items()
    return "\n\n".join(operation(method, path, spec) for path, methods in paths for method, spec in methods.items())


def http_errors() -> str:
    found = {
        status: one_line(answer["description"])
        for methods in openapi()["paths"].values()
        for spec in methods.values()
        for status, answer in spec["responses"].items()
        if status >= "400"
    }
    return table(("Status", "Meaning"), [(code(status), found[status]) for status in sorted(found)])


def http_schemas() -> str:
    parts = []
    for name, schema in openapi()["components"]["schemas"].items():
        required = schema.get("required", ())
        rows = []
        for field, spec in schema.get("properties", {}).items():
            default = code(json.dumps(spec["default"])) if "default" in spec else ""
            shown = "required" if field in required else default
            rows.append((code(field), type_of(spec), shown, one_line(spec.get("description"))))
        parts.append(f"### {name}")
        parts.append(inspect.cleandoc(schema.get("description", "")))
        parts.append(table(("Field", "Type", "Default", "Meaning"), rows))
    return "\n\n".join(filter(None, parts))


def tried_models() -> dict[str, Any]:
    """What `scripts/check_models.py` found."""
    found: dict[str, Any] = json.loads(MODELS_FILE.read_text(encoding="utf-8"))
    return found


def models_counted() -> str:
    found = tried_models()
    working = sum(one["outcome"] == "works" for one in found["models"].values())
    return f"Of {len(found['models'])} types of causal LM in transformers {found['transformers']}, {working} work."


def models_that_work() -> str:
    rows = []
    for name, one in tried_models()["models"].items():
        if one["outcome"] == "works":
            path = re.sub(r"\.\d+\.", ".{i}.", one["path"], count=1)
            rows.append((code(name), ", ".join(one["traits"]), code(path), one["steps"], "" if one["pads"] else "no"))
    head = ("Model type", "Has", "Edits are added to the output of", "A training step runs on", "Left-padding")
    return table(head, rows)


def models_that_do_not() -> str:
    found = tried_models()
    why = {name: (one["outcome"], one["reason"]) for name, one in found["models"].items() if one["outcome"] != "works"}
    why |= {name: ("not tried", reason) for name, reason in found["excluded"].items()}
    rows = [(code(name), outcome, one_line(reason)) for name, (outcome, reason) in sorted(why.items())]
    return table(("Model type", "Outcome", "Why"), rows)


def vllm_compared() -> str:
    """What `scripts/check_vllm.py` counted."""
    found = json.loads(VLLM_FILE.read_text(encoding="utf-8"))
    rows = []
    for model, configurations in found["models"].items():
        for name, one in configurations.items():
            versions = len(one["equal"])
            counts = [sum(own[what] for own in one["equal"].values()) for what in ("texts", "edits", "added")]
            asked = f"{one['prompts']} x {versions}"
            did = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in one["counters"].items() if count)
            rows.append((model, name, asked, *map(str, counts), str(one["equal_without_edits"]), did, one["date"]))
    head = ("Base", "Configuration", "Prompts", "Texts", "Reported edits", "Added edits", "Texts without edits")
    return table((*head, "Of this", "Date"), rows)


def vllm_costs() -> str:
    """What `scripts/bench_vllm.py` measured."""
    found = json.loads(VLLM_FILE.read_text(encoding="utf-8")).get("costs", {})
    tables = []
    for model, one in found.items():
        for form, sizes in one["forms"].items():
            names = [name for name in next(iter(sizes.values())) if name != "vLLM"]
            head = ("Clients", "vLLM alone, tokens a CPU second", *names)
            rows = []
            for clients, cell in sizes.items():
                ratios = (f"{cell[name]['ratio_cpu']:.3f}" for name in names)
                rows.append((clients, str(cell["vLLM"]["tokens_per_cpu_second"]), *ratios))
            spent = f"medians of {one['rounds']} rounds, {one['tokens']} tokens an answer"
            tables.append(f"{model}, {form}, {one['date']}: {spent}\n\n{table(head, rows)}")
    return "\n\n".join(tables) or "Nothing was measured yet."


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


GENERATED: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (
        wise_config, service_settings, commands, http_routes, http_errors, http_schemas, models_counted,
        models_that_work, models_that_do_not, vllm_compared, vllm_costs, changelog
    )
}


def filled(markdown: str) -> str:
    """A page with what its marks stand for. Raises KeyError for a mark that is not known."""
    return MARK.sub(lambda found: GENERATED[found[1]](), markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return filled(markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, SCHEMA_FILE, content=json.dumps(openapi(), indent=1)))
    return files
