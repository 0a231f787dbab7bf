"""Secrets: refused where a configuration holds one, taken out where a message might.

A key belongs in the environment (``HF_TOKEN``, ``WANDB_API_KEY``, ``OPENAI_API_KEY``), which no run writes down. So a
secret-looking name, an address with a password, a token's usual form, or the value of a secret environment variable in
a configuration is an error that names the key and never the value.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dashvlm.safety.plaintext import visible

# Not every token is one: pad_token and image_token_id are part of what a model is.
_NAME = re.compile(
    r"(?:^|[_.-])(?:(?:api|access|auth|secret|private|signing|ssh|encryption|account|wandb|openai|hf)[_-]?keys?"
    r"|(?:access|auth|oauth|hub|hf|bearer|refresh|session|bot|api|user|my)[_-]?token|secrets?|client[_-]?secret"
    r"|passw(?:or)?ds?|passwd|passphrase|pass|pwd|credentials?|authorization|auth|bearer|cookies?|connection[_-]?string)(?:_?\d+)?$"
    r"|(?:^|\.)token$|secret_\w+$",
    re.IGNORECASE,
)
_VARIABLE = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET\w*|PASSW\w*|PASS|PASSPHRASE|CREDENTIALS?|PAT)(?:$|_)|_PWD$", re.IGNORECASE
)
_TOKEN = re.compile(
    r"\b(?:sk-(?:[a-z0-9]{2,8}-){0,3}[A-Za-z0-9_]{16,}|[sr]k_(?:live|test)_\w{16,}|hf_[A-Za-z0-9]{30,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|A[KS]IA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|glpat-[\w-]{16,}"
    r"|nvapi-[\w-]{16,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
    r"|(?<=Bearer )(?=\S*\d)[\w.~+/-]{8,}=*|(?<=Basic )(?=\S*\d)[A-Za-z0-9+/]{12,}=*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
    r"|(?<=[?&])(?:api_?key|access_token|token|password|secret|sig)=[^&\s]{6,}"
)
# A name before the @ is no secret (git@host), a password or a token is.
_USER = re.compile(
    r"(?<=://)[^\s/@'\":]*:[^\s/@'\"]+(?=@)|(?<=https://)(?:(?=[^\s/@]*\d)[^\s/@'\"]{20,}|[^\s/@'\"]{32,})(?=@)"
)
# In a message: password=..., 'api_key': '...'
_SAID = re.compile(
    r"(?i)(\b(?:api[_-]?key|passw(?:or)?d|secret|(?:access|auth|hf)_token)['\"]?\s*[=:]\s*['\"]?)[^\s'\",}&]{6,}"
)
_WORD = re.compile(r"^([~+]*[\w.@/-]+)=(.+)$", re.DOTALL)
HIDDEN = "<redacted>"


def problems(node: Any, name: str = "") -> list[str]:
    """Errors of a configuration, or of a word of a command line, that holds a secret.

    Example:
        >>> problems({"logger": {"api_key": "abc"}, "overrides": ["+x={token: abc}", "lr=0.1"]})[0]
        'logger.api_key: holds a secret; keep it in the environment, such as HF_TOKEN, WANDB_API_KEY or OPENAI_API_KEY'
    """
    where = "; keep it in the environment, such as HF_TOKEN, WANDB_API_KEY or OPENAI_API_KEY"
    if isinstance(node, str) and any(_VARIABLE.search(v) for v in re.findall(r"oc\.env:\s*(\w+)", node)):
        return [f"{node.partition('=')[0]}: holds a secret{where}"]  # whatever resolves it, and wherever it is shown
    found = [f"{key or 'a word'}: holds a secret{where}" for key, _ in _secrets(node, name)]
    return list(dict.fromkeys(found))


def redact(node: Any, name: str = "") -> Any:
    """Return a copy of a configuration without its secrets, also those in words ``key=value``.

    Example:
        >>> redact({"api_key": "abc", "pad_token": "<pad>", "overrides": ["+logger.api_key=abc", "lr=0.1"]})
        {'api_key': '<redacted>', 'pad_token': '<pad>', 'overrides': ['+logger.api_key=<redacted>', 'lr=0.1']}
    """
    if isinstance(node, Mapping):
        return {k: redact(v, f"{name}.{k}" if name else str(k)) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [redact(v, name) for v in node]
    if isinstance(node, int | float) and not isinstance(node, bool) and _secret_name(name):
        return HIDDEN
    if not isinstance(node, str) or not node:
        return node
    said = _WORD.match(node)
    if said and _secret_name(said[1]):
        return f"{said[1]}={HIDDEN}"
    return HIDDEN if _secret_name(name) else clean(node)


def clean(text: str) -> str:
    """Take secrets out of a text: of the environment, in addresses, and those of a usual form.

    Example:
        >>> clean("GET https://me:pass@host/v1 with Bearer abcdefgh1")
        'GET https://<redacted>@host/v1 with Bearer <redacted>'
    """
    for value in _environment():
        text = text.replace(value, HIDDEN)
    return _SAID.sub(rf"\1{HIDDEN}", _TOKEN.sub(HIDDEN, _USER.sub(HIDDEN, text)))


class CleanFormatter(logging.Formatter):
    """A log's lines, tracebacks included, without secrets and without what would steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return visible(clean(super().format(record)), lines=True)


def log_to(handlers: Sequence[logging.Handler], form: str) -> None:
    """Send all logs, cleaned, to some handlers; of libraries that talk about themselves only the warnings."""
    for handler in handlers:
        handler.setFormatter(CleanFormatter(form, "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    for name in ("torch", "httpx", "httpx2", "openai", "pytorch_lightning.utilities.rank_zero", "fsspec", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _secrets(node: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if _TOKEN.search(str(key)):
                yield f"{name}: a key" if name else "a key", str(key)
            yield from _secrets(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _secrets(value, name)
    elif isinstance(node, int | float) and not isinstance(node, bool) and _secret_name(name):
        yield name, str(node)
    elif isinstance(node, str) and node:
        word = _WORD.match(node)
        if word and not _secret_name(name):
            inner = word[1].lstrip("+~")
            keys = re.findall(r"([\w.-]+)['\"]?\s*:(?!//)", word[2]) if "{" in word[2] else []
            if any(_secret_name(key) for key in (inner, *keys)):
                yield (f"{name} ({inner})" if name else inner), node
                return
        if (
            _secret_name(name)
            or _TOKEN.search(node)
            or _USER.search(node)
            or any(_is_in(v, node) for v in _environment())
        ):
            yield name or (word[1] if word else ""), node


def _secret_name(name: str) -> bool:
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("+~").split("@")[0])  # apiKey is api_Key
    return bool(_NAME.search(plain))


def _is_in(value: str, text: str) -> bool:
    """Whether a secret is a text or, where it is long enough to be no coincidence, a part of it."""
    return value == text or (len(value) >= 16 and value in text)


def _environment() -> list[str]:
    """Values of environment variables that are secret by their name; short ones, words and paths are no secrets."""
    known = [v for k, v in os.environ.items() if _VARIABLE.search(k) and len(v) >= 8]
    return [v for v in known if not (v.isalpha() and len(v) < 16) and not os.path.exists(v)]
