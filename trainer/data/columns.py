"""Which columns of a Parquet file hold the images and the labels: as configured, or as detected from the schema."""

import json
from typing import Literal

import pyarrow as pa

from trainer.config.data import DataConfig
from trainer.errors import InputError

LABEL_NAMES = ("label", "labels", "class", "target", "fine_label")
NO_LABELS = "none"
PATH_NAMES = ("image", "img", "file_name", "filename", "path", "image_path", "file")


def find_columns(schema: pa.Schema, data: DataConfig) -> tuple[str, str | None]:
    """The names of the image column and of the label column, as configured or detected; None for no labels.

    Raises:
        InputError: a configured column does not exist, or none or several could be detected.
    """
    where = f"data.source = {data.source!r}"
    for setting, name in (("image_column", data.image_column), ("label_column", data.label_column)):
        if name not in (None, *schema.names) and (setting, name) != ("label_column", NO_LABELS):
            raise InputError(f"data.{setting} = {name!r}: no such column; allowed: {', '.join(schema.names)}")
    image_columns = [field.name for field in schema if _holds_images(field.type)]
    if data.image_column is not None and data.image_column not in image_columns:
        kind = schema.field(data.image_column).type
        raise InputError(
            f"data.image_column = {data.image_column!r}: is {kind}; allowed: struct<bytes, path> or binary"
        )
    if data.image_column is None and len(image_columns) != 1:
        problem = f"several image columns: {', '.join(image_columns)}" if image_columns else _no_images(schema)
        raise InputError(
            f"{where}: {problem}; allowed: one column of struct<bytes, path> or binary, or data.image_column to "
            f"name one; columns are {', '.join(schema.names)}"
        )
    image = data.image_column or image_columns[0]
    if data.label_column is not None:
        return image, None if data.label_column == NO_LABELS else data.label_column
    named = list(class_names(schema)) or [name for name in LABEL_NAMES if name in schema.names]
    if len(named) > 1:
        raise InputError(
            f"{where}: several label columns: {', '.join(named)}; allowed: data.label_column to name one, or none"
        )
    return image, named[0] if named else None


def _no_images(schema: pa.Schema) -> str:
    """That there is no image column; and, if a column looks like paths of images, which."""
    texts = [
        field.name
        for field in schema
        if (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)) and field.name in PATH_NAMES
    ]
    return f"no image column: column {texts[0]!r} holds text, not the images' content" if texts else "no image column"


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_binary(kind.field(at).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def label_kind(field: pa.Field, data: DataConfig) -> Literal["integer", "text"]:
    """Whether the labels of a column are integers or text.

    Raises:
        InputError: they are neither integers nor text.
    """
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    raise InputError(
        f"data.source = {data.source!r}: labels without classes: column {field.name!r} is {field.type}; allowed: "
        f"integers or text, or data.label_column = {NO_LABELS} to leave labels out"
    )


def class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The names of the classes of each ClassLabel column, where the `datasets` library wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: tuple(feature.get("names") or ())
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and name in schema.names
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
