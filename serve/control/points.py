"""The thresholds of points of a dial, remembered."""

from ...runtime.dial import Dial, Thresholds, resolve
from ...runtime.format.manifest import Manifest

MOST = 256
"""Points to remember: a client may send any lowest one."""


class Points:
    """The thresholds of a calibrated model's dial, so that moving it costs no search in the curve."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._thresholds: dict[float, Thresholds] = {}

    def at(self, compute: float) -> Thresholds:
        """Return the thresholds of a point; not to be changed."""
        if compute not in self._thresholds:
            if len(self._thresholds) >= MOST:
                self._thresholds.clear()
            self._thresholds[compute] = resolve(self._manifest, Dial(compute=compute))
        return self._thresholds[compute]
