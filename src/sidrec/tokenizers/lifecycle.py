"""The life of an ID: versions, what a re-fit changes (churn), and a map from old IDs to new.

Two fits may find the same clusters and number them differently. `migration` renames the codes of
the re-fit, one-to-one within each level, so that as many items as it can keep their prefixes; its
codes are then the old ones, and a generator trained on the old IDs can read and write the new.

    relabel_l = argmax over permutations of sum over common items of
                [prefix above agrees, renamed] * [relabel_l(new code) = old code]

level by level; the same sum over all common items breaks ties, then codes keep their numbers.

Source:  assignment: Kuhn 1955 (the Hungarian method), through SciPy; churn: evaluation card.
Differs: one permutation a level for all prefixes, since the codebooks of a residual quantiser are
         shared by all prefixes; greedy over levels, so exact at depth 1 and a lower bound below.
Cost:    O(C L + L V^3), the cube rarely met: 256 codes take milliseconds, 8,192 a minute or more.
Shapes:  N items, C items common to both, L levels, V codes of a level.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment

from sidrec.errors import DataError
from sidrec.types import Floats, Ints, SemanticIds

MAP_FILE = "item_map.parquet"
REPORT_FILE = "churn.json"
PER_CODE = ("codebook.", "activations.")
"""Names of arrays with a row for every code, one array a level; codebooks first."""
CODES = "codes"


class WithCodebooks(Protocol):
    """A fitted tokenizer whose `arrays()` hold `codebook.0`, `codebook.1`, …"""

    @property
    def config(self) -> Any: ...

    def arrays(self) -> dict[str, np.ndarray]: ...

    def state(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=WithCodebooks)


@dataclass(frozen=True, kw_only=True)
class ChurnReport:
    """How far two fits agree on the items that both know."""

    old_version: str
    new_version: str
    num_common: int
    num_added: int
    """Items that only the new IDs hold."""
    num_removed: int
    """Items that only the old IDs hold."""
    num_moved: int
    """Common items whose whole ID differs, as written."""
    num_moved_relabelled: int
    """Common items whose whole ID still differs after the relabelling."""
    kept: tuple[float, ...]
    """Share of common items, in [0, 1], whose first 1, 2, … codes are the same, as written."""
    kept_relabelled: tuple[float, ...]
    """The same after the relabelling of `migration`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False, kw_only=True)
class Migration:
    """How to go on from old IDs to those of a re-fit."""

    relabel: tuple[Ints, ...]
    """L permutations (V,): what the old fit calls each code of the new one."""
    table: pl.DataFrame
    """One row an item of either side: item_id, old and new (codes as written, null where the side
    lacks the item), relabelled (new, renamed), kept_depth (leading codes that old and relabelled
    share)."""
    report: ChurnReport

    @property
    def num_codes(self) -> tuple[int, ...]:
        """L codebook sizes after the relabelling: the larger of the two sides."""
        return tuple(len(names_V) for names_V in self.relabel)

    def apply(self, ids: SemanticIds) -> SemanticIds:
        """IDs of the new fit in the codes of the old one; equal IDs stay equal, others distinct."""
        require_levels("ids", len(ids.num_codes), len(self.relabel))
        codes_NL = renamed(ids.codes, self.relabel)
        return SemanticIds(ids.item_ids, codes_NL, self.num_codes[: ids.num_levels])

    def apply_to_codebooks(self, codebooks: Sequence[Floats]) -> tuple[Floats, ...]:
        """Codebooks of the new fit with their rows in the order of the old codes."""
        require_levels("codebooks", len(codebooks), len(self.relabel))
        ordered: list[Floats] = []
        for level, (book, names_V) in enumerate(zip(codebooks, self.relabel, strict=False)):
            if len(book) != len(names_V):
                raise DataError(
                    f"level {level} of the re-fit has {len(book)} codes, the old IDs have "
                    f"{len(names_V)}; fit again with the sizes of the old codebooks"
                )
            ordered.append(np.ascontiguousarray(book[np.argsort(names_V)]))
        return tuple(ordered)

    def apply_to(self, tokenizer: T) -> T:
        """The new tokenizer, speaking the old codes. DataError where it has no codebooks."""
        arrays = tokenizer.arrays()
        if f"{PER_CODE[0]}0" not in arrays:
            raise DataError(
                f"{type(tokenizer).__name__} has no codebooks to reorder; fit it without a parent, "
                "or rename its IDs with Migration.apply"
            )
        for kind in PER_CODE:
            names = [f"{kind}{level}" for level in range(len(arrays))]
            names = [name for name in names if name in arrays]
            rows = self.apply_to_codebooks([arrays[name] for name in names])
            arrays |= dict(zip(names, rows, strict=True))
        if CODES in arrays:  # of items that keep the codes of their fit
            arrays[CODES] = renamed(arrays[CODES], self.relabel).astype(arrays[CODES].dtype)
        return type(tokenizer).from_arrays(tokenizer.config, arrays, tokenizer.state())  # type: ignore[attr-defined]

    def write(self, folder: str | Path) -> None:
        """`item_map.parquet` and `churn.json` (the report and the relabelling) in `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.table.write_parquet(folder / MAP_FILE)
        content = {**self.report.to_dict(), "relabel": [names.tolist() for names in self.relabel]}
        (folder / REPORT_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def ids_version(ids: SemanticIds) -> str:
    """SHA-256 over item ids, codes and codebook sizes, whatever the order of the rows."""
    order = np.argsort(ids.item_ids.astype(str), kind="stable")
    digest = hashlib.sha256(json.dumps(list(ids.num_codes)).encode())
    digest.update(json.dumps([str(item) for item in ids.item_ids[order]]).encode())
    digest.update(np.ascontiguousarray(ids.codes[order].astype("<i8")).tobytes())
    return digest.hexdigest()


def churn(old: SemanticIds, new: SemanticIds) -> ChurnReport:
    """What a re-fit did to the IDs of the items that both know."""
    return migration(old, new).report


def migration(old: SemanticIds, new: SemanticIds) -> Migration:
    """The relabelling, item map and churn report from `old` to `new`. They need common items."""
    row_of = {str(item): row for row, item in enumerate(old.item_ids)}
    rows_N = np.array([row_of.get(str(item), -1) for item in new.item_ids], dtype=np.int64)
    common = rows_N >= 0
    if not common.any():
        raise DataError(
            f"the {len(old)} old and {len(new)} new IDs have no item in common; "
            "are they of the same catalogue?"
        )
    num_levels = max(old.num_levels, new.num_levels)
    old_CL = widened(old.codes[rows_N[common]], num_levels)
    new_CL = widened(new.codes[common], num_levels)
    relabel = relabelling(old_CL, new_CL, sizes_of(old, new))
    renamed_CL = renamed(new_CL, relabel)
    as_written, after = kept_depths(old_CL, new_CL), kept_depths(old_CL, renamed_CL)
    depths = np.arange(1, num_levels + 1)
    report = ChurnReport(
        old_version=ids_version(old),
        new_version=ids_version(new),
        num_common=int(common.sum()),
        num_added=int((~common).sum()),
        num_removed=len(old) - int(common.sum()),
        num_moved=int((as_written < num_levels).sum()),
        num_moved_relabelled=int((after < num_levels).sum()),
        kept=tuple((as_written[:, None] >= depths).mean(axis=0).tolist()),
        kept_relabelled=tuple((after[:, None] >= depths).mean(axis=0).tolist()),
    )
    depth_N = np.zeros(len(new), dtype=np.int64)
    lengths_C = (old_CL >= 0).sum(axis=1)
    depth_N[common] = np.minimum(after, lengths_C)  # an end that both share is no code
    return Migration(relabel=relabel, table=item_map(old, new, relabel, depth_N), report=report)


def relabelling(old_CL: Ints, new_CL: Ints, sizes: Sequence[int]) -> tuple[Ints, ...]:
    """L permutations (V,), new code -> old code, each the best given those of the levels above."""
    agree_C = np.ones(len(old_CL), dtype=bool)
    relabel: list[Ints] = []
    for level, size in enumerate(sizes):
        old_C, new_C = old_CL[:, level], new_CL[:, level]
        real_C = (old_C >= 0) & (new_C >= 0)
        votes_C = np.where(agree_C, len(old_CL) + 1.0, 1.0)[real_C]
        votes_VV = np.bincount(
            new_C[real_C] * size + old_C[real_C], weights=votes_C, minlength=size * size
        ).reshape(size, size)
        keeps_its_number = np.eye(size)  # together less than one vote
        _, names_V = linear_sum_assignment(votes_VV * (size + 1) + keeps_its_number, maximize=True)
        relabel.append(names_V.astype(np.int64))
        agree_C &= renamed(new_CL[:, [level]], relabel[-1:])[:, 0] == old_C
    return tuple(relabel)


def renamed(codes_NL: Ints, relabel: Sequence[Ints]) -> Ints:
    """Codes (N, L) under their new names; −1 stays."""
    columns = [
        np.where(codes_N < 0, -1, names_V[codes_N])
        for codes_N, names_V in zip(codes_NL.T, relabel, strict=False)
    ]
    return np.stack(columns, axis=1)


def kept_depths(first_CL: Ints, second_CL: Ints) -> Ints:
    """(C,) how many leading places of two codes agree; L where the whole IDs do."""
    return (first_CL == second_CL).cumprod(axis=1).sum(axis=1)


def widened(codes_NL: Ints, num_levels: int) -> Ints:
    """Codes with −1 in the levels they do not have."""
    return np.pad(codes_NL, ((0, 0), (0, num_levels - codes_NL.shape[1])), constant_values=-1)


def sizes_of(old: SemanticIds, new: SemanticIds) -> list[int]:
    """The larger codebook of each level; the only one where one side has fewer levels."""
    pairs = itertools.zip_longest(old.num_codes, new.num_codes, fillvalue=0)
    return [max(sizes) for sizes in pairs]


def require_levels(what: str, got: int, most: int) -> None:
    """DataError when there are more levels than the migration knows."""
    if got > most:
        raise DataError(
            f"the {what} have {got} levels, the migration was made for {most}; "
            "make it from these IDs"
        )


def item_map(
    old: SemanticIds, new: SemanticIds, relabel: Sequence[Ints], depth_N: Ints
) -> pl.DataFrame:
    """The table of `Migration`, in the order of item ids."""
    codes = pl.List(pl.Int64)
    before = pl.DataFrame(
        {"item_id": texts_of(old), "old": lists_of(old.codes)},
        schema={"item_id": pl.String, "old": codes},
    )
    after = pl.DataFrame(
        {
            "item_id": texts_of(new),
            "new": lists_of(new.codes),
            "relabelled": lists_of(renamed(new.codes, relabel)),
            "kept_depth": depth_N,
        },
        schema={"item_id": pl.String, "new": codes, "relabelled": codes, "kept_depth": pl.Int64},
    )
    joined = before.join(after, on="item_id", how="full", coalesce=True).sort("item_id")
    return joined.with_columns(pl.col("kept_depth").fill_null(0))


def texts_of(ids: SemanticIds) -> list[str]:
    """Item ids as plain texts."""
    return [str(item) for item in ids.item_ids]


def lists_of(codes_NL: Ints) -> list[list[int]]:
    """Each ID as a list that ends where it ends."""
    return [[code for code in codes if code >= 0] for codes in codes_NL.tolist()]
