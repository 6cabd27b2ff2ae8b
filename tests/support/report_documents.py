"""Documents of reports for tests of their forms: no engine is run for them."""

from __future__ import annotations

from l4export.reports.document import Document
from l4export.reports.exercised import Exercised
from l4export.reports.figure import Figure
from l4export.reports.identity import EngineIdentity, Host, Identity, Program, ReferenceIdentity
from l4export.reports.sections import Bar, Bars, Counts, Curve, Table

DIGEST = "ab" * 32
IDENTITY = Identity(
    program=Program("0.1.0", DIGEST),
    command="l4export parity 'engine & co' --reference <scout>",
    began="2026-01-02T03:04:05Z",
    seconds=12.5,
    host=Host("Linux", "a CPU", 2, ("a GPU",)),
    versions={"python": "3.11.1", "l4export": "0.1.0", "torch": "2.13.0"},
    engine=EngineIdentity("engine & co", DIGEST, "l4export 0.1.0", "ort-cpu", {"weights": {"dtype": "fp32"}}, DIGEST),
    reference=ReferenceIdentity("<scout>", DIGEST, True),
    provider="CPUExecutionProvider",
    seed=0,
)
FIGURES = (
    Figure("prefill", "kl_max", "KL(reference || engine), max", 1e-9, ".3g", threshold=1e-6),
    Figure("prefill", "top1_agreement", "top-1 agreement", 0.75, ".4f", threshold=1.0),
    Figure("prefill", "kl_mean", "KL(reference || engine), mean", float("nan"), ".3g", threshold=1e-3),
    Figure("images", "pixel_difference", "pixels, max |difference|", None, ".3g", remark="Torchvision is missing"),
    Figure("decode", "near_ties", "near ties apart", 3, "d"),
)
EXERCISED = (
    Exercised("chunk boundaries", "exercised", "4 crossed"),
    Exercised("decoding", "not exercised", "no token was fed by itself"),
    Exercised("images", "not applicable", "there is no vision tower"),
)
FAILED = Document("parity", "failed", ("top1_agreement 0.75, threshold 1",), 1, IDENTITY, FIGURES, EXERCISED, {"a": 1})
PASSED = Document("parity", "passed", (), 0, IDENTITY, FIGURES[:1], EXERCISED, {"a": 1})
UNJUDGED = Document("quality", "not judged", ("nothing was demanded",), 5, IDENTITY, FIGURES[-1:], EXERCISED, {"a": 1})
ALLOWED = Document("quality", "not judged", ("nothing was demanded",), 0, IDENTITY, FIGURES[-1:], EXERCISED, {"a": 1})
MEASURED = Document("bench", "measured", (), 0, IDENTITY, FIGURES[-1:], (), {"a": 1})
DOCUMENTS = {"failed": FAILED, "passed": PASSED, "unjudged": UNJUDGED, "allowed": ALLOWED, "measured": MEASURED}
SECTIONS = (
    Curve(
        "KL along positions",
        ((0, 1e-9), (1, 1e-3), (2, 0.5)),
        "position",
        "KL",
        logarithmic=True,
        marks=(2.0,),
        marked="chunk boundaries, every 2 tokens",
        limit=0.1,
    ),
    Bars("By layer", (Bar("layer 0", 0.5, "0.5", 0.4, 0.6), Bar("layer 1", 0.0, "0")), "KL"),
    Counts("Experts chosen", "layer", ("0", "1"), (("3", (5, 0)),), note="An expert with 0 was not exercised."),
    Table("Worst tokens", ("KL", "text"), (("0.5", "<script>alert</script> & co"),), numeric=frozenset({0})),
)
