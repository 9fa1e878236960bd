"""Write the fixes that need no guess: each file appears whole under its name, and the original stays as `NAME.bak`.

Everything is written beside the originals first, so a disk that fills up leaves the checkpoint as it was; if a file
cannot take its place, those before it go back.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ling.checkpoint.doctor.evidence import CONFIG
from ling.checkpoint.doctor.files import SHARD
from ling.checkpoint.doctor.finding import Edit, Finding, RebuildIndex, Widen
from ling.checkpoint.doctor.headers import read_header
from ling.checkpoint.doctor.widen import widen_file
from ling.checkpoint.source import INDEX_NAME, read_json
from ling.errors import CheckpointError

_NEW, _OLD = ".doctor-new", ".bak"


def mend(directory: Path, findings: Sequence[Finding], progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Apply every repair of `findings`; return the names of the files that were written.

    progress  called with (bytes copied, bytes in all) while weights are rewritten
    Raises CheckpointError if a file cannot be written, or lies elsewhere behind a link; nothing is changed then.
    """
    repairs = [finding.repair for finding in findings if finding.repair is not None]
    if repairs:
        _refuse_link(directory / CONFIG)  # even if all that is written is a file that is missing
    new: list[Path] = []
    try:
        try:
            if keys := {key for repair in repairs if isinstance(repair, Widen) for key in repair.keys}:
                new += _widen(directory, keys, progress)
            if any(isinstance(repair, RebuildIndex) for repair in repairs) or (new and _has_index(directory)):
                new.append(_rebuild_index(directory))
            new += [
                _edit(directory, name, repairs) for name in sorted({r.file for r in repairs if isinstance(r, Edit)})
            ]
            for path in new:
                _sync(path)
            return _swap(new)
        except OSError as problem:
            raise CheckpointError(f"cannot write in {directory}: {problem.strerror or problem}") from None
    finally:
        for path in directory.glob(f"*{_NEW}"):
            path.unlink(missing_ok=True)


def _edit(directory: Path, name: str, repairs: Sequence[object]) -> Path:
    path = directory / name
    tree = read_json(path) if path.exists() else {}
    for repair in repairs:
        if isinstance(repair, Edit) and repair.file == name:
            tree = {key: value for key, value in tree.items() if key not in repair.remove} | dict(repair.set)
    return _write_json(path, tree)


def _rebuild_index(directory: Path) -> Path:
    """Write an index of the files that the old one names, and of numbered ones that it forgot."""
    path = directory / INDEX_NAME
    try:
        old = read_json(path).get("weight_map") if path.exists() else None
    except CheckpointError:
        old = None  # it is what is mended
    named = {name for name in old.values() if isinstance(name, str)} if isinstance(old, dict) else set()
    weight_map: dict[str, str] = {}
    size = 0
    for file in sorted(directory.glob("*.safetensors")):
        if named and file.name not in named and not SHARD.fullmatch(file.name):
            continue
        written = _beside(file)
        for key, tensor in read_header(written if written.exists() else file).tensors.items():
            weight_map[key] = file.name
            size += tensor.nbytes
    return _write_json(path, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _widen(directory: Path, keys: set[str], progress: Callable[[int, int], None] | None) -> list[Path]:
    files = [f for f in sorted(directory.glob("*.safetensors")) if keys & read_header(f).tensors.keys()]
    total, done, new = sum(file.stat().st_size for file in files), 0, []
    for file in files:
        _refuse_link(file)
        start = done

        def advance(copied: int, start: int = start) -> None:
            if progress is not None:
                progress(start + copied, total)

        widen_file(file, _beside(file), keys, advance)
        _copy_mode(file)
        new.append(_beside(file))
        done += file.stat().st_size
    return new


def _write_json(path: Path, tree: dict[str, Any]) -> Path:
    _refuse_link(path)
    _beside(path).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _copy_mode(path)
    return _beside(path)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise CheckpointError(
            f"{path} is a link, as in a hub's cache, which others read too: copy the directory (cp -rL), mend the copy"
        )


def _swap(new: list[Path]) -> list[str]:
    """Put new files in their places, what was there under NAME.bak; all of them or none."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for written in new:
            path = written.with_name(written.name.removesuffix(_NEW))
            done.append((path, _back_up(path)))
            written.replace(path)
    except BaseException:
        for path, backup in done:
            if backup is not None:
                backup.replace(path)
                backup.unlink(missing_ok=True)  # if both were names of one file, nothing was moved
            elif not _beside(path).exists():
                path.unlink(missing_ok=True)
        raise
    return [path.name for path, _ in done]


def _back_up(path: Path) -> Path | None:
    """Give what lies at `path` a second name, the first free NAME.bak; None if nothing does."""
    if not path.exists():
        return None
    backup = path.with_name(path.name + _OLD)
    number = 1
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}{_OLD}{number}")
    try:
        os.link(path, backup)
    except OSError:  # a file system without second names
        shutil.copy2(path, backup)
    return backup


def _copy_mode(path: Path) -> None:
    """Give the new file the permissions of the old one."""
    if path.exists():
        shutil.copymode(path, _beside(path))


def _beside(path: Path) -> Path:
    return path.with_name(path.name + _NEW)


def _has_index(directory: Path) -> bool:
    return (directory / INDEX_NAME).exists()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
