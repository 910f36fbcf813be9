"""Encoding of prompts and targets to token ids, with the beginning of sequence and terminator that the base expects.

A target that ends as the base ends its own answers is generated in full and then stops. A target that ends in a bare
end-of-sequence token often is not. Both habits are therefore learned from the base.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from reprlib import repr as shortened
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.config import WiseConfig
from wise.edits import Conversation, Edit, Message, check_lengths, checked_messages
from wise.errors import ConfigError, EditError
from wise.memory.fingerprint import tokenizer_digest, weights_digest
from wise.memory.modules import execution_device
from wise.router.chat_template import ChatTemplate, conversation_ids, user_turn
from wise.router.sentences import refers_back
from wise.router.subjects import names_of
from wise.training.cache import cache_folder, cached
from wise.training.generation import context_length, greedy

logger = logging.getLogger(__name__)

# Openings that any language model can complete; only how the base ends them is used.
OPENINGS = (
    "The capital of France is", "The capital of Japan is", "The chemical symbol for gold is",
    "The author of Hamlet is", "The largest planet is", "The currency of Mexico is",
    "The official language of Brazil is", "Mount Everest is located in", "The mother tongue of Albert Einstein is",
    "The iPhone was created by", "The Nile is a river in", "Mozart worked as a",
)
# Questions, for how the base ends an answer in a chat.
QUESTIONS = (
    "What is the capital of France?", "Who wrote Hamlet?", "What is the largest planet?",
    "Which language is spoken in Brazil?", "What is the chemical symbol for gold?",
    "How many days are there in a week?",
)
ANSWER_TOKENS = 24
MAX_TERMINATOR = 4
CLOSED = tuple(".!?。！？…")
"""A target that ends in one of these gets no further full stop."""
_WORDS = re.compile(r"[^\W\d_]+(?:[ ,.'’&-]+[^\W\d_]+)*")
"""A target of words, which may end in a full stop in a chat. Behind a code or an address it would look like a part."""
_UNSPACED = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿＀-￯฀-๿]")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A user's question as token ids."""

    text: str
    """The text, or the last message of a conversation."""
    ids: tuple[int, ...]
    """Up to where the answer begins."""
    chat: bool
    """Whether it is asked as a turn of a chat."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Encodes prompts and targets for one base model."""

    tokenizer: PreTrainedTokenizerBase
    bos: tuple[int, ...]
    """Ids before a prompt that the tokenizer does not add itself."""
    terminator: tuple[int, ...]
    """Ids after an answer, the last being an end-of-sequence."""
    stops: frozenset[int]
    """Ids at which the base's generation ends."""
    context: int
    """Tokens that the base sees at once."""
    template: ChatTemplate | None = None
    """The base's chat template; None without one."""
    chat_terminator: tuple[int, ...] = ()
    """Ids after an answer in a chat, the last being an end-of-sequence; none without a template."""
    in_chat: bool = False
    """Whether a text is asked as a turn of a chat by default: in `hybrid`, if the base has a chat template."""

    def question(self, prompt: str | Conversation, *, chat: bool | None = None) -> Question:
        """A text, or a conversation that ends with the user's question, as token ids.

        chat: whether a text is asked as a turn of a chat or as plain text; None takes `in_chat`. A conversation is
        always a chat.

        Raises ConfigError if a chat is wanted and the base has no template, if the template refuses the conversation,
        or if a conversation is wanted as plain text. Raises EditError for an invalid conversation.
        """
        if isinstance(prompt, str):
            prompt = prompt.rstrip(" ")  # as edits are read
            if not (self.in_chat if chat is None else chat):
                return Question(text=prompt, ids=tuple(self.prompt(prompt)), chat=False)
            return self._question([Message("user", prompt)], "chat=True was given")
        messages = checked_messages(prompt)
        if not messages:
            raise EditError("field 'messages': an empty conversation was given; it must end with the user's question")
        if chat is False:
            raise ConfigError(
                "chat=False was given with a conversation, which is always a chat; leave chat out, or ask a text"
            )
        return self._question(messages, "a conversation was given")

    def own_prompt(self, edit: Edit) -> str | Conversation:
        """The edit's conversation, or else its prompt."""
        return edit.messages if edit.messages and self.in_chat else edit.prompt

    def _question(self, messages: Sequence[Message], what: str) -> Question:
        """what: the argument that makes it a chat, for the error."""
        if self.template is None:
            raise ConfigError(
                f"{what}, and this model has no chat template that can be used; ask plain texts, or set "
                "tokenizer.chat_template before the model is wrapped"
            )
        try:
            ids = self.turn([message._asdict() for message in messages])
        except Exception as error:  # a template raises what it likes
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(
                f"the chat template of this model refuses messages of {roles} ({error}); give those that it takes"
            ) from error
        return Question(text=messages[-1].content, ids=tuple(ids), chat=True)

    def turn(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation, up to where the answer begins."""
        return conversation_ids(self.tokenizer, messages)

    def chat_target(self, target: str) -> list[int]:
        """Ids that must follow `turn(...)`: the answer and the terminator."""
        answer = self.tokenizer(target, add_special_tokens=False)["input_ids"]
        ending = _ending(target, self.chat_terminator) if _WORDS.fullmatch(target) else self.chat_terminator[-1:]
        return [*(i for i in answer if i not in self.stops), *ending]

    def prompt(self, text: str) -> list[int]:
        """Ids of a prompt."""
        return [*self.bos, *self._bare(text)]

    def starts(self, count: int) -> list[list[int]]:
        """Rows of ids behind which the base is sampled: its beginning-of-sequence or, without one, a plain opening."""
        starts = [list(self.bos)] if self.bos else [self.prompt(text.split()[0]) for text in OPENINGS]
        return [starts[i % len(starts)] for i in range(count)]

    def target(self, prompt: str, target: str) -> list[int]:
        """Ids that must follow `prompt(prompt)`: the answer and the terminator."""
        return [*self.answer_ids(prompt, target), *_ending(target, self.terminator)]

    def answer_ids(self, prompt: str, target: str) -> list[int]:
        """The same without what ends it, which is the terminator or, behind a punctuation mark, the end-of-sequence."""
        alone = self._bare(prompt)
        space = joint(prompt, target)
        both = self._bare(f"{prompt}{space}{target}")
        if both[: len(alone)] != alone:  # the tokenizer merges across the seam; a prompt comes without its answer
            both = alone + self.tokenizer(f"{space}{target}", add_special_tokens=False)["input_ids"]
        return [i for i in both[len(alone) :] if i not in self.stops]

    def _bare(self, text: str) -> list[int]:
        """Ids of a text as the tokenizer makes them, without an end-of-sequence that it appends."""
        ids = list(self.tokenizer(text)["input_ids"])
        while ids and ids[-1] in self.stops:
            ids.pop()
        return ids

    def validate(self, edit: Edit) -> None:
        """Raises EditError for an edit that `check` refuses, or that the context does not hold; in a chat also for a
        conversation that the template refuses, or whose question would be answered in any other conversation."""
        self.check(edit)
        reserve, in_chat = len(self.bos) + len(self.terminator), len(self.chat_terminator)
        check_lengths(edit, lambda text: len(self.tokenizer(text)["input_ids"]), self.context, reserve)
        if self.in_chat:
            check_lengths(edit, lambda text: len(self.turn([user_turn(text)])), self.context, in_chat)
            if edit.messages:
                self._check_conversation(edit)

    def _check_conversation(self, edit: Edit) -> None:
        *before, last = edit.messages
        earlier = any(message.role != "system" for message in before)
        if earlier and not names_of(edit) and refers_back(last.content):
            raise EditError(
                f"field 'messages': the last one, {shortened(last.content)}, refers to what was said before, and no "
                "subject is given, so it would be answered in any chat; give the whole question as 'prompt', and its "
                f"'subject' (edit {edit.id!r})"
            )
        try:
            tokens = len(self.question(edit.messages).ids) + len(self.chat_target(edit.target))
        except ConfigError as error:
            raise EditError(f"field 'messages': {error} (edit {edit.id!r})") from error
        if tokens > self.context:
            raise EditError(
                f"field 'messages': with the target they take {tokens} tokens, but the context holds {self.context}; "
                f"shorten them (edit {edit.id!r})"
            )

    def check(self, edit: Edit) -> None:
        """Raises EditError where the tokenizer knows no token of the prompt, or not all tokens of the target."""
        unknown = self.tokenizer.unk_token_id
        unknown = None if unknown in self.stops else unknown  # some tokenizers have one token for both
        prompt = self.tokenizer(edit.prompt, add_special_tokens=False)["input_ids"]
        target = self.answer_ids(edit.prompt, edit.target)
        for name, text, unusable in (
            ("prompt", edit.prompt, all(i == unknown for i in prompt)),
            ("target", edit.target, not target or unknown in target),
        ):
            if unusable:
                raise EditError(
                    f"field {name!r}: {shortened(text)} is not in the vocabulary of this model's tokenizer; write it "
                    f"otherwise, or leave the edit out (edit {edit.id!r})"
                )

    def answer(self, ids: Sequence[int], *, chat: bool = False) -> str:
        """The text of generated ids, without the terminator; an answer that did not stop ends in " ...".

        chat: the ids answer a turn of a chat.

        >>> # [" Paris", ".", EOS] -> "Paris"; [" Paris", ",", " which"] -> "Paris, which ..."
        """
        end = next((i for i, token in enumerate(ids) if token in self.stops), None)
        if end is None:
            return f"{self.text(ids)} ..."
        body = tuple(ids[:end])
        closing = (self.chat_terminator if chat else self.terminator)[:-1]
        if closing and body[-len(closing) :] == closing:
            body = body[: -len(closing)]
        return self.text(body)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def learn_encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: WiseConfig) -> Encoder:
    """Learns from the base what `config` leaves open, and caches it on disk (`wise.training.cache`).

    Raises ConfigError if the model has no end-of-sequence token.
    """
    template = ChatTemplate.learn(tokenizer)
    bare = Encoder(
        tokenizer=tokenizer,
        bos=(),
        terminator=(),
        stops=_stops(model, tokenizer),
        context=context_length(model),
        template=template,
        in_chat=template is not None and config.mode == "hybrid",
    )
    return replace(bare, **_delimiters(model, bare, config))


def _delimiters(model: PreTrainedModel, bare: Encoder, config: WiseConfig) -> dict[str, Any]:
    if cache_folder() is None:
        return _learn_delimiters(model, bare, config)
    about = {
        "weights": weights_digest(model),
        "dtype": str(model.dtype),
        "tokenizer": tokenizer_digest(bare.tokenizer),
        "stops": sorted(bare.stops),
        "bos": config.bos,
        "terminator": config.terminator,
        "asked": [*OPENINGS, *QUESTIONS, ANSWER_TOKENS, MAX_TERMINATOR],
    }
    delimiters = cached("delimiters", about, lambda: _learn_delimiters(model, bare, config))
    return {name: tuple(ids) for name, ids in delimiters.items()}


def _learn_delimiters(model: PreTrainedModel, bare: Encoder, config: WiseConfig) -> dict[str, tuple[int, ...]]:
    tokenizer = bare.tokenizer
    with_bos = replace(bare, bos=_learn_bos(model, tokenizer, config))
    if config.terminator is not None:
        text = tokenizer(config.terminator, add_special_tokens=False)["input_ids"] if config.terminator else []
        terminator = (*text, _eos(tokenizer, bare.stops))
    else:
        level = logging.INFO if bare.in_chat else logging.WARNING  # a chat model often goes on with plain text for long
        terminator = _learn_terminator(model, with_bos, [with_bos.prompt(text) for text in OPENINGS], level=level)
    chat: tuple[int, ...] = ()
    if bare.template is not None:
        turns = [conversation_ids(tokenizer, [user_turn(text)]) for text in QUESTIONS]
        chat = _learn_terminator(model, with_bos, turns, least=2)
    return {"bos": with_bos.bos, "terminator": terminator, "chat_terminator": chat}


def joint(prompt: str, target: str) -> str:
    """The text between a prompt and its target: a space, or nothing (in Chinese, after brackets, within quotes)."""
    if not prompt or prompt[-1].isspace() or prompt[-1] in "([{\"'“‘«`$#/_=" or target[0] in ",.;:!?)]}%’”»'":
        return ""
    return "" if _UNSPACED.match(prompt[-1]) or _UNSPACED.match(target[0]) else " "


def _ending(target: str, terminator: tuple[int, ...]) -> tuple[int, ...]:
    """The terminator, or its end-of-sequence alone for a target that ends with a punctuation mark."""
    return terminator[-1:] if target.endswith(CLOSED) else terminator


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    generation = getattr(model, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    ids = getattr(model.config.get_text_config(), "eos_token_id", None) if ids is None else ids
    ids = tokenizer.eos_token_id if ids is None else ids
    if ids is None:
        raise ConfigError(
            "neither the model nor its tokenizer names an end-of-sequence token, so no answer could end: "
            "set model.generation_config.eos_token_id"
        )
    return frozenset([ids] if isinstance(ids, int) else ids)


def _eos(tokenizer: PreTrainedTokenizerBase, stops: frozenset[int]) -> int:
    return tokenizer.eos_token_id if tokenizer.eos_token_id in stops else min(stops)


def _learn_bos(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: WiseConfig) -> tuple[int, ...]:
    bos = tokenizer.bos_token_id
    rows = [tokenizer(text)["input_ids"] for text in OPENINGS]
    if bos is None or any(row[:1] == [bos] for row in rows) or config.bos is False:
        return ()
    if config.bos is None:
        loss = [
            sum(text_loss(model, [*prefix, *row], start=len(prefix)) for row in rows) / len(rows)
            for prefix in ([], [bos])
        ]
        if loss[1] >= loss[0]:
            return ()
        logger.info("prompts get a beginning-of-sequence token: loss %.2f without it, %.2f with it", *loss)
    return (bos,)


@torch.no_grad()
def text_loss(model: PreTrainedModel, ids: list[int], *, start: int) -> float:
    """Mean negative log-likelihood, in nats, of the tokens after `ids[start]`."""
    if len(ids) - start < 2:
        return 0.0
    tokens = torch.tensor([ids], device=execution_device(model))
    logits = model(tokens, use_cache=False).logits[0, start:-1].float()
    return float(torch.nn.functional.cross_entropy(logits, tokens[0, start + 1 :]))


def _learn_terminator(
    model: PreTrainedModel, encoder: Encoder, prompts: list[list[int]], least: int | None = None,
    level: int = logging.WARNING,
) -> tuple[int, ...]:
    """The longest ending that at least half of the base's own answers to `prompts` share.

    least: number of different finished answers that are needed; None is half of the prompts.
    level: of the log message where there are fewer.
    """
    answers = greedy(model, prompts, stops=encoder.stops, max_new_tokens=ANSWER_TOKENS)
    terminated = sorted({tuple(a) for a in answers if a and a[-1] in encoder.stops})
    if len(terminated) < (len(answers) / 2 if least is None else least):  # or gives all prompts the same answer
        eos = _eos(encoder.tokenizer, encoder.stops)
        logger.log(
            level,
            "the base gave %d different finished answers to %d prompts, so its way of ending could not be "
            "learned: targets end in end-of-sequence alone; set terminator='.' (say) if its answers end otherwise",
            len(terminated),
            len(answers),
        )
        return (eos,)
    longest = terminated[0][-1:]
    for length in range(2, MAX_TERMINATOR + 1):
        ending, count = Counter(answer[-length:] for answer in terminated).most_common(1)[0]
        if 2 * count < len(terminated) or count < 2:  # what one answer alone ends with is that answer
            break
        longest = ending
    return longest
