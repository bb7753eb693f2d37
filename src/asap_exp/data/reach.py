"""Whether a host on the network answers."""

import contextlib
import os
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit

REACH_SECONDS = 8


class Unavailable(Exception):
    """Raised when a source cannot provide a data set; the message is the reason in one phrase."""


def endpoint() -> str:
    """Return the address of the Hugging Face hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def require_reachable(url: str) -> None:
    """Raise Unavailable unless something answers at `url` within REACH_SECONDS."""
    failure: list[str] = [f"no answer within {REACH_SECONDS} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with contextlib.suppress(urllib.error.HTTPError):  # an error page is an answer too
                urllib.request.urlopen(request, timeout=REACH_SECONDS)
        except Exception as error:
            failure[0] = str(getattr(error, "reason", error))
            return
        failure.clear()

    # Name resolution has no timeout, so it runs in a thread that is waited for.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if failure:
        raise Unavailable(f"{urlsplit(url).netloc or url} was not reached ({failure[0]})")
