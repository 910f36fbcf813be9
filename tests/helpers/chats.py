"""A chat template of few words, turns in it, and a tiny model that has it."""

from __future__ import annotations

from typing import Any

from tiny import reading, tiny_model, tiny_tokenizer

import wise

TEMPLATE = (
    "{% for m in messages %}<bos> {{ 'w4' if m.role == 'user' else 'w5' if m.role == 'assistant' else 'w6' }} "
    "{{ m.content }} <eos> {% endfor %}{% if add_generation_prompt %}<bos> w5 {% endif %}"
)
TURNS = [
    {"role": "user", "content": "w33"},
    {"role": "assistant", "content": "w34"},
    {"role": "user", "content": "w50 w51 w52"},
]

EDITS = [
    wise.Edit(prompt="w50 w51 w52", target="w70 w71", subject="w50"),
    wise.Edit(prompt="w60 w61 w62", target="w72", subject="w60", paraphrases=("w61 w60 w62",)),
]


def chat_model(template: str | None = TEMPLATE, mode: Any = "hybrid") -> wise.WiseModel:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    config = wise.WiseConfig(mode=mode, layer=1, terminator="w9")
    return wise.wrap(tiny_model("llama"), tokenizer, config, **reading(mode))
