"""matplotlib's SVG as a page wants it: no ids but those that are used, numbers of two decimals, any width."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from tools.report.content import LegendEntry, printable

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_USED_ID = re.compile(r"url\(#([^)]+)\)")
_ROW = 17
"""Height of a legend's row, in the units of the drawing."""


def cleaned(drawn: str) -> str:
    """The <svg> element alone. Several of them may stand in one page."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(drawn)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}metadata":
                parent.remove(child)
    used = {name for element in root.iter() for value in element.attrib.values() for name in _USED_ID.findall(value)}
    used |= {element.attrib[f"{{{XLINK}}}href"][1:] for element in root.iter(f"{{{SVG}}}use")}
    for element in root.iter():
        if element.attrib.get("id") not in used:
            element.attrib.pop("id", None)
        for name in ("d", "points", "transform", "x", "y", "width", "height"):
            if name in element.attrib:
                element.attrib[name] = " ".join(_NUMBER.sub(_rounded, element.attrib[name]).split())
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
    return ElementTree.tostring(root, encoding="unicode")


def with_legend(svg: str, title: str, legend: Sequence[LegendEntry]) -> str:
    """The same as a file of its own, with its title and what the colours mean below the drawing."""
    root = ElementTree.fromstring(svg)
    left, top, width, height = (float(part) for part in root.attrib["viewBox"].split())
    grown = height + _ROW * (len(legend) + 0.5)
    root.attrib |= {"viewBox": f"{left:g} {top:g} {width:g} {grown:g}", "width": f"{width:g}", "height": f"{grown:g}"}
    name = ElementTree.Element(f"{{{SVG}}}title")
    name.text = title
    root.insert(0, name)
    ground = {"width": f"{width:g}", "height": f"{grown:g}", "fill": "white"}
    root.insert(1, ElementTree.Element(f"{{{SVG}}}rect", ground))
    for index, entry in enumerate(legend):
        y = height + _ROW * (index + 0.7)
        stroke = {"x1": "12", "x2": "36", "y1": f"{y:g}", "y2": f"{y:g}", "stroke": entry.colour}
        stroke["stroke-width"] = "10" if entry.kind == "area" else "2"
        if entry.dash:
            stroke["stroke-dasharray"] = entry.dash
        ElementTree.SubElement(root, f"{{{SVG}}}line", stroke)
        place = {"x": "44", "y": f"{y + 4:g}", "font-size": "11", "font-family": "DejaVu Sans, sans-serif"}
        ElementTree.SubElement(root, f"{{{SVG}}}text", place).text = entry.label
    return printable(ElementTree.tostring(root, encoding="unicode"))


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
