"""The store of versions on this machine, its references and index, and the remotes others keep theirs on."""

from conceptry.registry.listing import Filter
from conceptry.registry.refs import Resolved
from conceptry.registry.registry import Registry
from conceptry.registry.rows import ListedVersion

__all__ = ["Filter", "ListedVersion", "Registry", "Resolved"]
