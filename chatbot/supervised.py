"""Entry of a process that ``frontdesk up`` supervises: ``python -m chatbot.supervised ARGS``.

Its standard input is a pipe that only the supervisor holds open. When the supervisor dies, however
it dies, the pipe ends and the process stops itself as on SIGTERM, so that no process is left
behind to hold ports or files.
"""

import os
import signal
import sys
import threading


def _follow_parent() -> None:
    # reads block until the last writer of the pipe is gone
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the ``frontdesk`` command with the given arguments, tied to the parent's life."""
    threading.Thread(target=_follow_parent, daemon=True, name="lifeline").start()
    from chatbot.cli import main as command

    command(sys.argv[1:])


if __name__ == "__main__":
    main()
