"""Chat templates: a conversation as the text that a model was trained on, and which of its tokens are answers.

A template is Jinja's (transformers' documentation, "Chat templates"), in a sandbox: it makes text and nothing else. It
is asked where each turn stands by being shown marks in the place of what was said, so answers are located exactly, and
what looks like a special token in a turn is text. Each turn is encoded by itself, as it is when it is generated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import Tokenizer

from genlab.data.vocabulary import encode, end_token
from genlab.errors import ConfigError, DataError
from genlab.files import folder_or_cached, read_json

Turn = Mapping[str, str]  # {"role", "content"}
ROLES = ("system", "user", "assistant")
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}",
    "plain": "{% for m in messages %}{{ m.role | capitalize + ':\\n' + m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}{{ '\\n\\n' }}{% endfor %}",
}
NAMED = "name one: template=FILE.jinja, chatml or plain (of data and of sample.py)"
_MARK = re.compile("\ue000([0-9]+)\ue001")  # private characters, in the place of what turn i says
_TODAY = datetime(2024, 7, 26)  # for templates that ask for the date: data must be the same tomorrow


class ChatTemplate:
    """A template and the vocabulary that it is written for.

    Args:
        text: in Jinja's language.
        tokens: special tokens that it may ask for, such as "eos_token".
        tokenizer: of the library tokenizers.
        origin: what messages call it.

    Raises:
        ConfigError: no Jinja; it does not show what an assistant says, or puts nothing after it; tokens that the
            vocabulary lacks.
    """

    def __init__(self, text: str, tokens: Mapping[str, str], tokenizer: Tokenizer, origin: str) -> None:
        self.text, self.tokens, self.tokenizer, self.origin = text, dict(tokens), tokenizer, origin
        self._ids: dict[str, list[int]] = {}
        if text == TEMPLATES["chatml"] and tokenizer.token_to_id("<|im_end|>") is None:
            raise ConfigError(f"{origin}: the vocabulary has no <|im_end|>; take template=plain")
        try:
            self._compiled = _environment().from_string(text)
            *_, (_, who), (after, _) = self._pieces([{"role": role, "content": "x"} for role in ROLES[1:]])
        except Exception as error:  # of many kinds
            self._refuse(str(error))
        if who != 1:
            self._refuse("it does not show what an assistant says")
        self.end = after.rstrip() or after  # what ends an answer
        if not self.end:
            self._refuse("it puts nothing after an answer, so a model would not learn to stop")

    def _refuse(self, why: str) -> NoReturn:
        raise ConfigError(f"{self.origin}: no chat template for answers ({' '.join(why.split())[:200]}); {NAMED}")

    def facts(self) -> dict[str, Any]:
        """As primitives, for the manifest."""
        return {"text": self.text, "tokens": self.tokens, "end": self.end}

    def render(self, turns: Sequence[Turn]) -> str:
        """The text of a conversation."""
        return self._compiled.render(
            messages=[dict(turn) for turn in turns], add_generation_prompt=False, **self.tokens
        )

    def _pieces(self, turns: Sequence[Turn]) -> list[tuple[str, int]]:
        """(text before a turn's words, which turn) in their order; last the text after all, with -1."""
        marks = [{**turn, "content": f"\ue000{i}\ue001"} for i, turn in enumerate(turns)]
        parts = _MARK.split(self.render(marks))
        return [*zip(parts[0::2], map(int, parts[1::2]), strict=False), (parts[-1], -1)]

    def pieces(self, turns: Sequence[Turn], where: str) -> list[tuple[str, int]]:
        """The same of a conversation whose text is nothing but these pieces.

        Raises:
            DataError: the template refuses the conversation, changes what is said, or shows answers not once each.
        """
        try:
            pieces, whole = self._pieces(turns), self.render(turns)
        except Exception as error:  # the template's own raise_exception, or of Jinja
            raise DataError(f"{where}: {self.origin} refuses it ({' '.join(str(error).split())[:200]})") from None
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        if [i for _, i in pieces if i in answers] != answers:
            raise DataError(f"{where}: {self.origin} does not show each answer once; {NAMED}")
        if "".join(text + (turns[i]["content"] if i >= 0 else "") for text, i in pieces) != whole:
            raise DataError(f"{where}: {self.origin} changes what a turn says; {NAMED}")
        return pieces

    def encoded(self, turns: Sequence[Turn], where: str) -> tuple[list[int], list[bool]]:
        """Ids of a conversation, and which of them are of answers or of the end after one.

        Raises:
            DataError: see `pieces`; an answer inside that ends otherwise than the last.
        """
        ids: list[int] = []
        answered: list[bool] = []

        def put(more: Sequence[int], answer: bool) -> None:
            ids.extend(more)
            answered.extend([answer] * len(more))

        after_answer = False
        for text, i in self.pieces(turns, where):
            if after_answer:
                if not text.startswith(self.end):
                    raise DataError(f"{where}: {self.origin} does not put {self.end!r} after each answer; {NAMED}")
                put(self._frame(self.end), True)
                text = text.removeprefix(self.end)
            put(self._frame(text), False)
            after_answer = i >= 0 and turns[i]["role"] == "assistant"
            if i >= 0:
                put(self._plain.encode(turns[i]["content"], add_special_tokens=False).ids, after_answer)
        return ids, answered

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation up to where the next answer begins.

        Raises:
            DataError: see `pieces`; a character that the vocabulary lacks.
        """
        pieces = self.pieces([*turns, {"role": "assistant", "content": "x"}], "the conversation")
        ids: list[int] = []
        for text, i in pieces:
            ids += self._frame(text)
            if i == len(turns):
                break
            ids += encode(self.tokenizer, turns[i]["content"], special_tokens=False)
        return ids

    def _frame(self, text: str) -> list[int]:
        """Ids of a template's own text, special tokens among them; there are few such texts."""
        if text not in self._ids:
            self._ids[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self._ids[text]

    @cached_property
    def _plain(self) -> Tokenizer:
        """The vocabulary, to which no text is a special token."""
        plain = Tokenizer.from_str(self.tokenizer.to_str())
        plain.encode_special_tokens = True
        return plain


def find_template(named: str | None, folder: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template of a pretrained folder (chat_template.jinja, or that of tokenizer_config.json), or another.

    Args:
        named: a file, "chatml" or "plain"; None: the folder's own.
        folder: of the vocabulary, or its name in the cache.

    Raises:
        ConfigError: there is none; see ChatTemplate.
    """
    root = folder_or_cached(folder)
    root = root.parent if root.is_file() else root
    stated: Any = read_json(root / "tokenizer_config.json")
    stated = stated if isinstance(stated, dict) else {}
    tokens = {key: _content(stated.get(key)) for key in ("bos_token", "eos_token")}
    tokens["eos_token"] = tokens["eos_token"] or end_token(tokenizer)
    known = {key: token or "" for key, token in tokens.items()}
    if named in TEMPLATES:
        return ChatTemplate(TEMPLATES[named], known, tokenizer, f"template={named}")
    path = root / "chat_template.jinja" if named is None else Path(named).expanduser()
    if path.is_file():
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), known, tokenizer, str(path))
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: not UTF-8; {NAMED}") from None
    if named is not None:
        raise ConfigError(f"template={named}: no such file; {NAMED}")
    text = stated.get("chat_template")
    if isinstance(text, list):  # several, by name
        text = next((one.get("template") for one in text if one.get("name") == "default"), None)
    if not isinstance(text, str):
        raise ConfigError(f"{root} has no chat template; {NAMED}")
    return ChatTemplate(text, known, tokenizer, f"the chat template of {root}")


def _content(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def _environment() -> Any:
    """Jinja as transformers sets it up for templates: a sandbox in which nothing can be changed or imported."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: marks answers for transformers; here what it holds is shown, and no more."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": _TODAY.strftime}
    return environment


def turns_of(record: Any, fields: Mapping[str, str], where: str) -> Iterator[dict[str, str]]:
    """The turns of a record, without white space around them.

    Args:
        record: {messages: [{"role", "content"}, ...]}, or {prompt, answer} and perhaps {system}.
        fields: their names in the record: of "messages", "prompt", "answer" and "system".

    Raises:
        DataError: neither; a role that is not known; no text.
    """
    record = record if isinstance(record, dict) else {}
    turns = record.get(fields["messages"])
    if turns is None and fields["answer"] in record and fields["prompt"] in record:
        names = {"system": fields["system"], "user": fields["prompt"], "assistant": fields["answer"]}
        turns = [{"role": role, "content": record[name]} for role, name in names.items() if name in record]
    if not isinstance(turns, list):
        raise DataError(
            f"{where}: expected an object with {fields['messages']!r}, a list of {{role, content}}, or with "
            f"{fields['prompt']!r} and {fields['answer']!r} (data.fields)"
        )
    for number, turn in enumerate(turns, 1):
        role, content = (turn.get(key) if isinstance(turn, dict) else None for key in ("role", "content"))
        if role not in ROLES:
            raise DataError(f"{where}: turn {number} has the role {role!r}; known: {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise DataError(f"{where}: turn {number} says no text (content is a {type(content).__name__})")
        yield {"role": str(role), "content": content.strip()}
