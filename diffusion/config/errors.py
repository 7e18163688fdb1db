"""From a validation error to one line that a person can act on: the field, its value, and what is allowed."""

import difflib
import re
import types
import typing
from collections.abc import Callable, Sequence
from urllib.parse import unquote_plus, urlsplit

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

MAX_SHOWN = 200  # characters of a value
MAX_MASKED = 2000  # of a text that is looked through for secrets
MAX_ENCODED = 5  # how often a URL in a URL in a URL is decoded
SECRET_PARAMETER = (  # of a URL, by its name, unless that says that it is a path
    r"(?!(?:[\w.-]*(?:file|path)|ssl_?key)=)(?:[\w.-]*(?:pass|pwd|secret|token(?!s|iz)|credential|signature|jwt|bearer)[\w.-]*"  # noqa: S105
    r"|(?:[\w.-]*[_.-])?key|[\w.-]*(?:api|access|account|shared|private|subscription)key|sig|auth)"
)
SECRET_WORDS = (  # that end the name of a secret wherever it stands, as in `host=db password=…` and `AccountKey=…`
    r"(?:passw(?:or)?d|passphrase|(?:api|access|account|shared|private|secret|subscription)[_-]?key"  # noqa: S105
    r"|(?:access|api|auth|refresh|session)[_-]?token|client[_-]?secret|accesssignature|(?<![^\W_])(?:jwt|bearer|pwd))"
)


def describe(error: ValidationError, root: object, spell: Callable[[str], str] = str) -> str:
    """The first problem of a validation error in one line; says how many more there are.

    Args:
        error: of validating a `root`.
        root: the model, or the union of models, that was validated.
        spell: a dotted path as the person who gave the value spells it.
    """
    problems = error.errors(include_url=False)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return describe_problem(problems[0], root, spell) + more


def describe_problem(problem: ErrorDetails, root: object, spell: Callable[[str], str] = str) -> str:
    """One of pydantic's problems, as `field = value: allowed: …`."""
    holder, fields = _walk(problem["loc"], root)
    path = spell(".".join(fields)) if fields else ""
    message = re.sub(r"^Input should be ", "allowed: ", problem["msg"].removeprefix("Value error, "))
    match problem["type"]:
        case "extra_forbidden":
            return f"{path[:MAX_SHOWN]}: unknown key; {_near(fields, list(holder.model_fields), spell)}"
        case "missing":
            return f"{path}: missing; it is required here"
        case "value_error" if isinstance(problem["input"], dict):  # of several fields, which the message names
            return f"{path}: {message}" if path else message
        case "union_tag_invalid":
            context = problem.get("ctx", {})
            return f"{path}.kind = {shown(context.get('tag'))[1:-1]}: allowed: {context.get('expected_tags')}"
        case "union_tag_not_found":
            kinds = models_of(_walk(problem["loc"][:-1], root)[0].model_fields[fields[-1]].annotation)
            return f"{path}.kind: missing; allowed: {', '.join(filter(None, map(kind_of, kinds)))}"
        case _:
            return f"{path} = {shown(problem['input'])}: {message[0].lower()}{message[1:]}{_near_literal(problem)}"


def shown(value: object) -> str:
    """A value that somebody gave, short enough to print and without passwords."""
    text = masked(repr(value))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def spelled_as_option(path: str) -> str:
    """A setting as the option of a command line that gives it."""
    return f"--{path.replace('_', '-')}"


def _near(fields: Sequence[str], allowed: Sequence[str], spell: Callable[[str], str]) -> str:
    near = difflib.get_close_matches(fields[-1][:MAX_SHOWN], allowed, n=1, cutoff=0.5)
    if near:
        return f"did you mean {spell('.'.join([*fields[:-1], near[0]]))}?"
    return f"allowed here: {', '.join(allowed)}"


def _near_literal(problem: ErrorDetails) -> str:
    """The allowed word that a value is nearly."""
    words = re.findall(r"'([^']*)'", problem["msg"]) if problem["type"] == "literal_error" else []
    near = difflib.get_close_matches(str(problem["input"])[:MAX_SHOWN], words, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def masked(text: str) -> str:
    """A text with the passwords and tokens of URLs in it starred out, of a long one the first MAX_MASKED characters.

    Those of connection strings are too, which have other separators: `host=db password=…`, `Server=db;Password=…`.
    """
    if len(text) > MAX_MASKED:  # a password may have been cut
        text = re.sub(r"://\S*$", "://", text[:MAX_MASKED]) + "…"
    return _starred(text)


def _starred(text: str) -> str:
    return re.sub(r"[?&#]?[^\s?&#'\"]+", _starred_part, _starred_plain(text))


def _starred_plain(text: str) -> str:
    text = re.sub(r"(?i)(https?://)[^\s/?#]*@", r"\1***@", text)
    text = re.sub(r"(://[^:/@\s]*:)\S*@", r"\1***@", text)
    text = re.sub(rf"(?i)({SECRET_WORDS}\s*=\s*)('[^']*'?|\"[^\"]*\"?|\{{[^}}]*\}}?|[^&;\s'\"]+)", r"\1***", text)
    return re.sub(rf"(?i)([?&;#]{SECRET_PARAMETER}=)[^&\s'\"]*", r"\1***", text)


def _starred_part(part: re.Match[str]) -> str:
    """A part of a URL, its value starred out where there is a secret in it once it is decoded."""
    decoded = _decoded(part[0])
    if _starred_plain(decoded) == decoded:
        return part[0]
    name, equals, _ = part[0].partition("=")
    return f"{name}=***" if equals and "=" not in _decoded(name) else "***"


def _decoded(text: str) -> str:
    for _ in range(MAX_ENCODED):
        text = unquote_plus(text)
    return text


def has_secret(url: str) -> bool:
    """Whether a URL holds a password or, for a web server, a token before the host."""
    try:
        parts = urlsplit(url)
        web = parts.scheme in ("http", "https") and "@" not in parts.netloc and parts.port != 0
        looked_at = f"?{parts.query}#{parts.fragment}" if web else url  # the path of a web server's may have an @
    except ValueError:  # a password with a slash in it, say, where a port would be
        looked_at = url
    return _starred(looked_at) != looked_at


def refuse_secret(tracking_uri: str) -> None:
    """Refuse a tracking URI that holds a secret: it is recorded with runs, and known to the processes of Ray.

    Raises:
        ValueError: naming what is allowed.
    """
    if has_secret(tracking_uri):
        raise ValueError(
            "holds a token or a password, which would be recorded; allowed: MLFLOW_TRACKING_TOKEN or "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a server, the database client's own "
            "password file for a database"
        )


def _walk(location: Sequence[int | str], root: object) -> tuple[type[BaseModel], list[str]]:
    """The model that holds the last part of an error's location, and the location without union tags."""
    variants = models_of(root)
    holder, keys, fields = variants[0], False, list[str]()
    for part in location:
        tagged = [model for model in variants if kind_of(model) == part]
        if tagged:
            holder, variants = tagged[0], []
            continue
        fields.append(str(part))
        field = None if keys else holder.model_fields.get(str(part))
        keys = field is not None and typing.get_origin(field.annotation) is dict
        models = models_of(field.annotation) if field else []
        variants = models if len(models) > 1 else []
        holder = models[0] if len(models) == 1 else holder
    return holder, fields


def kind_of(model: type[BaseModel]) -> str | None:
    """The `kind` that a model of a union has; None for a model without kinds."""
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def models_of(annotation: object) -> list[type[BaseModel]]:
    """The models that a field's type allows: one, each kind of a union, or those of a mapping's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        return models_of(arguments[1])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in arguments for model in models_of(part)]
    return []
