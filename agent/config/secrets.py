"""Where secrets come from: a file, the environment, a credential of systemd. They are read with the configuration.

One trailing newline is stripped, as an editor leaves it.
"""

import errno
import os
from pathlib import Path

from agent.config.files import Files
from agent.config.model import Secret
from agent.config.problems import printable, quoted

LARGEST = 1 << 20  # bytes of a secret, a certificate, or a body
KINDS = ("file", "env", "credential")
_CALLED = {"env": "variable"}

NOT_OPENED = Secret("***")
"""Stands for every secret that is not opened, by identity."""


class Sources:
    """Reads the files and secrets that a configuration names. `base`: what relative paths start from."""

    def __init__(self, base: Path, files: Files, *, open_secrets: bool = True) -> None:
        self._base, self._files, self._open_secrets = base, files, open_secrets

    def secret(self, kind: str, name: str) -> Secret:
        """The secret `{kind: name}`. Raises ValueError that says what is wrong and how to mend it."""
        if not self._open_secrets:
            return NOT_OPENED
        if kind == "env":
            text = self._variable(name)
        elif kind == "credential":
            text = self.text(self._credential(name))
        else:
            text = self.text(name)
        text = text.removesuffix("\n").removesuffix("\r")
        if not text:
            raise ValueError(f"the {_CALLED.get(kind, kind)} {quoted(name)} is empty; put the secret into it")
        return Secret(text)

    def pem(self, path: str, *, private: bool) -> str:
        """The content of a certificate's or a key's file. Raises ValueError."""
        if not self._open_secrets:
            return NOT_OPENED
        # Beyond ASCII there can only be comments, which `ssl` takes no more than OpenSSL minds them.
        text = self.text(path).encode("ascii", "replace").decode()
        return Secret(text) if private else text

    def text(self, path: str | Path) -> str:
        """The text of a file, at most `LARGEST` bytes. Raises ValueError that says what is wrong."""
        file = self._base / path
        if "\0" in str(file):
            raise ValueError(f"{quoted(str(file))} has a NUL character in it; correct the path")
        try:
            data = self._files.read(file, LARGEST + 1)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EISDIR):
                raise ValueError(f"{quoted(str(file))} is not a regular file; name one") from None
            why = error.strerror or str(error)
            raise ValueError(f"cannot read {quoted(str(file))}: {why}; mend the path or its mode") from None
        if len(data) > LARGEST:
            raise ValueError(f"{quoted(str(file))} is larger than {LARGEST >> 20} MiB; is it the right file?")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{quoted(str(file))} is not UTF-8 text; is it the right file?") from None

    @staticmethod
    def _variable(name: str) -> str:
        if name not in os.environ:
            raise ValueError(f"the environment has no variable {quoted(name)}; set it, or correct the name")
        text = os.environ[name]
        if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):  # bytes as Python keeps them
            raise ValueError(f"the variable {quoted(name)} is not UTF-8 text; correct what sets it")
        return text

    @staticmethod
    def _credential(name: str) -> Path:
        if "/" in name or name in (".", ".."):
            raise ValueError(f"{quoted(name)} is not a credential's name; write the name given to LoadCredential=")
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if directory is None:
            told = f"there is no credential {quoted(name)}, as $CREDENTIALS_DIRECTORY is not set"
            raise ValueError(f"{told}; under systemd, add LoadCredential={printable(name)}:FILE")
        return Path(directory) / name
