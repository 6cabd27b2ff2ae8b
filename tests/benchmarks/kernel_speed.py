"""GB/s of source that the quantisation kernels take, by orientation and number of threads.

    python tests/benchmarks/kernel_speed.py [--repeat 5] [--dtype bfloat16]

Each call quantises one matrix of 8192 x 5120 (an expert's gate or up); with two threads each takes half of the output
rows. Medians; the first call (compilation) is timed apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

from l4export.quantization import Scheme, quantize_rows

N, K = 8192, 5120
SCHEMES = ("int4-b32", "int4-b64", "int4-b128", "int4-b32-asym", "int8-b32", "int8-b128", "fp8-channel", "fp8-b128")


def matrix(dtype: str, transposed: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (K, N) if transposed else (N, K)
    return (rng.standard_normal(shape, dtype=np.float32) * 0.02).astype(getattr(ml_dtypes, dtype, dtype))


def once(
    source: np.ndarray,
    scheme: Scheme,
    outputs: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    transposed: bool,
    pool: ThreadPoolExecutor | None,
) -> float:
    codes, scales, zeros = outputs

    def part(start: int, stop: int) -> None:
        view = source[:, start:stop] if transposed else source[start:stop]
        quantize_rows(view, scheme, codes, scales, zeros, row_start=start, transposed=transposed)

    begin = time.perf_counter()
    if pool is None:
        part(0, N)
    else:
        list(pool.map(part, (0, N // 2), (N // 2, N)))
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    options = parser.parse_args()
    small = np.zeros((1, 128), getattr(ml_dtypes, options.dtype, options.dtype))
    for name in ("int4-b32", "fp8-channel"):
        begin = time.perf_counter()
        quantize_rows(small, Scheme.named(name), *Scheme.named(name).allocate(1, 128))
        print(f"first call of {name}: {time.perf_counter() - begin:.1f} s (compiles, or loads from the cache)")
    print(f"\nGB/s of {options.dtype} source, median of {options.repeat}")
    print(f"{'scheme':16}{'[N,K] 1 thread':>16}{'2 threads':>12}{'[K,N] 1 thread':>16}{'2 threads':>12}")
    sources = {transposed: matrix(options.dtype, transposed) for transposed in (False, True)}
    with ThreadPoolExecutor(2) as pool:
        for name in SCHEMES:
            scheme, speeds = Scheme.named(name), []
            outputs = scheme.allocate(N, K)
            for transposed, source in sources.items():
                for threads in (None, pool):
                    seconds = [once(source, scheme, outputs, transposed, threads) for _ in range(options.repeat)]
                    speeds.append(source.nbytes / statistics.median(seconds) / 1e9)
            print(f"{name:16}{speeds[0]:16.2f}{speeds[1]:12.2f}{speeds[2]:16.2f}{speeds[3]:12.2f}", flush=True)


if __name__ == "__main__":
    main()
