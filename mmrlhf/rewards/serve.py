"""`mmrlhf reward serve`: a reward as an HTTP service, for any client, and for flow_grpo and verl-omni."""

import contextlib
import ipaddress
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mmrlhf.errors import UserError
from mmrlhf.rewards.score import load_on
from mmrlhf.rewards.serving.app import build_app
from mmrlhf.rewards.serving.bodies import Limits
from mmrlhf.rewards.serving.server import server
from mmrlhf.sockets import bind, url_of

TOKEN_VARIABLE = "MMRLHF_TOKEN"


@dataclass(frozen=True)
class ServeConfig:
    """Score images over HTTP: POST /score, a page at /docs, /health and /metrics."""

    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """Port to listen at; 0 takes any free one."""
    token: str = ""
    """What clients must send as their bearer token. Better set in the environment as MMRLHF_TOKEN, where others cannot see it."""
    max_batch: int = 64
    """Images scored at a time, of several requests together."""
    max_wait_ms: float = 5.0
    """How long an image waits for others to be scored with, in milliseconds."""
    max_image_mb: float = 20.0
    """Largest image file, in megabytes."""
    max_request_mb: float = 64.0
    """Largest body of a request, in megabytes."""
    max_images: int = 256
    """Most images in a request."""
    max_megapixels: float = 128.0
    """Most pixels in a request's images together, in millions; decoded, a million takes 12 MB."""
    flow_grpo: bool = False
    """Also speak the protocol of flow_grpo and verl-omni, at POST / and POST /flow-grpo."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""


def serve(config: ServeConfig) -> None:
    """Load the reward and answer requests until Ctrl-C or SIGTERM; those in flight are finished."""
    limits, token = limits_of(config), token_of(config)
    with contextlib.closing(
        bind(config.host, config.port)
    ) as listener:  # a taken port is known before the reward loads
        name = Path(config.reward).name  # not the whole path of a folder: /health tells it to anybody
        app = build_app(
            load_on(config.reward, config.device),
            name,
            limits=limits,
            token=token,
            max_batch=config.max_batch,
            max_wait=config.max_wait_ms / 1000,
            flow_grpo=config.flow_grpo,
        )
        if not token and not is_loopback(listener.getsockname()[0]):
            print(f"no token is set: anybody who reaches {config.host} may use this server", file=sys.stderr)
        print(f"serving {name} at {url_of(listener)} (page /docs, Ctrl-C stops)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server(app).run(sockets=[listener])
    print(f"stopped serving {name}", flush=True)


def limits_of(config: ServeConfig) -> Limits:
    """What the config allows a request. UserError for an option that allows nothing."""
    for option in ("max_batch", "max_image_mb", "max_request_mb", "max_images", "max_megapixels"):
        value = getattr(config, option)
        if not (0 < value < math.inf):
            raise UserError(f"--{option.replace('_', '-')} got {value}, allowed is a number above 0")
    if not 0 <= config.max_wait_ms <= 60_000:
        raise UserError(f"--max-wait-ms got {config.max_wait_ms}, allowed is 0 to 60000")
    return Limits(
        image_bytes=int(config.max_image_mb * 1e6),
        request_bytes=int(config.max_request_mb * 1e6),
        images=config.max_images,
        pixels=int(config.max_megapixels * 1e6),
    )


def token_of(config: ServeConfig) -> str:
    """The token of the command line, else of the environment, else "". UserError for one that no header can carry."""
    token = config.token or os.environ.get(TOKEN_VARIABLE, "")
    if any(not "!" <= character <= "~" for character in token):
        raise UserError(
            "--token got spaces or letters outside ASCII, allowed are printable ASCII characters: give another"
        )
    return token


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
