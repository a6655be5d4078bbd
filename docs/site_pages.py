"""Pages of the site that are made of something else: files of the repository, and the models of what users write.

MkDocs calls the functions named `on_...` (see `hooks` in mkdocs.yml).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import nbformat
import plotly.io
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from plotly.offline import get_plotlyjs
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from mergebench_ray import cli
from mergebench_ray.config import Recipe, Suite, Sweep
from mergebench_ray.methods import get_method, method_names

ROOT = Path(__file__).parent.parent
FILES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "cluster/README.md": "cluster.md",
    "LICENSE": "license.md",
}
"""Files of the repository that are pages of the site, too."""
LARGEST = 2**31
FETCHED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file of docs/ holds."""
    pages = {page: (ROOT / file).read_text(encoding="utf-8") for file, page in FILES.items()}
    pages["license.md"] = f"# Licence\n\n```text\n{pages['license.md']}```\n"
    pages |= {
        "reference/commands.md": commands_page(),
        "reference/sweep.md": keys_page("Keys of a sweep", Sweep),
        "reference/suite.md": keys_page("Keys of a suite", Suite),
        "reference/recipe.md": keys_page("Keys of a recipe", Recipe),
        "reference/methods.md": hyper_parameters_page(),
        "notebook.md": notebook_page(),
        "plotly.min.js": get_plotlyjs(),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that lead through the repository to pages of the site."""
    depth = page.file.src_uri.count("/")
    for file, name in FILES.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(file)}(?=[)#])", f"]({'../' * depth}{name}", markdown)
    if page.file.src_uri in FILES.values():
        markdown = re.sub(r"\]\((?:\.\./)*docs/", "](", markdown)
    return markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that a browser would fetch something for from elsewhere: the site is read offline.

    Raises:
        PluginError: naming the page and what it would fetch.
    """
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} would fetch {found[0]}")
    return output


def notebook_page() -> str:
    """The notebook with what its cells have put out, when it was executed last."""
    parts = ['<script src="plotly.min.js"></script>']
    for number, cell in enumerate(nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4).cells):
        code = cell.cell_type == "code"
        parts += [f"```python\n{cell.source}\n```", *outputs(cell, number)] if code else [cell.source]
    return "\n\n".join(parts)


def outputs(cell: Any, number: int) -> Iterator[str]:
    """What a cell has put out: a chart, HTML, or text."""
    for output in cell.outputs:
        found = output.get("data", {"text/plain": output.get("text", "")})
        if "application/vnd.plotly.v1+json" in found:
            figure = {key: found["application/vnd.plotly.v1+json"][key] for key in ("data", "layout")}
            options = {"include_plotlyjs": False, "full_html": False, "config": {"displayModeBar": False}}
            yield plotly.io.to_html(figure, div_id=f"figure-{number}", validate=False, **options)
        elif "text/html" in found:
            yield f"<div>{found['text/html']}</div>"
        else:
            yield f"```text\n{found['text/plain'].rstrip()}\n```"


def commands_page() -> str:
    """Every command with its arguments and options, as `--help` prints them."""
    group = typer.main.get_command(cli.app)
    context = typer.Context(group, info_name="mergebench-ray")
    text = get_docs_for_click(obj=group, ctx=context, name="mergebench-ray", title="Commands")
    # The lists of commands have only beginnings of sentences; the page's own list of contents is one.
    return re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+", "", text)


def hyper_parameters_page() -> str:
    """The hyper-parameters of every method."""
    lines = ["# Hyper-parameters of the methods", "", "What the methods are: [the merging methods](../methods.md).", ""]
    inside: dict[type[BaseModel], None] = {}
    for name in method_names():
        method = get_method(name)
        inside |= {one: None for one, path in models_in(method.Parameters) if path}
        lines += [f"## {name}", "", f"{method.summary[0].upper()}{method.summary[1:]} ({method.source}).", ""]
        lines += table(method.Parameters) if method.Parameters.model_fields else ["No hyper-parameters."]
        lines.append("")
    for one in inside:
        lines += [f"## {name_of(one.__name__)} {{#{anchor_of(one.__name__)}}}", "", summary(one), "", *table(one), ""]
    return "\n".join(lines)


def keys_page(title: str, model: type[BaseModel]) -> str:
    """A table of keys for a model, and for each model inside it, under the path where it first stands."""
    paths: dict[type[BaseModel], str] = {}
    for one, path in models_in(model):
        paths.setdefault(one, path)
    lines = [f"# {title}", "", "Unknown keys are refused. A key without a default must be given; `*` is any name."]
    for one, path in paths.items():
        name = name_of(one.__name__)
        head = f"`{path}`: {name}" if path else name
        lines += ["", f"## {head} {{#{anchor_of(one.__name__)}}}", "", summary(one), "", *table(one)]
    return "\n".join(lines)


def models_in(annotation: Any, path: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """The models that a type is made of, the outermost first, and the keys that lead to each."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, path
        for name, field in annotation.model_fields.items():
            yield from models_in(field.annotation, f"{path}.{name}".removeprefix("."))
    inside = f"{path}.*" if get_origin(annotation) is dict else path
    for inner in get_args(annotation):
        yield from models_in(inner, inside)


def summary(model: type[BaseModel]) -> str:
    """The first paragraph of a model's docstring."""
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def table(model: type[BaseModel]) -> list[str]:
    """A row for each key: what may be written, its default, what it is."""
    schema = model.model_json_schema()
    rows = ["| key | what it is | value | default |", "| --- | --- | --- | --- |"]
    for name, field in schema["properties"].items():
        default = "" if name in schema.get("required", []) else shown(field.get("default", {}))
        description = (model.model_fields[name].description or "").replace("|", "\\|").replace("->", "→")
        description = re.sub(r"\bNone\b", "`null`", description)
        rows.append(f"| `{name}` | {description} | {kind(field, schema)} | {default} |")
    return rows


def name_of(model: str) -> str:
    """What a model is called, without what it is of, where it is one of several of a kind."""
    return re.match(r"[A-Za-z0-9]+", model)[0]  # type: ignore[index]


def anchor_of(model: str) -> str:
    """Where a model's table stands: pydantic refers to models in schemas by their names, so written."""
    return re.sub(r"[^a-z0-9.\-_]", "_", model.lower())


def shown(default: Any) -> str:
    """A default as YAML writes it; nothing for what is empty or a section of its own."""
    if default in ({}, []) or isinstance(default, dict):
        return "–"
    if isinstance(default, float):
        return f"`{default:g}`"
    words = {None: "null", True: "true", False: "false", "": '""'}
    return f"`{words.get(default, default) if isinstance(default, bool | str | None) else default}`"


def kind(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name_of(name)}](#{anchor_of(name)})"
    if "enum" in field or "const" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if options := field.get("anyOf") or field.get("oneOf") or field.get("allOf"):
        return " or ".join(dict.fromkeys(kind(one, schema) for one in options))
    match field.get("type"):
        case "array":
            return f"list of {grouped(kind(field['items'], schema))}" if field.get("items") else "list"
        case "object":
            inner = field.get("additionalProperties")
            return f"mapping to {grouped(kind(inner, schema))}" if isinstance(inner, dict) and inner else "mapping"
        case "integer" | "number" as word:
            return f"{'whole number' if word == 'integer' else 'number'}{bounds(field)}"
        case "boolean":
            return "`true` or `false`"
        case "string":
            return "text"
        case "null":
            return "`null`"
    return "any plain value"


def grouped(words: str) -> str:
    """Several kinds in parentheses, where something else goes before them."""
    return f"({words})" if " or " in words else words


def bounds(field: dict[str, Any]) -> str:
    """The range of a number, as ` (0 to 1)`; a bound that only keeps numbers storable is left out."""
    low: float | None = field.get("minimum", field.get("exclusiveMinimum"))
    high: float | None = field.get("maximum", field.get("exclusiveMaximum"))
    if low is None:
        return "" if high is None or high >= LARGEST else f" (up to {plain(high)})"
    least = f"above {plain(low)}" if "exclusiveMinimum" in field else plain(low)
    if high is None or high >= LARGEST:
        return f" ({least})" if "exclusiveMinimum" in field else f" ({least} or more)"
    return f" ({least} to {plain(high)})"


def plain(number: float) -> str:
    """A number without an exponent where it is whole."""
    return f"{int(number):,}" if number == int(number) else f"{number:g}"
