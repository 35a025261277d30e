"""Rules: how a writer's last hidden state becomes its next input.

::

    state "rows hidden" --Rule--> input "rows hidden", in the space of the embeddings, of about their norm

``norm`` rescales the state and no more. ``ridge`` maps it by the ridge regression from the model's output embeddings to
its input embeddings, as LatentMAS (arXiv 2511.20639) does. ``soft`` feeds the next token's mean embedding, weighted by
its probabilities, as Soft Thinking (arXiv 2505.15778) does. ``learned`` begins as ``ridge`` and is trained through
the reader. Three are controls: ``pause`` feeds one vector whatever the state is, ``token`` the embedding of the
likeliest token, ``raw`` the state as it is.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ilcp.errors import ConfigError
from ilcp.models.adapter import unwrapped, vocabulary_size
from ilcp.models.forward import embed, embedding_norm
from ilcp.nn.inference import inference

__all__ = ["LEARNED", "RULES", "Rule", "shapes_of_rule"]

RULES = ("norm", "ridge", "soft", "learned", "pause", "token", "raw")
LEARNED = ("learned", "pause")  # that have weights of their own; a pause learns where it is trained, too
RIDGE = 0.1  # of the mean of the output embeddings' squared singular values
CHUNK = 16_384  # of a vocabulary, in one product
LIKELIEST = 64  # tokens that a mean embedding is made of


class Rule(nn.Module):
    """One rule for one model, which it never changes.

    Args:
        name: one of ``RULES``.
        model: whose states and embeddings they are.
        tensors: what training made of its weights; none where nobody trained it.

    Raises:
        ConfigError: there is no such rule, the model has no output embeddings, which it needs, or as ``take``.
    """

    layers = (0,)  # of what a training loop calls a network, which reads states of its sender's
    scale: Tensor

    def __init__(self, name: str, model: Any, tensors: Mapping[str, Tensor] | None = None):
        super().__init__()
        if name not in RULES:
            raise ConfigError(f"expected a rule of {', '.join(RULES)}, got {name!r}")
        self.name = name
        held = [model]  # in a list: no module of this one
        self._model = held
        self.register_buffer("scale", torch.tensor(embedding_norm(model), device=model.device))
        if name in ("ridge", "learned"):
            weight = _ridge(model)
            if name == "ridge":
                self.register_buffer("weight", weight)
            else:
                self.weight = nn.Parameter(weight)
                self.bias = nn.Parameter(torch.zeros_like(weight[0]))
        elif name == "pause":
            self.bias = nn.Parameter(self._rescaled(_mean(model)))
        elif name in ("token", "soft"):
            _head(model)
        if tensors:
            self.take(tensors)

    def forward(self, state: Tensor) -> Tensor:
        """Returns inputs ``"rows hidden"`` in the state's dtype, for states of the model's last layer."""
        wide = state.float()
        match self.name:
            case "raw":
                made = state
            case "norm":
                made = self._rescaled(wide)
            case "ridge":
                made = self._rescaled(wide @ self.weight)
            case "learned":
                made = self._rescaled(wide @ self.weight) + self.bias
            case "pause":
                made = self.bias.expand_as(wide)
            case "soft":
                model = self._model[0]
                likeliest = _head(model)(state).float().softmax(-1).topk(min(LIKELIEST, vocabulary_size(model)))
                vectors = model.get_input_embeddings()(likeliest.indices).float()
                made = self._rescaled((likeliest.values.unsqueeze(-1) * vectors).sum(-2))
            case _:
                model = self._model[0]
                made = model.get_input_embeddings()(_head(model)(state).argmax(-1)).float()
        taken: Tensor = made.to(state.dtype)
        return taken

    def tensors(self) -> dict[str, Tensor]:
        """Returns the weights that training changed, float32; none where the model alone decides."""
        return {name: value.detach().float().cpu().contiguous() for name, value in self.named_parameters()}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up weights that ``tensors`` gave.

        Raises:
            ConfigError: they are another rule's, or another model's.
        """
        own = dict(self.named_parameters())
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in tensors.items()}:
            raise ConfigError(f"expected weights of the rule {self.name!r} for this model, got others")
        for name, value in own.items():
            value.copy_(tensors[name])

    def _rescaled(self, vectors: Tensor) -> Tensor:
        scaled: Tensor = vectors * (self.scale / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6))
        return scaled


def shapes_of_rule(name: str, hidden: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the tensors of a rule, for a model of that width: of each its shape and dtype."""
    bias = {"bias": ((hidden,), "F32")} if name in LEARNED else {}
    return bias | ({"weight": ((hidden, hidden), "F32")} if name == "learned" else {})


def _head(model: Any) -> Any:
    head = unwrapped(model).get_output_embeddings()
    if head is None:
        raise ConfigError(f"expected a model with output embeddings, got {type(model).__name__}: take the rule 'norm'")
    return head


@inference(unwrapped)
def _ridge(model: Any) -> Tensor:
    """Returns ``"hidden hidden"``, which brings output embeddings nearest to the input embeddings of their tokens."""
    said = getattr(_head(model), "weight", None)
    if said is None or said.ndim != 2:
        raise ConfigError("expected output embeddings as a matrix, got another head: take the rule 'norm'")
    vocabulary, hidden = min(said.shape[0], vocabulary_size(model)), said.shape[1]
    squares = torch.zeros(hidden, hidden, dtype=torch.float64, device=said.device)
    products = torch.zeros_like(squares)
    for start in range(0, vocabulary, CHUNK):
        ids = range(start, min(start + CHUNK, vocabulary))
        out, into = said[ids.start : ids.stop].double(), embed(model, ids).double()
        squares += out.T @ out
        products += out.T @ into
    shrunk = squares + RIDGE * squares.diagonal().mean() * torch.eye(hidden, dtype=squares.dtype, device=said.device)
    solved: Tensor = torch.linalg.solve(shrunk, products)
    return solved.float()


@inference(unwrapped)
def _mean(model: Any) -> Tensor:
    vocabulary = vocabulary_size(model)
    return embed(model, range(0, vocabulary, -(-vocabulary // CHUNK))).float().mean(0)
