"""From a command line to a job: ask the command itself what it will need before queueing it.

`python -m trainer …` and `python -m tuning run …` answer `--dry-run --json` with their name and resource bundles, and
reject bad input, so a typo is found when the job is submitted rather than when it starts.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import unquote

import yaml
from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError

from cluster.errors import InputError
from cluster.resources import DRIVER, Bundle, Gang, parse_gang, parse_label
from cluster.spec import AfterHow

SELF_DESCRIBING_COMMANDS = (["trainer"], ["tuning", "run"])
PYTHON_EXECUTABLE = re.compile(r"(.*/)?python[\d.]*")
INHERITED_VARIABLES = ("DUALVIEW_STORAGE", "MLFLOW_TRACKING_URI", "DUALVIEW_GIT_COMMIT")
DRY_RUN_TIMEOUT_S = 120
# a parameter of a URL that is a secret by its name, unless that says that it is a path
_PARAMETER = (
    r"://\S{0,2000}?[?&;#=]\+?(?!(?:[\w.-]{0,100}(?:file|path)|ssl_?key)=)"
    r"(?:[\w.-]{0,100}(?:pass|pwd|secret|token(?!s|iz)|credential|signature|jwt|bearer)[\w.-]{0,100}"
    r"|[\w.-]{0,100}(?:api|access|account|shared|private|subscription)[_.-]?key|sig|auth"
)
# of a connection string, or of anything else, where it is plain: not `pad_token=0`, `key=value` or `$PASSWORD`
_NAMED = (
    r"|(?:passw(?:or)?d|passphrase|(?:api|access|account|shared|private|secret|subscription)[_-]?key"
    r"|(?:access|api|auth|refresh|session)[_-]?token|client[_-]?secret|accesssignature|(?<![^\W_])(?:jwt|bearer))"
    r"\s{0,9}=\s{0,9}['\"]?[^\s'\"$;&]"
)
# a URL with a password or with whatever is before a web server's name, or one of these parameters
SECRET_VALUE = re.compile(
    r"(?i)https?://[^\s/@]+@|(?<!http)(?<!https)://[^\s/@:]*:\S*@|(?<![^\W_])pwd\s{0,9}="
    rf"|{_PARAMETER}|(?:[\w.-]{{0,100}}[_.-])?key)={_NAMED}"
)
# of a command, which has more words that look like it: /work, $PWD, an image's digest
SECRET_WORD = re.compile(rf"(?i)https?://[^\s/@]+@|://[^\s/@:]{{0,200}}:[^\s/@]+@|{_PARAMETER})={_NAMED}")
MAX_ENCODED = 5  # how often a URL in a URL in a URL is decoded
MAX_ARRAY = 10_000
MAX_ARRAY_BYTES = 2**24
MAX_WORD = 4096  # characters of a value
MAX_COMMAND_BYTES = 2**17 - 2**10  # Linux takes 128 KiB as one word, and Ray hands a command over in one
MAX_VALUES = 1_000_000  # of a YAML file
MAX_DURATION_S = 10 * 365 * 86400.0

_Name = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
_Text = Annotated[StrictStr, Field(max_length=MAX_WORD)]
_Row = Annotated[dict[_Name, StrictBool | StrictInt | StrictFloat | _Text], Field(min_length=1)]
_ROWS = TypeAdapter(Annotated[list[_Row], Field(min_length=1, max_length=MAX_ARRAY)])
_T = TypeVar("_T")


def describes_itself(command: Sequence[str]) -> bool:
    """Whether a command answers --dry-run --json: the trainer's and the sweep's, unless it asks for help."""
    if not command or not PYTHON_EXECUTABLE.fullmatch(command[0]) or list(command[1:2]) != ["-m"]:
        return False
    known = any(list(command[2 : 2 + len(start)]) == start for start in SELF_DESCRIBING_COMMANDS)
    return known and "-h" not in command and "--help" not in command


def describe(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The `--dry-run --json` answer of the trainer or the sweep, parsed; None for any other command.

    Raises:
        InputError: the command rejects its input, with its own message, or does not answer with JSON in time.
    """
    if not describes_itself(command):
        return None
    try:
        completed = subprocess.run(
            [sys.executable, *command[1:], "--dry-run", "--json"],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=DRY_RUN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"the command did not answer --dry-run --json within {DRY_RUN_TIMEOUT_S} s") from None
    if completed.returncode:
        lines = completed.stderr.strip().splitlines() or [f"exit {completed.returncode}"]
        raise InputError(f"the command rejects its input: {lines[-1].removeprefix('error: ')}")
    try:
        return json.loads(completed.stdout)
    except ValueError:
        raise InputError(f"--dry-run --json of the command is not JSON: {completed.stdout[:100]!r}") from None


def gang_alternatives(description: Mapping[str, Any]) -> list[Gang]:
    """The gangs a self-describing command can run as, in order of preference: on GPUs first, if it can use them."""
    preferred = description.get("bundles_where_gpus_suffice")
    found = ([preferred] if preferred else []) + [description["bundles"]]
    return [[Bundle.model_validate(bundle) for bundle in gang] for gang in found]


def gangs_and_driver(
    description: Mapping[str, Any] | None, resources: str | None, driver: str | None, labels: Sequence[str]
) -> tuple[list[Gang], Bundle]:
    """What a job asks for.

    A command that says nothing of itself takes one CPU, unless it is told what it asks Ray for: then, like the driver
    of the trainer, it takes the memory of a process that waits for others.

    Args:
        description: what the command says of itself; None for nothing.
        resources: `--resources`: what it asks Ray for, instead of what it says.
        driver: `--driver`: what the command itself takes.
        labels: `--label`, for all of these bundles and, where there are none, the command itself.

    Raises:
        InputError: malformed values.
    """
    selectors = dict(_parsed(parse_label, text, "--label", "NAME=VALUE, =!VALUE or =in(A,B)") for text in labels)
    forms = "CPU=1, or 2*CPU=1,GPU=1, or CPU=1+2*CPU=4,GPU=1,memory=8G@ray.io/accelerator-type=H100"
    gangs = [_parsed(parse_gang, resources, "--resources", forms)] if resources else None
    if gangs is None:
        gangs = gang_alternatives(description) if description else list[Gang]([[]])
    if driver:
        [own, *more] = _parsed(parse_gang, driver, "--driver", "CPU=2,memory=4G")
        if more:
            raise InputError(f"--driver {driver!r}: {1 + len(more)} bundles; allowed: one, such as CPU=2,memory=4G")
    else:
        own = DRIVER if any(gangs) else Bundle(resources={"CPU": 1.0})
    labelled = [[_with(bundle, selectors) for bundle in gang] for gang in gangs]
    return labelled, own if any(gangs) else _with(own, selectors)


def _with(bundle: Bundle, labels: Mapping[str, str]) -> Bundle:
    return bundle.model_copy(update={"labels": {**bundle.labels, **labels}})


def _parsed(parse: Callable[[str], _T], text: str, option: str, forms: str) -> _T:
    try:
        return parse(text)
    except ValueError:
        raise InputError(f"{option} {text!r}: allowed: {forms}") from None


def parse_after(texts: Sequence[str]) -> dict[int, AfterHow]:
    """Parse `--after`: jobs that have to end first, and whether they have to succeed.

    Raises:
        InputError: not JOB, JOB:ok or JOB:any.
    """
    found: dict[int, AfterHow] = {}
    for text in texts:
        match = re.fullmatch(r"(\d{1,9})(?::(ok|any))?", text)
        if not match:
            raise InputError(f"--after {text!r}: allowed: JOB, JOB:ok (it has to succeed) or JOB:any (it has to end)")
        found[int(match[1])] = "any" if match[2] == "any" else "ok"
    return found


def parse_duration(text: str, option: str) -> float:
    """Parse a time such as `90`, `45s`, `30m`, `12h`, `7d` or Slurm's `1-12:00:00` and `12:00:00`; in seconds.

    Raises:
        InputError: not of that form, or nothing.
    """
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text, re.ASCII)
    plain = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text, re.ASCII)
    if clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        value = float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    else:
        value = float(plain[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[plain[2]] if plain else 0.0
    if not 0 < value <= MAX_DURATION_S:
        raise InputError(f"{option} {text!r}: allowed: 45s, 30m, 12h, 7d or 1-12:00:00")
    return value


class _Loader(yaml.SafeLoader):
    """YAML's safe loader of files of bounded size."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401 - any YAML value
        """A value; a tag or a date that its text does not fit is an error of the file's."""
        try:
            return cast("Any", super()).construct_object(node, deep)  # PyYAML has few type hints
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            problem = f"{str(node.value)[:100]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def get_single_node(self) -> yaml.Node | None:
        """The document, once it is known to be no larger than MAX_VALUES with its aliases written out."""
        node = super().get_single_node()
        if node is not None:
            _check_size(node)
        return node


def _check_size(root: yaml.Node) -> None:
    """Raise YAMLError where a few lines of aliases would stand for a great many values, or for themselves."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, above: frozenset[int]) -> int:
        if id(node) in above:
            raise yaml.YAMLError("a value that contains itself")
        if id(node) not in sizes:
            sizes[id(node)] = 1 + sum(size(part, above | {id(node)}) for part in _parts(node))
        return sizes[id(node)]

    if (total := size(root, frozenset())) > MAX_VALUES:
        raise yaml.YAMLError(f"{total} values with its aliases written out; allowed: at most {MAX_VALUES}")


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
        return [part for pair in pairs for part in pair]
    return cast("list[yaml.Node]", node.value) if isinstance(node, yaml.SequenceNode) else []


def read_array(file: Path) -> list[dict[str, str]]:
    """The rows of an array: a YAML list of mappings from a name to a value.

    Raises:
        InputError: it cannot be read, or a row is not such a mapping, or has other names than the first.
    """
    try:
        with file.open() as opened:
            text = opened.read(MAX_ARRAY_BYTES + 1)
        if len(text) > MAX_ARRAY_BYTES:
            raise yaml.YAMLError(f"more than {MAX_ARRAY_BYTES >> 20} MiB")
        rows = _ROWS.validate_python(yaml.load(text, _Loader))  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise InputError(f"--array {file}: {error.strerror}; allowed: a YAML file") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = f"row {int(problem['loc'][0]) + 1}" if problem["loc"] else "its rows"
        forms = f"a list of 1 to {MAX_ARRAY} mappings of names to plain values, such as - {{lr: 0.001, seed: 1}}"
        raise InputError(f"--array {file}: {where}: {problem['input']!r:.200}: allowed: {forms}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError is no UTF-8
        raise InputError(f"--array {file}: no YAML: {' '.join(str(error).split())[:200]}") from None
    for number, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            raise InputError(
                f"--array {file}: row {number}: {', '.join(row)}; allowed: the names of row 1, {', '.join(rows[0])}"
            )
    return [
        {name: str(value).lower() if value is True or value is False else str(value) for name, value in row.items()}
        for row in rows
    ]


def fill(command: Sequence[str], row: Mapping[str, str]) -> list[str]:
    """A command with `{name}` replaced by a row's values.

    Raises:
        InputError: the command names none of them.
    """
    filled = [re.sub(r"\{(\w+)\}", lambda match: row.get(match[1], match[0]), word) for word in command]
    if filled == list(command):
        raise InputError(
            f"the command uses none of the array's {', '.join(row)}; allowed: a word such as {{{next(iter(row))}}}"
        )
    return filled


def job_key(description: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> str:
    """What two jobs have in common that would do the same work twice.

    Args:
        description: what the command says of itself: the folder of its run or sweep.
        fields: the job's, of which those count that say what a command does which says nothing of itself.
    """
    found = next((description[kind] for kind in ("run", "sweep") if kind in description), None) if description else None
    names = ("user", "name", "command", "environment", "snapshot", "gangs", "driver", "after")
    same = found["directory"] if found else {name: fields[name] for name in names}
    return hashlib.sha256(json.dumps(same, sort_keys=True, default=BaseModel.model_dump).encode()).hexdigest()


def job_name(description: Mapping[str, Any] | None, command: Sequence[str]) -> str:
    """A job's name: that of the run or the sweep, or else the command's first argument that is no option."""
    for kind in ("run", "sweep"):
        if description and kind in description:
            return description[kind]["name"]
    names = [word for word in command if not word.startswith("-") and not PYTHON_EXECUTABLE.fullmatch(word)]
    return (re.sub(r"[^A-Za-z0-9._-]", "-", Path((names or command)[0]).name).strip("._-") or "job")[:100]


def job_environment(pairs: Sequence[str], commit: str | None) -> dict[str, str]:
    """A job's environment variables: where results and MLflow are, the git commit, and those of `--env NAME=VALUE`.

    Raises:
        InputError: a pair that is not NAME=VALUE.
    """
    variables = {key: os.environ[key] for key in INHERITED_VARIABLES if key in os.environ}
    if commit:
        variables["DUALVIEW_GIT_COMMIT"] = commit
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise InputError(f"--env {pair!r}: allowed: NAME=VALUE")
        variables[key] = value
    for key, value in variables.items():
        _refuse_secret(key, value)
    return variables


def check_runs(command: Sequence[str], names: Collection[str], folder: Path) -> None:
    """Check that a command can be run, as far as its first word says.

    Args:
        command: the command.
        names: the files of its snapshot.
        folder: the folder that this is of.

    Raises:
        InputError: it is nothing, several words in one, or a file of the folder that its snapshot has not, or that
            cannot be executed.
    """
    first = next(iter(command), "")
    if not first.strip():
        raise InputError("no command; allowed: python -m cluster submit -- COMMAND …")
    path = os.path.normpath(first)
    if "/" not in first and (first not in names or shutil.which(first)):
        if len(command) == 1 and len(words := first.split()) > 1:
            raise InputError(f"the command is the one word {first!r}; allowed: {' '.join(words)}, or bash -c {first!r}")
    elif "/" not in first:
        raise InputError(f"{first}: is no command but a file of the folder; allowed: ./{first}")
    elif not first.startswith("/"):
        if path not in names:
            raise InputError(f"{first}: is not in the job's snapshot of {folder}; allowed: a file that goes along")
        if not os.access(folder / path, os.X_OK):
            raise InputError(f"{first}: cannot be executed; allowed: what `chmod +x` was done to, or bash {first}")


def check_command(command: Sequence[str]) -> None:
    """Check what everybody will see of a command.

    Raises:
        InputError: it has a secret that is plain to see, or is longer than Linux takes.
    """
    if (size := len(shlex.join(command).encode(errors="surrogateescape"))) > MAX_COMMAND_BYTES:
        raise InputError(f"the command has {size} bytes; allowed: at most {MAX_COMMAND_BYTES}")
    for word in command:
        _refuse_secret("the command", word, SECRET_WORD)


def _refuse_secret(where: str, text: str, secret: re.Pattern[str] = SECRET_VALUE) -> None:
    if secret.search(text) or secret.search(_decoded(text)):
        raise InputError(
            f"{where}: holds a password or a token, which everybody could read; allowed: a URL without, and "
            "--secret NAME=FILE for what is secret"
        )


def _decoded(text: str) -> str:
    for _ in range(MAX_ENCODED):
        text = unquote(text)
    return text
