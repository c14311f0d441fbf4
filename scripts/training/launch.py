"""Several processes as one run, by `jax.distributed`; on CPUs they speak gloo."""

import socket
import subprocess
import sys
import time

import jax

POLL = 0.2  # seconds


def join(coordinator: str, process: int, processes: int) -> None:
    """Makes this process one of several, each of which then sees the devices of all.

    Raises:
      RuntimeError: if the others can't be reached.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process)


def on_this_machine(arguments: list[str], processes: int) -> int:
    """Starts `processes` processes with the same arguments, and waits for them; the first one speaks.

    Where one of them ends badly the others, which would wait for it, are stopped. Returns the exit code of the run.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "training", *arguments, "--coordinator", coordinator]
    command += ["--num-processes", str(processes)]
    children = [
        subprocess.Popen([*command, "--process-id", str(k)], stdout=subprocess.DEVNULL if k else None)
        for k in range(processes)
    ]
    try:
        while True:
            codes = [child.poll() for child in children]
            bad = [code for code in codes if code]
            if bad or None not in codes:
                return bad[0] if bad else 0
            time.sleep(POLL)
    finally:
        for child in children:
            child.kill()
            child.wait()
