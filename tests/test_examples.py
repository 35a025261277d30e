"""The examples of training and of batches run as a reader would run them; each capability's tests run its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from ilcp.training.config import read_config

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def said_by(name: str, *words: object) -> str:
    """What an example prints, run in a process of its own."""
    run = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, words)], capture_output=True, text=True, timeout=300, check=False
    )
    assert 0 == run.returncode, run.stderr
    return run.stdout


def test_your_own_pair_goes_from_data_to_an_answer(tmp_path) -> None:
    """A few steps make a codec that is measured, saved with its card, and answers something."""
    said = said_by("your_pair.py", tmp_path, 3)
    assert "measured: content gain" in said
    assert "bytes of text became 100" in said
    assert "## Every arm" in (tmp_path / "codec" / "README.md").read_text()


def test_a_corpus_is_encoded_in_two_goes(tmp_path) -> None:
    """The second run of the job encodes what the first left; the receiver answers from the files."""
    said = said_by("encode_corpus.py", tmp_path)
    assert "12 encoded, 0 were there, 0 failed" in said
    assert "8 encoded, 12 were there, 0 failed" in said
    assert "2,000 bytes of messages" in said
    assert 3 == said.count(".ilcp: ")


@pytest.mark.parametrize("recipe", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_can_be_read(recipe: Path) -> None:
    """No recipe beside the examples has a key that is unknown or contradicts another."""
    assert read_config(recipe).hyperparameters(answers_end=False).steps > 0
