"""A report as JUnit XML, which CI systems list: a suite for each phase, and a case for each figure."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from l4export.errors import printable
from l4export.reports.document import MARK, Document
from l4export.reports.figure import Figure

__all__ = ["as_junit"]


def as_junit(document: Document) -> str:
    """The document as XML. A missed threshold is a failure, and a figure without one is skipped.

    The case `verdict` of the first suite fails with `failed`, and is an error with `error`. With `not judged` it is
    skipped where that is allowed, and else an error.
    """
    command = f"l4export {document.kind}"
    suites = {"verdict": [_verdict(document)]}
    suites |= {phase: [_case(figure) for figure in figures] for phase, figures in document.phases.items()}
    root = ET.Element("testsuites", name=command, time=f"{document.identity.seconds:.3f}")
    for name, cases in suites.items():
        suite = ET.SubElement(root, "testsuite", name=printable(name), timestamp=document.identity.began.rstrip("Z"))
        if name == "verdict":
            properties = ET.SubElement(suite, "properties")
            for key, value in document.identity.rows():
                ET.SubElement(properties, "property", name=printable(key), value=printable(value))
        for case in cases:
            case.set("classname", f"{command}.{printable(name)}")
            suite.append(case)
        _count(suite, cases)
    _count(root, [case for cases in suites.values() for case in cases])
    ET.indent(root, " ")
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<!-- {MARK} -->\n{text}\n'


def _verdict(document: Document) -> ET.Element:
    case = ET.Element("testcase", name="verdict", time=f"{document.identity.seconds:.3f}")
    message = printable("; ".join((document.verdict, *document.why)))
    if document.verdict == "failed":
        ET.SubElement(case, "failure", message=message, type="failed")
    elif document.exit_code:
        ET.SubElement(case, "error", message=message, type=document.verdict)
    elif document.why:
        ET.SubElement(case, "skipped", message=message)
    if document.exercised:
        lines = (f"{each.what}: {each.status}, {each.how}" for each in document.exercised)
        ET.SubElement(case, "system-out").text = "\n".join(map(printable, lines))
    return case


def _case(figure: Figure) -> ET.Element:
    case = ET.Element("testcase", name=printable(figure.name), time="0")
    said = printable(f"{figure.label}: {figure.shown} {figure.interval and f'({figure.interval}) '}{figure.demanded}")
    match figure.status:
        case "missed":
            ET.SubElement(case, "failure", message=said, type="threshold")
        case "not measured":
            ET.SubElement(case, "skipped", message=printable(f"not measured: {figure.remark}"))
        case "not demanded":
            ET.SubElement(case, "skipped", message=f"{said.strip()}; nothing is demanded")
    if figure.status == "met":
        ET.SubElement(case, "system-out").text = said
    return case


def _count(element: ET.Element, cases: list[ET.Element]) -> None:
    element.set("tests", str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
