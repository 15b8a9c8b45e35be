"""The base's own tensors for what is stored as its difference to them: out of an open pipeline, or of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.fingerprints import find_pipeline_family
from conceptry.composer.loading import find_origin
from conceptry.composer.pipelines import Pipeline, find_tensor, list_components
from conceptry.composer.standins import read_original
from conceptry.composer.tensors import from_torch
from conceptry.errors import ConceptryError
from conceptry.formats.full_files import open_component
from conceptry.formats.planes import FindTensor
from conceptry.formats.sources import InMemory
from conceptry.formats.tensors import RawTensor


def iter_bases(pipeline: Pipeline, name: ComponentName) -> Iterator[FindTensor]:
    """Returns what finds a component's own tensors: in memory, then in the files that the pipeline was opened from.

    Memory may hold them in less precision than the files. What stands in for them while concepts are attached is
    looked past.
    """
    component = list_components(pipeline).get(name)
    if component is None:
        return
    yield wrap_tensors(partial(_find_own, component))
    origin = find_origin(pipeline, component)
    if origin is not None:
        try:
            yield open_component(origin, find_pipeline_family(pipeline), name)
        except ConceptryError:  # the files are gone or are others now: memory alone counts
            return


def _find_own(component: nn.Module, name: str) -> Tensor | None:
    found = find_tensor(component, name)
    return None if found is None else read_original(found)


def wrap_tensors(find: Callable[[str], Tensor | None]) -> FindTensor:
    """Returns what finds the same tensors as raw ones, whose bytes are made when they are wanted."""

    def find_raw(name: str) -> RawTensor | None:
        found = find(name)
        if found is None or found.is_meta:
            return None
        dtype = from_torch(found.detach().new_empty(0, device="cpu")).dtype
        return RawTensor(dtype, tuple(found.shape), _InTorch(found))

    return find_raw


@dataclass(frozen=True, slots=True, eq=False)
class _InTorch:
    """A Source over a tensor of torch, on any device."""

    tensor: Tensor

    def __len__(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    def read(self) -> bytes | memoryview:
        """Returns all bytes."""
        return from_torch(self.tensor).data

    def iter_chunks(self) -> Iterator[bytes | memoryview]:
        """Returns all bytes in pieces."""
        return InMemory(self.read()).iter_chunks()
