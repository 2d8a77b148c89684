"""What a machine can do: matrix products per second and memory bandwidth.

    python benchmarks/limits.py [--device cpu|cuda] [--threads N] [--repeats 5]

The shapes are those of SmolLM2-135M: the inner layer of its feed-forward network, up and down, and its output layer;
and a large square one. Bandwidth is that of a copy, bytes read and bytes written together. Other benchmarks divide by
these numbers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timing import Timing, timed

CPU = torch.device("cpu")

SHAPES = ((2048, 2048, 2048), (2048, 576, 3072), (2048, 1536, 576), (512, 576, 49152))
"""``(m, k, n)`` of products ``[m, k] x [k, n]``."""

COPIED_BYTES = 1 << 29
"""Above the share of a server's caches that a process gets."""


def matmul_flops(
    dtype: torch.dtype, m: int, k: int, n: int, *, device: torch.device = CPU, repeats: int = 5
) -> float:
    """Return additions and multiplications a second of a product ``[m, k] x [k, n]``, weights as a linear layer's."""
    return 2 * m * k * n / matmul_timing(dtype, m, k, n, device=device, repeats=repeats).median


def copy_bandwidth(*, n_bytes: int = COPIED_BYTES, device: torch.device = CPU, repeats: int = 5) -> float:
    """Return bytes read and written a second while ``n_bytes`` are copied."""
    return 2 * n_bytes / copy_timing(n_bytes=n_bytes, device=device, repeats=repeats).median


def matmul_timing(
    dtype: torch.dtype, m: int, k: int, n: int, *, device: torch.device = CPU, repeats: int = 5
) -> Timing:
    inputs = torch.randn(m, k, dtype=dtype, device=device)
    weights = torch.randn(n, k, dtype=dtype, device=device)
    product = torch.empty(m, n, dtype=dtype, device=device)
    return timed(lambda: torch.mm(inputs, weights.t(), out=product), device, repeats)


def copy_timing(*, n_bytes: int = COPIED_BYTES, device: torch.device = CPU, repeats: int = 5) -> Timing:
    # written once: pages that never were have no memory behind them
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return timed(lambda: target.copy_(source), device, repeats)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor where Linux tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'cpu'}, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of a CPU; torch's choice by default")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print(f"{device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"{'product':<28} {'dtype':<9} {'GFLOP/s':>9} {'spread':>7}")
    for m, k, n in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            timing = matmul_timing(dtype, m, k, n, device=device, repeats=args.repeats)
            name = str(dtype).removeprefix("torch.")
            rate = 2 * m * k * n / timing.median / 1e9
            print(f"{f'[{m}, {k}] x [{k}, {n}]':<28} {name:<9} {rate:9.1f} {timing.spread:7.1%}")
    timing = copy_timing(n_bytes=COPIED_BYTES, device=device, repeats=args.repeats)
    rate = 2 * COPIED_BYTES / timing.median / 1e9
    print(f"\ncopy of {COPIED_BYTES >> 20} MiB: {rate:.1f} GB/s, spread {timing.spread:.1%}")


if __name__ == "__main__":
    main()
