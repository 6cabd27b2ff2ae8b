"""The model of this example before it has learned anything: tokenizer, chat template and config."""

from __future__ import annotations

from scenes import COLOURS, KINDS, SHAPES, SIDE
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Llama4Config, PreTrainedTokenizerFast

PATCH = 14
"""Pixels of a patch's side; as in Llama 4, 2 x 2 patches become one feature row."""

SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>",
    "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>", "<|patch|>",
    "<|finetune_right_pad|>",
)  # fmt: skip
"""The tokens of Llama 4 that this model has, as Llama 4 spells them; their ids are these places."""

TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {{- '<|image|>' if part['type'] == 'image' else part['text'] }}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif %}
"""
# The split pattern of Llama 3: words keep their leading space, digits come in groups of at most three.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on all questions and answers; any text survives the round trip."""
    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    blanks = [{"shape": shape, "colour": f"an {colour}"} for shape in SHAPES for colour in COLOURS]
    texts = [text.format(**blank) for texts in KINDS.values() for text in texts for blank in blanks]
    core.train_from_iterator([*texts, *SHAPES, *COLOURS, *"01234", "yes", "no", "user\n\n", "assistant\n\n"], trainer)
    begin = processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)])
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[0], eos_token="<|eot|>", pad_token=SPECIAL[-1],
        clean_up_tokenization_spaces=False, model_max_length=4096, model_input_names=["input_ids", "attention_mask"],
        chat_template=TEMPLATE,
    )  # fmt: skip


def make_config(tokenizer: PreTrainedTokenizerFast) -> Llama4Config:
    """Llama 4 Scout in small: every layer routed, RoPE in chunks and NoPE over everything in turn, and a tower."""
    text = dict(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, use_qk_norm=True, rms_norm_eps=1e-5, initializer_range=0.05,
        intermediate_size=64, intermediate_size_mlp=256,  # the dense width is unused: every layer is routed
        num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1,
        no_rope_layers=[1, 1, 0], attention_chunk_size=128,  # 1 = RoPE within chunks, 0 = NoPE over everything
        attn_temperature_tuning=True, floor_scale=64, attn_scale=0.1,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 16.0, "low_freq_factor": 1.0,
            "high_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        },
        max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=[SPECIAL.index(name) for name in ("<|end_of_text|>", "<|eom|>", "<|eot|>")],
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384, image_size=SIDE,
        patch_size=PATCH, pixel_shuffle_ratio=0.5, projector_input_dim=128, projector_output_dim=128,
        vision_output_dim=128, initializer_range=0.05, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    ids = {f"{name}_index": SPECIAL.index(token) for name, token in (
        ("boi_token", "<|image_start|>"), ("eoi_token", "<|image_end|>"), ("image_token", "<|patch|>")
    )}  # fmt: skip
    return Llama4Config(text_config=text, vision_config=vision, architectures=["Llama4ForConditionalGeneration"], **ids)
