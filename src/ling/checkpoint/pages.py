"""A file's bytes as memory that tensors are views of: mapped, copied into huge pages, or locked.

    mapped  the page cache is the memory: nothing is copied, a second process shares it, the system may drop pages and
            read them again. Small pages
    copied  memory of its own in huge pages, where the system gives them: fewer misses of the address cache
    locked  mapped, and never dropped; needs the right to lock so much (ulimit -l)

Mapped pages are private: what is written to a tensor never reaches the file.
"""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ling.errors import CheckpointError, ConfigError

PageMode = Literal["mapped", "copied", "locked"]
PAGE_MODES: tuple[str, ...] = get_args(PageMode)

_CHUNK_BYTES = 2**26
_ALIGNMENT = 64
_MADV_POPULATE_READ = 22  # of Linux 5.14; Python's mmap does not name it
_FROM_FILE = mmap.PROT_READ | mmap.PROT_WRITE  # torch has no tensors that cannot be written


def check_page_mode(option: str, name: str) -> PageMode:
    """Return `name`. Raises ConfigError, which begins with `option`, if it is none."""
    if name not in PAGE_MODES:
        raise ConfigError(f"{option} must be {', '.join(PAGE_MODES)}, got {name}")
    return name  # type: ignore[return-value]


def open_pages(file: Path, mode: PageMode) -> "mmap.mmap":
    """Return the bytes of `file`, all of them read. Raises CheckpointError if they cannot be read or locked."""
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            return _copied(opened.fileno(), size) if mode == "copied" else _mapped(opened.fileno(), size, mode)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise CheckpointError(f"cannot read {file}: {reason}") from None


def to_empty_in_huge_pages(model: nn.Module) -> None:
    """Give every parameter and buffer of a model on the meta device memory, its content undefined: `Module.to_empty`,
    in huge pages where the system gives them. On a virtual machine they double what a core can read per second.
    """
    places = [(m, name, t) for m in model.modules() for name, t in _own_tensors(m) if t.is_meta]
    size = sum(_padded(t.nbytes) for _, _, t in places)
    pages = anonymous_pages(max(size, 1))
    begin = 0
    for module, name, old in places:
        new = view(pages, begin, old.dtype, old.shape, _ALIGNMENT)
        begin += _padded(old.nbytes)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def view(pages: "mmap.mmap", begin: int, dtype: torch.dtype, shape: Sequence[int], alignment: int) -> Tensor:
    """Return a tensor in `pages`; a copy of it where it does not begin at a multiple of `alignment` bytes."""
    count = 1
    for n in shape:
        count *= n
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    if begin % alignment == 0:  # the pages themselves begin at a page
        return torch.frombuffer(pages, dtype=dtype, count=count, offset=begin).view(tuple(shape))
    raw = torch.frombuffer(pages, dtype=torch.uint8, count=count * dtype.itemsize, offset=begin)
    return raw.clone().view(dtype).view(tuple(shape))


def _mapped(descriptor: int, size: int, mode: PageMode) -> "mmap.mmap":
    pages = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=_FROM_FILE)
    if mode == "locked":
        _lock(pages, size)
        return pages
    with contextlib.suppress(OSError):  # an older kernel: pages come when they are first looked at
        pages.madvise(_MADV_POPULATE_READ)
    return pages


def anonymous_pages(size: int) -> "mmap.mmap":
    """Return zeros that belong to no file, in huge pages where the system gives them; memory comes as it is touched."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):  # a kernel without huge pages, or another system
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _copied(descriptor: int, size: int) -> "mmap.mmap":
    pages = anonymous_pages(size)
    memory = memoryview(pages)

    def read(begin: int) -> None:
        end = min(begin + _CHUNK_BYTES, size)
        while begin < end:
            count = os.preadv(descriptor, [memory[begin:end]], begin)
            if count == 0:
                raise ValueError("it became shorter while it was read")
            begin += count

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(read, range(0, size, _CHUNK_BYTES)))
    memory.release()
    return pages


def _lock(pages: "mmap.mmap", size: int) -> None:
    address = torch.frombuffer(pages, dtype=torch.uint8).data_ptr()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)):
        reason = os.strerror(ctypes.get_errno())
        raise CheckpointError(
            f"{size / 2**30:.2f} GiB of weights cannot be locked in memory ({reason}); raise the limit (ulimit -l), or "
            "leave them mapped"
        )
