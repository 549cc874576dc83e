"""`rayad serve`: the scoring graph on one machine, or on a cluster whose head this machine is."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from rayad.errors import ClusterError, OptionError, RayadError
from rayad.on_ray.cluster import STORE_BYTES, cluster
from rayad.on_ray.graph import APP
from rayad.on_ray.pool import require
from rayad.on_ray.serve import Service, application
from rayad.pool import Workers
from rayad.private import given
from rayad.serving import RESEARCH_USE, cards, front
from rayad.serving.access import Limits, check_binding
from rayad.serving.environment import keep_off_disk, set_up_proxy, set_up_ray_serve
from rayad.serving.issuer import is_loopback
from rayad.serving.settings import Listening
from rayad.terminal import say


def run(service: Service, listening: Listening, address: str = "") -> None:
    """Serve until Ctrl-C or SIGTERM; SIGHUP reads the detectors again, and the old ones answer until that is done.

    Raises:
        OptionError: others could ask without a token or without a proxy in front, the port is taken, or a detector is
            not calibrated.
        RayadError: a detector cannot be read.
    """
    check_binding(listening.host, service.access.asks(), bool(listening.certificate), listening.tls_in_front)
    if listening.front == "none" and not is_loopback(listening.host):
        raise OptionError(f"to listen at {listening.host!r}, which others can reach, it takes HAProxy in front")
    cards.require(service.detectors)
    again = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: again.set())
    if not given(address):
        keep_off_disk(STORE_BYTES)
        set_up_proxy(listening)
    set_up_ray_serve()
    replicas = service.replicas
    with cluster(address, replicas.pictures + replicas.scorers + replicas.drawers + 2):
        if replicas.gpu:
            require(Workers(replicas.scorers, replicas.gpu, cpus=0), "scorer")
        _serve(service, listening, again)


def _serve(service: Service, listening: Listening, again: threading.Event) -> None:
    """Serve on the cluster that this process is connected to."""
    with _door(listening, service.limits) as options:
        quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
        try:
            serve.start(proxy_location="HeadOnly", http_options=options, logging_config=quiet)
        except TimeoutError as error:
            raise ClusterError(f"Ray Serve did not start: {error}") from error
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it says at which port Ray's proxy is ready
        try:
            _until_interrupted(service, listening, again, quiet)
        except KeyboardInterrupt:
            say("rayad: the service ends")
        finally:
            with suppress(RayError):
                serve.shutdown()


@contextmanager
def _door(listening: Listening, limits: Limits) -> Iterator[HTTPOptions]:
    """Where Ray's HTTP proxy listens: behind HAProxy, which stands in its place until the block ends, or alone."""
    if listening.front == "none":
        yield HTTPOptions(
            host=listening.host,
            port=listening.port,
            ssl_certfile=listening.certificate or None,
            ssl_keyfile=listening.key or None,
        )
        return
    with front.listening(listening.host, listening.port) as door, _behind() as options:
        haproxy = front.Front(
            bind=f"fd@{door.fileno()}",
            behind=f"{options.host}:{options.port}",
            tls=bool(listening.certificate),
            tls_in_front=listening.tls_in_front,
            body_seconds=limits.body_seconds,
            request_seconds=limits.request_seconds,
        )
        with front.standing(haproxy, door, os.environ.get(front.SECRET, ""), listening.certificate, listening.key):
            yield options


@contextmanager
def _behind() -> Iterator[HTTPOptions]:
    """Where Ray's proxy listens behind HAProxy: where it does already, on a cluster where Ray Serve runs."""
    if running := _get_global_client(raise_if_no_controller_running=False):
        yield running.http_config
        return
    with front.free_port() as port:
        yield HTTPOptions(host="127.0.0.1", port=port)


def _until_interrupted(service: Service, listening: Listening, again: threading.Event, quiet: LoggingConfig) -> None:
    generation = 0
    while True:
        try:
            serve.run(application(service, generation), name=APP, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:
            raise RayadError(f"the service did not start: {error}") from error
        verb = "serves" if not generation else "serves again"
        say(f"rayad {verb} {', '.join(service.detectors)} at {listening.url}")
        say(RESEARCH_USE)
        while not (again.wait(1) and _can_be_read(service, again)):
            pass
        generation += 1


def _can_be_read(service: Service, again: threading.Event) -> bool:
    """Whether all detectors are there; else what is served stays, and a line says why."""
    again.clear()
    try:
        cards.require(service.detectors)
    except RayadError as error:
        say(f"rayad: the detectors stay as they are: {error}", sys.stderr)
        return False
    return True
