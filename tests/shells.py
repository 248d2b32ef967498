"""Real interactive shells on a terminal: what a line becomes when TAB is pressed at its end."""

import fcntl
import os
import pty
import select
import shutil
import subprocess
import termios
import time
from pathlib import Path

SHARE = Path(__file__).resolve().parent.parent / "share" / "completion"
TIMEOUT = 120  # seconds: only there so that a hang fails
SHELLS = {  # how it starts, and what it is told first
    "bash": (["bash", "--norc", "--noprofile", "-i"], [f"source {SHARE / 'streamattn'}"]),
    "zsh": (["zsh", "-f", "-i"], ["autoload -U compinit", "compinit -u -D", f"source {SHARE / '_streamattn'}"]),
    "fish": (["fish", "--no-config", "-i"], [f"source {SHARE / 'streamattn.fish'}"]),
}
INSTALLED = [name for name in SHELLS if shutil.which(name)]


def completed(shell, line, folder, env):
    """The words of a command line, when TAB has been pressed at its end in a shell that runs in `folder`."""
    start, setup = SHELLS[shell]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        start, cwd=folder, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    try:
        screen = _Screen(master)
        screen.say("; ".join([*setup, "printf 'set%s\\n' up"]) + "\r")
        screen.wait("setup")
        screen.say(line + "\t")
        screen.say("\x01printf '<%s>' \x05 'the'' end'\r")  # before the line, and behind it
        told = screen.wait("<the end>")
        return told[told.rindex("<streamattn>") : told.rindex("<the end>")].strip("<>").split("><")[1:]
    finally:
        process.kill()
        process.wait()
        os.close(master)


class _Screen:
    """The far end of a terminal."""

    def __init__(self, master):
        self.master, self.seen = master, ""

    def say(self, text):
        """Type something."""
        os.write(self.master, text.encode())

    def wait(self, word):
        """Everything shown so far, when the word is among it."""
        deadline = time.monotonic() + TIMEOUT
        while word not in self.seen:
            assert time.monotonic() < deadline, f"{word} did not come: {self.seen!r}"
            if select.select([self.master], [], [], 1)[0]:
                self.seen += os.read(self.master, 1 << 16).decode(errors="replace")
        return self.seen
