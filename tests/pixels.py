"""Pictures, read by a browser."""

from __future__ import annotations

import base64
from typing import Any

_READ = """async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const image = await createImageBitmap(new Blob([bytes])), canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.width, image.height);
}"""
# parts are put together as text: a page with a strict policy doesn't evaluate any
_MEANT = f"""async (text) => {{
    const {{ data }} = await ({_READ})(text);
    let n = 0;
    for (let i = 0; i < data.length; i += 4) n += (IS_MEANT)(data.subarray(i, i + 3));
    return 4 * n / data.length;
}}"""
_OTHERS = f"""async (texts) => {{
    const [a, b] = await Promise.all(texts.map({_READ}));
    if (a.width !== b.width || a.height !== b.height) return 1;
    let n = 0;
    for (let i = 0; i < a.data.length; i += 4) n += [0, 1, 2].some((k) => Math.abs(a.data[i + k] - b.data[i + k]) > 64);
    return 4 * n / a.data.length;
}}"""


def share_of(page: Any, picture: bytes, colour: tuple[int, int, int]) -> float:
    """How much of a picture is of a colour."""
    return share_where(page, picture, f"(pixel) => {list(colour)}.every((value, k) => Math.abs(pixel[k] - value) < 6)")


def share_where(page: Any, picture: bytes, is_meant: str) -> float:
    """How many pixels of a picture, as [red, green, blue], a function in JavaScript is true of."""
    return float(page.evaluate(_MEANT.replace("IS_MEANT", is_meant), _text(picture)))


def share_of_others(page: Any, one: bytes, two: bytes) -> float:
    """How many pixels of two pictures are plainly different; all of them where the sizes are."""
    return float(page.evaluate(_OTHERS, [_text(one), _text(two)]))


def _text(picture: bytes) -> str:
    return base64.b64encode(picture).decode()
