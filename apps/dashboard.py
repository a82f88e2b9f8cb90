"""`mmrlhf dashboard`: the runs below a folder side by side, in the browser while they go on or as one HTML file."""

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

from apps.dashboard_page import write_page
from apps.dashboard_runs import read_board
from apps.rate_server import Handle
from mmrlhf.errors import UserError
from mmrlhf.sockets import bind

LARGEST_SMOOTH = 0.99


@dataclass(frozen=True)
class DashboardConfig:
    """Loss, rewards, KL, pictures, warnings … of every run below a folder; only what lies in it is shown."""

    runs: tuple[Path, ...]
    """One or several folders; each folder with a metrics.jsonl below them is a run."""
    host: str = "127.0.0.1"
    """0.0.0.0 lets others on the network in, without a login."""
    port: int = 7861
    """0 takes any free one."""
    export: Path | None = None
    """Write one self-contained HTML file instead of serving."""
    smooth: float = 0.0
    """From 0 (the values as they are) to 0.99: the weight of the past in a moving average."""
    refresh: float = 5.0
    """Seconds from one look at the files to the next."""


def dashboard(config: DashboardConfig) -> None:
    """Serve until Ctrl-C, or write the page. UserError for folders without runs, or an address that cannot be had."""
    check_config(config)
    board = read_board(config.runs)
    if not board.runs:
        shown = ", ".join(map(str, config.runs))
        raise UserError(
            f"no run in {shown}: give a folder that has folders with a metrics.jsonl in it, such as --out of a training command"
        )
    if config.export is not None:
        write_page(board, config.export, smooth=config.smooth)
        print(f"{len(board.runs)} runs: {config.export}")
        return
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(serve(config)):
        while True:
            time.sleep(1)


def check_config(config: DashboardConfig) -> None:
    """UserError for a folder that is not there, or a value out of its range."""
    if not config.runs:
        raise UserError("--runs got no folder: give the folder that your runs write into")
    for folder in config.runs:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "is not there"
            raise UserError(f"--runs {folder} {what}: give the folder that your runs write into")
    if not 0 <= config.smooth <= LARGEST_SMOOTH:
        raise UserError(f"--smooth got {config.smooth}, allowed is from 0 (none) to {LARGEST_SMOOTH}")
    if not (math.isfinite(config.refresh) and config.refresh >= 1):
        raise UserError(f"--refresh got {config.refresh}, allowed is 1 second or more")
    if config.export is not None and config.export.is_dir():
        raise UserError(f"--export {config.export} is a folder: give the name of a file to write")


def serve(config: DashboardConfig) -> Handle:
    """The running server, to be closed by the caller; says where it is."""
    listener = bind(config.host, config.port)
    from apps.dashboard_app import build_app  # imports gradio: seconds

    host = (
        "localhost" if config.host in ("0.0.0.0", "::") else f"[{config.host}]" if ":" in config.host else config.host
    )
    handle = Handle(
        lambda: build_app(config.runs, smooth=config.smooth, refresh=config.refresh),
        listener,
        f"http://{host}:{listener.getsockname()[1]}",
    )
    print(f"dashboard at {handle.url} (Ctrl-C stops)", flush=True)
    return handle
