"""The error tree, cut by what the caller can do about it.

Every message says which thing, what it got, what was expected, and what to do next.
"""

__all__ = [
    "ArtifactError",
    "BackendError",
    "CompileError",
    "ParityError",
    "RequestCancelled",
    "RequestError",
    "SpecError",
    "VitrifyError",
]


class VitrifyError(Exception):
    """Root of everything that vitrify raises on purpose."""


class ArtifactError(VitrifyError):
    """An artifact on disk is missing, damaged, of another version, or unsafe: export or copy it again."""


class SpecError(VitrifyError, ValueError):
    """A description (component, dimension, tensor, configuration) contradicts itself or what it is used with."""


class RequestError(VitrifyError, ValueError):
    """One request asks for something this artifact cannot do: change the request."""


class RequestCancelled(VitrifyError):
    """The request was ended by its own callback; other requests are not touched."""


class BackendError(VitrifyError):
    """The execution backend is missing, cannot do what was asked, or failed: mend the installation or the target."""


class CompileError(VitrifyError):
    """A source pipeline cannot be compiled as asked: the source or the export options must change."""


class ParityError(CompileError):
    """A compiled component differs from eager PyTorch by more than its tolerance; nothing was written."""
