"""The shape of a facts codec: frozen, and it checks its own arithmetic."""

from dataclasses import dataclass, fields

from ilcp.errors import ConfigError
from ilcp.message import MAX_PAYLOAD_BYTES
from ilcp_codecs.vae.config import MOST, MOST_BLOCKS, MOST_LAYERS

__all__ = ["SETTINGS", "VALUE_TOKENS", "FactsConfig"]

MOST_TOKENS = 256  # of a value or of a topic's name: a sentence
MOST_TOPICS = 4096  # a payload that nobody made may name them all, and each may take a dozen memory vectors
VALUE_TOKENS = 8  # a name, an address, a date in words; what is longer is cut
FOUND = ("topics", "questions", "words")  # what the training cases decide


@dataclass(frozen=True, slots=True)
class FactsConfig:
    """Every number that decides a shape, a bit or a byte.

    ``topics`` are what a fact may be about, ``questions`` a question about each of them. Its value is spelled with
    up to ``value_tokens`` of the ``words`` tokens of the receiver that the codec knows. A fact takes ``whole_dims``
    bits for its value as a whole and ``token_dims`` for each token of it; shorter payloads hold fewer of them.

    Raises:
        ConfigError: numbers contradict each other; the text prints them.
    """

    sender_layers: tuple[int, ...]
    sender_hidden: int
    receiver_hidden: int
    topics: tuple[str, ...]
    questions: tuple[str, ...]
    words: int
    payload_bytes: int = 320
    whole_dims: int = 16
    token_dims: int = 18
    value_tokens: int = VALUE_TOKENS
    topic_tokens: int = 8
    width: int = 192
    heads: int = 6
    blocks: int = 2
    speller_width: int = 384

    def __post_init__(self) -> None:
        whole = (
            *(
                self.sender_hidden,
                self.receiver_hidden,
                self.words,
                self.whole_dims,
                self.token_dims,
                self.value_tokens,
                self.topic_tokens,
            ),
            *(self.width, self.heads, self.blocks, self.speller_width),
        )
        if min(whole) < 1 or max(*whole, *self.sender_layers) > MOST:
            raise ConfigError(
                f"expected whole numbers from 1 to {MOST} for sender_hidden, receiver_hidden, words, whole_dims, "
                f"token_dims, value_tokens, topic_tokens, width, heads, blocks and speller_width, got {whole}"
            )
        if max(self.value_tokens, self.topic_tokens) > MOST_TOKENS or self.blocks > MOST_BLOCKS:
            raise ConfigError(
                f"expected at most {MOST_TOKENS} value_tokens and topic_tokens and {MOST_BLOCKS} blocks, got "
                f"{self.value_tokens}, {self.topic_tokens} and {self.blocks}"
            )
        if not 1 <= self.payload_bytes <= MAX_PAYLOAD_BYTES:
            raise ConfigError(f"expected payload_bytes from 1 to {MAX_PAYLOAD_BYTES}, got {self.payload_bytes}")
        if self.width % self.heads:
            raise ConfigError(f"expected width to be a multiple of heads, got {self.width} and {self.heads}")
        if not 1 <= len(self.topics) <= MOST_TOPICS or len(set(self.topics)) != len(self.topics):
            raise ConfigError(f"expected 1 to {MOST_TOPICS} different topics, got {len(self.topics)}")
        if len(self.questions) != len(self.topics):
            raise ConfigError(
                f"expected a question for each of {len(self.topics)} topics, got {len(self.questions)} questions"
            )
        if not 1 <= len(self.sender_layers) <= MOST_LAYERS or min(self.sender_layers) < 0:
            raise ConfigError(
                f"expected 1 to {MOST_LAYERS} of the sender's layers to read, from 0, got {self.sender_layers[:20]}"
            )


# What a recipe may set: all that neither the two models nor the cases decide.
SETTINGS = tuple(
    field.name for field in fields(FactsConfig) if field.name not in ("sender_hidden", "receiver_hidden", *FOUND)
)
