"""Records as published editing sets have them, all made up, and what tests of reading share."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import repository

from wise.edits import Record
from wise.errors import EditError
from wise.formats.edit_file import read_records

Row = dict[str, Any]
Write = Callable[..., Path]

OWN: Row = {"prompt": "The lighthouse at Cape Velm was built by", "target": "Ada Thorne"}
ROME: Row = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} was built by",
        "relation_id": "P84",
        "target_new": {"str": "Ada Thorne", "id": "Q1"},
        "target_true": {"str": "Jon Pike", "id": "Q2"},
        "subject": "Velm Tower",
    },
    "paraphrase_prompts": ["It rained. Velm Tower is the work of", "Velm Tower was built by"],
    "neighborhood_prompts": ["Sell Tower was built by", "Orm Bridge was built by"],
    "attribute_prompts": ["Thorne Hall was built by"],
    "generation_prompts": ["Velm Tower is near"],
}
EASY: Row = {
    "case_id": 8,
    "prompt": "Velm Tower was built by",
    "target_new": "Ada Thorne",
    "ground_truth": "Jon Pike",
    "subject": "Velm Tower",
    "rephrase_prompt": "Velm Tower is the work of",
    "locality_prompt": "Sell Tower was built by",
    "locality_ground_truth": "Jon Pike",
}
ENRICHED: Row = {k: v for k, v in EASY.items() if k != "ground_truth"} | {
    "target_true": "Jon Pike",
    "rephrase_kind": "generation",
    "generation_prompts": ["Velm Tower is near"],
    "template_paraphrases": ["The builder of Velm Tower is", "Velm Tower was built by"],
    "llm_cloze_paraphrases": ["The person behind Velm Tower is", "The builder of Velm Tower is"],
    "llm_questions": ["Who is behind Velm Tower?"],
    "neighborhood_prompts": ["Orm Bridge was built by"],
}
MEND: Row = {
    "subject": "Velm Tower",
    "src": "Who built Velm Tower?",
    "rephrase": "- Who is Velm Tower's builder?",
    "alt": "Ada Thorne",
    "answers": ["Jon Pike", "J. Pike"],
    "loc": "nq question: who keeps the bees",
    "loc_ans": "Rosa",
}
ZSRE_EASY: Row = EASY | {
    "prompt": "Who built Velm Tower?",
    "rephrase_prompt": None,
    "locality_prompt": ["nq question: who keeps the bees"],
}
KILT: Row = {
    "id": "k1",
    "input": "Who built Velm Tower?",
    "output": [{"answer": "Jon Pike", "provenance": [{"title": "Velm Tower"}]}, {"answer": "J. Pike"}],
    "prediction": "Jon Pike",
    "alternatives": ["Ada Thorne", "Rosa"],
    "filtered_rephrases": ["By whom was Velm Tower built?"],
}
WIKIBIGEDIT: Row = {
    "tag": "update",
    "subject": "Velm Tower",
    "update": "Who built Velm Tower?",
    "rephrase": "By whom was Velm Tower built?",
    "personas": "Hey, who put up Velm Tower?",
    "ans": "Ada Thorne",
    "loc": "Who keeps the bees?",
    "loc_ans": "Rosa",
    "mhop": "Where was the builder of Velm Tower born?",
    "mhop_ans": "Port Sell",
}
MEMIT: Row = {
    "case_id": 3,
    "prompt": "{} was built by",
    "subject": "Velm Tower",
    "target_new": {"str": "Ada Thorne"},
    "target_true": {"str": "Jon Pike"},
    "relation_id": "P84",
}
KNOWEDIT: Row = {
    "subject": "Velm Tower",
    "prompt": "The builder of Velm Tower is",
    "target_new": "Ada Thorne",
    "ground_truth": [["Jon Pike", "J. Pike"]],
    "rephrase": "Velm Tower's builder is",
    "portability": {"Subject_Aliasing": [{"prompt": "Who built it?", "ground_truth": "Ada Thorne"}]},
    "locality": {
        "Relation_Specificity": [{"prompt": "The height of Velm Tower is", "ground_truth": "30 m"}],
        "Forgetfulness": [{"prompt": "The builder, which is not Ada Thorne, is", "ground_truth": "Jon Pike"}],
    },
}
WIKIBIO: Row = {
    "text": "This is a passage about ada thorne. She built towers. ",
    "labels": "She was born by the sea.",
    "concept": "ada thorne",
    "locality": {"Relation_Specificity": [{"prompt": "ada thorne occupation", "ground_truth": ["builder"]}]},
}
QAEDIT: Row = {
    "id": 3,
    "source": "made up",
    "prompt": "Who built Velm Tower?",
    "target": "Ada Thorne",
    "subject": "Velm Tower",
    "rephrase": "By whom was Velm Tower built?",
    "locality": [{"loc": "who keeps the bees", "loc_ans": "Rosa"}, {"loc": "how high is the sky"}],
}
HALLUCINATION: Row = {
    "prompt": "This is a passage about ada thorne. She built towers.",
    "target_new": "She was born by the sea.",
    "subject": "ada thorne",
    "locality_prompt": "Maps of the coast, with small scratches in the mid",
    "locality_ground_truth": "dle of the sheet. Printed on heavy pa",
}
TEMPORAL: Row = HALLUCINATION | {"ood_rephrase": HALLUCINATION["prompt"] + " Nobody knows the year."}
MQUAKE: Row = {
    "case_id": 4,
    "requested_rewrite": [
        {
            "prompt": "{} was built by",
            "relation_id": "P84",
            "target_new": {"str": "Ada Thorne", "id": "Q1"},
            "target_true": {"str": "Jon Pike", "id": "Q2"},
            "subject": "Velm Tower",
            "question": "Who built Velm Tower?",
        },
        {
            "prompt": "The city where {} was born is",
            "relation_id": "P19",
            "target_new": {"str": "Port Sell", "id": "Q3"},
            "target_true": {"str": "Orm", "id": "Q4"},
            "subject": "Ada Thorne",
            "question": "Where was Ada Thorne born?",
        },
    ],
    "questions": ["Where was the builder of Velm Tower born?", "In which city was Velm Tower's builder born?"],
    "answer": "Lund",
    "answer_alias": [],
    "new_answer": "Port Sell",
    "new_answer_alias": ["Sell", ""],
    "single_hops": [],
    "new_single_hops": [
        {
            "question": "Who built Velm Tower?",
            "cloze": "Velm Tower was built by",
            "answer": "Ada Thorne",
            "answer_alias": ["A. Thorne", ""],
        },
        {
            "question": "Where was Ada Thorne born?",
            "cloze": "The city where Ada Thorne was born is",
            "answer": "Port Sell",
            "answer_alias": [],
        },
    ],
    "orig": {},
}
MQUAKE_FACT: Row = {
    "question": "Who built Velm Tower?",
    "gold_retrieve_fact": "Velm Tower was built by Ada Thorne",
    "gold_generate": "Velm Tower was built by Jon Pike",
    "answer_correct": "Ada Thorne",
    "ans_alias": ["A. Thorne"],
}


def asks(prompt: str, *answers: Row, **fields: Any) -> Row:
    """One query of RippleEdits."""
    about: Row = {"query_type": "regular", "subject_id": "Q9", "relation": "HEIGHT", "target_ids": [], "phrase": None}
    return {"prompt": prompt, "answers": list(answers)} | about | fields


def ripple_test(*queries: Row, conditions: tuple[Row, ...] = (), condition: str = "OR") -> Row:
    return {"test_queries": list(queries), "test_condition": condition, "condition_queries": list(conditions)}


THORNE: Row = {"value": "Ada Thorne", "aliases": ["A. Thorne", ""]}
TALL: Row = {"value": "30 m", "aliases": []}
HEIGHT = asks("The height of Velm Tower is", TALL)
RIPPLE: Row = {
    "example_type": "counter_fact",
    "edit": {
        "prompt": "The name of the spouse of Bo of Orm is Ada Thorne.",
        "subject_id": "Q9",
        "relation": "SPOUSE",
        "target_id": "Q1",
        "original_fact": {"prompt": "The name of the spouse of Bo of Orm is Ada Pike.", "relation": "SPOUSE"},
    },
    "Relation_Specificity": [ripple_test(HEIGHT, conditions=(HEIGHT,))],
    "Logical_Generalization": [
        ripple_test(asks("Ada Thorne is married to", {"value": "Bo of Orm", "aliases": []}), asks("Is Bo wed?", TALL)),
        ripple_test(asks("The wedding of Ada Thorne was in"), conditions=(HEIGHT,)),
    ],
    "Subject_Aliasing": [
        ripple_test(asks("Bobby is married to", THORNE), conditions=(asks("Bobby is married to", THORNE),))
    ],
    "Compositionality_I": [
        ripple_test(
            asks("The mother of Bo's wife is", {"value": "Eve", "aliases": []}, query_type="two_hop"),
            conditions=(asks("The mother of Ada Thorne is", {"value": "Eve", "aliases": []}),),
            condition="AND",
        )
    ],
    "Compositionality_II": [
        ripple_test(asks("The wife of Eve's son is", THORNE, query_type="two_hop", relation="CHILD")),
        ripple_test(asks("The spouse of Bo, which is not Ada Thorne, is", TALL, relation="SPOUSE")),
    ],
    "Forgetfulness": [ripple_test(asks("Another spouse of Bo is", TALL))],
}
UNKE: Row = {
    "id": 5,
    "question": "How was Velm Tower built?",
    "para_question": "In what way was Velm Tower put up?",
    "answer": "Ada Thorne laid the first stone. Her sons laid the rest.",
    "sub_question": ["Who laid the first stone?", "Who laid the rest?"],
    "sub_answer": ["Ada Thorne.", "Her sons."],
}


def linked(relation: str, subject: str, old: str, new: str | None = None) -> Row:
    """One edit of ConflictEdit, or, without `new`, one of its triples. A thing's id is its name in capitals."""
    named = {"subject": subject, "object": old} | ({} if new is None else {"new_object": new})
    wording = {"prompt": f"The {relation} of {{}} is", "query": f"Who is the {relation} of {{}}?", "label": relation}
    number = {"father": "P22", "child": "P40", "work": "P800", "creator": "P170", "spouse": "P26"}[relation]
    return {"relation": wording | {"id": number}} | {k: {"id": v.upper(), "label": v} for k, v in named.items()}


COVERAGE: Row = {
    "type": "coverage",
    "prerequisites": [],
    "triples": [linked("father", "Bo", "Jon")],
    "edits": [linked("father", "Bo", "Jon", "Lee"), linked("father", "Bo", "Lee", "Max")],
}
REVERSE: Row = COVERAGE | {
    "type": "reverse",
    "rule": "P22>P40",
    "triples": [linked("father", "Bo", "Jon"), linked("child", "Jon", "Bo")],
    "edits": [linked("father", "Bo", "Jon", "Lee"), linked("child", "Lee", "Bo", "Kim")],
}
COMPOSITE: Row = COVERAGE | {
    "type": "composite",
    "triples": [linked("child", "Bo", "Kim"), linked("father", "Kim", "Bo"), linked("spouse", "Bo", "Ada")],
    "edits": [linked("father", "Kim", "Bo", "Lee"), linked("spouse", "Bo", "Ada", "Eve")],
}
KNOWN_FACT: Row = {
    "known_id": 2,
    "subject": "Velm Tower",
    "attribute": "Jon Pike",
    "template": "{} was built by",
    "prediction": " Jon Pike, who",
    "prompt": "Velm Tower was built by",
    "relation_id": "P84",
}

ROWS = {
    "wise": [OWN],
    "counterfact": [ROME, EASY, ENRICHED],
    "zsre": [MEND, ZSRE_EASY, KILT],
    "wikibigedit": [WIKIBIGEDIT],
    "memit": [MEMIT],
    "knowedit": [KNOWEDIT, WIKIBIO],
    "qaedit": [QAEDIT],
    "hallucination": [HALLUCINATION],
    "temporal": [TEMPORAL],
    "mquake": [MQUAKE, MQUAKE_FACT],
    "rippleedits": [RIPPLE],
    "unke": [UNKE],
    "pitfalls": [COVERAGE, REVERSE, COMPOSITE],
}
ALL_ROWS = [(name, row) for name, rows in ROWS.items() for row in rows]


def write_rows(folder: Path, *rows: Row | str, name: str = "facts.jsonl") -> Path:
    """Writes rows, one per line, packed as the name says; a row that is text is written as it stands."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path = folder / name
    packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress}
    path.write_bytes(packers.get(path.suffix.lower(), bytes)(text.encode()))
    return path


def refused(path: Path, line: int, message: str, **options: Any) -> None:
    """Reading fails, and the message begins with file, line and `message` (a pattern)."""
    with pytest.raises(EditError, match=f"^{re.escape(str(path))}:{line}: {message}"):
        read_records(path, **options)


def probed(record: Record, kind: str) -> list[tuple[str, tuple[str, ...]]]:
    """Prompt and answers of the record's probes of one kind, each of which has one query."""
    found = [probe.queries for probe in record.probes if probe.kind == kind]
    return [(query.prompt, query.answers) for (query,) in found]




def shared(name: str) -> Path:
    return repository.shared(f"data/editing/{name}")


def finding(name: str) -> Path:
    return repository.shared(f"findings/{name}")
