"""The owner's token: from the environment, or a random one for this run."""

import hmac
import os
import re
import secrets
from dataclasses import dataclass, field

from mmrlhf.errors import UserError

VARIABLE = "MMRLHF_OWNER_TOKEN"
SHORTEST = 16


@dataclass(frozen=True)
class Owner:
    """Who sees the owner's page: whoever has the token; `given` says that the owner chose it, so that it is never printed."""

    token: str = field(repr=False)
    given: bool = False

    def link(self, url: str) -> str:
        """Where the page is, for the console."""
        return f"{url}/owner?token=" + (f"…, the token being that in {VARIABLE}" if self.given else self.token)

    def is_token(self, text: str) -> bool:
        """Whether this is the token; in a time that does not say how much of it is right."""
        return hmac.compare_digest(text.encode(errors="replace"), self.token.encode())

    def cookie(self) -> str:
        """What a browser keeps once it gave the token: it proves the token, and does not tell it."""
        return hmac.new(self.token.encode(), b"the owner's page", "sha256").hexdigest()

    def is_cookie(self, text: str) -> bool:
        """Whether this is the cookie."""
        return hmac.compare_digest(text.encode(errors="replace"), self.cookie().encode())


def owner_of_environment() -> Owner:
    """The owner by MMRLHF_OWNER_TOKEN, or one with a random token. UserError for a token that could be guessed."""
    token = os.environ.get(VARIABLE)
    if token is None:
        return Owner(secrets.token_urlsafe(24))
    if not re.fullmatch(rf"[A-Za-z0-9._~-]{{{SHORTEST},200}}", token):
        raise UserError(
            f"{VARIABLE} has {len(token)} characters, allowed is {SHORTEST} to 200 of A-Z a-z 0-9 . _ ~ -: give a longer "
            "random one, or none, and one is made"
        )
    return Owner(token, given=True)
