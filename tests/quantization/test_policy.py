"""Policies: what they choose, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from l4export.errors import InputError, StorageError
from l4export.quantization.policy import Policy, Rule, load_policy, standard_policy

GOOD = """
accuracy_level = 1
[[rule]]
weights = ["model.layers.*.experts.*"]
kind = "int4"
block_size = 32
symmetric = false
[[rule]]
weights = ["lm_head.weight"]
kind = "int8"
"""


def load(tmp_path: Path, text: str) -> Policy:
    (tmp_path / "p.toml").write_text(text)
    return load_policy(tmp_path / "p.toml")


def test_a_file_is_read(tmp_path: Path) -> None:
    policy = load(tmp_path, GOOD)
    assert policy.accuracy_level == 1
    assert policy.rules == (
        Rule(("model.layers.*.experts.*",), "int4", 32, False),
        Rule(("lm_head.weight",), "int8"),
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "names nothing"),
        ("rule = []", "names nothing"),
        ("accuracy_level = 4", "names nothing"),
        ('[[rule]]\nkind = "int4"', "names nothing"),
        ('[[rule]]\nkind = "int4"\nweights = []', "names nothing"),
        ('[[rule]]\nweights = ["*"]', "kind"),
        ('[[rule]]\nweights = ["*"]\nkind = "none"', "kind"),
        ('[[rule]]\nweights = "*"\nkind = "int4"', "weights"),
        ('[[rule]]\nweights = ["*"]\nkind = "int4"\nblock_size = 48', "block_size 48"),
        ('[[rule]]\nweights = ["*"]\nkind = "int4"\nblock_size = true', "block_size"),
        ('[[rule]]\nweights = ["*"]\nkind = "fp8"\nblock_size = 32', "block_size 32"),
        ('[[rule]]\nweights = ["*"]\nkind = "fp8"\nsymmetric = false', "symmetric"),
        ('[[rule]]\nweights = ["*"]\nkind = "fp8"\nfitted = true', "fitted for int4 and int8"),
        ('[[rule]]\nweights = ["*"]\nkind = "int4"\nfitted = 1', "fitted must be true or false"),
        ('[[rule]]\nweights = ["*"]\nkind = "int4"\nblocksize = 32', "blocksize"),
        (GOOD + "accuracy_level = 2", "accuracy_level' means nothing"),
        ('accuracy_level = 2\n[[rule]]\nweights = ["*"]\nkind = "int4"', "accuracy_level"),
        ("[[rule", "not TOML"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        load(tmp_path, text)
    assert "p.toml" in str(caught.value)


def test_a_missing_file_is_a_reading_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.toml"):
        load_policy(tmp_path / "none.toml")


def test_rules_that_contradict_each_other_are_refused() -> None:
    policy = Policy((Rule(("model.*",), "int4"), Rule(("*.q_proj.weight",), "int8")))
    with pytest.raises(InputError, match=r"contradicts itself on model\.layers\.0\.self_attn\.q_proj\.weight"):
        policy.rule_for("model.layers.0.self_attn.q_proj.weight")


def test_but_makes_an_exception() -> None:
    policy = Policy((Rule(("model.*",), "int4", but=("*.q_proj.weight",)), Rule(("*.q_proj.weight",), "int8")))
    rule = policy.rule_for("model.layers.0.self_attn.q_proj.weight")
    assert rule is not None
    assert rule.kind == "int8"


def test_the_block_size_is_the_largest_that_divides() -> None:
    rule = Rule(("*",), "int4")
    assert [rule.scheme("w", width).block_size for width in (256, 64, 96, 48)] == [128, 64, 32, 16]
    assert rule.scheme("w", 128, 96).block_size == 32


@pytest.mark.parametrize(
    ("rule", "width", "message"),
    [
        (Rule(("*",), "int4", 128), 64, "w: block size 128 does not divide its width of 64; choose 16, 32, 64"),
        (Rule(("*",), "int4", 128), 40, "w: block size 128 does not divide its width of 40; name it in no rule"),
        (Rule(("*",), "int8"), 40, "w: no block size divides its width of 40; name it in no rule"),
    ],
)
def test_a_block_size_that_does_not_divide_is_refused(rule: Rule, width: int, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        rule.scheme("w", width)


def test_the_standard_policy_leaves_router_and_norms_alone() -> None:
    policy = standard_policy("int4")
    assert policy is not None
    kinds = {
        name: rule.kind if (rule := policy.rule_for(name)) else None
        for name in (
            "model.layers.3.feed_forward.router.weight",
            "model.layers.3.input_layernorm.weight",
            "model.norm.weight",
            "model.layers.3.self_attn.q_proj.weight",
            "model.layers.3.feed_forward.experts.gate_up_proj",
            "model.layers.3.feed_forward.shared_expert.down_proj.weight",
            "lm_head.weight",
            "model.embed_tokens.weight",
        )
    }
    assert list(kinds.values()) == [None, None, None, "int4", "int4", "int4", "int8", "int8"]


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_activations_are_rounded_where_float_ones_have_no_kernel(quant: str) -> None:
    """Both have weights of 8 bits, which level 1 multiplies at a fiftieth of the speed (measurements.md)."""
    policy = standard_policy(quant)
    assert policy is not None
    assert any(rule.kind == "int8" for rule in policy.rules)
    assert policy.accuracy_level == 4


@pytest.mark.parametrize(("quant", "block"), [("int3", None), ("none", 32), ("int4", 48), ("fp8", 64)])
def test_bad_standard_policies(quant: str, block: int | None) -> None:
    with pytest.raises(InputError):
        standard_policy(quant, block)


@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_scales_are_fitted_for_integers_alone(quant: str) -> None:
    assert standard_policy("int4", fitted=True) != standard_policy("int4")
    with pytest.raises(InputError, match=f"--fit-scales: scales are fitted for int4 and int8, not for {quant}"):
        standard_policy(quant, fitted=True)


@pytest.mark.parametrize(
    "policy", [standard_policy("int4", 32), standard_policy("int8", fitted=True), standard_policy("fp8"), "file"]
)
def test_a_policy_that_is_written_is_read_again(tmp_path: Path, policy: Policy | str | None) -> None:
    given = load(tmp_path, GOOD) if isinstance(policy, str) else policy
    assert given is not None
    assert load(tmp_path, given.to_toml()) == given
