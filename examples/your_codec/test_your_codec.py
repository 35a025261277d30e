"""The contract that every codec keeps, and what is particular to this one."""

from your_codec import EndsCodec

from ilcp.codec import Context
from ilcp.testing import CodecContract


class TestEnds(CodecContract):
    codec = EndsCodec(payload_bytes=200)


def test_the_ends_are_kept_and_the_middle_is_left_out() -> None:
    """The first sentence comes before the last, and both before what stands between them."""
    text = "Mara owns it. It was long. It was dull. Bergen is up again."
    said = [EndsCodec().decode(EndsCodec().encode(Context(text=text), n)).text for n in (20, 40, 80)]
    assert ["Mara owns it.", "Mara owns it. … Bergen is up again.", text] == said
