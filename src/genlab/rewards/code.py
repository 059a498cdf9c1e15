"""A reward of Python functions: whether they parse, and do what the examples of their docstrings say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from genlab.data.functions import joined, modules_of_functions, parsed
from genlab.errors import ConfigError
from genlab.evaluation.doctests import has_doctest, passes_doctest
from genlab.judges import Judge
from genlab.samples import Samples


class PythonFunction(Judge):
    """Of a body for a signature and docstring (data=python_functions): 0 where they are not one function, a half where
    they are, 1 where it also passes the examples of its docstring, each in a process of its own.

    Args:
        doctests: whether what was generated is run, see genlab.evaluation.doctests; false: it is only parsed.
        seconds: of processor time a function.
    """

    modality = "text"

    def __init__(self, doctests: bool = False, seconds: Annotated[float, "gt 0"] = 5.0) -> None:
        self.doctests, self.seconds = doctests, seconds

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> list[float]:
        if "source" not in condition:
            raise ConfigError(f"{self.name} judges bodies of functions; take data=python_functions")
        modules = modules_of_functions() if self.doctests else {}
        pairs = zip(map(str, condition["source"]), samples.data, strict=True)
        return [self._score(head, body, modules.get(head, "")) for head, body in pairs]

    def _score(self, head: str, body: str, module: str) -> float:
        function = parsed(text := joined(head, body))
        if function is None:
            return 0.0
        shown = self.doctests and has_doctest(head)
        return 1.0 if shown and passes_doctest(text, function.name, module, self.seconds) else 0.5
