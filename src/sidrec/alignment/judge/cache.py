"""Answers of a judge by content hash: a file of JSON lines that several runs may share.

Each answer is one line, appended by one write, so readers and writers need no lock. Lines that
cannot be read (a write cut short, a damaged file) are skipped and counted.

Cost: the file is read once; an answer of 16 candidates takes about 3 kB.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from sidrec.alignment.judge.ledger import Ledger
from sidrec.errors import ArtifactError


@dataclass(frozen=True, eq=False)
class AnswerCache:
    """Key -> the text of a valid answer."""

    path: Path | None
    """None keeps answers for this run alone."""
    answers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, ledger: Ledger) -> Self:
        """Read what is there; a missing file is an empty cache."""
        opened = cls(path)
        if path is None or not path.exists():
            return opened
        try:
            content = path.read_bytes()
        except OSError as cause:
            raise ArtifactError(
                f"judge.cache {path.name} cannot be read ({cause.strerror}); name a file"
            ) from cause
        for line in content.split(b"\n"):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                key, text = entry["key"], entry["answer"]
            except (ValueError, TypeError, KeyError, RecursionError):
                ledger.corrupt_lines += 1
                continue
            if isinstance(key, str) and isinstance(text, str):
                opened.answers[key] = text
            else:
                ledger.corrupt_lines += 1
        return opened

    def put(self, key: str, text: str) -> None:
        """Keep an answer, at once and on disk."""
        self.answers[key] = text
        if self.path is None:
            return
        # The leading line end closes a line that an interrupted write may have left open.
        line = "\n" + json.dumps({"key": key, "answer": text}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)
        except OSError as cause:
            raise ArtifactError(
                f"judge.cache {self.path.name} cannot be written ({cause.strerror}); name a file "
                "in a folder that can be, or drop the setting"
            ) from cause
