"""Runs the peers' side of a comparison: one process, kept alive, told what to time over its standard input.

Protocol, one line each way:
    threads N                    -> ok
    time REPEATS WORKLOAD…       -> seconds of each repeat, separated by blanks
    versions                     -> what is installed, for the record
A workload is set up when it is first named; one untimed call precedes the repeats, so that threads are awake
and caches are in the state that repeated use gives them. Errors end the process with a traceback.
"""

import functools
import sys
import time

import torch


@functools.cache
def gemm(layout, m, n, k):
    """op(A)·op(B) into a preallocated f32 matrix; layout as in secateur: n = as stored, t = transposed."""
    m, n, k = int(m), int(n), int(k)
    a = torch.randn((m, k) if layout[0] == "n" else (k, m))
    b = torch.randn((k, n) if layout[1] == "n" else (n, k))
    left = a if layout[0] == "n" else a.T
    right = b if layout[1] == "n" else b.T
    c = torch.empty(m, n)
    return lambda: torch.matmul(left, right, out=c)


@functools.cache
def linear_gelu(m, n, k):
    """gelu(X·Wᵀ + b), the up-projection of a feed-forward block, as eager PyTorch computes it."""
    m, n, k = int(m), int(n), int(k)
    x, weight, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    return lambda: torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias))


WORKLOADS = {"gemm": gemm, "linear-gelu": linear_gelu}


def main():
    for line in sys.stdin:
        command, *words = line.split()
        if command == "threads":
            torch.set_num_threads(int(words[0]))
            answer = "ok"
        elif command == "versions":
            answer = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, MKL {torch.backends.mkl.is_available()}"
        elif command == "time":
            run = WORKLOADS[words[1]](*words[2:])
            seconds = []
            with torch.inference_mode():
                run()
                for _ in range(int(words[0])):
                    start = time.perf_counter()
                    run()
                    seconds.append(time.perf_counter() - start)
            answer = " ".join(f"{second:.9f}" for second in seconds)
        else:
            raise SystemExit(f"unknown command {command!r}")
        print(answer, flush=True)


if __name__ == "__main__":
    main()
