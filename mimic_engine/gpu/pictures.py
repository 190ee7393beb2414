"""How pictures reach the image encoder: as pixels from the host, or as bytes, resized on the device.

Both give the same values to the last bit; where the device's resize is not this
machine's Pillow's, it is refused. As bytes a picture may be as large as
:data:`MAX_SIDE` and :data:`MAX_BYTES` allow, so that every program has fixed
arrays; a larger one is resized on the host and only normalised on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mimic_engine.errors import BackendError
from mimic_engine.gpu.layout import Placed, Spec
from mimic_engine.gpu.pipeline import Stage
from mimic_engine.images import ImagePreprocessor
from mimic_engine.kernels.resample import pack_pictures, resample
from mimic_engine.kernels.resample_ref import axis_weights, exact_here

MAX_SIDE = 1024  # pixels of a picture that is resized on the device
MAX_BYTES = 1 << 20
PicturePlace = Literal["host", "device"]
Pixels = NDArray[Any]


class Pictures(Protocol):
    """What a request's recipe needs of pictures."""

    def prepare(self, image: Image.Image) -> Pixels:
        """A decoded picture as it waits for its batch; any thread."""
        ...

    def normalised(self, pixels: Pixels) -> NDArray[np.float32]:
        """(3, S, S) of a prepared picture, on the host."""
        ...

    def arrays(self, count: int) -> tuple[dict[str, Spec], dict[str, Spec]]:
        """Inputs and work arrays of ``count`` pictures; ``pixels`` (count, 3, S, S) is among them."""
        ...

    def fill(self, host: Mapping[str, NDArray[Any]], pictures: Sequence[Pixels]) -> None:
        """Write prepared pictures to the inputs; those beyond them repeat the last."""
        ...

    def stages(self, arrays: Mapping[str, Placed]) -> list[Stage]:
        """What makes ``pixels`` of the inputs."""
        ...


class HostPictures:
    """Pictures that are resized and normalised before they wait."""

    def __init__(self, images: ImagePreprocessor) -> None:
        self._images = images

    def prepare(self, image: Image.Image) -> Pixels:
        """(3, S, S) float32."""
        return self._images.pixels(image)

    def normalised(self, pixels: Pixels) -> NDArray[np.float32]:
        """They are."""
        return pixels

    def arrays(self, count: int) -> tuple[dict[str, Spec], dict[str, Spec]]:
        """The pixels are uploaded."""
        size = self._images.config.size
        return {"pixels": ((count, 3, size, size), np.float32)}, {}

    def fill(self, host: Mapping[str, NDArray[Any]], pictures: Sequence[Pixels]) -> None:
        """Copy the pixels."""
        for row in range(len(host["pixels"])):
            host["pixels"][row] = pictures[min(row, len(pictures) - 1)]

    def stages(self, arrays: Mapping[str, Placed]) -> list[Stage]:
        """None."""
        del arrays
        return []


class DevicePictures:
    """Pictures that wait as bytes (H, W, 3), and are resized and normalised on the device.

    Parameters
    ----------
    images : of the model; its pixels are what comes out.
    device : of the chain.

    Raises
    ------
    BackendError
        If this machine's Pillow resizes otherwise than the device does.
    """

    def __init__(self, images: ImagePreprocessor, device: torch.device) -> None:
        if not exact_here():
            raise BackendError(
                "pictures: this machine's Pillow gives other pixels than the device: use 'host'"
            )
        self._images, self._size = images, images.config.size
        self._table = torch.from_numpy(images.table).to(device)

    def prepare(self, image: Image.Image) -> Pixels:
        """The bytes, (H, W, 3); of the model's size if the picture is large."""
        large = max(image.size) > MAX_SIDE or image.width * image.height * 3 > MAX_BYTES
        return np.asarray(self._images.resized(image) if large else image)

    def normalised(self, pixels: Pixels) -> NDArray[np.float32]:
        """Resize on the host."""
        return self._images.pixels(Image.fromarray(pixels))

    def arrays(self, count: int) -> tuple[dict[str, Spec], dict[str, Spec]]:
        """Bytes, weights of two axes a picture and what the passes must know; rows between the passes."""
        size = self._size
        axis = size * (2 + axis_weights(MAX_SIDE, size).taps.shape[1])
        inputs: dict[str, Spec] = {
            "bytes": ((count * MAX_BYTES,), np.uint8),
            "weights": ((count * 2 * axis,), np.int32),
            "facts": ((count, 2, 8), np.int64),
        }
        work: dict[str, Spec] = {
            "between": ((count * MAX_SIDE * size * 3,), np.uint8),
            "pixels": ((count, 3, size, size), np.float32),
        }
        return inputs, work

    def fill(self, host: Mapping[str, NDArray[Any]], pictures: Sequence[Pixels]) -> None:
        """Pack the bytes; rows beyond them are the last picture's again, from the same bytes."""
        if not len(host["facts"]):
            return
        packed = pack_pictures(pictures, self._size)
        host["bytes"][: len(packed.pixels)] = packed.pixels
        host["weights"][: len(packed.weights)] = packed.weights
        host["facts"][: len(pictures)] = packed.facts
        host["facts"][len(pictures) :] = packed.facts[-1]

    def stages(self, arrays: Mapping[str, Placed]) -> list[Stage]:
        """The resize, with room for the largest picture: programs that have nothing to do end at once."""
        native = {name: placed.native for name, placed in arrays.items()}
        given = [native[name] for name in ("bytes", "weights", "facts")]

        def launch() -> None:
            resample(*given, self._table, native["between"], native["pixels"], MAX_SIDE, MAX_SIDE)

        return [Stage("resize", launch)]


def open_pictures(place: PicturePlace, images: ImagePreprocessor, device: torch.device) -> Pictures:
    """Pictures by where they are resized; errors as of :class:`DevicePictures`."""
    return HostPictures(images) if place == "host" else DevicePictures(images, device)
