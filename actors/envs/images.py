"""The order of the axes of images: which one holds the channels.

Owns that rule; must not import anything of actors but EnvError.
"""

from typing import Literal

from actors.envs.errors import EnvError

ImageLayout = Literal["HW", "HWC", "CHW", "unknown"]


def image_layout(shape: tuple[int, ...], wanted: str | None) -> ImageLayout | None:
    """The order of the last axes of a frame of two to four axes; None if it is of fewer or more.

    A frame of four axes is a stack of images of three. wanted: what the settings say about those of three.

    Without it: if two of the three axes are equal and the third is not, the third holds the channels. If all
    differ, the first or the last does, provided that it is less than half of each other. Else it is unknown.
    """
    if len(shape) == 2:
        return "HW"
    if len(shape) not in (3, 4):
        return None
    match wanted:
        case "HWC" | "CHW":
            return wanted
    first, middle, last = shape[-3:]
    if first == middle != last:
        return "HWC"
    if middle == last != first:
        return "CHW"
    if 2 * last < min(first, middle):
        return "HWC"
    return "CHW" if 2 * first < min(middle, last) else "unknown"


def image_layouts(shapes: dict[str, tuple[int, ...]], wanted: str | None) -> dict[str, ImageLayout]:
    """The layout of each array that has one, by its name.

    Raises EnvError if a layout is wanted, but no array has three or four axes.
    """
    layouts = {name: image_layout(shape, wanted) for name, shape in shapes.items()}
    if wanted is not None and not any(layout == wanted for layout in layouts.values()):
        raise EnvError(
            f"env.image_layout is {wanted}, but no observation has three axes: they are of shape "
            f"{', '.join(map(str, shapes.values()))}; leave it out"
        )
    return {name: layout for name, layout in layouts.items() if layout is not None}
