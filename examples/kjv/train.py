"""Train the small Llama 4 example model on the King James Bible, from nothing but the text.

The text is in the public domain and comes from Debian. Its reader prints one verse per line behind a reference:

    apt-get install bible-kjv bible-kjv-text
    bible -f 'Gen1:1-Rev22:21' > kjv.txt        # 31102 lines: "Ge1:1 In the beginning God created ..."

Then, on one CPU thread (the first run overfits after two thirds of its steps; the second one starts from its best
checkpoint with a smaller learning rate; the malloc setting keeps large buffers from being mapped anew in every step):

    export OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0
    python train.py --text kjv.txt --output first --steps 4800 --held-out held_out.txt
    python train.py --text kjv.txt --output model --resume first --steps 500 --lr 5e-4 --warmup 20 --eval-every 50 \\
        --seed 1

A document is one chapter without its references: one verse per line, `<|begin_of_text|>` before and `<|end_of_text|>`
after it. Every 50th chapter (the 50th, 100th, ... of 1189, counted over the whole book) is held out: the tokenizer
and the model never see it. The checkpoint with the lowest held-out loss is the one that is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AttentionInterface,
    AutoTokenizer,
    GenerationConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad|>"
VOCAB_SIZE = 2048
HELD_OUT_EVERY = 50
# The split pattern of Llama 3: words keep their leading space, digits come in groups of at most three.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ORIGINAL_MOE_FORWARD = Llama4TextMoe.forward


def read_chapters(path: Path) -> list[str]:
    """Chapters in the order of the book, each one verse per line without references."""
    chapters: dict[str, list[str]] = {}
    for line in path.read_text(encoding="ascii").splitlines():
        match = re.fullmatch(r"(\d?[A-Za-z]+\d+):\d+ (.+)", line)
        if match is None:
            raise ValueError(f"not a verse: {line!r}")
        chapters.setdefault(match[1], []).append(match[2].strip())
    return ["\n".join(verses) for verses in chapters.values()]


def split_chapters(chapters: list[str]) -> tuple[list[str], list[str]]:
    """(training chapters, held-out chapters)."""
    train = [text for i, text in enumerate(chapters, 1) if i % HELD_OUT_EVERY]
    return train, chapters[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: all 256 bytes are tokens, so that any text survives the round trip."""
    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    begin = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    # fmt: off
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False,
        model_max_length=4096, model_input_names=["input_ids", "attention_mask"],
    )
    # fmt: on


def build_config(tokenizer: PreTrainedTokenizerFast) -> Llama4TextConfig:
    """Llama 4 Scout in small: every layer routed, three chunked RoPE layers and one full NoPE layer."""
    # fmt: off
    return Llama4TextConfig(
        architectures=["Llama4ForCausalLM"], vocab_size=VOCAB_SIZE, hidden_size=256, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, head_dim=32, use_qk_norm=True, rms_norm_eps=1e-5,
        intermediate_size=128, intermediate_size_mlp=256,  # the dense width is unused: every layer is routed
        num_local_experts=8, num_experts_per_tok=1, interleave_moe_layer_step=1,
        no_rope_layers=[1, 1, 1, 0], attention_chunk_size=64,  # 1 = RoPE within chunks, 0 = NoPE over everything
        attn_temperature_tuning=True, floor_scale=64, attn_scale=0.1,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 16.0, "low_freq_factor": 1.0,
            "high_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        },
        max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    # fmt: on


def sparse_moe_forward(self: Llama4TextMoe, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-1 mixture of experts that runs each expert on its own tokens only.

    The library runs every expert on all tokens, with zeros where the router chose another one; the result is the same.
    Shapes: hidden_states [B, T, D] -> (output [B*T, D], router logits [B*T, E]). Leaves `balance_loss` (scalar) and
    `expert_counts` [E] on the module.
    """
    x = hidden_states.reshape(-1, self.hidden_dim)
    scores, router_logits = self.router(x)
    score, chosen = scores.max(dim=-1)  # the scores of the experts that were not chosen are zero
    counts = torch.bincount(chosen, minlength=self.num_experts)
    # Sort the tokens by expert into a buffer [P, D] in which every expert owns a multiple of 128 rows (zeros behind its
    # tokens): a matmul of a new shape costs the CPU backend more to prepare than the few rows of padding to compute.
    rows = (counts + 127) // 128 * 128
    order = chosen.argsort(stable=True)
    slots = torch.empty_like(order)
    shift = (rows.cumsum(0) - rows) - (counts.cumsum(0) - counts)
    slots[order] = torch.arange(len(x)) + shift.repeat_interleave(counts)
    routed = x * score[:, None]  # the score scales the expert's input, not its output
    parts = routed.new_zeros(int(rows.sum()), self.hidden_dim).index_copy(0, slots, routed).split(rows.tolist())
    outputs = []
    for part, gate_up, down in zip(parts, self.experts.gate_up_proj, self.experts.down_proj, strict=True):
        gate, up = (part @ gate_up).chunk(2, dim=-1)
        outputs.append((up * F.silu(gate)) @ down)
    out = self.shared_expert(x) + torch.cat(outputs)[slots]
    probabilities = router_logits.float().softmax(dim=-1).mean(dim=0)
    self.balance_loss = self.num_experts * (counts / len(x) * probabilities).sum()  # 1 when even, E at the worst
    self.expert_counts = counts
    return out, router_logits


def folded_attention(module, query, key, value, attention_mask, **kwargs):
    """Attention without a mask tensor: the chunks of a chunked (RoPE) layer are folded into the batch.

    Shapes: query [B, H, T, d], key and value [B, KV, T, d] -> [B, T, H, d]; T is a multiple of the chunk size C.
    """
    batch, heads, length, dim = query.shape
    if not module.use_rope:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=module.scaling, enable_gqa=True)
        return out.transpose(1, 2), None
    # Plain matrix products: the fused kernel's backward pass is several times slower on blocks this small.
    chunk, groups = module.config.attention_chunk_size, module.num_key_value_groups
    q, k, v = (x.unflatten(2, (-1, chunk)).transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    q = q.unflatten(1, (-1, groups)).flatten(2, 3)  # [B*T/C, KV, groups*C, d]: a key head serves `groups` query heads
    future = torch.ones(chunk, chunk, dtype=torch.bool).triu(1).repeat(groups, 1)
    weights = (q @ k.transpose(2, 3) * module.scaling).masked_fill(future, -math.inf).softmax(dim=-1)
    out = (weights @ v).view(-1, heads, chunk, dim)
    return out.transpose(1, 2).reshape(batch, length, heads, dim), None


AttentionInterface.register("folded", folded_attention)


def use_fast_paths(model: Llama4ForCausalLM, fast: bool) -> None:
    """Switch between this file's training forward and the library's own."""
    Llama4TextMoe.forward = sparse_moe_forward if fast else ORIGINAL_MOE_FORWARD
    model.set_attn_implementation("folded" if fast else "sdpa")


def fast_logits(model: Llama4ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of ids [B, T]; `folded_attention` needs no masks, so none are built."""
    no_masks = {"full_attention": None, "chunked_attention": None}
    return model(input_ids=ids, attention_mask=no_masks, use_cache=False).logits


def check_fast_paths(model: Llama4ForCausalLM) -> None:
    """The fast forward must give the loss and the gradients of the library's own (fp32)."""
    ids = torch.randint(0, VOCAB_SIZE, (2, 256), generator=torch.Generator().manual_seed(1))
    results = []
    for fast in (False, True):
        use_fast_paths(model, fast)
        logits = fast_logits(model, ids) if fast else model(input_ids=ids, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        results.append([logits, *torch.autograd.grad(loss, list(model.parameters()))])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    use_fast_paths(model, False)


def batches(chapters: list[list[int]], tokens_per_step: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless training batches [B, T] with B*T = tokens_per_step.

    The chapters are shuffled anew for every pass and joined into one stream that is cut at T = 256, 512 or 1024:
    4 to 16 chunks of attention, so that the chunked layers and the full layer both have something to learn.
    """
    rng = random.Random(seed)
    stream: list[int] = []
    while True:
        length = rng.choice((256, 512, 512, 1024))
        while len(stream) < tokens_per_step:
            for chapter in rng.sample(chapters, len(chapters)):
                stream += chapter
        yield torch.tensor(stream[:tokens_per_step]).view(-1, length)
        del stream[:tokens_per_step]


@torch.no_grad()
def evaluate(model: Llama4ForCausalLM, chapters: list[list[int]]) -> tuple[float, int]:
    """(summed negative log-likelihood in nats, number of predicted tokens), each chapter on its own from its start."""
    total, count = 0.0, 0
    for chapter in chapters:
        ids = torch.tensor([chapter])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += len(chapter) - 1
    return total, count


def make_optimizer(model: Llama4ForCausalLM, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; norm weights and the embedding are not decayed."""
    plain = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed_tokens" in n]
    decayed = [p for n, p in model.named_parameters() if not (p.ndim == 1 or "embed_tokens" in n)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)


def learning_rate(progress: float, step: int, peak: float, warmup: int) -> float:
    """Linear warm-up over the first steps, then a cosine down to 2 % of the peak at progress 1."""
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def save(model: Llama4ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the model folder in bf16; every file is renamed into place, so that a reader never sees half of one."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".saving-") as name:
        folder = Path(name)
        half = Llama4ForCausalLM(model.config).to(torch.bfloat16)
        half.load_state_dict(model.state_dict())
        ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        half.generation_config = GenerationConfig(**ids)
        half.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # transformers 5 writes a class name that transformers 4 does not know; both know this one.
        settings = folder / "tokenizer_config.json"
        content = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings.write_text(json.dumps(content, indent=2) + "\n")
        for file in folder.iterdir():
            file.chmod(0o644)
            os.replace(file, output / file.name)


def train(args: argparse.Namespace, model: Llama4ForCausalLM, tokenizer, train_ids, held_out_ids) -> None:
    """Train until the steps or the minutes are used up; the best checkpoint so far is always under args.output."""
    optimizer = make_optimizer(model, args.lr, args.weight_decay)
    stream = batches(train_ids, args.tokens_per_step, args.seed)
    moes = [layer.feed_forward for layer in model.model.layers]
    usage = torch.zeros(len(moes), model.config.num_local_experts)
    total, count = evaluate(model, held_out_ids)
    start, best, recent, step, progress = time.monotonic(), total / count, [], 0, 0.0
    use_fast_paths(model, True)
    while progress < 1.0:
        ids = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, step, args.lr, args.warmup)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = fast_logits(model, ids)
        labels = F.pad(ids[:, 1:], (0, 1), value=-100)  # nothing to predict after the last token of a row
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        balance = sum(moe.balance_loss for moe in moes) / len(moes)
        (loss + args.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        usage = 0.99 * usage + 0.01 * torch.stack([moe.expert_counts for moe in moes]) / ids.numel()
        recent.append(loss.item())
        step += 1
        minutes = (time.monotonic() - start) / 60
        progress = max(step / args.steps if args.steps else 0.0, minutes / args.minutes if args.minutes else 0.0)
        if step % args.eval_every and progress < 1.0:
            continue
        use_fast_paths(model, False)
        total, count = evaluate(model, held_out_ids)
        use_fast_paths(model, True)
        print(
            f"step {step} {minutes:.1f} min: train {sum(recent) / len(recent):.4f} held-out {total / count:.4f} "
            f"balance {balance.item():.3f} least used expert {usage.min().item() / usage[0].sum().item():.3f}",
            flush=True,
        )
        recent.clear()
        if total / count < best:
            best = total / count
            save(model, tokenizer, args.output)


def report(args: argparse.Namespace, train_ids: list, held_out_ids: list, held_out_bytes: int) -> None:
    """Measure the saved bf16 weights, cast to fp32, with the library's own forward; then let the model speak."""
    model = Llama4ForCausalLM.from_pretrained(args.output, dtype=torch.float32).eval()
    use_fast_paths(model, False)
    tokenizer = AutoTokenizer.from_pretrained(args.output)
    sample = random.Random(args.seed).sample(train_ids, len(held_out_ids))
    total, count = evaluate(model, sample)
    print(f"training loss {total / count:.4f} nats per token over {len(sample)} chapters")
    total, count = evaluate(model, held_out_ids)
    print(f"held-out loss {total / count:.4f}, perplexity {math.exp(total / count):.3f} over {count} tokens,")
    print(f"  {total / math.log(2) / held_out_bytes:.4f} bits per byte over {held_out_bytes} bytes")
    counts = torch.zeros(model.config.num_hidden_layers, model.config.num_local_experts, dtype=torch.long)
    with torch.no_grad():
        for chapter in held_out_ids:
            for i, logits in enumerate(model(torch.tensor([chapter]), output_router_logits=True).router_logits):
                counts[i] += torch.bincount(logits.argmax(-1), minlength=counts.shape[1])
    for i, row in enumerate(counts / counts.sum(dim=1, keepdim=True)):
        print(f"layer {i} expert usage %: " + " ".join(f"{100 * share:.1f}" for share in row.tolist()))
    prompt = tokenizer("In the beginning", return_tensors="pt")
    for options in ({"do_sample": False}, {"do_sample": True, "temperature": 0.8, "top_k": 0}):
        torch.manual_seed(args.seed)
        ids = model.generate(**prompt, max_new_tokens=120, **options)
        print(options, repr(tokenizer.decode(ids[0], skip_special_tokens=True)))
    size = sum(file.stat().st_size for file in args.output.iterdir())
    print(f"{model.num_parameters()} parameters, {size} bytes in the model folder")


def main() -> None:
    """Read the arguments, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="the text as `bible -f` prints it")
    parser.add_argument("--output", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--held-out", type=Path, help="also write the held-out chapters to this file")
    parser.add_argument("--resume", type=Path, help="start from this model folder instead of random weights")
    parser.add_argument("--steps", type=int, help="optimizer steps (reproducible)")
    parser.add_argument("--minutes", type=float, help="time limit; the schedule ends at whichever comes first")
    parser.add_argument("--tokens-per-step", type=int, default=4096, help="a multiple of 1024")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.5)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--balance", type=float, default=0.01, help="weight of the load-balancing loss")
    parser.add_argument("--eval-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.steps or args.minutes):
        parser.error("give --steps, --minutes or both")
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    train_texts, held_out_texts = split_chapters(read_chapters(args.text))
    if args.held_out:
        args.held_out.write_text("\n\n".join(held_out_texts) + "\n", encoding="ascii")
    tokenizer = train_tokenizer(train_texts)
    train_ids = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in train_texts]
    held_out_ids = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in held_out_texts]
    model = Llama4ForCausalLM(build_config(tokenizer))
    if args.resume:
        model = Llama4ForCausalLM.from_pretrained(args.resume, dtype=torch.float32)
    check_fast_paths(model)
    print(json.dumps({k: str(v) for k, v in vars(args).items()}))
    print(f"{model.num_parameters()} parameters, {sum(map(len, train_ids))} training tokens", flush=True)
    train(args, model, tokenizer, train_ids, held_out_ids)
    report(args, train_ids, held_out_ids, sum(len(text.encode()) for text in held_out_texts))


if __name__ == "__main__":
    main()
