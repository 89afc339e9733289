# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Train `examples/demo_model`: a small Qwen3-MoE language model, on two CPU cores, in 20 minutes.

* The text is in the public domain and comes from Debian packages, so a run needs no model hub:
  `r-cran-janeaustenr` (six novels by Jane Austen), `bible-kjv` with `bible-kjv-text` (King James
  Version). `--text FILE...` trains on other plain text instead.
* Every 20th document is held back; perplexity and bits per byte are measured on those only.
* The load-balancing loss is weak on purpose, because the demo is to show uneven expert use.
* The checkpoint holds one tensor per expert and projection, the layout of the Qwen3-MoE releases.

    nice -n 10 python examples/train_demo_moe.py --minutes 20
"""

import argparse
import itertools
import json
import math
import re
import subprocess
import tempfile
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

PACKAGES = ("r-cran-janeaustenr", "bible-kjv", "bible-kjv-text")
AUSTEN_DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
R_STRING = re.compile(rb"\x00\x04\x00\x09(?=\x00\x00)")
DOCUMENT_CHARS = 8000
HELD_BACK_EVERY = 20
END, PAD = "<|endoftext|>", "<|pad|>"
CHAT_TEMPLATE = "{{ messages | map(attribute='content') | join('\n\n') }}"
PROMPTS = ("It is a truth universally acknowledged,", "And the LORD said unto", "Emma was")


class Corpus(NamedTuple):
    train: list[str]
    held_back: list[str]


def fetch_packages(root: Path) -> None:
    """Download and unpack PACKAGES below `root`; nothing is installed on the machine."""
    try:
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=root, check=True)
        for deb in root.glob("*.deb"):
            subprocess.run(["dpkg", "-x", deb, root], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"expected apt-get and dpkg to fetch {', '.join(PACKAGES)}, got: {error}; run "
            "`apt-get update`, or pass plain text files with --text"
        ) from error


def r_strings(blob: bytes) -> list[str]:
    """The character vector of one serialised R object (CHARSXP: flags, length, bytes)."""
    strings, end = [], 0
    for match in R_STRING.finditer(blob):
        if match.start() < end:
            continue
        start = match.end() + 4
        end = start + int.from_bytes(blob[match.end() : start], "big")
        strings.append(blob[start:end].decode())
    return strings


def paragraphs_of(text: str) -> list[str]:
    """Unwrap text: one line for each paragraph."""
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if block.strip()]


def austen_paragraphs(root: Path) -> list[str]:
    """Paragraphs of the novels, out of an R lazy-load file.

    Such a file is a row of records, each a 4-byte length and a zlib stream.
    """
    data, paragraphs = (root / AUSTEN_DATA).read_bytes(), []
    while data:
        stream = zlib.decompressobj()
        paragraphs += paragraphs_of("\n".join(r_strings(stream.decompress(data[4:]))))
        data = stream.unused_data
    return paragraphs


def kjv_paragraphs(root: Path) -> list[str]:
    """One paragraph per chapter. The text is compressed, so the package's reader prints it."""
    reader = [root / "usr/bin/bible", "-f"]
    printed = subprocess.run(
        reader, cwd=root / "usr/lib", input="gen1:1-rev22:21\n", text=True, capture_output=True
    ).stdout
    verses = re.findall(r"^(\w+):\d+ (.+)$", printed, re.MULTILINE)
    chapters = itertools.groupby(verses, key=lambda verse: verse[0])
    return [" ".join(text for _, text in group) for _, group in chapters]


def package_paragraphs() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fetch_packages(root)
        return austen_paragraphs(root) + kjv_paragraphs(root)


def split_corpus(paragraphs: list[str]) -> Corpus:
    """Group paragraphs into documents of about DOCUMENT_CHARS and hold back every 20th."""
    documents, current = [], ""
    for paragraph in paragraphs:
        current += paragraph + "\n\n"
        if len(current) >= DOCUMENT_CHARS:
            documents, current = [*documents, current.strip()], ""
    documents.append(current.strip())
    held_back = documents[::HELD_BACK_EVERY]
    return Corpus([d for i, d in enumerate(documents) if i % HELD_BACK_EVERY], held_back)


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; documents end with END, and nothing is added in front of a prompt."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        documents,
        trainers.BpeTrainer(vocab_size=4096, special_tokens=[END, PAD], initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=96,
        norm_topk_prob=True,
        router_aux_loss_coef=0.01,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """All documents in one row of token ids [num_tokens], each followed by END."""
    return torch.tensor(tokenizer("".join(d + END for d in documents))["input_ids"])


def export_checkpoint(model: Qwen3MoeForCausalLM, folder: Path) -> None:
    """Save one bf16 tensor per expert and projection; transformers keeps them fused in memory."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensors |= unfused(name, tensor.detach().to(torch.bfloat16))
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def unfused(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    prefix, _, projection = name.rpartition(".")
    if not prefix.endswith(".experts"):
        return {name: tensor.contiguous()}
    halves = {"gate_up_proj": ("gate_proj", "up_proj")}.get(projection, (projection,))
    return {
        f"{prefix}.{expert_idx}.{half}.weight": part.contiguous()
        for expert_idx, weight in enumerate(tensor)
        for half, part in zip(halves, weight.chunk(len(halves)), strict=True)
    }


def export_config(model: Qwen3MoeForCausalLM, folder: Path) -> None:
    """Save the config, with the option names that every release of transformers reads."""
    config = model.config.to_diff_dict() | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": model.config.num_experts,
        "rope_theta": model.config.rope_parameters["rope_theta"],
        "torch_dtype": "bfloat16",
    }
    for key in ("dtype", "num_local_experts", "output_router_logits"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    GenerationConfig.from_model_config(model.config).save_pretrained(folder)


def export_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the tokenizer, under the name of a class that transformers 4 and 5 both have."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def batches(tokens: torch.Tensor, size: int, length: int) -> torch.Tensor:
    """Random windows [size, length] of the training tokens."""
    starts = torch.randint(len(tokens) - length, (size,)).tolist()
    return torch.stack([tokens[start : start + length] for start in starts])


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over 3 % of the time, then a cosine down to a tenth."""
    if progress < 0.03:
        return peak * progress / 0.03
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def train(model: Qwen3MoeForCausalLM, tokens: torch.Tensor, args: argparse.Namespace) -> int:
    """Train for `args.minutes`; returns the number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.95))
    started, step = time.monotonic(), 0
    while (progress := (time.monotonic() - started) / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, args.learning_rate)
        window = batches(tokens, args.batch_size, args.sequence_length)
        loss = model(window, labels=window, output_router_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            print(f"step {step}  {progress:.0%}  loss {loss.item():.3f}", flush=True)
    return step


@torch.inference_mode()
def held_back_loss(model: Qwen3MoeForCausalLM, tokens: torch.Tensor, length: int = 512) -> float:
    """Mean negative log-likelihood per token, in nats."""
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    losses = [model(w, labels=w).loss.item() for w in windows.split(8)]
    return sum(losses) / len(losses)


@torch.inference_mode()
def expert_use(model: Qwen3MoeForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Share of tokens per expert [num_layers, num_experts] on held-back text."""
    logits = model(tokens[None, :4096], output_router_logits=True).router_logits
    top_k = model.config.num_experts_per_tok
    chosen = [layer.topk(top_k).indices.flatten() for layer in logits]
    counts = [torch.bincount(c, minlength=model.config.num_experts) for c in chosen]
    return torch.stack(counts) * top_k / (top_k * 4096.0)


def sample(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    out = model.generate(ids, max_new_tokens=60, do_sample=False, repetition_penalty=1.15)
    return tokenizer.decode(out[0], skip_special_tokens=True)


def write_readme(folder: Path, lines: list[str]) -> None:
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def report(
    model: Qwen3MoeForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    steps: int,
    args: argparse.Namespace,
) -> list[str]:
    """What the checkpoint is and what it reaches, as the lines of its README."""
    held_back = encode(tokenizer, corpus.held_back)
    loss = held_back_loss(model, held_back)
    num_bytes = sum(len(d.encode()) for d in corpus.held_back)
    bits = loss * len(held_back) / math.log(2) / num_bytes
    use = expert_use(model, held_back)
    config = model.config
    size = sum(p.numel() for p in model.parameters()) / 1e6
    text = f"""# Demo model: a small Qwen3-MoE

{config.num_hidden_layers} MoE layers, {config.num_experts} experts,
top-{config.num_experts_per_tok}, {size:.1f} M parameters, bf16.
Made by `examples/train_demo_moe.py`:

* text: public domain, from the Debian packages {", ".join(PACKAGES)}
* {steps} steps of {args.batch_size} x {args.sequence_length} tokens, {args.minutes:g} minutes on
  {torch.get_num_threads()} CPU cores
* held-back text ({len(held_back)} tokens): perplexity {math.exp(loss):.1f},
  {bits:.2f} bits per byte

Share of held-back tokens that chose an expert, least and most used of each layer (even use would
be {config.num_experts_per_tok / config.num_experts:.0%}):

| layer | least | most |
| --- | --- | --- |"""
    lines = text.splitlines()
    lines += [f"| {i} | {row.min():.1%} | {row.max():.1%} |" for i, row in enumerate(use)]
    lines += ["", "Samples (greedy, repetition penalty 1.15):", ""]
    return lines + [f"> {sample(model, tokenizer, p)}\n".replace("\n\n", " ") for p in PROMPTS]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", nargs="+", type=Path, help="plain text files to train on instead")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "demo_model")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--sequence-length", type=int, default=192)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    texts = [paragraphs_of(path.read_text()) for path in args.text or ()]
    corpus = split_corpus(list(itertools.chain(*texts)) or package_paragraphs())
    tokenizer = train_tokenizer(corpus.train)
    model = Qwen3MoeForCausalLM(model_config(tokenizer))
    model.set_experts_implementation("grouped_mm")
    steps = train(model, encode(tokenizer, corpus.train), args)
    model = model.to(torch.bfloat16).to(torch.float32).eval()
    args.out.mkdir(parents=True, exist_ok=True)
    export_checkpoint(model, args.out)
    export_config(model, args.out)
    export_tokenizer(tokenizer, args.out)
    write_readme(args.out, report(model, tokenizer, corpus, steps, args))


if __name__ == "__main__":
    main()
