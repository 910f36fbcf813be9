"""In-context editing: near edits are put before a prompt, and nothing else is touched."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from editing_contexts import demo_context, records, tiny_context, tiny_edits
from tiny import BOS, EOS, same_tensors
from torch import Tensor
from torch.nn.functional import normalize

from wise.edits import Edit, Record
from wise.errors import ConfigError
from wise.lab.editors.in_context import ANSWER_ROOM, InContext, InContextSettings, published_encoder
from wise.probes import Probe, Query
from wise.router.encoder import PACKAGE

ARCHITECTURES = ("llama", "gpt2", "opt")
needs_model = pytest.mark.skipif(find_spec(PACKAGE) is None, reason="needs the embedding model: wise-runtime[encoder]")


class Bag:
    """Embeds a text as its words: the cosine is the share that two texts have in common."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        rows = torch.zeros(len(texts), 128)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[int(word.removeprefix("w"))] = 1
        return normalize(rows, dim=-1)


def icl(model_type: str = "llama", *, training: Sequence[Record] = (), **settings: Any) -> InContext:
    editor = InContext(tiny_context(model_type, training=tuple(training)), InContextSettings(**settings))
    editor.embedder = Bag()
    return editor


def encoded(editor: InContext, *texts: str) -> list[list[int]]:
    return [editor.encoder.prompt(text) for text in texts]


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids if i > EOS)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_near_edit_is_read_first_and_the_model_is_untouched(model_type: str) -> None:
    editor = icl(model_type)
    before = {name: tensor.clone() for name, tensor in editor.model.state_dict().items()}
    edit = tiny_edits(1)[0]
    editor.edit([edit])
    own, wording, other = encoded(editor, edit.prompt, f"w9 {edit.prompt}", "w60 w61 w62 w63")
    found = editor.with_context([own, wording, other])
    assert found[0] == [BOS, 5, 10, 40, 7, 8, 30, 5, 10, 40, 7, 8]
    assert found[1] == [BOS, 5, 10, 40, 7, 8, 30, 9, 5, 10, 40, 7, 8]
    assert found[2] == other  # the control: below the threshold
    assert same_tensors(editor.unwrap(), before)


def test_identity_without_edits_while_disabled_and_of_an_empty_prompt() -> None:
    editor = icl()
    edit = tiny_edits(1)[0]
    rows = [*encoded(editor, edit.prompt), [BOS]]
    assert editor.with_context(rows) == rows and not editor.embedder.asked  # type: ignore[attr-defined]
    editor.edit([edit])
    with editor.disabled() as model:
        assert model is editor.model and editor.with_context(rows) == rows
    assert editor.with_context(rows)[0] != rows[0] and editor.with_context(rows)[1] == rows[1]


def test_threshold_is_met_or_not() -> None:
    edit = Edit(prompt="w5 w6 w7 w8", target="w30", id="e")
    for threshold, read in ((0.75, True), (0.76, False)):
        editor = icl(threshold=threshold)
        editor.edit([edit])
        asked = encoded(editor, "w5 w6 w7 w9")
        assert (editor.with_context(asked) != asked) == read


def test_nearest_facts_are_read_in_the_order_in_which_they_came() -> None:
    edits = [
        Edit(prompt="w5 w6 w7 w8", target="w30", id="a"),
        Edit(prompt="w60 w61", target="w31", id="b"),
        Edit(prompt="w5 w6 w7 w9", target="w32", id="c"),
        Edit(prompt="w5 w6 w10 w11", target="w33", id="d"),
    ]
    asked = "w5 w6 w7 w9"
    for facts, expected in ((1, ["w32"]), (2, ["w30", "w32"])):
        editor = icl(facts=facts, threshold=0.3)
        editor.edit(edits)
        sentences = {e.target: f"{e.prompt} {e.target}" for e in edits}
        found = words(editor.with_context(encoded(editor, asked))[0])
        assert found == " ".join([*(sentences[t] for t in expected), asked])


def test_oldest_facts_go_first_where_the_context_is_full() -> None:
    filler = " ".join(f"w{i}" for i in range(4, 34))
    edits = [Edit(prompt=f"{filler} w{40 + i}", target=f"w{50 + i}", id=f"e{i}") for i in range(3)]
    editor = icl(facts=3, threshold=0.5)
    editor.edit(edits)
    found = editor.with_context(encoded(editor, f"{filler} w41"))[0]
    room = editor.encoder.context - min(ANSWER_ROOM, editor.encoder.context // 4)
    assert len(found) == 1 + 32 + 32 + 31 == room
    assert 50 not in found and 51 in found and 52 in found
    roomy = icl(facts=2, threshold=0.5)
    roomy.edit(edits[:2])
    assert 50 in roomy.with_context(encoded(editor, f"{filler} w41"))[0]  # the control: nothing newer takes its room
    long = encoded(editor, " ".join([filler] * 3))
    assert editor.with_context(long) == long  # no room for any


def test_demonstrations_show_copy_update_and_retain_before_the_fact() -> None:
    example = Record(
        edit=Edit(prompt="w5 w10 w70", target="w71", id="r"),
        paraphrases=("w72 w10",),
        neighbours=("w73 w10",),
        answer="w75",
        probes=(Probe(kind="locality.gold", queries=(Query(prompt="w73 w10", answers=("w74", "w78")),)),),
    )
    editor = icl(training=[example] * 3, demonstrations=3)
    edit = tiny_edits(1)[0]
    editor.edit([edit])
    fact = "w5 w10 w70 w71"
    copy, update, retain = f"{fact} {fact}", f"{fact} w72 w10 w71", f"{fact} w73 w10 w74"
    found = words(editor.with_context(encoded(editor, edit.prompt))[0])
    assert found == f"{retain} {update} {copy} {edit.prompt} {edit.target} {edit.prompt}"


def test_a_neighbour_whose_answer_is_not_known_is_not_demonstrated() -> None:
    """In many sets a neighbour is another question: with the edit's old answer it would state what is false."""
    edit = Edit(prompt="w5 w10 w70", target="w71", id="r")
    example = Record(edit=edit, paraphrases=("w72 w10",), neighbours=("w73 w10",), answer="w74")
    editor = icl(training=[example] * 3, demonstrations=3)
    editor.edit(tiny_edits(1))
    found = words(editor.with_context(encoded(editor, tiny_edits(1)[0].prompt))[0])
    assert "w73" not in found and "w74" not in found and found.startswith("w5 w10 w70 w71 w5 w10 w70 w71 ")


def test_facts_end_as_the_base_ends_its_answers() -> None:
    context = demo_context()
    closing = context.encoder.text(context.encoder.terminator[:-1])
    edit = records(1)[0].edit
    editor = InContext(context, InContextSettings())
    editor.embedder = lambda texts: torch.ones(len(texts), 1)
    editor.edit([edit])
    found = editor.with_context([context.encoder.prompt(edit.prompt)])[0]
    assert found == context.encoder.prompt(f"{edit.prompt} {edit.target}{closing} {edit.prompt}")
    assert not context.encoder.stops & set(found[len(context.encoder.bos) :])


def test_the_last_edit_of_a_prompt_is_read() -> None:
    editor = icl()
    first, anew = (Edit(prompt="w5 w6 w7", target=target, id=target) for target in ("w30", "w31"))
    editor.edit([first])
    editor.edit([anew])
    assert words(editor.with_context(encoded(editor, "w5 w6 w7"))[0]) == "w5 w6 w7 w31 w5 w6 w7"


def test_texts_and_embeddings_are_what_is_kept() -> None:
    editor = icl()
    assert editor.memory_bytes == 0
    edits = tiny_edits(2)
    editor.edit(edits)
    assert editor.memory_bytes == 2 * 4 * 128 + sum(len(e.prompt) + len(e.target) for e in edits)


def test_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("wise.router.encoder.HUB_ID", str(tmp_path))
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    editor = InContext(tiny_context(), InContextSettings())
    with pytest.raises(ConfigError, match=r"pip install 'wise-runtime\[encoder\]'"):
        editor.edit(tiny_edits(1))
    assert editor.edits == ()


@needs_model
def test_packaged_model_knows_what_two_texts_have_in_common() -> None:
    texts = ["The capital of France is", "Which city is the capital of France?", "Bananas are"]
    embed = published_encoder().read
    found = embed(texts)
    assert found.shape == (3, 384) and torch.allclose(found.norm(dim=-1), torch.ones(3))
    likeness = found @ found.T
    assert likeness[0, 1] > 0.9 > 0.2 > likeness[0, 2].abs()


def test_in_a_chat_the_fact_stands_in_the_system_message() -> None:
    editor = icl()
    edit = tiny_edits(1)[0]
    asked = [{"role": "user", "content": f"w9 {edit.prompt}"}]
    assert editor.conversation(asked) == asked  # nothing is edited
    editor.edit([edit])
    system, question = editor.conversation(asked)
    assert question == asked[0] and system["role"] == "system" and f"{edit.prompt} {edit.target}." in system["content"]
    told = {"role": "system", "content": "w33"}
    assert editor.conversation([told, *asked])[0]["content"].startswith("w33 "), "what the user says there stays"
    far = [{"role": "user", "content": "w60 w61 w62 w63"}]
    assert editor.conversation(far) == far
    with editor.disabled():
        assert editor.conversation(asked) == asked
