"""How long pictures take to become tiles, after decoding, on one core.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/image_speed.py

Times are the least of several runs: wall clock, and processor time, which tells how busy the machine is otherwise.
"""

from __future__ import annotations

import time

import numpy as np

from l4export.runtimes.images.processor import ImageProcessor

_SIZES = [(336, 336), (480, 640), (1080, 1920), (2000, 3000), (3000, 4000)]
_RUNS = 5


def main() -> None:
    """Print a line for each size."""
    make = ImageProcessor()
    print(f"{'height x width':>16}{'megapixels':>12}{'tiles':>7}{'seconds':>9}{'processor':>11}")
    for height, width in _SIZES:
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        least = [float("inf"), float("inf")]
        for _ in range(_RUNS):
            began = time.perf_counter(), time.process_time()
            done = make([picture])
            least = list(map(min, least, (time.perf_counter() - began[0], time.process_time() - began[1])))
        size = f"{height} x {width}"
        print(f"{size:>16}{height * width / 1e6:12.1f}{len(done.tiles):7}{least[0]:9.3f}{least[1]:11.3f}", flush=True)


if __name__ == "__main__":
    main()
