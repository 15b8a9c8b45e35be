"""A component's file of kind ``full``, whichever way it holds its values, and the base that it may need for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conceptry.bases import ComponentName, FamilyId
from conceptry.errors import IncompatibleError, InvalidFileError, NotFoundError
from conceptry.formats.byte_planes import Planes, is_packed, open_planes
from conceptry.formats.checkpoints import Model, choose_weight_files
from conceptry.formats.full import FullContents, read_full
from conceptry.formats.header import read_header
from conceptry.formats.planes import FindTensor

if TYPE_CHECKING:
    from conceptry.manifest import Method

FindBases = Callable[[ComponentName], Iterable[FindTensor]]
"""Returns what finds the tensors of a component of the base, for each place where they are."""

_HINT: Final = "open the very base that it was packed with, or there: concepts unpack REF --base BASE"


def read_values(path: Path, method: Method, find_bases: FindBases) -> FullContents:
    """Returns the new values of a component: those in the file, or what its planes make of the base's.

    Args:
        path: the file.
        method: what the manifest says of its part.
        find_bases: is asked only for a packed file; the first place with the right tensors is taken.

    Raises:
        NotFoundError, InvalidFileError: if there is no such file, it is malformed, or the manifest says otherwise.
        IncompatibleError: if no place has the tensors that the file was packed with, bit for bit.
        IntegrityError: if its planes are damaged.
    """
    packed = is_packed(read_header(path).metadata)
    if not packed:
        contents = read_full(path)
        _check_stated(path, method, contents.component, None)
        return contents
    planes = open_planes(path)
    _check_stated(path, method, planes.component, planes)
    refusal: IncompatibleError | None = None
    for base in find_bases(planes.component):
        try:
            used = planes.check_base(base)
        except IncompatibleError as error:
            refusal = refusal or error
        else:
            return planes.restore(used)
    why = "" if refusal is None else f": {refusal.message}"
    raise IncompatibleError(
        f"the values of {planes.component} are packed against another base than this one{why}", hint=_HINT
    )


def unpack_values(path: Path, method: Method, base: Path, family: FamilyId) -> FullContents:
    """Returns the new values of a component, packed ones against the base in ``base``. Raises as ``read_values``."""
    return read_values(path, method, lambda component: [open_component(base, family, component)])


def _check_stated(path: Path, method: Method, component: ComponentName, planes: Planes | None) -> None:
    """The manifest is what people decide by, so the file must be what it says."""
    stated = method.find_packing(component) if method.kind == "full" else None
    found = None if planes is None else (planes.base, planes.tensors)
    if found != (None if stated is None else (stated.base_tensors, stated.tensors)):
        raise InvalidFileError(
            f"{path.name!r} is {'plain' if planes is None else 'packed'}, which is not what the manifest says of "
            f"{component}",
            where="method.packing",
        )


def open_component(base: Path, family: FamilyId | None, component: ComponentName) -> FindTensor:
    """Returns what finds a component's tensors in a diffusers folder or a single-file checkpoint.

    Raises:
        NotFoundError: if the base has no such component.
        InvalidFileError: if its files are not sound.
    """
    model = Model(base, family)
    if component not in model.components:
        raise NotFoundError(
            f"the base {str(base)!r} holds no {component} as safetensors",
            hint="name the base that it was made for",
        )
    return partial(model.read, component)


def list_base_files(base: Path, component: ComponentName) -> tuple[Path, ...]:
    """Returns the files in which a base has a component's weights, in the order of their names."""
    return choose_weight_files(base / component) if base.is_dir() else (base,)
