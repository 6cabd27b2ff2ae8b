"""The peer: llama.cpp, built natively from the source package `llama-cpp-python`, for side-by-side figures.

    python tests/benchmarks/llama_cpp_peer.py --work DIR                                  only build it (once, minutes)
    python tests/benchmarks/llama_cpp_peer.py --work DIR --checkpoint CHECKPOINT --json FILE

DIR gets a virtual environment, the unpacked source package, the build and the models; whatever is there already is
used again. Needs Linux, Python 3.11, a C++ compiler and a package registry (cmake and ninja are fetched when missing).
In other benchmark scripts:

    peer = build_peer(Path("work"))
    timings = peer.convert_and_quantize(Path("checkpoint"))     # seconds, memory, sizes of the two steps
    figures = peer.measure(prefill=512, decode=64, threads=2)   # tokens/s; call it as often as wanted, between ours

**What is built.** The source package carries llama.cpp whole. Its CMake project is built as its documentation says,
Release, for this very CPU (`GGML_NATIVE=ON`: all that the CPU and the compiler offer; OpenMP, weight repacking and
flash attention as by default), and only the two tools that are needed: `llama-quantize` and `llama-bench`. Nothing is
patched. The libraries that come along carry the package's Python binding where it is needed (`Peer.routing`).

**What is measured.** Converting is `convert_hf_to_gguf.py --outtype bf16` (the exact copy of a bf16 checkpoint; no
rounding), quantising `llama-quantize ... Q4_0`, each a process of its own, from start to exit, imports included.
Output is left in the page cache; how long writing it out takes is in `sync_s` and not part of the seconds. Whether the
checkpoint is in the page cache is the caller's affair. `peak_rss` counts mapped pages of the files that are read and is
what `time -v` reports; `peak_anonymous` is memory proper. Speed is `llama-bench`'s: a warm-up, then `repeats` prefills
of `prefill` random tokens with logits for the last one only, then `repeats` times `decode` single random tokens from an
empty cache; the medians are given. Random tokens make every expert work.

`others_cores` is how many cores other processes kept busy meanwhile. Above a few hundredths the figures are those of a
shared machine, and decode suffers most, because OpenMP's threads wait for each other many times a token. The
environment is handed on to the peer, and matters: huge pages (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`) make its decode
a tenth faster, so both sides get them or neither.

A checkpoint without a tokenizer, or with one that llama.cpp has never heard of, is converted without a vocabulary (see
`llama_cpp_inside.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path
from typing import Any

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
INSIDE = Path(__file__).with_name("llama_cpp_inside.py")
TOOLS = ("llama-quantize", "llama-bench")
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
# GCC 12's `_tile_loadconfig` tells the compiler of 8 of the 64 bytes that the instruction reads: the rest of what
# llama.cpp configures AMX tiles with is then optimised away, and the first prefill dies of a general protection fault.
# This header, included before everything else, declares all 64; llama.cpp's sources stay as they are.
AMX_HEADER = """\
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(configuration) \\
    __asm__ volatile("ldtilecfg\\t%X0" : : "m"(*(const char (*)[64])(configuration)) : "memory")
#endif
"""
TORCH = "torch==2.13.0"  # as in constraints.txt


@dataclasses.dataclass
class Peer:
    """A built llama.cpp in a directory of its own, and the model that it was last given."""

    work: Path
    version: str
    model: Path | None = None

    @property
    def python(self) -> Path:
        """The interpreter of the peer's virtual environment."""
        return self.work / "venv" / "bin" / "python"

    @property
    def source(self) -> Path:
        """The unpacked source package."""
        return self.work / "source"

    @property
    def binaries(self) -> Path:
        """The folder of the built tools and libraries."""
        return self.work / "build" / "bin"

    def convert_and_quantize(
        self,
        checkpoint: Path,
        scheme: str = "Q4_0",
        *,
        outtype: str = "bf16",
        threads: int | None = None,
        again: bool = False,
        keep_float: bool = True,
    ) -> dict[str, Any]:
        """Converts a checkpoint to GGUF and quantises that: the timings, which a later call on the same files repeats.

        `again` does both steps anew. The result becomes the model of `measure`.
        """
        checkpoint = checkpoint.resolve()
        folder = self.work / "models" / f"{checkpoint.name}-{_fingerprint(checkpoint)}"
        whole, quantised = folder / f"{outtype}.gguf", folder / f"{scheme.lower()}.gguf"
        record = folder / f"{scheme.lower()}.json"
        self.model = quantised
        if record.exists() and quantised.exists() and not again:
            return {**json.loads(record.read_text(encoding="utf-8")), "reused": True}
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (whole, quantised, record):
            stale.unlink(missing_ok=True)
        load = os.getloadavg()[0]
        command = [self.python, INSIDE, self.source, "convert", checkpoint, whole, outtype]
        convert = {**_timed(command, folder / "convert.log"), "sync_s": _sync(whole)}
        count = threads or len(os.sched_getaffinity(0))
        command = [self.binaries / "llama-quantize", whole, quantised, scheme, str(count)]
        quantize = {**_timed(command, folder / "quantize.log"), "sync_s": _sync(quantised)}
        described = self.describe(quantised)
        size = quantised.stat().st_size
        timings = {
            "scheme": scheme,
            "threads": count,
            "convert": convert,
            "quantize": quantize,
            "total_s": convert["wall_s"] + quantize["wall_s"],
            "checkpoint_bytes": sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")),
            "float_bytes": whole.stat().st_size,
            "bytes": size,
            "parameters": described["parameters"],
            "bits_per_weight": 8 * size / described["parameters"],
            "types": described["types"],
            "warnings": _warnings(json.loads((checkpoint / "config.json").read_text(encoding="utf-8")), described),
            "load_average": [load, os.getloadavg()[0]],
        }
        if not keep_float:
            whole.unlink()
        record.write_text(json.dumps(timings, indent=1), encoding="utf-8")
        return {**timings, "reused": False}

    def measure(
        self,
        prefill: int = 512,
        decode: int = 64,
        threads: int = 2,
        repeats: int = 5,
        *,
        model: Path | None = None,
        options: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Tokens per second of prefill and decode, medians of `repeats` runs; 0 tokens leave one of the two out.

        `options` go to llama-bench as they are (for example `("--repack", "0")`).
        """
        model = model or self.model
        if model is None:
            raise ValueError("no model: call convert_and_quantize first, or give model=")
        load, others = os.getloadavg()[0], _others_seconds()
        command = [self.binaries / "llama-bench", "-m", model, "-p", prefill, "-n", decode, "-t", threads]
        command += ["-r", repeats, "-o", "json", *options]
        start = time.perf_counter()
        runs = json.loads(_output(command))
        wall = time.perf_counter() - start
        figures: dict[str, Any] = {
            "threads": threads,
            "repeats": repeats,
            "wall_s": wall,
            "load_average": [load, os.getloadavg()[0]],
            "others_cores": (_others_seconds() - others) / wall,
            "cpu": runs[0].get("cpu_info"),
            "glibc_tunables": os.environ.get("GLIBC_TUNABLES"),
            "flash_attention": runs[0].get("flash_attn"),
            "repack": runs[0].get("repack"),
        }
        for run in runs:
            figures["decode" if run["n_gen"] else "prefill"] = {
                "tokens": run["n_gen"] or run["n_prompt"],
                "tokens_per_s": statistics.median(run["samples_ts"]),
                "samples": run["samples_ts"],
            }
        return figures

    def describe(self, model: Path) -> dict[str, Any]:
        """Metadata and tensor types of a GGUF file."""
        answer: dict[str, Any] = json.loads(_output([self.python, INSIDE, self.source, "describe", model]))
        return answer

    def routing(self, tokens: int = 512, threads: int = 2, *, model: Path | None = None) -> dict[str, Any]:
        """Prefills random tokens and counts, layer by layer, how often each expert was picked."""
        model = model or self.model
        command = [self.python, INSIDE, self.source, "route", model, self.binaries, tokens, threads]
        answer: dict[str, Any] = json.loads(_output(command))
        return answer


def build_peer(work: Path, *, version: str = VERSION, jobs: int | None = None) -> Peer:
    """Builds llama.cpp in `work`, from the source package of `llama-cpp-python`, unless that has been done before."""
    work = work.resolve()
    peer = Peer(work, version)
    stamp, header = work / "built.json", work / "amx.h"
    options = [*CMAKE_OPTIONS, f"-DCMAKE_CXX_FLAGS=-include '{header}'"]
    wanted = {"version": version, "options": options, "header": AMX_HEADER}
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return peer
    work.mkdir(parents=True, exist_ok=True)
    if not peer.python.exists():
        _say("creating the virtual environment")
        _run([sys.executable, "-m", "venv", work / "venv"])
    pip = [peer.python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if not (marker := work / f"source-{version}").exists():
        _say(f"fetching the source package {PACKAGE} {version}")
        shutil.rmtree(work / "sdist", ignore_errors=True)
        named = f"{PACKAGE}=={version}"
        _run([*pip, "download", "--no-deps", "--no-binary", ":all:", "--dest", work / "sdist", named])
        _unpack(next((work / "sdist").glob("*.tar.gz")), peer.source)
        marker.touch()
    _say("installing what the converter needs")
    _run([*pip, "install", TORCH])  # first and alone: where there is a CPU build, nothing pulls CUDA packages
    _run([*pip, "install", *_requirements(peer.source)])
    missing = [tool for tool in ("cmake", "ninja") if not shutil.which(tool)]
    if missing:
        _run([*pip, "install", *missing])
    search = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{work / 'venv' / 'bin'}"}
    _say("building (a quarter of an hour on two cores)")
    tree = peer.source / "vendor" / "llama.cpp"
    header.write_text(AMX_HEADER, encoding="utf-8")
    start = time.perf_counter()
    _run(["cmake", "-G", "Ninja", "-S", tree, "-B", work / "build", *options], search)
    count = jobs or len(os.sched_getaffinity(0))
    _run(["cmake", "--build", work / "build", "--target", *TOOLS, "--parallel", count], search)
    _say(f"built in {time.perf_counter() - start:.0f} s")
    stamp.write_text(json.dumps(wanted), encoding="utf-8")
    return peer


def _unpack(archive: Path, target: Path) -> None:
    """Unpacks a source package, without its outermost folder, at `target`."""
    parent = target.with_name("unpacking")
    for stale in (parent, target):
        shutil.rmtree(stale, ignore_errors=True)
    with tarfile.open(archive) as package:
        package.extractall(parent, filter="data")
    next(parent.iterdir()).rename(target)
    parent.rmdir()


def _requirements(source: Path) -> list[str]:
    """What the binding and the converter ask for, except torch (installed before) and options such as indexes."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    files = [source / "vendor" / "llama.cpp" / "requirements" / "requirements-convert_hf_to_gguf.txt"]
    while files:
        file = files.pop()
        for line in file.read_text(encoding="utf-8").splitlines():
            if included := re.match(r"-r\s+(\S+)", line):
                files.append(file.parent / included[1])
            elif line.strip() and not line.startswith(("#", "-", "torch")):
                wanted.append(line.split("#")[0].strip())
    return wanted


def _fingerprint(checkpoint: Path) -> str:
    """Tells one set of checkpoint files from another by place, names, sizes and times."""
    if not (checkpoint / "config.json").is_file():
        raise SystemExit(f"{checkpoint} has no config.json: is it a checkpoint?")
    digest = hashlib.sha256(str(checkpoint).encode())
    for path in sorted(checkpoint.iterdir()):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _warnings(config: dict[str, Any], described: dict[str, Any]) -> list[str]:
    """Where the peer's model is not the checkpoint's: llama.cpp fixes much of Llama 4 in its code, not in metadata."""
    config = config.get("text_config", config)
    metadata, layers = described["metadata"], config["num_hidden_layers"]
    found = []

    def expect(what: str, ours: Any, theirs: Any) -> None:
        if ours != theirs:
            found.append(f"{what}: {ours} in the checkpoint, {theirs} in llama.cpp")

    expect("architecture", "llama4", metadata.get("general.architecture"))
    for name, key in {
        "num_local_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
        "interleave_moe_layer_step": "interleave_moe_layer_step",
        "num_hidden_layers": "block_count",
        "num_key_value_heads": "attention.head_count_kv",
        "vocab_size": "vocab_size",
        "intermediate_size": "expert_feed_forward_length",
    }.items():
        expect(name, config.get(name), metadata.get(f"llama4.{key}"))
    expect("QK norm (128 experts: none, else on)", config.get("use_qk_norm"), config.get("num_local_experts") != 128)
    expect("attention chunk (8192 always)", config.get("attention_chunk_size"), 8192)
    rope = [int((layer + 1) % 4 != 0) for layer in range(layers)]
    expect("layers with RoPE (three of four)", config.get("no_rope_layers") or rope, rope)
    if config.get("attn_temperature_tuning"):
        expect("temperature floor (8192 always)", config.get("floor_scale"), 8192)
        expect("temperature scale (0.1 always)", config.get("attn_scale"), 0.1)
    rope_parameters = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta")}
    expect("rope_theta", float(rope_parameters["rope_theta"]), metadata.get("llama4.rope.freq_base"))
    if rope_parameters.get("rope_type") == "llama3":
        expect("tensor of RoPE factors", True, "rope_freqs.weight" in described["tensors"])
    return found


def _timed(command: list[Any], log: Path) -> dict[str, float]:
    """Runs a command to its end: wall, user and system seconds and the most memory that it held."""
    with log.open("wb") as output:
        start, others = time.perf_counter(), _others_seconds()
        child = subprocess.Popen([str(part) for part in command], stdout=output, stderr=subprocess.STDOUT)
        status_file, peak, anonymous = Path(f"/proc/{child.pid}/status"), 0, 0
        try:
            while True:
                reaped, status, usage = os.wait4(child.pid, os.WNOHANG)
                if reaped:
                    break
                with contextlib.suppress(OSError):
                    memory = dict(re.findall(r"^(VmHWM|RssAnon):\s+(\d+)", status_file.read_text(), re.MULTILINE))
                    peak = max(peak, int(memory.get("VmHWM", 0)) * 1024)
                    anonymous = max(anonymous, int(memory.get("RssAnon", 0)) * 1024)
                time.sleep(0.01)
        except BaseException:
            child.kill()
            child.wait()
            raise
        wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise SystemExit(f"{Path(str(command[0])).name} failed with status {child.returncode}; {log} ends:\n{tail}")
    return {
        "wall_s": wall,
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
        "peak_rss": peak,
        "peak_anonymous": anonymous,
        "others_cores": (_others_seconds() - others) / wall,
    }


def _sync(path: Path) -> float:
    """Seconds until a file's pages that are still in memory are on the disk."""
    start = time.perf_counter()
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - start


def _others_seconds() -> float:
    """Seconds of all cores that neither this process nor its finished children used: their rise tells of company."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, interrupt, soft, steal = (int(field) for field in fields)
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def _run(command: list[Any], environment: dict[str, str] | None = None) -> None:
    """Runs a step of the build, with its output on standard error."""
    done = subprocess.run([str(part) for part in command], env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"failed with status {done.returncode}: {' '.join(str(part) for part in command)}")


def _output(command: list[Any]) -> str:
    """Standard output of a command; its last words when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(str(part) for part in command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _say(text: str) -> None:
    print(f"llama.cpp: {text}", file=sys.stderr, flush=True)


def _report(result: dict[str, Any]) -> None:
    """The figures, for people."""
    timings, figures = result["timings"], result["figures"]
    for step in ("convert", "quantize"):
        spent = timings[step]
        print(
            f"{step:9} {spent['wall_s']:7.1f} s   user {spent['user_s']:.1f} s, system {spent['system_s']:.1f} s, "
            f"peak RSS {spent['peak_rss'] / 1e9:.2f} GB (anonymous {spent['peak_anonymous'] / 1e9:.2f} GB), "
            f"sync {spent['sync_s']:.1f} s, {max(spent['others_cores'], 0):.2f} cores used by other processes"
        )
    share = {kind: 100 * held["bytes"] / timings["bytes"] for kind, held in timings["types"].items()}
    types = ", ".join(f"{kind} {part:.1f} %" for kind, part in share.items())
    print(
        f"{timings['scheme']:9} {timings['bytes'] / 1e9:7.3f} GB  {timings['bits_per_weight']:.3f} bits/weight, "
        f"{timings['parameters'] / 1e9:.3f} G parameters; {types}"
    )
    for step in ("prefill", "decode"):
        if step in figures:
            run = figures[step]
            spread = f"{min(run['samples']):.1f} .. {max(run['samples']):.1f}"
            print(f"{step:9} {run['tokens_per_s']:7.1f} tokens/s   {run['tokens']} tokens, {spread}")
    print(
        f"threads   {figures['threads']:7}   load average {figures['load_average'][0]:.2f} when measuring began, "
        f"{max(figures['others_cores'], 0):.2f} cores used by other processes"
    )
    if routing := result["routing"]:
        for layer, picked in routing["picked"].items():
            print(f"layer {layer}: {len(picked)} of {routing['experts']} experts picked, {list(picked.values())} times")
    for warning in timings["warnings"]:
        print(f"warning: {warning}")


def main() -> None:
    """Builds, converts, quantises, measures, as far as asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="directory for everything that is fetched and built")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint in Hugging Face layout; without one, only build")
    parser.add_argument("--scheme", default="Q4_0", help="llama.cpp's name of the quantisation [Q4_0]")
    parser.add_argument("--again", action="store_true", help="convert and quantise anew, even if that was done before")
    parser.add_argument("--check-routing", action="store_true", help="count which experts are picked, layer by layer")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--jobs", type=int, help="compilers at a time [as many as cores]")
    parser.add_argument("--version", default=VERSION, help=f"version of {PACKAGE} [{VERSION}]")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    peer = build_peer(given.work, version=given.version, jobs=given.jobs)
    if given.checkpoint is None:
        return
    _say(f"converting and quantising {given.checkpoint}")
    timings = peer.convert_and_quantize(given.checkpoint, given.scheme, again=given.again)
    _say("measuring")
    figures = peer.measure(given.prefill, given.decode, given.threads, given.repeats)
    routing = peer.routing(threads=given.threads) if given.check_routing else None
    result = {
        "peer": f"{PACKAGE} {peer.version}",
        "model": str(peer.model),
        "timings": timings,
        "figures": figures,
        "routing": routing,
    }
    _report(result)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
