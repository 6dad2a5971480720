"""Qfleet's own packages, and the modules of a user that have their names.

Owns which of two modules a name stands for; imports the standard library only, because it comes first in
every process.
"""

import builtins
import contextlib
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = ("actors", "cluster", "learner", "qfleet", "replay_service")
OWN_ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the packages: a checkout, or where they are installed."""
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()


def own_code_first() -> None:
    """Makes qfleet's packages those of OWN_ROOT in this process, whatever lies in the folders of sys.path.

    If a folder of sys.path has a module of such a name, code of the user's that imports the name raises
    ImportError from now on: it would get qfleet's package instead. Call it again when sys.path has grown.

    Raises:
        ImportError: a module of a user was imported under such a name before.
    """
    # Modules that are loaded are not searched for, and their submodules come from their own folders.
    with _on_path(OWN_ROOT):
        for name in PACKAGES:
            file = import_module(name).__file__
            if file is None or Path(file).resolve().parents[1] != OWN_ROOT:
                raise ImportError(
                    _clash(name, Path(file) if file else Path(name), "something imported yours")
                )
    if any(map(_theirs, PACKAGES)) and not any(isinstance(each, _Explanation) for each in sys.meta_path):
        sys.meta_path.append(_Explanation())
        builtins.__import__ = _guarded(builtins.__import__)


def entry_hook(root: Path = OWN_ROOT) -> Callable[[], None]:
    """A function that calls own_code_first in a process of another program, such as a worker of Ray.

    It takes the packages from `root`, or from where that machine has them. It is made here, because
    cloudpickle sends such a function as code; the name of one would be looked up on the search path of the
    other process, where a user's `cluster` may come first.
    """
    folder = str(root)

    def import_qfleet() -> None:
        there = (Path(folder) / "qfleet" / "__init__.py").is_file()
        if there:
            sys.path.insert(0, folder)
        # Without qfleet, the import of the role's class fails next, and says so.
        with contextlib.suppress(ModuleNotFoundError):
            import_module("qfleet")
        if there:
            sys.path.remove(folder)

    return import_qfleet


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _theirs(name: str) -> Path | None:
    """A file or a folder of Python files that sys.path holds under this name outside OWN_ROOT."""
    for entry in sys.path:
        folder = Path(entry).resolve()
        if folder == OWN_ROOT:
            continue
        if (file := folder / f"{name}.py").is_file():
            return file
        if next((folder / name).glob("*.py"), None) is not None:
            return folder / name
    return None


def _clash(name: str, theirs: Path, what: str) -> str:
    return (
        f"{what}, and `{name}` is a package of qfleet, {OWN_ROOT / name}: rename {theirs}, or move it into a "
        f"package of your own and import my_package.{name}"
    )


class _Explanation(MetaPathFinder):
    """Asked last: explains why a module of the user's is not found."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        name = fullname.partition(".")[0]
        if name in PACKAGES and (theirs := _theirs(name)) is not None:
            raise ModuleNotFoundError(
                _clash(name, theirs, f"there is no qfleet module {fullname}"), name=fullname
            )


def _guarded(load: Callable[..., ModuleType]) -> Callable[..., ModuleType]:
    """The import statement, except that code of a user never gets qfleet's package for a module of theirs."""

    def guarded(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        package = name.partition(".")[0]
        # Statements give a tuple or None as fromlist, C code that reads a pickle a list.
        if level == 0 and package in PACKAGES and not isinstance(fromlist, list):
            importer, theirs = _users_file(globals or {}), _theirs(package)
            if importer is not None and theirs is not None:
                raise ImportError(_clash(package, theirs, f"{importer} imports `{name}`"))
        return load(name, globals, locals, fromlist, level)

    return guarded


def _users_file(importer: Mapping[str, object]) -> str | None:
    """The importing file, if it is neither qfleet's nor installed; None otherwise."""
    file = importer.get("__file__")
    if not isinstance(file, str):
        return "__main__" if importer.get("__name__") == "__main__" else None
    path = Path(file).resolve()
    own = any(path.is_relative_to(OWN_ROOT / name) for name in PACKAGES)
    installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return None if own or installed or path.is_relative_to(_STANDARD_LIBRARY) else file
