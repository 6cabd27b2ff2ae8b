"""The quality report as one HTML page, without scripts and without anything from the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from l4export.quality.measure import Damage, QualityReport
from l4export.reports.svg_plots import bars, line

__all__ = ["quality_page"]

_STYLE = """
:root { --ink: #1c2430; --soft: #667085; --rule: #e4e7ec; --bad: #b42318; --good: #067647; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 800px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p.sub, p.note { color: var(--soft); } p.sub { margin-top: .2rem; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: .8rem; }
.card { border: 1px solid var(--rule); border-radius: 8px; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; } .card span { color: var(--soft); font-size: .82rem; }
.failed { color: var(--bad); } .passed { color: var(--good); }
table { border-collapse: collapse; width: 100%; }
.token { white-space: pre-wrap; background: #f2f4f7; border-radius: 3px; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.likeliest { white-space: nowrap; }
svg { width: 100%; height: auto; }
"""


def quality_page(report: QualityReport) -> str:
    """Return the page as text, to be stored as UTF-8."""
    facts = report.facts
    weights = f"{escape(str(facts['quant']))} weights, {facts['bits_per_weight']:.2f} bits per weight"
    sections = [
        f"<h1>Quality of {escape(report.engine)}</h1>",
        f'<p class="sub">{weights}, against float32 of {escape(report.reference)}</p>',
        _verdict(report),
        _cards(report),
        _parts("By layer", "layer", report.layers, "if only this layer's weights were quantised"),
        _parts("By kind of weight", "", report.kinds, "if only this kind were quantised, in all layers"),
        _together(report),
        "<h2>Along the window</h2>",
        line(report.kl_by_position, "position in the window, in tokens", "mean KL, nats a token"),
        "<h2>Worst tokens</h2>",
        _worst(report),
        "<h2>The engine, the text</h2>",
        _facts(report),
    ]
    title = f"Quality of {escape(report.engine)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _verdict(report: QualityReport) -> str:
    if not report.thresholds:
        return ""
    words = "every threshold is met" if report.passed else "; ".join(report.failures)
    return f'<p class="{"passed" if report.passed else "failed"}">{escape(words)}</p>'


def _cards(report: QualityReport) -> str:
    change = 100 * (report.perplexity_ratio.value - 1)
    bounds = [100 * (at - 1) for at in (report.perplexity_ratio.low, report.perplexity_ratio.high)]
    kl, top, perplexity = report.kl, report.top1_agreement, report.perplexity
    cards = [
        ("KL(reference || engine), nats a token", f"{kl.value:.4g}", f"{kl.low:.4g} to {kl.high:.4g}"),
        ("perplexity against the reference", f"{change:+.2f} %", f"{bounds[0]:+.2f} to {bounds[1]:+.2f} %"),
        ("same likeliest token", f"{100 * top.value:.1f} %", f"{100 * top.low:.1f} to {100 * top.high:.1f} %"),
        ("perplexity", f"{perplexity.value:.3f}", f"{perplexity.low:.3f} to {perplexity.high:.3f}"),
    ]
    shown = [
        f'<div class="card"><span>{label}</span><b>{value}</b><span>{range_}</span></div>'
        for label, value, range_ in cards
    ]
    note = (
        f'<p class="note">The reference\'s own perplexity is {report.reference_perplexity:.3f}. Ranges are 95 % '
        f"confidence intervals from blocks of consecutive tokens. The comparison is paired, token by token. "
        f"{report.tokens:,} tokens, largest KL {report.kl_max:.3g}.</p>"
    )
    return f'<div class="cards">{"".join(shown)}</div>{note}'


def _parts(title: str, prefix: str, parts: Sequence[Damage], axis: str) -> str:
    if not parts:
        return ""
    rows = [
        (
            f"{prefix} {part.name}".strip(),
            "" if part.bits_per_weight is None else f"{part.bits_per_weight:.2f} b",
            part.kl,
        )
        for part in parts
    ]
    return f"<h2>{title}</h2>\n{bars(rows, f'mean KL in nats a token {axis}')}"


def _together(report: QualityReport) -> str:
    if report.together is None:
        return '<p class="note">Nothing was broken down: no weight is quantised, or no breakdown was asked for.</p>'
    return (
        f'<p class="note">Everything above together, in the reference: KL {report.together:.4g}. The engine itself: '
        f"{report.kl:.4g}. The difference comes from rounding activations. Parts need not add up to the whole.</p>"
    )


def _worst(report: QualityReport) -> str:
    def likeliest(tokens: Iterable[tuple[str, float]]) -> str:
        words = "<br>".join(f'<span class="token">{_visible(word)}</span> {100 * p:.0f} %' for word, p in tokens)
        return f'<td class="likeliest">{words}</td>'

    rows = [
        f'<tr><td class="number">{token.kl:.3g}</td><td>{escape(token.context)} '
        f'<b class="token">{_visible(token.following)}</b></td>'
        f"{likeliest(token.reference)}{likeliest(token.engine)}</tr>"
        for token in report.worst
    ]
    head = "<tr><th>KL</th><th>text, and the token that came</th><th>reference</th><th>engine</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _visible(token: str) -> str:
    return escape(token).replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


def _facts(report: QualityReport) -> str:
    facts = {name.replace("_", " "): value for name, value in report.facts.items()}
    text = {"text": f"{report.text['name']}, {report.text['tokens']:,} tokens in windows of {report.window}"}
    rows = [
        f"<tr><th>{escape(name)}</th><td>{escape(_shown(value))}</td></tr>" for name, value in (facts | text).items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if isinstance(value, float) else str(value)
