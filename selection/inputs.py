"""What `mmrlhf select` chooses from: embeddings, and what is known of each row."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mmrlhf.errors import UserError
from selection.embed import EmbeddedFiles, Embedder, embed_files
from selection.files import npy_files, read_embeddings, read_matrix, read_stacked
from selection.parquet import parquet_columns
from selection.pictures import list_pictures
from selection.queries import embed_queries
from selection.select_config import SelectConfig
from selection.stacked import Matrix
from selection.tables import Columns, check_length, of_images, read_columns


class Inputs(NamedTuple):
    """Embeddings, the files behind them, metadata by column, predictions, and what embeds queries."""

    matrix: Matrix
    files: EmbeddedFiles | None
    columns: Columns
    margins: Float[np.ndarray, "m n"] | None
    embed: Callable[[Sequence[str]], Float[np.ndarray, "q d"]]


def read_inputs(config: SelectConfig) -> Inputs:
    """Everything that the options name. UserError where it cannot be read or does not fit together."""
    columns = {} if config.metadata is None else read_columns(config.metadata)
    margins = None if config.predictions is None else read_matrix(config.predictions, "predictions")
    if config.images is not None:
        return of_folder(config, config.images, columns, margins)
    assert config.embeddings is not None  # `check` saw that one of the two is given
    matrix = embeddings_of(config, config.embeddings)
    if config.metadata is not None:
        check_length(columns, len(matrix), config.metadata)
    elif config.embeddings.suffix.lower() == ".parquet":
        columns = parquet_columns(config.embeddings)
    return Inputs(matrix, None, columns, checked(margins, len(matrix), config), embedder_of(config, None))


def embeddings_of(config: SelectConfig, path: Path) -> Matrix:
    """The embeddings in a file, or in the files of a folder; by the names of the files where shards are to be read."""
    if path.is_dir():
        return read_stacked(npy_files(path))
    if config.sharded:
        return read_stacked([path if path.suffix.lower() != ".parquet" else read_embeddings(path)])
    return read_embeddings(path)


def of_folder(config: SelectConfig, folder: Path, columns: Columns, margins: Float[np.ndarray, "m p"] | None) -> Inputs:
    """The same of a folder of images or of .tar shards, of which some may be unreadable."""
    listed, known, unreadable = list_pictures(folder)
    if config.budget > len(listed):
        raise UserError(
            f"--budget got {config.budget}, allowed is 1 to {len(listed)}: there are no more images in {folder}"
        )
    margins = checked(margins, len(listed), config)
    embedder = Embedder(config.model, batch_size=config.batch_size)
    cache = config.cache or config.out.with_name(config.out.stem + ".embeddings")
    files = embed_files(listed, embedder, cache=cache)
    kept = [number for number, path in enumerate(listed) if str(path) not in files.unreadable]
    files = files._replace(unreadable=unreadable | files.unreadable)
    if config.metadata is not None:
        names, used = ([Path(str(path)) for path in paths] for paths in (listed, files.paths))
        start = folder if folder.is_dir() else folder.parent
        columns = of_images(columns, names, used, start, config.metadata)
    else:
        columns = {name: [values[number] for number in kept] for name, values in known.items()}
    if margins is not None:
        margins = margins[:, kept]
    matrix = read_stacked([files.embeddings]) if config.sharded else files.embeddings
    return Inputs(matrix, files, columns, margins, embedder_of(config, embedder))


def checked(
    margins: Float[np.ndarray, "m p"] | None, count: int, config: SelectConfig
) -> Float[np.ndarray, "m p"] | None:
    """UserError unless the predictions have a column a row."""
    if margins is not None and margins.shape[1] != count:
        raise UserError(
            f"{config.predictions} has {margins.shape[1]} columns for {count} rows, allowed is one each: a row a member, a "
            "column a row of the embeddings"
        )
    return margins


def embedder_of(config: SelectConfig, embedder: Embedder | None) -> Callable[[Sequence[str]], Float[np.ndarray, "q d"]]:
    """What turns queries into embeddings; those of `--query` where a recipe names none."""
    return lambda queries: embed_queries(queries or config.query, config.model, embedder)
