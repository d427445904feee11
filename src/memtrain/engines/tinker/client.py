"""The way to a server: its address, its key, whether it is there, and what its errors mean.

The client library retries single requests, by sequence numbers that keep a repeated one from being run twice; a result
it asks for without end, though, and a server that was restarted has forgotten the model. Both are settled here: every
request is watched, a server that stays away ends the run in one sentence, and what a restart lost is told apart from
what a server refuses.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from memtrain.addresses import on_this_machine
from memtrain.errors import UserError, first_line
from memtrain.settings.tinker import TinkerSettings

T = TypeVar("T")

HOSTED = "https://tinker.thinkingmachines.dev/services/tinker-prod"
"""Where the client library goes without an address."""
NO_KEY = "tml-none"
"""Stands for a key with a server of one's own: the client library wants one, such a server looks at none."""
PROBE_SECONDS = 5.0
"""How often, and how long, a server that keeps us waiting is asked whether it is there."""
LOST = re.compile(
    r"not loaded|not found|expired|status (404|409|410|5\d\d)|Error code: (404|409|410|5\d\d)|Connection", re.IGNORECASE
)
"""What a server says, or the client library of it, that has lost a model, a session or a result."""


class ServerError(Exception):
    """A request that the server did not carry out; ``lost``: because it no longer has what the request is about."""

    def __init__(self, message: str, lost: bool):
        super().__init__(message)
        self.message, self.lost = message, lost


def address(settings: TinkerSettings) -> tuple[str, str | None]:
    """Address and key; None: the client library finds the key, or the command that prints one, by itself.

    Raises :class:`UserError` without an address or a key, and where a key would travel in clear text.
    """
    key = os.environ.get("TINKER_API_KEY", "")
    credentials = bool(key or os.environ.get("TINKER_CREDENTIAL_CMD"))
    url = settings.base_url or os.environ.get("TINKER_BASE_URL", "").rstrip("/")
    if not url:
        if not credentials:
            raise UserError(
                "engine = \"tinker\" needs a server: set TINKER_BASE_URL or key 'tinker.base_url' to the address of "
                "yours, or TINKER_API_KEY to a key of the hosted service"
            )
        return HOSTED, None
    if not url.startswith(("http://", "https://")):
        raise UserError(f"TINKER_BASE_URL is {url!r}; it must begin with http:// or https://")
    if url.startswith("https://") and not on_this_machine(url):
        if not credentials:
            raise UserError(f"the Tinker server at {url} wants a key; set TINKER_API_KEY")
        return url, None
    if credentials and not on_this_machine(url):
        raise UserError(
            f"TINKER_API_KEY would go to {url} unencrypted; use https, or unset it: a server of your own takes none"
        )
    return url, (None if credentials else NO_KEY)


class Connection:
    """A server, and the client library's session with it."""

    def __init__(self, settings: TinkerSettings):
        """Raises :class:`UserError` as :func:`address` does, or where the client library is missing."""
        try:
            import tinker
        except ImportError:
            raise UserError('engine = "tinker" needs its client: pip install "memtrain[tinker]"') from None
        self._tinker = tinker
        self.settings = settings
        self.url, self._key = address(settings)
        self._service: Any = None
        self._seen = self._asked = time.monotonic()
        logging.getLogger("tinker").addHandler(logging.NullHandler())  # what it logs, the errors say

    # ---- is it there -----------------------------------------------------------------------------------------------

    def is_up(self) -> bool:
        """Whether anything answers, be it that we may not ask."""
        handlers = [urllib.request.ProxyHandler({})] if on_this_machine(self.url) else []
        try:
            with urllib.request.build_opener(*handlers).open(f"{self.url}/api/v1/healthz", timeout=PROBE_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            return error.code < 500
        except (OSError, ValueError):
            return False

    def check(self) -> None:
        """Raises :class:`UserError` where nothing answers."""
        if not self.is_up():
            raise UserError(
                f"no Tinker server answers at {self.url}; start it, or set TINKER_BASE_URL or key 'tinker.base_url' "
                "to the address of one that runs"
            )

    async def wait(self) -> None:
        """Return when the server answers. Raises :class:`UserError` after ``tinker.patience`` seconds."""
        since, pause = time.monotonic(), 0.5
        while not await asyncio.to_thread(self.is_up):
            if time.monotonic() - since > self.settings.patience:
                raise self._gone()
            await asyncio.sleep(pause)
            pause = min(2 * pause, PROBE_SECONDS)
        self._seen = time.monotonic()

    def _gone(self) -> UserError:
        return UserError(
            f"the Tinker server at {self.url} has not answered for {self.settings.patience:g} seconds; start it again "
            "and go on with --resume (key 'tinker.patience' is how long a run waits)"
        )

    # ---- requests --------------------------------------------------------------------------------------------------

    @property
    def service(self) -> Any:
        """The library's ServiceClient, with a session that it opens on first use."""
        if self._service is None:
            options: dict[str, Any] = {"api_key": self._key} if self._key else {}
            self._service = self._tinker.ServiceClient(base_url=self.url, **options)
        return self._service

    def renew(self) -> None:
        """Forget the session: a server that was restarted may not know it."""
        if self._service is not None:
            for holder in (self._service._session_holder, self._service._rest_holder):
                if holder is not None:
                    holder.close()
        self._service = None

    async def ask(self, start: Callable[[], Awaitable[T]]) -> T:
        """Await a request, watching the server.

        Raises :class:`UserError` where it stays away or takes longer than ``tinker.request_timeout``, and
        :class:`ServerError` where it did not do what was asked.
        """
        began = time.monotonic()
        self._seen = max(self._seen, began)
        task = asyncio.ensure_future(start())
        every = min(PROBE_SECONDS, self.settings.patience / 4)
        try:
            while not (await asyncio.wait({task}, timeout=every))[0]:
                if time.monotonic() - began > self.settings.request_timeout:
                    raise UserError(
                        f"the Tinker server at {self.url} has worked on one request for "
                        f"{self.settings.request_timeout:g} seconds; look at its log, or raise tinker.request_timeout"
                    )
                await self._look(every)
            return task.result()
        except (self._tinker.TinkerError, ValueError, OSError, TimeoutError) as error:
            raise self._meaning(error) from None
        except AssertionError as error:
            told = f"the client library {self._tinker.__version__} cannot read its answer: {first_line(error)}"
            raise ServerError(f"{told}; SkyRL 0.4.0 needs tinker 0.25", lost=False) from None
        except Exception as error:
            if type(error).__module__.startswith(("tinker", "httpx")):  # it has errors without a common ancestor
                raise self._meaning(error) from None
            raise
        finally:
            task.cancel()

    async def _look(self, every: float) -> None:
        now = time.monotonic()
        if now - self._asked < every:  # another request has just looked
            return
        self._asked = now
        if await asyncio.to_thread(self.is_up):
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > self.settings.patience:
            raise self._gone()

    def _meaning(self, error: BaseException) -> ServerError:
        status = getattr(error, "status_code", None)
        text = first_line(error)
        if status in (401, 402, 403):
            raise UserError(f"the Tinker server at {self.url} refuses the key ({text}); check TINKER_API_KEY") from None
        lost = isinstance(error, (OSError, TimeoutError, self._tinker.APIConnectionError)) or bool(LOST.search(text))
        return ServerError(text, lost or (status is not None and (status in (404, 408, 409, 410) or status >= 500)))
