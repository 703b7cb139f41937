"""Who asks over TCP, where no kernel vouches for anybody: a token, a client certificate, or both.

A client certificate was verified before a byte was read, if an authority for them is configured at all. What remains is
the ``Authorization`` header: a token of the file, or one of a service account. Whatever cannot be decided is a no.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from refork.api import Refusal
from refork.tls import subject
from refork.tokens import TokenFileError, read

if TYPE_CHECKING:
    from refork.door import Door
    from refork.endpoint import Log
    from refork.service_accounts import ServiceAccounts
    from refork.web import Request

_SCHEME = "bearer "


class Gate:
    """Decides who may command through one door."""

    def __init__(self, door: Door, *, log: Log) -> None:
        self._door = door
        self._log = log
        self._complaint = ""
        self._accounts: ServiceAccounts | None = None
        if door.service_accounts:
            # What fetches and reads keys is not loaded before somebody knocks.
            from refork.service_accounts import ServiceAccounts  # noqa: PLC0415

            assert door.keys is not None
            self._accounts = ServiceAccounts(door.service_accounts, source=door.keys, issuer=door.issuer, log=log)

    async def identify(self, request: Request) -> str:
        """Return the words that name who asks, for the log.

        Raises:
            Refusal: they may not.
        """
        words = [f"address={request.address}"]
        if self._door.client_ca:
            certificate = subject(request.transport.get_extra_info("peercert"))
            if not certificate:
                raise Refusal("a client certificate is needed", status=401)
            words.append(f"certificate={json.dumps(certificate)}")
        if self._door.wants_token:
            words.append(await self._holder(_token(request)))
        return " ".join(words)

    async def _holder(self, token: str) -> str:
        fingerprint = self._fingerprint(token)
        if fingerprint is not None:
            return f"token={fingerprint}"
        if self._accounts is not None:
            return await self._accounts.verify(token)
        raise Refusal("the token is not known", status=401)

    def _fingerprint(self, token: str) -> str | None:
        if not self._door.token_file:
            return None
        try:
            tokens = read(self._door.token_file)
        except TokenFileError as error:
            self._complain(str(error))
            return None
        self._complain(f"{self._door.token_file}: {tokens.warning}" if tokens.warning else "")
        return tokens.fingerprint(token)

    def _complain(self, sentence: str) -> None:
        """Say what is wrong with the token file, once."""
        if sentence and sentence != self._complaint:
            self._log.warning("control token_file: %s", sentence)
        self._complaint = sentence


def _token(request: Request) -> str:
    shown = request.headers("authorization")
    if len(shown) != 1 or not shown[0].lower().startswith(_SCHEME):
        raise Refusal("a token is needed: Authorization: Bearer TOKEN", status=401)
    return shown[0][len(_SCHEME) :].strip()
