"""The contract test finds what breaks the contract, and the example that whoever writes a codec copies keeps it."""

import os
import subprocess
import tomllib
from pathlib import Path

from tests.helpers import EXAMPLES, environment, run_python

EXAMPLE = EXAMPLES / "your_codec"
BROKEN = '''
import itertools

import torch

from ilcp.codec import Context, SoftPrompt, TextMemory
from ilcp.errors import DecodeError
from ilcp.testing import CodecContract
from ilcp_codecs.text import HeadCodec


class Moody(HeadCodec):
    """Gives one or two bytes by turns, so never the same twice in a row."""

    turns = itertools.cycle((1, 2))

    def _pack(self, text, limit):
        return super()._pack(text, limit)[: next(self.turns)]


class Loud(HeadCodec):
    """Raises what it likes."""

    def decode(self, payload):
        return TextMemory(payload.decode("utf-8"))


class Wild(HeadCodec):
    """Gives vectors far outside the band."""

    def decode(self, payload):
        if not 1 <= len(payload) <= self.spec.payload_bytes:
            raise DecodeError("expected another length")
        return SoftPrompt(torch.full((1, 4), 1e6))


class Greedy(HeadCodec):
    """Gives more bytes than it promised."""

    def encode(self, context, payload_bytes=None):
        return super().encode(context, payload_bytes) * 90


class TestMoody(CodecContract):
    codec = Moody(4000)


class TestLoud(CodecContract):
    codec = Loud(4000)


class TestWild(CodecContract):
    codec = Wild(4000)
    embedding_norm = 1.0


class TestGreedy(CodecContract):
    codec = Greedy(4000)


class TestNothing(CodecContract):
    pass
'''
FOUND = (
    "TestMoody::test_a_payload_is_deterministic_and_within_the_spec",
    "TestMoody::test_it_offers_what_a_codec_offers",  # Moody is not the class that is installed under its name
    "TestLoud::test_lengths_out_of_the_spec_are_refused",
    "TestLoud::test_any_payload_decodes_or_is_refused",
    "TestWild::test_any_payload_decodes_or_is_refused",
    "TestGreedy::test_a_payload_is_deterministic_and_within_the_spec",
    "TestNothing::test_an_empty_context_is_refused",
)


def run_pytest(file: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Pytest over one file, in a process of its own, with these folders on the import path."""
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", file.parent, "-rfE", "--tb=no"]
    found = environment(PYTHONPATH=os.pathsep.join(map(str, path)))
    return run_python("-m", "pytest", *options, file, timeout_s=300, cwd=file.parent, env=found)


def test_the_contract_finds_what_breaks_it(tmp_path) -> None:
    """Bytes that change, errors of another kind and vectors out of the band each fail the test for it."""
    file = tmp_path / "test_broken.py"
    file.write_text(BROKEN, encoding="utf-8")
    said = run_pytest(file)
    assert 1 == said.returncode, said.stderr
    assert [] == [name for name in FOUND if name not in said.stdout], said.stdout


def test_the_example_codec_keeps_the_contract(tmp_path) -> None:
    """The example's own test passes where its entry point is found, as it is once the package is installed."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1\n")
    points = project["entry-points"]["ilcp.codecs"]
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (installed / "entry_points.txt").write_text(f"[ilcp.codecs]\n{lines}")
    said = run_pytest(EXAMPLE / "test_your_codec.py", tmp_path, EXAMPLE)
    assert 0 == said.returncode, said.stdout + said.stderr
    assert " passed" in said.stdout


def test_a_missing_extra_is_named_with_the_command_that_brings_it() -> None:
    """Without Hypothesis the import says what to install."""
    code = (
        "import sys\nsys.modules['hypothesis'] = None\n"
        "from ilcp.errors import MissingExtraError\n"
        "try:\n    import ilcp.testing\nexcept MissingExtraError as error:\n    print(error)"
    )
    said = run_python("-c", code)
    assert 0 == said.returncode, said.stderr
    expected = (
        "expected hypothesis to test a codec, got no such package: pip install 'ilcp[testing]', or in a checkout of"
    )
    assert f"{expected} ilcp pip install -e '.[testing]'\n" == said.stdout
