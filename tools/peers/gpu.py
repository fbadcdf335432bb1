#!/usr/bin/env python3
"""Times PyTorch on this machine's GPU, for the comparison that tools/gpu_record makes.

    tools/peers/gpu.py --out FILE.json [--only PREFIX,…] [--lengths FILE] [--no-compile]

Every figure is the median of device-event times after a warm-up. Operands are random and rotated over more memory than
the second-level cache holds, so no run finds its inputs there. --lengths names a file with one sequence length a line
(those of a real task); without it, the workloads on real lengths are not run and the output says so.
"""

import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as F

REPEATS = 15
ROTATED_BYTES = 256 << 20

# [layout, m, n, k]: a linear layer forward (nt), its input gradient (nn), its weight gradient (tn), BERT-base, 4,096 tokens.
GEMMS = [
    ("nt", 4096, 768, 768),
    ("nt", 4096, 2304, 768),
    ("nt", 4096, 3072, 768),
    ("nt", 4096, 768, 3072),
    ("nn", 4096, 768, 3072),
    ("nn", 4096, 3072, 768),
    ("tn", 768, 768, 4096),
    ("tn", 3072, 768, 4096),
    ("tn", 768, 3072, 4096),
    ("nt", 16384, 3072, 768),
    ("nt", 8192, 8192, 8192),
]
# (sequences, tokens, heads, head size, causal)
ATTENTIONS = [(32, 128, 12, 64, False), (32, 384, 12, 64, False), (8, 512, 12, 64, False), (8, 1024, 12, 64, True), (4, 4096, 12, 64, False), (4, 4096, 12, 64, True)]


def median_seconds(calls, repeats=REPEATS, inner=1):
    """Median seconds of one call; `calls` are alternatives over different memory, used in turn."""
    for call in calls[:3]:
        call()
    torch.cuda.synchronize()
    seconds, turn = [], 0
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(inner):
            calls[turn % len(calls)]()
            turn += 1
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / inner)
    return statistics.median(seconds)


def copies_for(bytes_each):
    return max(1, min(16, ROTATED_BYTES // max(bytes_each, 1)))


def bandwidth(results):
    words = 256 << 20
    source, target = torch.randn(words, device="cuda"), torch.empty(words, device="cuda")
    seconds = median_seconds([lambda: target.copy_(source)])
    results["copy"] = {"seconds": seconds, "bytes_per_second": 2 * 4 * words / seconds}


def gemms(results):
    for precision, dtype, tf32 in [("bf16", torch.bfloat16, False), ("tf32", torch.float32, True), ("f32", torch.float32, False)]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        for layout, m, n, k in GEMMS:
            if precision == "f32" and m * n * k > 1e11:
                continue
            calls = []
            element = 2 if precision == "bf16" else 4
            for _ in range(copies_for((m * k + k * n + m * n) * element)):
                a = torch.randn((m, k) if layout[0] == "n" else (k, m), device="cuda").to(dtype)
                b = torch.randn((k, n) if layout[1] == "n" else (n, k), device="cuda").to(dtype)
                c = torch.empty(m, n, device="cuda", dtype=dtype)
                left = a if layout[0] == "n" else a.T
                right = b if layout[1] == "n" else b.T
                calls.append(lambda left=left, right=right, c=c: torch.matmul(left, right, out=c))
            seconds = median_seconds(calls, inner=10)
            results[f"gemm {precision} {layout} {m}x{n}x{k}"] = {"seconds": seconds, "flops_per_second": 2 * m * n * k / seconds}
    torch.backends.cuda.matmul.allow_tf32 = False


def attentions(results):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for b, t, h, d, causal in ATTENTIONS:
        sets = []
        for _ in range(copies_for(4 * b * t * h * d * 2)):
            sets.append([torch.randn(b, h, t, d, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)])
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            forward = [lambda s=s: F.scaled_dot_product_attention(*(x.detach() for x in s), is_causal=causal) for s in sets]
            name = f"attention bf16 {b}x{t}x{h}x{d}{' causal' if causal else ''}"
            flops = 4 * b * h * t * t * d / (2 if causal else 1)
            seconds = median_seconds(forward, inner=5)
            results[f"{name} forward"] = {"seconds": seconds, "flops_per_second": flops / seconds}
            outs = [F.scaled_dot_product_attention(*s, is_causal=causal) for s in sets]
            grads = [torch.randn_like(o) for o in outs]
            backward = [
                lambda o=o, g=g, s=s: torch.autograd.grad(o, s, g, retain_graph=True) for o, g, s in zip(outs, grads, sets)
            ]
            seconds = median_seconds(backward, inner=5)
            results[f"{name} backward"] = {"seconds": seconds, "flops_per_second": 2.5 * flops / seconds}


def bert(attention="sdpa"):
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(num_labels=2, attn_implementation=attention)).cuda()


def gpt2(attention="sdpa"):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(attn_implementation=attention)).cuda()


def train_step(model, batches, clip=1.0):
    """bf16 autocast with f32 master weights and fused AdamW: what a careful PyTorch user runs."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)

    def step(batch):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return [lambda batch=batch: step(batch) for batch in batches]


def forward_calls(model, batches):
    model.eval()

    def run(batch):
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
            model(**{k: v for k, v in batch.items() if k != "labels"})

    return [lambda batch=batch: run(batch) for batch in batches]


def padded(lengths, to=None):
    width = to or max(lengths)
    ids = torch.randint(1000, 30000, (len(lengths), width), device="cuda")
    mask = torch.arange(width, device="cuda")[None, :] < torch.tensor(lengths, device="cuda")[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.randint(0, 2, (len(lengths),), device="cuda")}


def models(results, lengths, compiled):
    def both(name, make, batches, tokens):
        def note(kind, calls):
            seconds = median_seconds(calls)
            results[f"{name} {kind}"] = {"seconds": seconds, "tokens_per_second": tokens / seconds}
            print(f"{name} {kind}: {seconds * 1e3:.2f} ms", flush=True)

        model = make()
        note("forward eager", forward_calls(model, batches))
        note("train eager", train_step(model, batches))
        # Compiling for changing shapes takes minutes; batches of one shape are what it is fastest on.
        if compiled and len({b["input_ids"].shape for b in batches}) == 1:
            model = torch.compile(make())
            note("forward compile", forward_calls(model, batches))
            note("train compile", train_step(model, batches))
        del model
        torch.cuda.empty_cache()

    full = [padded([128] * 32) for _ in range(4)]
    both("bert-base 32x128", bert, full, 32 * 128)
    if lengths:
        groups = [lengths[i : i + 32] for i in range(0, len(lengths) - 31, 32)][:24]
        tokens = sum(map(sum, groups)) / len(groups)
        both("bert-base real lengths padded to 128", bert, [padded([min(x, 128) for x in g], 128) for g in groups], tokens)
        both("bert-base real lengths dynamic", bert, [padded(g) for g in groups], tokens)
    blocks = []
    for _ in range(4):
        ids = torch.randint(0, 50257, (8, 1024), device="cuda")
        blocks.append({"input_ids": ids, "labels": ids})
    both("gpt2 8x1024", gpt2, blocks, 8 * 1024)


def optimizers(results):
    scores = torch.randn(85_000_000, device="cuda")
    results["top-k threshold of 85M"] = {"seconds": median_seconds([lambda: torch.kthvalue(scores, 42_500_000)], repeats=5)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--lengths")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here")
    torch.manual_seed(1)
    lengths = [int(line) for line in open(arguments.lengths)] if arguments.lengths else []
    results = {}
    sections = {
        "bandwidth": lambda: bandwidth(results),
        "gemm": lambda: gemms(results),
        "attention": lambda: attentions(results),
        "models": lambda: models(results, lengths, not arguments.no_compile),
        "select": lambda: optimizers(results),
    }
    wanted = [name for name in arguments.only.split(",") if name] or list(sections)
    properties = torch.cuda.get_device_properties(0)
    machine = {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if not lengths:
        print("not run: real lengths (no --lengths)")
    for name in wanted:
        sections[name]()
        print(f"{name}: done", flush=True)
        # After each section, so that a run cut short leaves what it has.
        with open(arguments.out, "w") as out:
            json.dump({"machine": machine, "results": results}, out, indent=1)


if __name__ == "__main__":
    main()
