"""`/docs`: the OpenAPI description as one plain page, which needs no script and nothing from another host.

A fleet often stands where there is no internet, and a page that operators trust should run nobody else's code.
"""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; } h3 { margin: 1.6rem 0 .2rem; font-size: 1rem; }
code { font: 13px/1.4 ui-monospace, monospace; } .method { display: inline-block; min-width: 3.2rem; font-weight: 700; }
table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; vertical-align: top; }
.open { color: #a40; } p { margin: .3rem 0; white-space: pre-line; } a { color: #0645ad; text-decoration: none; }
"""


def render(described: dict[str, Any]) -> str:
    """The page for an OpenAPI description."""
    info = described["info"]
    tags: dict[str, list[str]] = {}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            tags.setdefault(operation["tags"][0], []).append(_operation(method, path, operation))
    routes = "".join(f"<h2>{escape(tag)}</h2>{''.join(items)}" for tag, items in tags.items())
    records = "".join(_record(name, schema) for name, schema in described["components"]["schemas"].items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
        '<p>For programs: <a href="/openapi.json">/openapi.json</a></p>'
        f"{routes}<h2>Records</h2>{records}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [
        (parameter["name"], parameter["in"] + ("" if parameter.get("required") else ", optional"))
        for parameter in operation.get("parameters", ())
    ]
    table = "".join(f"<tr><td><code>{escape(name)}</code></td><td>{escape(where)}</td></tr>" for name, where in rows)
    lines = []
    if "requestBody" in operation:
        lines.append(f"Takes {_content(operation['requestBody'])}")
    lines += [
        f"Answers {status}: {_content(answer)}"
        for status, answer in operation["responses"].items()
        if status != "default"
    ]
    if "security" not in operation:
        lines.append('<span class="open">Needs no key.</span>')
    return (
        f'<h3><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h3>'
        f"<p>{escape(operation['description'])}</p><table>{table}</table><p>{'<br>'.join(lines)}</p>"
    )


def _content(body: dict[str, Any]) -> str:
    return ", ".join(
        _type(content["schema"]) if kind == "application/json" else f"<code>{escape(kind)}</code>"
        for kind, content in body["content"].items()
    )


def _record(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{_type(inner)}{_default(inner, field in required)}</td></tr>"
        for field, inner in schema.get("properties", {}).items()
    )
    about = escape(schema.get("description", ""))
    return f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3><p>{about}</p><table>{rows}</table>'


def _default(schema: dict[str, Any], required: bool) -> str:
    if required:
        return ""
    return f", default <code>{escape(str(schema['default']))}</code>" if "default" in schema else ", optional"


def _type(schema: dict[str, Any]) -> str:
    """A JSON Schema in words, with links to the records it names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f'<a href="#{name}"><code>{name}</code></a>'
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema['items'])}" if isinstance(schema.get("items"), dict) else "list"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"map of {_type(values)}" if isinstance(values, dict) else "map"
    return escape(str(kind))
