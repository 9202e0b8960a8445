"""The files below a folder: links followed without going in circles, what cannot be listed named."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tree:
    """What lies below a folder.

    Attributes:
        files: path of each regular file (or dangling link) -> the folder it was found from: the root, or a linked
            folder.
        refused: folders that cannot be listed -> why.
    """

    files: dict[Path, Path] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)


def walk(root: Path) -> Tree:
    """Files below `root`, hidden ones left out, in the order of their names.

    A link to a folder is followed unless that folder is met anyway: no folder is met twice, none that holds `root`.
    Pipes, sockets and devices, which would block a reader, are left out.
    """
    tree = Tree()
    here = root.resolve()
    met = {here, *here.parents}
    waiting = [(root, root)]  # folder, and where it was found from
    links: list[Path] = []
    while waiting or links:
        if not waiting:  # real folders first: what a link leads to may be met under its own name
            link = links.pop(0)
            if not _is_new(link, met):
                continue
            waiting.append((link, link))
        folder, origin = waiting.pop()
        below, linked = _list(folder, origin, tree)
        links += linked
        waiting += [(path, origin) for path in reversed(below) if _is_new(path, met)]
    return tree


def _list(folder: Path, origin: Path, tree: Tree) -> tuple[list[Path], list[Path]]:
    """Enter the files of one folder into `tree`; its folders, and its links to folders."""
    below, links = [], []
    try:
        with os.scandir(folder) as entries:
            found = sorted(_shown(entries), key=_name)
    except OSError as error:
        tree.refused[folder] = f"the folder cannot be listed ({error.strerror}); allow it, or move it away"
        return [], []
    for entry in found:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            below.append(path)
        elif entry.is_symlink() and _leads_to_folder(path):
            links.append(path)
        elif _is_file(entry):
            tree.files[path] = origin
    return below, links


def _shown(entries: Iterator[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    return [entry for entry in entries if not entry.name.startswith(".")]  # half-written files, and those of macOS


def _is_new(folder: Path, met: set[Path]) -> bool:
    try:
        real = folder.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return False
    if real in met:
        return False
    met.add(real)
    return True


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a regular file, or a link that leads nowhere: that will be a case that fails."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:  # links in a circle
        return True


def _leads_to_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # links in a circle
        return False


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name
