"""The images of a request: in its body, in a form, or by their URLs. No part of a form goes to a disk."""

from typing import Annotated, TypeVar

from fastapi import Request
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from rayad.heatmaps.answers import Closed, example
from rayad.heatmaps.studies import MOST
from rayad.serving.access import Limits
from rayad.serving.fetch import AllowList, fetch
from rayad.serving.problems import Problem

FORM, BY_URL = "multipart/form-data", "application/json"
Url = Annotated[str, Field(max_length=2000)]
Places = TypeVar("Places", bound=BaseModel)


class ImageUrl(Closed):
    """An image by its URL."""

    model_config = example({"url": "s3://hospital/inbox/0001.dcm"}, additionalProperties=False)
    url: Url


class StudyUrls(Closed):
    """The images of a study by their URLs."""

    model_config = example(
        {"urls": ["s3://hospital/inbox/0001.dcm", "s3://hospital/inbox/0002.dcm"]}, additionalProperties=False
    )
    urls: tuple[Url, ...] = Field(min_length=1, max_length=MOST)


async def image(http: Request, reading: AllowList, limits: Limits) -> bytes:
    """The bytes of one image's file: the body, a form's field image, or what {"url": ...} names."""
    kind = _kind(http)
    if kind == BY_URL:
        place = await _named(ImageUrl, http, 'an image by its URL is {"url": ...}')
        return await _fetched(place.url, http, reading, limits)
    data = (await _of_form(http, 1))[0] if kind == FORM else await http.body()
    if not data:
        raise Problem(422, "the image is empty")
    return data


async def images(http: Request, reading: AllowList, limits: Limits) -> list[bytes]:
    """Those of a study's files: a form's fields image, or what {"urls": [...]} names; an empty one is among them."""
    kind = _kind(http)
    if kind == BY_URL:
        places = await _named(StudyUrls, http, f'1 to {MOST} images by their URLs are {{"urls": [...]}}')
        return [await _fetched(url, http, reading, limits) for url in places.urls]
    if kind == FORM:
        return await _of_form(http, MOST)
    raise Problem(415, f"a study is {FORM} with a field image for each file, or {BY_URL} with their urls")


def _kind(http: Request) -> str:
    return http.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _named(places: type[Places], http: Request, sentence: str) -> Places:
    try:
        return places.model_validate_json(await http.body())
    except ValidationError as error:
        raise Problem(422, f"{error.errors()[0]['msg']}: {sentence}") from error


async def _fetched(url: str, http: Request, reading: AllowList, limits: Limits) -> bytes:
    data = await fetch(url, reading, limits)
    http.state.hold(len(data))
    return data


async def _of_form(http: Request, most: int) -> list[bytes]:
    class InMemory(MultiPartParser):
        spool_max_size = 2**40

    try:
        form = await InMemory(http.headers, http.stream(), max_files=most, max_fields=10).parse()
    except MultiPartException as error:
        raise Problem(400, f"the form is damaged: {error.message}") from error
    files = [part for part in form.getlist("image") if isinstance(part, UploadFile)]
    if not files:
        raise Problem(422, "a form needs the field image with a file")
    return [await part.read() for part in files]
