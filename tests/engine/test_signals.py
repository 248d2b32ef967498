"""Signals, sent to a real process."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import Interrupted

HEAD = """
import os, signal, sys, time
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import Interrupted
def say(text): os.write(1, text.encode() + b"\\n")
"""

CAREFUL = (
    HEAD
    + """
with Interrupts(status=lambda: say("status")) as interrupts:
    interrupts.on_abort(lambda: say("cleanup one"))
    interrupts.on_abort(lambda: 1 / 0)
    interrupts.on_abort(lambda: say("cleanup two"))
    interrupts.on_abort(lambda: say("withdrawn"))()
    say("ready")
    try:
        while True:
            for _ in range(int(sys.argv[1])):  # a block: cannot be cut short politely
                time.sleep(0.01)
                if interrupts.pending and sys.argv[2] == "noisy":
                    sys.argv[2] = ""
                    say("pending")
            interrupts.check()
    except Interrupted as stop:
        say(f"stopped {stop.signum}")
        code = 128 + stop.signum
sys.exit(code)
"""
)


def _start(source, *args, **kwargs):
    command = [sys.executable, "-c", textwrap.dedent(source), *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **kwargs)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_once_stops_at_the_next_block(number):
    process = _start(CAREFUL, "3", "")
    process.send_signal(number)
    out, _ = process.communicate(timeout=900)
    assert (out, process.returncode) == (f"stopped {int(number)}\n", 128 + number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twice_cleans_up_and_dies_of_the_signal(number):
    process = _start(CAREFUL, "100000", "noisy")
    process.send_signal(number)
    assert process.stdout.readline() == "pending\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=900)
    assert (out, process.returncode) == ("cleanup two\ncleanup one\n", -number)


def test_usr1_tells_and_the_run_goes_on():
    process = _start(CAREFUL, "3", "")
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "status\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=900)
    assert (out, process.returncode) == ("stopped 15\n", 143)


def test_a_signal_that_nohup_ignores_stays_ignored():
    source = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + CAREFUL
    process = _start(source, "3", "")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=900)
    assert (out, process.returncode) == ("stopped 15\n", 143)


def test_old_handlers_come_back():
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(n) for n in names]
    with Interrupts(status=lambda: None):
        assert all(signal.getsignal(n) != old for n, old in zip(names, before, strict=True))
    assert [signal.getsignal(n) for n in names] == before


def test_pending_raises_at_every_check():
    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            interrupts.check()
        assert caught.value.signum == interrupts.pending == signal.SIGTERM
        with pytest.raises(Interrupted):
            interrupts.check()


def test_other_threads_leave_signals_alone():
    seen = []

    def run():
        before = signal.getsignal(signal.SIGTERM)
        with Interrupts() as interrupts:
            interrupts.check()
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]
