"""Precomputed vectors: item vectors made elsewhere, read from a file.

`.parquet` is matched by item id (a list column, or numeric columns); `.npy` by row order;
`.safetensors` by the ids in its metadata where it has them, else by row order.

Source:  none; a reader.
Differs: nothing to differ from.
Cost:    one read of the file; memory N * D floats.
Shapes:  N items, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from sidrec.embeddings.vectors import unit_rows
from sidrec.errors import ConfigError, DataError
from sidrec.types import CatalogueContext, Floats, Ids, Items, ItemVectors, as_ids


@dataclass(frozen=True, kw_only=True)
class PrecomputedConfig:
    """Settings of `Precomputed`."""

    path: str = ""
    """File that holds the vectors: .npy, .safetensors or .parquet."""
    id_column: str = "item_id"
    """Parquet: column of item ids. Safetensors: metadata key of a JSON list of item ids."""
    vector_column: str = "vector"
    """Parquet: list column; where it is absent all other numeric columns are used. Safetensors:
    name of the tensor; where there is only one tensor its name does not matter."""
    missing: Literal["error", "zero"] = "error"
    """What to do with catalogue items the file does not hold: stop, or give the zero vector."""
    normalise: bool = True
    """Scale vectors to length 1."""


@dataclass(frozen=True, eq=False)
class Precomputed:
    """A table of item vectors."""

    config_class: ClassVar[type] = PrecomputedConfig
    config: PrecomputedConfig
    item_ids: Ids
    vectors_ND: Floats

    @classmethod
    def fit(cls, context: CatalogueContext, config: PrecomputedConfig) -> Self:
        """Read the file and match it to the catalogue."""
        if not config.path:
            raise ConfigError("precomputed.path is empty; name a .npy, .safetensors or .parquet")
        path = Path(config.path)
        if not path.is_file():
            raise DataError(f"precomputed: no file {path}; check precomputed.path")
        readers = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": _read_parquet}
        if path.suffix not in readers:
            raise DataError(f"precomputed: {path.name} must end in one of {list(readers)}")
        ids, vectors = readers[path.suffix](path, config)
        if vectors.ndim != 2:
            raise DataError(f"precomputed: {path.name} must hold (N, D), got {vectors.shape}")
        if ids is None:
            ids = context.items.item_ids
            if len(vectors) != len(ids):
                raise DataError(
                    f"precomputed: {path.name} is matched by row order and holds {len(vectors)} "
                    f"rows for {len(ids)} items; make it one row an item, or store item ids with it"
                )
        if vectors.dtype.kind not in "biufO":  # O: decimals of a table
            raise DataError(
                f"precomputed: {path.name} must hold real numbers, got {vectors.dtype}; convert "
                "it to float32"
            )
        vectors_ND = np.ascontiguousarray(vectors, dtype=np.float32)
        vectors_ND = ItemVectors(ids, vectors_ND).vectors  # finite, unique ids
        fitted = cls(config, ids, unit_rows(vectors_ND) if config.normalise else vectors_ND)
        fitted.embed(context.items)  # missing items show now
        return fitted

    def embed(self, items: Items) -> ItemVectors:
        """Vectors (N, D) by item id; an id the file lacks is an error or zero, by config."""
        row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        rows = np.array([row_of.get(i, -1) for i in items.item_ids], dtype=np.int64)
        if self.config.missing == "error" and (rows < 0).any():
            lost = [str(i) for i in items.item_ids[rows < 0][:3]]
            raise DataError(
                f"precomputed: {int((rows < 0).sum())} of {len(rows)} items have no vector in "
                f"{Path(self.config.path).name}, e.g. {lost}; add them or set missing = 'zero'"
            )
        vectors_ND = np.where((rows >= 0)[:, None], self.vectors_ND[rows], np.float32(0))
        return ItemVectors(items.item_ids, vectors_ND)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this embedder."""
        return {"vectors": self.vectors_ND}

    def state(self) -> dict[str, Any]:
        """JSON-able rest: the item ids of the rows."""
        return {"item_ids": [str(i) for i in self.item_ids]}

    @classmethod
    def from_arrays(
        cls, config: PrecomputedConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The embedder that `arrays` and `state` came from."""
        return cls(config, as_ids(state["item_ids"]), arrays["vectors"])


def _read_npy(path: Path, config: PrecomputedConfig) -> tuple[Ids | None, np.ndarray]:
    try:
        return None, np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as cause:  # EOFError: an empty file
        raise DataError(
            f"precomputed: {path.name} is not a plain numeric .npy array; write it with numpy.save"
        ) from cause


def _read_safetensors(path: Path, config: PrecomputedConfig) -> tuple[Ids | None, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            name = names[0] if len(names) == 1 else config.vector_column
            if name not in names:
                raise DataError(f"precomputed: {path.name} has tensors {names}, not {name!r}")
            ids = (file.metadata() or {}).get(config.id_column)
            return (as_ids(json.loads(ids)) if ids else None), file.get_tensor(name)
    except SafetensorError as cause:
        raise DataError(f"precomputed: {path.name} is not a safetensors file") from cause


def _read_parquet(path: Path, config: PrecomputedConfig) -> tuple[Ids | None, np.ndarray]:
    import polars as pl

    try:
        table = pl.read_parquet(path)
    except pl.exceptions.PolarsError as cause:
        raise DataError(f"precomputed: {path.name} is not a Parquet file") from cause
    if config.id_column not in table.columns:
        raise DataError(
            f"precomputed: {path.name} has no column {config.id_column!r}, has {table.columns}; "
            "set precomputed.id_column"
        )
    ids = as_ids(table[config.id_column].to_list())
    if config.vector_column in table.columns:
        rows = table[config.vector_column].to_list()
        widths = {len(row) if row is not None else 0 for row in rows}
        if len(widths) != 1:
            raise DataError(
                f"precomputed: lists in {config.vector_column!r} differ in length: "
                f"{sorted(widths)}; "
                "give all items one length, or leave out rows without a vector"
            )
        return ids, np.array(rows, dtype=np.float32)
    numeric = table.drop(config.id_column).select(pl.selectors.numeric())
    if not numeric.width:
        raise DataError(
            f"precomputed: {path.name} has neither a list column {config.vector_column!r} nor "
            "numeric columns; set precomputed.vector_column"
        )
    return ids, numeric.to_numpy()
