"""A conversation in the terminal: python sample.py run=RUN chat=true."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab.cli.load import LoadedRun
from genlab.conditions import Prompt, Source
from genlab.data.chat_template import NAMED, ChatTemplate, find_template
from genlab.decoding.reading import ENDED
from genlab.decoding.stream import Streamed
from genlab.errors import ConfigError, DataError
from genlab.files import read_json
from genlab.models.base import GenerativeModel
from genlab.noise import fold_in

Write = Callable[[str], Any]


class Conversation:
    """Turns that a model answers, each a function of (weights, seed, what was said before).

    Args:
        model: a language model that goes on from a text, or answers a source.
        sampler: one that shows tokens as they come.
        template: how turns are written; None: a model that answers sources, which remembers nothing.
        seed: of turn i it is a hash of (seed, i).
        system: what the system says before; None: nothing.
        write: called with each piece of an answer, and with what is to be said of the history.
    """

    def __init__(
        self, model: Any, sampler: Any, template: ChatTemplate | None, seed: int, system: str | None, write: Write
    ) -> None:
        self.model, self.template, self.seed, self.write = model, template, seed, write
        self.sampler = sampler if template is None else replace(sampler, stop=[*sampler.stop, template.end])
        self.system = [] if system is None else [{"role": "system", "content": system.strip()}]
        self.begin()

    def begin(self) -> None:
        """Forgets what was said."""
        self.turns: list[dict[str, str]] = []
        self.count = 0

    def say(self, text: str) -> str:
        """The answer to the user's next turn, written as it comes.

        Raises:
            ConfigError: the turn fills the context; the history is as it was.
            DataError: the template refuses it; a character that the vocabulary lacks.
        """
        condition, sampler, before = self._condition(text)
        seeds = fold_in(torch.tensor([self.seed]), self.count).to(self.model.device)
        streamed = Streamed(sampler, self.model.tokenizer, self.write, answers_only=True)
        on_device = {name: rows.to(self.model.device) for name, rows in condition.items()}
        with torch.no_grad():
            row = self.model.generate(seeds, on_device, streamed)[0, before:].tolist()
        answer = self.model.tokenizer.decode([token for token in row if token != ENDED], skip_special_tokens=False)
        self.count += 1
        if self.template is not None:
            answer = answer.partition(self.template.end)[0].strip()
            self.turns.append({"role": "assistant", "content": answer})
        return answer

    def _condition(self, text: str) -> tuple[dict[str, torch.Tensor], Any, int]:
        """What the model is told, the sampler with as many tokens as there is room for, and the tokens of a prompt."""
        if self.template is None:
            return {"source": Source().rows([text], self.model)}, self.sampler, 0
        turns = [*self.turns, {"role": "user", "content": text.strip()}]
        context, most, left_out = self.model.context, self.sampler.max_new_tokens, 0
        room = most if context is None else min(most, max(1, context // 2))
        while len(ids := self.template.prompt([*self.system, *turns])) + room > (context or sys.maxsize):
            if len(turns) == 1:
                raise ConfigError(
                    f"{len(ids)} tokens, with what is around them, leave no room for an answer of {room} in a context "
                    f"of {context}; say less, or lower sampler.max_new_tokens"
                )
            del turns[:2]
            left_out += 1
        if left_out:
            self.write(f"[the context is full: what was said first is left out, {left_out} turns and their answers]\n")
        self.turns = turns
        return {"prompt": torch.tensor([ids])}, replace(self.sampler, max_new_tokens=room), len(ids)


def template_of(loaded: LoadedRun, named: str | None) -> ChatTemplate:
    """The template that is named, that the run was trained with, or of the folder that its network is from.

    Raises:
        ConfigError: there is none.
    """
    path, tokenizer = loaded.directory.path, loaded.model.tokenizer
    if named is not None:
        return find_template(named, str(path), tokenizer)
    facts = (read_json(path / "data.json") or {}).get("facts", {}).get("template")
    if facts is not None:
        return ChatTemplate(facts["text"], facts["tokens"], tokenizer, f"the template of {path}")
    data: Any = loaded.config.get("data") or {}
    if "template" in data:  # an export
        return find_template(data["template"], data["vocabulary"], tokenizer)
    folder = OmegaConf.select(loaded.config, "model.network.path")
    if folder is None:
        raise ConfigError(f"chat=true: {path} was trained without a chat template; train on data=chat, or {NAMED}")
    return find_template(None, folder, tokenizer)


def conversation(loaded: LoadedRun, sampler: Any, config: DictConfig, write: Write) -> Conversation:
    """What `chat=true` talks with.

    Raises:
        ConfigError: a model that neither goes on from a text nor answers one; a sampler that shows nothing before its
            end; no template; conditions, which a conversation has not.
    """
    model: GenerativeModel = loaded.generative
    asked = [key for key in ("prompt", "negative", "conditions", "each", "out") if config.get(key) is not None]
    if asked or config.condition:
        raise ConfigError(f"chat=true reads what is said from the terminal; leave out {[*asked, 'condition'][0]}")
    goes_on, answers = (any(isinstance(known, kind) for known in model.conditions) for kind in (Prompt, Source))
    if model.modality.name != "text" or not (goes_on or answers) or not hasattr(model, "next_logits"):
        raise ConfigError(f"chat=true: {type(model).__name__} does not go on from what is said; take a language model")
    if not getattr(sampler, "streams", False):
        raise ConfigError(
            f"chat=true: {type(sampler).__name__} has nothing to show before its end; take sampler=nucleus"
        )
    template = template_of(loaded, config.get("template")) if goes_on else None
    return Conversation(model, sampler, template, int(config.seed), config.get("system"), write)


def converse(talk: Conversation, lines: Iterable[str]) -> None:
    """Answers line after line: /new begins again, /quit or the end of the lines ends; empty lines are passed over."""
    for line in lines:
        if line.strip() == "/quit":
            return
        if line.strip() == "/new":
            talk.begin()
            talk.write("[begun again]\n")
        elif line.strip():
            try:
                talk.say(line)
            except (ConfigError, DataError) as error:  # of this line; the conversation goes on
                talk.write(f"[{error}]\n")


def spoken() -> Iterator[str]:
    """Lines from the terminal, or from a pipe.

    Raises:
        ConfigError: they are not UTF-8.
    """
    mark = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(mark)
        except EOFError:
            return
        except UnicodeDecodeError:
            raise ConfigError("chat=true: what came from the standard input is not UTF-8") from None
