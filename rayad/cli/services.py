"""The service, its tokens, and the loop beside an archive."""

import os
from dataclasses import dataclass, field, replace
from typing import Annotated

from rayad import bounds, storage
from rayad.bounds import Bounds
from rayad.cli.shared import OnCluster, Several
from rayad.options import Within
from rayad.serving.access import Access, Limits
from rayad.serving.settings import Listening, Replicas
from rayad.terminal import say


@dataclass(frozen=True, kw_only=True)
class Serve(OnCluster):
    """Detectors over HTTP, with a viewer in the browser; until Ctrl-C. For research use only."""

    detector: Several
    """URLs of detectors, or NAME=URL; the first is the default."""
    read: Several = ()
    """Prefixes of URLs from which images may be fetched, such as s3://hospital/inbox/."""
    write: Several = ()
    """Prefixes of URLs below which batches may write their results."""
    state: str = ""
    """Folder or URL in which batches are remembered over restarts."""
    audit: str = ""
    """File to which every request adds a line of JSON, without patients' data."""
    listening: Listening = Listening()
    access: Access = Access()
    limits: Limits = Limits()
    bounds: Bounds = field(default_factory=bounds.current)
    replicas: Replicas = Replicas()

    def __call__(self) -> None:
        from rayad.on_ray.serve import Service
        from rayad.on_ray.server import run
        from rayad.serving.cards import named
        from rayad.serving.tokens import from_environment

        def here(file: str) -> str:
            return storage.absolute(file) if file else ""

        listening = replace(self.listening, certificate=here(self.listening.certificate), key=here(self.listening.key))
        hosts = (*self.access.hosts, listening.name)  # the service is asked by what it prints
        service = Service(
            detectors=named(self.detector),
            read=tuple(self.read),
            write=tuple(self.write),
            audit=here(self.audit),
            state=here(self.state),
            listed=from_environment(),
            access=replace(self.access, tokens=here(self.access.tokens), hosts=hosts),
            limits=self.limits,
            bounds=self.bounds,
            replicas=self.replicas,
        )
        run(service, listening, self.address)


@dataclass(frozen=True)
class Watch:
    """Score the mammograms that arrive in an archive (DICOMweb), and store what was found there; until Ctrl-C."""

    pacs: str
    """The archive's DICOMweb root; DICOMWEB_TOKEN, or DICOMWEB_USER and DICOMWEB_PASSWORD, let in."""
    server: str = "http://127.0.0.1:8000"
    """Address of `rayad serve`; its token is in RAYAD_TOKEN."""
    detector: str = ""
    """Name of a detector there; empty: the default."""
    poll_s: Annotated[float, Within(0.1, 86_400)] = 30.0
    """Seconds from one search to the next."""
    days: Annotated[int, Within(0, 36_500)] = 0
    """Age in days up to which studies are searched; 0: any age."""
    once: bool = False
    """End when every image has its objects or cannot have them."""

    def __call__(self) -> None:
        from rayad.serving.watch import watch

        token = os.environ.get("RAYAD_TOKEN", "")
        options = {"token": token, "detector": self.detector, "poll_s": self.poll_s, "days": self.days}
        say(str(watch(self.pacs, self.server, once=self.once, **options)))


@dataclass(frozen=True)
class Token:
    """Make a token for `rayad serve`: add its hash to a file, and print the token once."""

    name: str
    """Name of its owner: letters, digits and _.@-"""
    file: str
    """The list, made if it is not there."""

    def __call__(self) -> None:
        from rayad.serving.tokens import new_token

        say(new_token(self.name, self.file))
