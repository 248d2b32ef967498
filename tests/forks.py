"""Runs of the program as forks of one process that has imported everything: they begin at once, and are what `streamattn` is.

`python tests/forks.py FD` answers requests that come through the socket FD, one after the other: JSON of words, folder and
environment, with the three standard streams. The answer to each is the pid, then the exit code (negative: a signal).
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "sample_data" / "heads.h5"
ROOM = 1 << 20  # bytes of a request


class Forks:
    """The process that forks, and the way to it."""

    def __init__(self):
        self.socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            command = [sys.executable, __file__, str(there.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL)

    def run(self, words, folder, environment, timeout, stdout, stderr, stdin=None, input=None):
        """(exit code, standard output, standard error) of `streamattn WORDS`, with streams as subprocess.run has them.
        Raises TimeoutExpired after the program was killed."""
        with contextlib.ExitStack() as stack:
            threads, found, given = [], [b"", b""], []
            if input is not None:
                out, into = os.pipe()
                given.append(stack.enter_context(os.fdopen(out, "rb")).fileno())
                threads.append(threading.Thread(target=_feed, args=(into, input)))
            else:
                given.append(_descriptor(stdin, stack))
            for place, stream in enumerate((stdout, stderr)):
                if stream == subprocess.PIPE:
                    out, into = os.pipe()
                    given.append(stack.enter_context(os.fdopen(into, "wb")).fileno())
                    threads.append(threading.Thread(target=_take, args=(out, found, place)))
                else:
                    given.append(_descriptor(stream, stack))
            socket.send_fds(self.socket, [json.dumps([words, str(folder), environment]).encode()], given)
            pid = int(self.socket.recv(64))
        for thread in threads:
            thread.start()
        self.socket.settimeout(timeout)
        try:
            code = int(self.socket.recv(64))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            self.socket.settimeout(None)
            self.socket.recv(64)
            raise subprocess.TimeoutExpired(words, timeout) from None
        finally:
            self.socket.settimeout(None)
            for thread in threads:
                thread.join()
        return code, *found


def _descriptor(stream, stack):
    if stream == subprocess.DEVNULL:
        return stack.enter_context(open(os.devnull, "r+b")).fileno()
    return stream if isinstance(stream, int) else stream.fileno()


def _feed(into, data):
    with contextlib.suppress(BrokenPipeError), os.fdopen(into, "wb") as file:
        file.write(data)


def _take(out, found, place):
    with os.fdopen(out, "rb") as file:
        found[place] = file.read()


def _program(words):
    """What `streamattn` does, to its exit code."""
    from streamattn_cli.cli.main import main

    sys.argv = ["streamattn", *words]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: one that was full
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    return code


def _open_streams():
    """The standard streams as an interpreter opens them when it starts."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode, old = "w" if number else "r", getattr(sys, name)
        tty = os.isatty(number)
        new = open(  # noqa: SIM115 - as long as the process
            number, mode, closefd=False, encoding=old.encoding, errors=old.errors, newline="\n" if number else None,
            buffering=1 if number == 2 or tty else -1,
        )  # fmt: skip
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def _serve(descriptor):
    for mode in ("--causal", "--full"):  # loads what most runs need
        words = ["attend", str(SAMPLE), "--rows", "0:600", mode, "--resident-rows", "64", "--audit", "8", "--quiet"]
        assert _program([*words, "-o", os.devnull]) == 0
    way = socket.socket(fileno=descriptor)
    while True:
        request, streams, _, _ = socket.recv_fds(way, ROOM, 3)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            way.close()
            words, folder, environment = json.loads(request)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            _open_streams()
            code = _program(words)
            atexit._run_exitfuncs()
            os._exit(code)
        for stream in streams:
            os.close(stream)
        way.send(str(pid).encode())
        way.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
