"""Tests for whoever writes a codec: the contract that every codec keeps, and strategies for what goes in and out.

A codec of text is tested in three lines, by pytest::

    from ilcp.testing import CodecContract

    class TestMine(CodecContract):
        codec = MyCodec()

One that reads states or gives vectors also says what it was made for; see ``CodecContract``. The strategies of
``ilcp.testing.strategies`` are Hypothesis's, for tests of your own. ``pip install 'ilcp[testing]'`` brings both tools.
"""

from ilcp.errors import MissingExtraError

try:
    import hypothesis  # noqa: F401
    import pytest
except ImportError as error:
    raise MissingExtraError.of(error.name or "hypothesis", "to test a codec", "testing") from error

pytest.register_assert_rewrite("ilcp.testing.contract")  # so that a failing check shows its values

from ilcp.testing.contract import CodecContract  # noqa: E402
from ilcp.testing.strategies import (  # noqa: E402
    bare_messages,
    blobs,
    codec_ids,
    contexts,
    encrypted_messages,
    hostile_bytes,
    keys,
    literals,
    payloads,
    payloads_of,
    sealed_messages,
    seals,
    texts,
)

__all__ = [
    "CodecContract",
    "bare_messages",
    "blobs",
    "codec_ids",
    "contexts",
    "encrypted_messages",
    "hostile_bytes",
    "keys",
    "literals",
    "payloads",
    "payloads_of",
    "sealed_messages",
    "seals",
    "texts",
]
