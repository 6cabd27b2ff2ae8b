"""Which linear layer is stored how, as far as the loaders can follow a policy.

vLLM and SGLang multiply by several layers at once: by q, k and v, by gate and up, and by all three of an expert. Layers
that are one to them have one scheme. All of it is symmetric with scales above zero, as llm-compressor writes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.model.tensors import tensors
from l4export.model.weight_names import layer_of
from l4export.quantization.policy import Policy, Rule
from l4export.quantization.schemes import ScaleDtype, Scheme

__all__ = ["choose_schemes", "layers_of", "linear_layers", "stays_float"]

Shape = tuple[int, ...]

_TOGETHER = (
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ("self_attn.o_proj.weight",),
    ("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
    ("feed_forward.shared_expert.gate_proj.weight", "feed_forward.shared_expert.up_proj.weight"),
    ("feed_forward.shared_expert.down_proj.weight",),
    ("feed_forward.gate_proj.weight", "feed_forward.up_proj.weight"),
    ("feed_forward.down_proj.weight",),
)
"""The linear layers of a decoder layer, by their weights' names in it; those on one line are one to the loaders."""

_IN_FLOATS = ("model.embed_tokens.weight", "lm_head.weight")

_REORDERED = _TOGETHER[0]
"""SGLang and versions of vLLM reorder the rows of q and k for their rotation: of `weight`, and not of packed codes or
of scales. v is one layer with them."""


def linear_layers(config: ModelConfig) -> dict[str, Shape]:
    """The weights of a model that can be quantised, with their shapes in the inventory, layer by layer."""
    return {name: shape for group in _groups(config) for name, shape in group.items()}


def stays_float(name: str) -> bool:
    """Whether a weight cannot be quantised for the loaders: q, k, v, the head and the embedding."""
    return name in _IN_FLOATS or name.endswith(_REORDERED)


def choose_schemes(
    config: ModelConfig, policy: Policy, scale_dtype: ScaleDtype, block_sizes: Sequence[int]
) -> dict[str, Scheme]:
    """The scheme of each weight that a policy quantises, by the inventory's name.

    Raises:
        InputError: a rule that names no linear layer, or q, k, v, the head or the embedding; zero points; layers that
            are one to the loaders and not to the policy; blocks that do not fit, or that the loaders have no kernel
            for.
    """
    for name in tensors(config).keys() & _IN_FLOATS:
        if policy.rule_for(name):
            raise InputError(f"{name}: stays in floats in a compressed-tensors checkpoint; name it in no rule")
    chosen: dict[str, Scheme] = {}
    for group in _groups(config):
        rule = _one_rule(policy, group)
        if rule is not None and next(iter(group)).endswith(_REORDERED):
            raise InputError(
                f"{_listed(group)}: q, k and v stay in floats in a compressed-tensors checkpoint, because SGLang and "
                "versions of vLLM reorder rows of q and k as they load them, but not their scales; name them in no rule"
            )
        if rule is not None:
            plain = rule.scheme(next(iter(group)), *(shape[1] for shape in group.values()))
            _check(plain, next(iter(group)), block_sizes)
            scheme = dataclasses.replace(plain, scale_dtype=scale_dtype, positive=True)
            chosen |= dict.fromkeys(group, scheme)
    policy.check_used(chosen)
    return chosen


def _groups(config: ModelConfig) -> Iterator[dict[str, Shape]]:
    inventory = tensors(config)
    for layer in range(config.num_hidden_layers):
        for together in _TOGETHER:
            names = [f"model.layers.{layer}.{name}" for name in together]
            if group := {name: inventory[name] for name in names if name in inventory}:
                yield group


def _one_rule(policy: Policy, group: Mapping[str, Shape]) -> Rule | None:
    """The rule for weights that are one to the loaders; None where they stay floats."""
    rules = {name: policy.rule_for(name) for name in group}
    if len({rule and (rule.kind, rule.block_size, rule.symmetric, rule.fitted) for rule in rules.values()}) > 1:
        raise InputError(
            f"the policy treats {_listed(group)} differently: vLLM and SGLang load them as one layer; "
            "give them one scheme, or none"
        )
    return next(iter(rules.values()))


def _check(scheme: Scheme, name: str, block_sizes: Sequence[int]) -> None:
    if not scheme.symmetric:
        raise InputError(f"{name}: zero points are not written into checkpoints; leave `symmetric = false` out")
    if scheme.kind == "fp8" and scheme.block_size:
        raise InputError(f"{name}: FP8 is written with a scale a channel, not for blocks; leave the block size out")
    if scheme.kind != "fp8" and scheme.block_size not in block_sizes:
        raise InputError(
            f"{name}: blocks of {scheme.block_size} are none of {_listed(block_sizes)}, which vLLM and SGLang have "
            "kernels for; choose one of these, or name it in a rule for fp8, or in none"
        )


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def layers_of(names: Iterable[str]) -> dict[str, set[int]]:
    """Weights by their names within a layer, each with the layers that it is named in."""
    found: dict[str, set[int]] = {}
    for name in names:
        layer = layer_of(name)
        assert layer is not None
        found.setdefault(name.removeprefix(f"model.layers.{layer}."), set()).add(layer)
    return found
