"""Lossless JPEG as the encoder of DDSM wrote it: predictor 7 in every row, 2^15 above the first."""

import struct

import numpy as np


def encoded(image: np.ndarray) -> bytes:
    """The stream of a grey image of 16 bits; all 17 categories have codes of five bits."""
    height, width = image.shape
    frame = struct.pack(">BHHBBBB", 16, height, width, 1, 1, 0x11, 0)
    lengths = bytes([0, 0, 0, 0, 17] + [0] * 11)
    table = b"\0" + lengths + bytes(range(17))
    scan = bytes([1, 1, 0, 7, 0, 0])
    return b"".join(
        [
            b"\xff\xd8",
            *(
                marker + struct.pack(">H", len(body) + 2) + body
                for marker, body in ((b"\xff\xc3", frame), (b"\xff\xc4", table), (b"\xff\xda", scan))
            ),
            _entropy_coded(_differences(image.astype(int))),
            b"\xff\xd9",
        ]
    )


def _differences(image: np.ndarray) -> list[int]:
    found = []
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            above = image[row - 1, column] if row else 1 << 15
            predicted = (image[row, column - 1] + above) >> 1 if column else above
            found.append(int(image[row, column] - predicted) & 0xFFFF)
    return found


def _entropy_coded(differences: list[int]) -> bytes:
    bits = ""
    for difference in differences:
        signed = difference - 65536 if difference > 32768 else difference
        category = abs(signed).bit_length() if signed != 32768 else 16
        bits += f"{category:05b}"
        if 0 < category < 16:
            bits += f"{signed if signed > 0 else signed + (1 << category) - 1:0{category}b}"
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return data.replace(b"\xff", b"\xff\0")
