"""The tables of a concept graph for NetworkX and whatever reads node-link JSON or GraphML."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import pyarrow as pa

from storage.graph.graph_columns import known

__all__ = ["graphml", "networkx_graph", "node_link"]

# Code points that XML 1.0 cannot carry; token texts do contain them.
_NOT_XML = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF), "\ufffd")


def networkx_graph(nodes: pa.Table, edges: pa.Table) -> Any:
    """Return a ``networkx.DiGraph`` whose attributes are the known columns."""
    import networkx as nx

    built = nx.DiGraph()
    for row in nodes.to_pylist():
        attributes = known(row)
        built.add_node(attributes.pop("id"), **attributes)
    for row in edges.to_pylist():
        attributes = known(row)
        built.add_edge(attributes.pop("source"), attributes.pop("target"), **attributes)
    return built


def node_link(nodes: pa.Table, edges: pa.Table) -> dict[str, Any]:
    """Return the plain data that ``networkx.node_link_graph`` takes."""
    return {
        "directed": True,
        "multigraph": False,
        "graph": {},
        "nodes": [known(row) for row in nodes.to_pylist()],
        "edges": [known(row) for row in edges.to_pylist()],
    }


def graphml(nodes: pa.Table, edges: pa.Table) -> bytes:
    """Return GraphML; characters that XML cannot carry become U+FFFD."""
    out = io.StringIO()
    out.write("<?xml version='1.0' encoding='utf-8'?>\n")
    out.write('<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n')
    for kind, table, hidden in (
        ("node", nodes, ("id",)),
        ("edge", edges, ("source", "target")),
    ):
        for item in table.schema:
            if item.name not in hidden:
                name = _attribute(item.name)
                key = _attribute(f"{kind}.{item.name}")
                out.write(
                    f'<key id={key} for="{kind}" attr.name={name} '
                    f'attr.type="{_graphml_type(item.type)}"/>\n'
                )
    out.write('<graph edgedefault="directed">\n')
    for row in nodes.to_pylist():
        out.write(f"<node id={_attribute(row.pop('id'))}>{_graphml_data('node', row)}</node>\n")
    for row in edges.to_pylist():
        ends = f"source={_attribute(row.pop('source'))} target={_attribute(row.pop('target'))}"
        out.write(f"<edge {ends}>{_graphml_data('edge', row)}</edge>\n")
    out.write("</graph>\n</graphml>\n")
    return out.getvalue().encode()


def _attribute(text: str) -> str:
    return quoteattr(text.translate(_NOT_XML))


def _graphml_type(arrow: pa.DataType) -> str:
    if pa.types.is_boolean(arrow):
        return "boolean"
    if pa.types.is_integer(arrow):
        return "long"
    return "double" if pa.types.is_floating(arrow) else "string"


def _graphml_data(kind: str, row: Mapping[str, Any]) -> str:
    cells = []
    for name, value in row.items():
        if value is not None:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            key = _attribute(f"{kind}.{name}")
            cells.append(f"<data key={key}>{escape(text.translate(_NOT_XML))}</data>")
    return "".join(cells)
