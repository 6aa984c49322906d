"""A process of its own in which HiGHS solves: whatever it prints reaches nobody's terminal or output.

HiGHS writes to C's standard output in places where it was told not to. Here that is another process's, so
that no descriptor of the caller's is moved. The process is started when it is first needed, takes one
programme after another, and ends with the caller.

This file is run by its path, and imports nothing of revgraph: a process is there in a fraction of a second.
"""

from __future__ import annotations

import atexit
import io
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]
# How often a programme is given to a process: one that was killed is started again.
ATTEMPTS = 2


def solve(arrays: Arrays) -> Arrays:
    """The columns' values `x` (none where nothing was found), and the solver's `status`.

    Raises:
        RuntimeError: the process cannot be started, or ended before it answered.
    """
    with _lock:
        for _ in range(ATTEMPTS):
            try:
                answer = _answered(_started(), arrays)
            except OSError:  # it ended meanwhile
                answer = None
            except BaseException:  # an interrupt: the answer still to come would be taken for the next one
                _stop()
                raise
            if answer is not None:
                return answer
            _stop()
        raise RuntimeError("the solver's process ended before it answered, and once more after a new start")


def _answered(process: subprocess.Popen[bytes], arrays: Arrays) -> Arrays | None:
    assert process.stdin is not None and process.stdout is not None
    _write(process.stdin, arrays)
    return _read(process.stdout)


_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None
_owner = 0


def _started() -> subprocess.Popen[bytes]:
    """This process's own solver: one that was forked must not read the answers of the other."""
    global _process, _owner
    if _process is not None and _owner == os.getpid() and _process.poll() is not None:
        _stop()  # its pipes are still open
    if _process is None or _owner != os.getpid():
        try:
            _process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt at the terminal is the caller's to act on
            )
        except OSError as error:
            raise RuntimeError(f"the solver's process cannot be started: {error}") from error
        _owner = os.getpid()
    return _process


@atexit.register
def _stop() -> None:
    global _process
    if _process is not None and _owner == os.getpid():
        _process.kill()
        _process.communicate()
    _process = None


def _write(pipe: IO[bytes], arrays: Arrays) -> None:
    text = io.BytesIO()
    np.savez(text, allow_pickle=False, **arrays)
    pipe.write(len(text.getvalue()).to_bytes(8, "little"))
    pipe.write(text.getvalue())
    pipe.flush()


def _read(pipe: IO[bytes]) -> Arrays | None:
    """What was written at the other end; None where that is closed."""
    length = pipe.read(8)
    if len(length) < 8:
        return None
    text = pipe.read(int.from_bytes(length, "little"))
    with np.load(io.BytesIO(text), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _serve() -> None:
    import scipy.sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    answers = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    while (given := _read(sys.stdin.buffer)) is not None:
        rows = (given["values"], given["columns"], given["starts"])
        matrix = scipy.sparse.csr_array(rows, shape=(len(given["row_low"]), len(given["low"])))
        found = milp(
            given["costs"],
            integrality=given["whole"],
            bounds=Bounds(given["low"], given["high"]),
            constraints=LinearConstraint(matrix, given["row_low"], given["row_high"]),
            options={
                "node_limit": int(given["nodes"]),
                "mip_rel_gap": float(given["gap"]),
                "presolve": False,  # mostly longer than it saves where few nodes are gone through
            },
        )
        x = np.zeros(0) if found.x is None else found.x
        _write(answers, {"x": x, "status": np.array(found.status)})


if __name__ == "__main__":
    _serve()
