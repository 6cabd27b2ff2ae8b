"""A batcher's metrics in the text format of Prometheus."""

from __future__ import annotations

from l4export.runtimes.serving import Metrics


def exposition(metrics: Metrics) -> str:
    """The page at /metrics."""
    lines = ["# TYPE l4export_requests_total counter"]
    lines += [f'l4export_requests_total{{outcome="{name}"}} {count}' for name, count in metrics.requests.items()]
    for name, kind, value in (
        ("prompt_tokens_total", "counter", metrics.prompt_tokens),
        ("reused_tokens_total", "counter", metrics.reused_tokens),
        ("new_tokens_total", "counter", metrics.new_tokens),
        ("waiting_requests", "gauge", metrics.waiting),
        ("running_requests", "gauge", metrics.running),
        ("rows", "gauge", metrics.rows),
    ):
        lines += [f"# TYPE l4export_{name} {kind}", f"l4export_{name} {value}"]
    name, times, below = "l4export_time_to_first_token_seconds", metrics.first_token, 0
    lines.append(f"# TYPE {name} histogram")
    for bound, count in zip([*map(str, times.bounds), "+Inf"], times.counts, strict=True):
        below += count
        lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
    return "\n".join([*lines, f"{name}_sum {times.seconds:.6f}", f"{name}_count {below}", ""])
