"""Keys from the environment that make published records tamper-proof, not only tamper-evident.

``STRATA_SIGNING_KEY``
    one key, with which everything published is signed;
``STRATA_TRUSTED_KEYS``
    keys, separated by commas, one of which must have signed everything that is read. Where set,
    an unsigned record is refused.

A key is written ``hmac-sha256:<hex>`` (one secret of at least 16 bytes for both sides) or
``ed25519:<hex>`` (32 bytes: the private key to sign, the public key to trust; needs the package
``cryptography``).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = ["BadSignature", "Keyring", "SigningKey"]

_SCHEMES = ("hmac-sha256", "ed25519")


class BadSignature(ValueError):
    """A record is unsigned, or signed by none of the trusted keys."""


@dataclass(frozen=True)
class SigningKey:
    """One key; whether it can sign or only verify depends on what it holds."""

    scheme: str
    key: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str, *, variable: str) -> Self:
        """Read ``scheme:hex``; raise ValueError, without showing the key, if it is not one."""
        scheme, _, digits = text.strip().partition(":")
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        if scheme not in _SCHEMES or (len(key) != 32 if scheme == "ed25519" else len(key) < 16):
            raise ValueError(
                f"{variable} holds no key: write hmac-sha256:<hex, 16 bytes or more> or "
                "ed25519:<hex, 32 bytes>."
            )
        return cls(scheme, key)

    def sign(self, message: bytes) -> dict[str, str]:
        """Return the signature of a message as plain data."""
        if self.scheme == "hmac-sha256":
            value = hmac.new(self.key, message, hashlib.sha256).hexdigest()
        else:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

            value = Ed25519PrivateKey.from_private_bytes(self.key).sign(message).hex()
        return {"scheme": self.scheme, "value": value}

    def verifying(self) -> SigningKey:
        """The key that recognises what this one has signed."""
        if self.scheme == "hmac-sha256":
            return self
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = Ed25519PrivateKey.from_private_bytes(self.key)
        return SigningKey(self.scheme, private.public_key().public_bytes_raw())

    def has_signed(self, message: bytes, signature: Any) -> bool:
        """Whether a signature of a message was made with this key (or its private half)."""
        if not isinstance(signature, dict) or signature.get("scheme") != self.scheme:
            return False
        value = signature.get("value")
        if not isinstance(value, str):
            return False
        if self.scheme == "hmac-sha256":
            own = hmac.new(self.key, message, hashlib.sha256).hexdigest()
            return hmac.compare_digest(own.encode(), value.encode())
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(bytes.fromhex(value), message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Keyring:
    """The key to sign with, if any, and the keys to trust; none of them means: trust everyone."""

    signing: SigningKey | None = None
    trusted: tuple[SigningKey, ...] = ()

    @classmethod
    def from_environment(cls) -> Self:
        """Read both variables; raise ValueError if one of them is malformed."""
        signing = os.environ.get("STRATA_SIGNING_KEY")
        trusted = os.environ.get("STRATA_TRUSTED_KEYS")
        return cls(
            SigningKey.parse(signing, variable="STRATA_SIGNING_KEY") if signing else None,
            tuple(
                SigningKey.parse(text, variable="STRATA_TRUSTED_KEYS")
                for text in (trusted.split(",") if trusted else ())
            ),
        )

    def vouching(self) -> Keyring:
        """The keys for what a signer passes on: without keys to trust, it trusts its own alone.

        Whoever signs a state that follows from an older one answers for both, so that the older
        one has to be authentic even where mere readers trust everyone.
        """
        if self.trusted or self.signing is None:
            return self
        return Keyring(self.signing, (self.signing.verifying(),))

    def sign(self, message: bytes) -> dict[str, str] | None:
        """Return the signature of a message, or None without a signing key."""
        return None if self.signing is None else self.signing.sign(message)

    def check(self, message: bytes, signature: Any, *, what: str) -> None:
        """Raise :class:`BadSignature` unless one of the trusted keys has signed the message."""
        if self.trusted and not any(key.has_signed(message, signature) for key in self.trusted):
            state = "is not signed" if signature is None else "is signed by no trusted key"
            raise BadSignature(f"{what} {state}: do not use it.")
