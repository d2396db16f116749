"""How what runs on and on is ended: by Ctrl+C and by a polite kill alike."""

import signal
import time


def end_on_signals() -> None:
    """Let Ctrl+C and a polite kill end this process, also where a shell in the background had them ignored."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)


def wait_for_the_end() -> None:
    """Return once somebody wants this process to end."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()  # the terminal has written ^C on this line
