"""Requests as multipart forms or as JSON, read into the same options."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from fastinpaint.inference.inpainter import Strategy
from fastinpaint.serve.pictures import Format, Structure

_FIELD_BYTES = 4096
LARGEST_SIDE = 1024
LARGEST_GROWTH = 256


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def to_arguments(self) -> dict[str, Any]:
        """Return what `Painter` takes."""
        return self.model_dump()


class ConvertOptions(_Options):
    """A picture in another format."""

    image: bytes = Field(description="picture file")
    file_format: Format | None = Field(None, alias="format", description="of the result; that of the image by default")


class _MaskOptions(_Options):
    mask: bytes = Field(description="picture file of the image's size; white, above 127, is hole")
    invert_mask: bool = Field(False, description="black is hole")
    mask_dilate: int = Field(0, ge=0, le=LARGEST_GROWTH, description="pixels by which the hole grows")


class InpaintOptions(ConvertOptions, _MaskOptions):
    """As on the command line."""

    strategy: Strategy | None = Field(None, description="for large pictures; that of the server by default")
    max_side: int | None = Field(
        None, ge=0, le=LARGEST_SIDE,
        description="pictures with a longer side in pixels are large, 0: none is; that of the server by default",
    )  # fmt: skip
    draft: bool = Field(False, description="a PNG result is written in little time, and larger")


class StructureOptions(_MaskOptions):
    """What the model predicts beside the picture."""

    image: bytes = Field(description="picture file")
    kind: Structure = Field("edges", description="what is drawn")


async def read_options(request: Request, kind: type[_Options]) -> tuple[_Options, bool]:
    """Read the body; return the options, and whether they came as JSON.

    Raises:
        HTTPException: 400 for a malformed body, 415 for another media type, 422 for options that do not fit.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    is_json = media_type == "application/json"
    if media_type == "multipart/form-data":
        values = await _form_values(request)
    elif is_json:
        values = _json_values(await request.body())
    else:
        raise HTTPException(415, "multipart/form-data or application/json is wanted")
    try:
        return kind.model_validate(values, strict=is_json), is_json
    except ValidationError as error:
        raise HTTPException(422, describe(error.errors())) from None


async def _form_values(request: Request) -> dict[str, Any]:
    values: dict[str, Any] = {}
    async with request.form(max_files=2, max_fields=8, max_part_size=_FIELD_BYTES) as form:
        _check_single(form)
        for name, value in form.multi_items():
            values[name] = await value.read() if isinstance(value, UploadFile) else value
    for name in {"image", "mask"} & values.keys():
        if isinstance(values[name], str):
            raise HTTPException(422, f"{name}: a file is wanted, with a file name")
    return values


def _check_single(form: FormData) -> None:
    """Raise HTTPException 422 for a field given twice."""
    names = [name for name, _ in form.multi_items()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise HTTPException(422, f"given twice: {', '.join(twice)}"[:200])


def _json_values(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not valid JSON") from None
    if not isinstance(values, dict):
        raise HTTPException(422, "a JSON object is wanted")
    return {name: _decoded(name, value) if name in ("image", "mask") else value for name, value in values.items()}


def _decoded(name: str, value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise HTTPException(422, f"{name}: a picture file in base64 is wanted") from None


def describe(errors: Any) -> str:
    """Write the first few of pydantic's errors in a line."""
    parts = [f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in errors[:3]]
    return "; ".join(parts)[:500]


def request_body(kind: type[_Options]) -> dict[str, Any]:
    """Return OpenAPI's description of a body of both media types."""
    schema = kind.model_json_schema(by_alias=True)
    content = {}
    for media_type, file_format in (("multipart/form-data", "binary"), ("application/json", "byte")):
        properties = {name: dict(value) for name, value in schema["properties"].items()}
        for name in {"image", "mask"} & properties.keys():
            properties[name]["format"] = file_format
        content[media_type] = {"schema": {**schema, "properties": properties}}
    return {"required": True, "content": content}
