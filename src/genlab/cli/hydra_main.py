"""The entry points' decorator: Hydra, with every mistake of the user answered in one line and before torch is imported.

So the body of an entry point imports inside, as that of train.py does.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from genlab import signals
from genlab.cli import explain, hydra_node, targets
from genlab.cli.check import check
from genlab.cli.problem import Problem, one_line
from genlab.cli.redact import redact
from genlab.cli.start import refuse_known_bad, use_utf8
from genlab.cli.sweep import CheckedLauncher, JobFailed
from genlab.errors import GenlabError, Preempted, Stopped, expected
from genlab.signals import PREEMPTING, caught, leave_terminal

Body = Callable[[DictConfig], Any]
TEXT = ("condition",)  # nodes whose values are text, whatever it looks like


def hydra_main(
    config_name: str, config_path: str | Path, free: Sequence[str] = ()
) -> Callable[[Body], Callable[[], None]]:
    """Wraps the body of an entry point.

    The configuration is composed and checked by `check(cfg, entry=config_name)`, for a sweep every job before the first
    one starts; then the body runs. A GenlabError prints one line and gives the process its exit code; a SystemExit
    passes (for a body that has already said why); any other exception keeps its traceback, exit code 1. Inside a sweep
    a failing job leaves the others running, and the process ends with the code of the first that failed.

    Args:
        config_name: primary config, without .yaml; also the name that `check` knows the entry point by.
        config_path: folder of configs.
        free: nodes that a command line may fill freely (`condition.label=3` where the config has no such key): what is
            right there depends on the run that is read later.
    """
    folder = str(Path(config_path).resolve())

    def decorate(body: Body) -> Callable[[], None]:
        @functools.wraps(body)
        def task(cfg: DictConfig) -> Any:
            settings = HydraConfig.get()
            sweeping = settings.mode == RunMode.MULTIRUN
            run = ""
            try:
                if not sweeping:  # a sweep's jobs were checked by its launcher
                    check_composed(cfg, config_name, settings)
                return body(cfg)
            except JobFailed as failed:
                code, run = failed.exit_code, failed.run
            except SystemExit as leave:
                code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
                if not sweeping or code in (0, 130, 143):
                    raise
            except BaseException as failure:  # a panic of a library in Rust is no Exception
                error = signals.cause(failure)
                if isinstance(error, (KeyboardInterrupt, Stopped)):
                    raise error from None
                known = expected(error, cfg.get("runs_dir") or ".")
                if known is not None:
                    complain(known)
                    code = known.exit_code
                else:  # a fault of ours or of the user's own code
                    print(redact(traceback.format_exc()), file=sys.stderr)
                    code = 1
            # A SystemExit would end the whole sweep; any other exception makes Hydra add a line of its own.
            raise JobFailed(code, run) if sweeping and code not in (130, 143) else SystemExit(code)

        @functools.wraps(body)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra reports errors itself, in its own words
            use_utf8()
            targets.settle()
            signals.forget()
            try:
                refuse_known_bad()
            except GenlabError as error:
                fail(error)
            arguments = _arguments(free)
            if arguments.help:
                print(explain.help_text(config_name, explain.folders_of(arguments, folder), body.__doc__ or ""))
                sys.exit(0)
            _check_sweeps(config_name)
            hydra_node.install()
            run = hydra.main(version_base="1.3", config_path=folder, config_name=config_name)(task)
            before = {number: signal.signal(number, stop) for number in caught(PREEMPTING)}
            try:
                run()
            except JobFailed as failed:  # it has said why
                sys.exit(failed.exit_code)
            except BaseException as failure:
                cause = signals.cause(failure)
                if isinstance(cause, Stopped):
                    print(f"genlab: preempted: {cause}", file=sys.stderr, flush=True)
                    sys.exit(cause.exit_code)
                if isinstance(cause, KeyboardInterrupt):
                    fail(GenlabError("interrupted"), 130)
                known = cause if isinstance(cause, GenlabError) else None
                if known is None and isinstance(cause, Exception):
                    known = explain.composition(cause, arguments, config_name, folder)
                if known is None:
                    raise
                fail(known)
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        return main

    return decorate


def check_composed(cfg: DictConfig, entry: str, settings: Any) -> None:
    """`check`, with the file or 'command line' that each faulty key came from in the message."""
    try:
        check(cfg, entry)
    except Problem as problem:
        problem.where = problem.where or explain.origin(problem.key, settings)
        raise


def stop(number: int, frame: FrameType | None) -> None:
    """The signals that end a session, where no worker is there to take them."""
    leave_terminal(number)
    signals.raise_in_handler(Preempted("stopped; nothing was lost"))


def complain(error: BaseException) -> None:
    print(f"genlab: error: {one_line(redact(str(error)))}", file=sys.stderr, flush=True)


def fail(error: GenlabError, code: int | None = None) -> NoReturn:
    complain(error)
    sys.exit(error.exit_code if code is None else code)


def _arguments(free: Sequence[str]) -> Any:
    """The command line, put in the form in which Hydra can parse it, into sys.argv; its errors take one line too."""
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        fail(Problem(message, where="command line", do="Overrides are written key=value; see --help"))

    parser.error = error  # type: ignore[method-assign]
    arguments = parser.parse_intermixed_args()
    if arguments.experimental_rerun is not None:
        error("--experimental-rerun reads a pickle, which can run code; GenLab does not")
    flags = [a for a in sys.argv[1:] if a not in arguments.overrides]
    arguments.overrides = [readable(o, free, arguments.multirun) for o in arguments.overrides]
    sys.argv[1:] = flags + arguments.overrides
    return arguments


def readable(override: str, free: Sequence[str], sweep: bool = False) -> str:
    """An override that Hydra can read: a value with spaces, `=` or Chinese is quoted, a key of a free node forced.

    Values of TEXT nodes are text as it stands, but for lists, null, what is quoted for Hydra, and a sweep's choices.
    """
    key, equals, value = override.partition("=")
    force = "++" if key.startswith(tuple(f"{node}." for node in free)) else ""
    if not equals or (sweep and "," in value):
        return f"{force}{override}"
    if key.startswith(tuple(f"{node}." for node in TEXT)):
        escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # for OmegaConf, to which it would be an interpolation
        plain = value == "null" or (value[:1] in {"[", "'", '"'} and _parses(override, value=True))
        return f"{force}{override}" if plain else f"{force}{key}={_quoted(escaped)}"
    if value[:1] in {"", "[", "{", "'", '"'} or "${" in value or _parses(override):
        return f"{force}{override}"
    return f"{force}{key}={_quoted(value)}"


def _parses(override: str, value: bool = False) -> bool:
    """Whether Hydra reads it; as one `value`, no choices of a sweep."""
    try:
        return not (OverridesParser.create().parse_override(override).is_sweep_override() and value)
    except HydraException:
        return False


def _quoted(value: str) -> str:
    """In double quotes, before which Hydra halves backslashes."""
    return '"' + re.sub(r'(\\*)("|$(?!\n))', lambda m: m[1] * 2 + ("\\" + '"' if m[2] else ""), value) + '"'


def _check_sweeps(entry: str) -> None:
    """Puts CheckedLauncher around whatever launcher a sweep asks for (local, joblib, SLURM)."""
    plugins = Plugins.instance()
    make = type(plugins).instantiate_launcher

    def instantiate_launcher(**context: Any) -> CheckedLauncher:
        def check_job(cfg: DictConfig) -> None:
            HydraConfig.instance().set_config(cfg)  # for ${hydra:...}, as when the job runs
            settings = HydraConfig.get()
            job = cfg.copy()
            job._set_flag("struct", False)
            del job["hydra"]
            check_composed(job, entry, settings)

        return CheckedLauncher(make(plugins, **context), check_job, **context)

    plugins.instantiate_launcher = instantiate_launcher  # type: ignore[method-assign,assignment]
