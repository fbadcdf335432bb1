"""Runs the peers' side of a comparison: one process, kept alive, told what to time over its standard input.

Protocol, one line each way:
    threads N                          -> ok
    time REPEATS UNTIMED WORKLOAD…     -> seconds of each repeat, separated by blanks
    forget                             -> ok; frees what the workloads so far have set up
    versions                           -> what is installed, for the record
A workload is set up when it is first named; UNTIMED calls precede the repeats, so that threads are awake and caches
are in the state that repeated use gives them. Errors end the process with a traceback.

Peers get what makes them fast and costs their users one line: the fused AdamW, no key-value cache, no attention mask
where nothing is padded, gradients set to None.
"""

import gc
import os
import sys
import tempfile
import time

import torch


def gemm(layout, m, n, k):
    """op(A)·op(B) into a preallocated f32 matrix; layout as in secateur: n = as stored, t = transposed."""
    m, n, k = int(m), int(n), int(k)
    a = torch.randn((m, k) if layout[0] == "n" else (k, m))
    b = torch.randn((k, n) if layout[1] == "n" else (n, k))
    left = a if layout[0] == "n" else a.T
    right = b if layout[1] == "n" else b.T
    c = torch.empty(m, n)
    return torch.inference_mode()(lambda: torch.matmul(left, right, out=c))


def linear_gelu(m, n, k):
    """gelu(X·Wᵀ + b), the up-projection of a feed-forward block, as eager PyTorch computes it."""
    m, n, k = int(m), int(n), int(k)
    x, weight, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    return torch.inference_mode()(lambda: torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias)))


def bert(what, attention, layers, hidden, heads, intermediate, vocabulary, padding, lengths):
    """A sentence classifier; what is forward, train or onnx; lengths are of rows ("," between) in batches (";" between);
    padding is a number of tokens or "longest" (of each batch)."""
    import transformers

    config = transformers.BertConfig(
        num_hidden_layers=int(layers),
        hidden_size=int(hidden),
        num_attention_heads=int(heads),
        intermediate_size=int(intermediate),
        vocab_size=int(vocabulary),
        num_labels=2,
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    batches = []
    for rows in lengths.split(";"):
        rows = torch.tensor([int(length) for length in rows.split(",")])
        width = rows.max().item() if padding == "longest" else int(padding)
        ids = torch.randint(1, config.vocab_size, (len(rows), width))
        batch = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}
        if (rows < width).any():
            mask = (torch.arange(width)[None] < rows[:, None]).long()
            batch |= {"input_ids": ids * mask, "attention_mask": mask}
        batches.append(batch)
    if what == "onnx":
        return onnx_forward(model, batches)
    if what == "forward":
        return forward(model, batches)
    return train(model, [batch | {"labels": torch.arange(len(batch["input_ids"])) % 2} for batch in batches])


def gpt2(what, attention, layers, hidden, heads, vocabulary, rows, length):
    """A language model over rows of one length; training predicts every next token."""
    import transformers

    config = transformers.GPT2Config(
        n_layer=int(layers), n_embd=int(hidden), n_head=int(heads), vocab_size=int(vocabulary), use_cache=False
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    ids = torch.randint(0, config.vocab_size, (int(rows), int(length)))
    if what == "forward":
        return forward(model, [{"input_ids": ids}])
    return train(model, [{"input_ids": ids, "labels": ids}])


def forward(model, batches):
    model.eval()

    @torch.inference_mode()
    def run():
        for batch in batches:
            model(**batch).logits

    return run


def train(model, batches):
    """One optimiser step for each batch: forward with dropout, backward, clipping, AdamW; the loss is read."""
    model.train()
    parameters = list(model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.0, fused=True)

    def run():
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

    return run


def onnx_forward(model, batches):
    """The same forward pass by ONNX Runtime, with shapes fixed and every graph optimisation on."""
    import onnxruntime

    model.eval()
    runs = []
    for batch in batches:
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "model.onnx")
            torch.onnx.export(model, (), path, kwargs=batch, dynamo=True, verbose=False)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.inter_op_num_threads = 1
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {item.name: batch[item.name].numpy() for item in session.get_inputs()}
        runs.append((session, feed))

    def run():
        for session, feed in runs:
            session.run(None, feed)

    return run


WORKLOADS = {"gemm": gemm, "linear-gelu": linear_gelu, "bert": bert, "gpt2": gpt2}


def versions():
    import importlib.metadata

    def named(package):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{package} missing"

    capability = torch.backends.cpu.get_cpu_capability()
    math = "with MKL" if torch.backends.mkl.is_available() else "without MKL"
    return f"torch {torch.__version__} ({capability}, {math}), {named('transformers')}, {named('onnxruntime')}"


def main():
    # Libraries print to standard output; the answers keep it for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ready = {}
    for line in sys.stdin:
        command, *words = line.split()
        if command == "threads":
            torch.set_num_threads(int(words[0]))
            answer = "ok"
        elif command == "forget":
            ready.clear()
            gc.collect()
            answer = "ok"
        elif command == "versions":
            answer = versions()
        elif command == "time":
            repeats, untimed, *workload = words
            key = tuple(workload)
            if key not in ready:
                ready[key] = WORKLOADS[key[0]](*key[1:])
            run = ready[key]
            for _ in range(int(untimed)):
                run()
            seconds = []
            for _ in range(int(repeats)):
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
            answer = " ".join(f"{second:.9f}" for second in seconds)
        else:
            raise SystemExit(f"unknown command {command!r}")
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
