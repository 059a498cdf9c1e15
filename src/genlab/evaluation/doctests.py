"""Generated functions held against the examples in their docstrings, each in a process of its own.

It runs what a model has written. The process has a limit of time, memory and file size, an empty environment and a
temporary folder; Python's audit hook refuses the network, other processes, foreign libraries and changes of files. That
stops what goes wrong by chance, not a program that is meant to break out: judge models that you trust so far.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile

CHILD = r"""
import doctest, importlib, io, os, resource, sys
text, name, module, mark, seconds = *sys.stdin.read().split("\0"),
for kind, most in (("CPU", int(float(seconds)) + 1), ("AS", 1 << 30), ("FSIZE", 1 << 20), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (most, most))
sys.dont_write_bytecode = True
REFUSED = ("socket.", "subprocess.", "ctypes.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
           "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.ch",
           "os.kill", "os.putenv", "shutil.", "signal.", "pty.", "webbrowser.", "urllib.", "ftplib.", "smtplib.")

def refuse(event, arguments):
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if event.startswith(REFUSED) or writes:
        raise PermissionError("refused: " + event)

out, sys.stdout = sys.stdout, io.StringIO()
sys.addaudithook(refuse)
space = {**(vars(importlib.import_module(module)) if module else {}), "__name__": "judged"}
exec(compile(text, "judged", "exec"), space)
runner = doctest.DocTestRunner(verbose=False)
for test in doctest.DocTestFinder(recurse=False).find(space[name], name, module=False, globs=space):
    runner.run(test, out=lambda words: None)
print(mark, runner.failures, runner.tries, file=out, flush=True)
"""


def has_doctest(text: str) -> bool:
    """Whether a text shows an example with what it gives."""
    return ">>> " in text


def passes_doctest(text: str, name: str, module: str = "", seconds: float = 5.0) -> bool:
    """Whether the function `name` that `text` defines gives what its docstring's examples say.

    Args:
        module: of the standard library, among whose names it is defined; "": none.
        seconds: of processor time.

    Returns:
        False also where it cannot be defined, has no example, takes longer or too much memory.
    """
    mark = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", CHILD], input="\0".join([text, name, module, mark, str(seconds)]).encode(),
                cwd=folder, env={}, capture_output=True, timeout=seconds + 5, start_new_session=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    last = done.stdout.decode(errors="replace").strip().rpartition("\n")[2].split()
    return len(last) == 3 and last[:2] == [mark, "0"] and last[2] != "0"
