"""The examples of training and of batches run as a reader would run them; each capability's tests run its own."""

from pathlib import Path

import pytest

from ilcp.training.config import read_config
from tests.helpers import EXAMPLES, run_example


def test_your_own_pair_goes_from_data_to_an_answer(tmp_path) -> None:
    """A few steps make a codec that is measured, saved with its card, and answers something."""
    said = run_example("your_pair.py", tmp_path, 3)
    assert "measured: content gain" in said
    assert "bytes of text became 100" in said
    assert "## Every arm" in (tmp_path / "codec" / "README.md").read_text()


def test_a_corpus_is_encoded_in_two_goes(tmp_path) -> None:
    """The second run of the job encodes what the first left; the receiver answers from the files."""
    said = run_example("encode_corpus.py", tmp_path)
    assert "12 encoded, 0 were there, 0 failed" in said
    assert "8 encoded, 12 were there, 0 failed" in said
    assert "2,000 bytes of messages" in said
    assert 3 == said.count(".ilcp: ")


@pytest.mark.parametrize("recipe", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_can_be_read(recipe: Path) -> None:
    """No recipe beside the examples has a key that is unknown or contradicts another."""
    assert read_config(recipe).hyperparameters(answers_end=False).steps > 0
