"""The table of layouts whose fields map one by one onto a record."""

from __future__ import annotations

from wise.formats.layout import Layout
from wise.formats.record_form import AskedField, RecordForm


def _gold(prompt: str, *answers: str, shared: bool = False) -> AskedField:
    return AskedField(kind="locality.gold", prompt=prompt, answers=answers, shared=shared)


_NEIGHBOUR = _gold("locality_prompt", "locality_ground_truth")
_KNOWEDIT = tuple(
    AskedField(kind=kind, within=within, prompt="prompt", answers=("ground_truth",))
    for kind, within in (
        ("locality.gold", "locality.Relation_Specificity"),
        ("locality.distracting", "locality.Forgetfulness"),
        ("portability.reasoning", "portability.Reasoning"),
        ("portability.subject_aliasing", "portability.Subject_Aliasing"),
        ("portability.logical_generalization", "portability.Logical_Generalization"),
    )
)

_RECORD_FORMS = (
    RecordForm(
        format="wise", prompt="prompt", target="target", strict=True,
        unread=("id", "paraphrases", "locality", "author", "time", "namespace", "test"),
    ),
    # Requests as ROME, MEMIT and AlphaEdit take them, and CounterFact laid out like them.
    RecordForm(
        format="memit", prompt="prompt", target="target_new.str", template=True,
        id=("case_id",),
        answer=("target_true.str",),
        relation="relation_id",
        paraphrases=("paraphrase_prompts",),
        generation_prompts="generation_prompts",
        neighbours=("neighborhood_prompts",),
        asked=(_gold("neighborhood_prompts", "target_true.str", shared=True),),
        unread=("case_id",),
    ),
    # zsRE as EasyEdit writes it, which its flat requests and repacks of WikiBigEdit follow.
    RecordForm(
        format="zsre", prompt="prompt", target="target_new", mark=("locality_prompt", "nq question: "),
        id=("case_id",),
        answer=("ground_truth", "target_true"),
        paraphrases=("rephrase_prompt", "rephrase_prompts"),
        neighbours=("locality_prompt",),
        asked=(_NEIGHBOUR,),
        aliases=("subject_rephrase",),
    ),
    # The sets of hallucinated and of recent text used with WISE. `locality_ground_truth` is running
    # text, cut after a number of characters and often in the middle of a word: no answer to ask for.
    RecordForm(
        format="temporal", prompt="prompt", target="target_new",
        neighbours=("locality_prompt",),
        continuation="ood_rephrase",
        unread=("locality_ground_truth",),
    ),
    RecordForm(
        format="hallucination", prompt="prompt", target="target_new", mark=("prompt", "This is a "),
        neighbours=("locality_prompt",),
        unread=("locality_ground_truth",),
    ),
    # zsRE as MEND published it; `answers` is the truth, `alt` what the edit makes of it.
    RecordForm(
        format="zsre", prompt="src", target="alt", blank_target_skipped=True,
        answer=("answers",),
        paraphrases=("rephrase",),
        neighbours=("loc",),
        asked=(
            _gold("loc", "loc_ans"),
            AskedField(
                kind="portability.reasoning", within="portability", prompt="New Question", answers=("New Answer",)
            ),
        ),
        unread=("pred", "cond"),
    ),
    # WikiBigEdit as its authors published it: a persona asks the same question in a freer wording.
    RecordForm(
        format="wikibigedit", prompt="update", target="ans",
        relation="relation",
        paraphrases=("rephrase",),
        free_paraphrases=("personas",),
        neighbours=("loc",),
        asked=(
            _gold("loc", "loc_ans"),
            AskedField(kind="portability.reasoning", prompt="mhop", answers=("mhop_ans",)),
        ),
        unread=("tag", "object"),
    ),
    # CounterFact as ROME published it. Neighbours are of the same relation and have the same true object.
    RecordForm(
        format="counterfact", prompt="requested_rewrite.prompt", target="requested_rewrite.target_new.str",
        subject="requested_rewrite.subject", template=True,
        id=("case_id",),
        answer=("requested_rewrite.target_true.str",),
        relation="requested_rewrite.relation_id",
        paraphrases=("paraphrase_prompts",),
        generation_prompts="generation_prompts",
        neighbours=("neighborhood_prompts",),
        asked=(_gold("neighborhood_prompts", "requested_rewrite.target_true.str", shared=True),),
        unread=("case_id", "pararel_idx", "attribute_prompts"),
    ),
    # CounterFact as EasyEdit writes it, plain or enriched.
    RecordForm(
        format="counterfact", prompt="prompt", target="target_new", paraphrase_names_subject=True,
        id=("cf_case_id", "case_id"),
        answer=("target_true", "ground_truth"),
        relation="relation_id",
        paraphrases=("template_paraphrases", "paraphrase_prompts_real", "rephrase_prompt", "rephrase_prompts"),
        free_paraphrases=("llm_cloze_paraphrases",),
        generation_prompts="generation_prompts",
        neighbours=("neighborhood_prompts", "locality_prompt"),
        asked=(_gold("neighborhood_prompts", "target_true", "ground_truth", shared=True), _NEIGHBOUR),
        aliases=("subject_rephrase", "subject_rephrases"),
        unread=("case_id", "template"),
    ),
    RecordForm(
        format="knowedit", prompt="prompt", target="target_new",
        answer=("ground_truth",),
        paraphrases=("rephrase_prompt", "rephrase_prompts", "rephrase"),
        neighbours=("locality.Relation_Specificity.prompt",),
        asked=_KNOWEDIT,
        unread=("cond",),
    ),
    # KnowEdit's WikiBio: the target is the sentence that goes on from the text.
    RecordForm(
        format="knowedit", prompt="text", target="labels", subject="concept", also_required=("concept",),
        neighbours=("locality.Relation_Specificity.prompt",),
        asked=_KNOWEDIT,
    ),
    # QAEdit: its `id` counts within each `source`, so it names no record.
    RecordForm(
        format="qaedit", prompt="prompt", target="target",
        paraphrases=("rephrase",),
        neighbours=("locality.loc",),
        asked=(AskedField(kind="locality.gold", within="locality", prompt="loc", answers=("loc_ans",)),),
        unread=("id", "source"),
    ),
    # zsRE as De Cao et al. (2021, "Editing Factual Knowledge in Language Models") published it, in the form of KILT. A
    # question has the answers that are right and alternatives that a model finds likely; an edit wants the first one.
    RecordForm(
        format="zsre", prompt="input", target="alternatives", target_listed=True, blank_target_skipped=True,
        answer=("output.answer",),
        paraphrases=("filtered_rephrases",),
        unread=("id", "rephrases", "prediction", "meta"),
    ),
)
MAPPED_LAYOUTS: tuple[Layout, ...] = tuple(form.layout() for form in _RECORD_FORMS)
