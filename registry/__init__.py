"""The store of versions on this machine, its references and index, and the remotes others keep theirs on."""
