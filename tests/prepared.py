"""Models as people prepare them before they hand off: adapted, quantised, compiled, with dropout, shared by threads.

Each is a tiny Llama but for the one with dropout. Importing this needs neither transformers nor torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.families import build

VOCABULARY = 300


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model; what makes another of it; the same as it is without a compiler; how many threads share it."""

    model: Any
    change: Callable[[], Any]
    reference: Any
    threads: int = 1


def _llama(seed: int = 0) -> Any:
    return build("llama", VOCABULARY, hidden=64, seed=seed)


def _add(model: Any, name: str) -> None:
    import torch

    with torch.no_grad():
        next(weight for own, weight in model.named_parameters() if name in own).view(-1)[:5].add_(0.3)


def _adapted(target: list[str], *more: str, **settings: Any) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    config: dict[str, Any] = (
        dict(r=4, lora_alpha=16, lora_dropout=0.5, init_lora_weights=False, target_modules=target) | settings
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(_llama(), LoraConfig(**config))
        for name in more:
            model.add_adapter(name, LoraConfig(**config))
    return model.eval()


def active() -> Prepared:
    """One adapter; ``lora_alpha`` is another afterwards."""
    model = _adapted(["q_proj", "v_proj"])
    return Prepared(model, lambda: [layer.scale_layer(4) for layer in _low_rank(model)], model)


def _low_rank(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "scale_layer"))


def disabled() -> Prepared:
    """One adapter that is switched off; it is switched on afterwards."""
    model = _adapted(["q_proj", "v_proj"])
    model.base_model.disable_adapter_layers()
    return Prepared(model, model.base_model.enable_adapter_layers, model)


def two() -> Prepared:
    """Two adapters, the second active; the first afterwards."""
    model = _adapted(["q_proj", "v_proj"], "second")
    model.set_adapter("second")
    return Prepared(model, lambda: model.set_adapter("default"), model)


def merged() -> Prepared:
    """An adapter that is merged into the weights; it is taken out afterwards."""
    model = _adapted(["q_proj", "v_proj"])
    model.merge_adapter()
    return Prepared(model, model.unmerge_adapter, model)


def embeddings() -> Prepared:
    """An adapter on the embeddings."""
    model = _adapted(["embed_tokens"])
    return Prepared(model, lambda: _add(model, "lora_embedding_B"), model)


def new_tokens() -> Prepared:
    """An adapter with embeddings of a few tokens of its own."""
    model = _adapted(["q_proj"], trainable_token_indices=[5, 6, 70])
    _add(model, "trainable_tokens_delta")
    return Prepared(model, lambda: _add(model, "trainable_tokens_delta"), model)


def whole_modules() -> Prepared:
    """An adapter with a copy of the language model's head; it is switched off afterwards."""
    model = _adapted(["q_proj"], modules_to_save=["lm_head"])
    _add(model, "modules_to_save")
    return Prepared(model, model.base_model.disable_adapter_layers, model)


def other_adapter() -> Prepared:
    """An adapter that is none of low rank; it is switched off afterwards."""
    from peft import IA3Config, get_peft_model

    model: Any = get_peft_model(_llama(), IA3Config(target_modules=["k_proj"], feedforward_modules=[])).eval()
    _add(model, "ia3_l")
    return Prepared(model, model.base_model.disable_adapter_layers, model)


def through_transformers() -> Prepared:
    """An adapter that transformers put in, without peft's wrapper; it is switched off afterwards."""
    import torch
    from peft import LoraConfig

    model = _llama()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    _add(model, "lora_B")
    return Prepared(model, model.disable_adapters, model)


def int8_dynamic() -> Prepared:
    """torch's dynamic quantisation, which packs its weights; one projection is another's afterwards."""
    import torch

    model, other = (
        torch.ao.quantization.quantize_dynamic(_llama(seed), {torch.nn.Linear}, dtype=torch.qint8) for seed in range(2)
    )
    return Prepared(model, lambda: _take_projection(model, other), model)


def int8_torchao() -> Prepared:
    """torchao's tensors, which hold others; one projection is another's afterwards."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, other = _llama(0), _llama(1)
    for each in (model, other):
        quantize_(each, Int8WeightOnlyConfig())
    return Prepared(model, lambda: _take_projection(model, other), model)


def _take_projection(model: Any, other: Any) -> None:
    model.model.layers[1].self_attn.q_proj = other.model.layers[1].self_attn.q_proj


def nf4() -> Prepared:
    """bitsandbytes' four bits; the scales of one layer are threefold afterwards."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    model = _llama()
    for layer in model.model.layers:
        for name, linear in layer.self_attn.named_children():
            weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
            packed = Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32)
            packed.weight, packed.support_avx512bf16_for_cpu = weight, False
            setattr(layer.self_attn, name, packed)
    model.to("cpu").eval()  # which packs them
    return Prepared(model, lambda: packed.weight.quant_state.absmax.mul_(3), model)


def compiled() -> Prepared:
    """``torch.compile(model)``."""
    import torch

    model = _llama()
    return Prepared(torch.compile(model, backend="eager"), lambda: _add(model, "q_proj"), _llama())


def compiled_in_place() -> Prepared:
    """``model.compile()``."""
    model = _llama()
    model.compile(backend="eager")
    return Prepared(model, lambda: _add(model, "q_proj"), _llama())


def compiled_by_blocks() -> Prepared:
    """``torch.compile`` of every block, one of them in place."""
    import torch

    model = _llama()
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    model.model.layers[1].compile(backend="eager")
    return Prepared(model, lambda: _add(model, "q_proj"), _llama())


def dropout() -> Prepared:
    """A GPT-2 with the dropout that all have."""
    model = build("gpt2", VOCABULARY, hidden=64)
    return Prepared(model, lambda: _add(model, "c_attn"), model)


def shared() -> Prepared:
    """A model that eight threads use at a time."""
    model = _llama()
    return Prepared(model, lambda: _add(model, "q_proj"), model, threads=8)


PREPARED: dict[str, Callable[[], Prepared]] = {
    "peft: LoRA, active": active,
    "peft: LoRA, switched off": disabled,
    "peft: two LoRAs, one active": two,
    "peft: LoRA, merged": merged,
    "peft: LoRA on the embeddings": embeddings,
    "peft: embeddings of new tokens": new_tokens,
    "peft: modules to save": whole_modules,
    "peft: IA3": other_adapter,
    "transformers: add_adapter": through_transformers,
    "int8: torch, dynamic": int8_dynamic,
    "int8: torchao": int8_torchao,
    "nf4: bitsandbytes": nf4,
    "torch.compile": compiled,
    "torch.compile, in place": compiled_in_place,
    "torch.compile, block by block": compiled_by_blocks,
    "training mode, dropout": dropout,
    "eight threads": shared,
}
