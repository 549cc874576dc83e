import io
import json
import os
import signal
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from dicoms import mammogram, written
from PIL import Image

from rayad import bounds
from rayad.errors import ImageError, OptionError
from rayad.imaging import decoder, dicom, raster

PIXELS = np.arange(200 * 300, dtype=np.uint16).reshape(200, 300)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def limited(monkeypatch):
    """Sets bounds for this test."""

    def limit(**limits: float) -> None:
        monkeypatch.setenv(bounds.VARIABLE, json.dumps(limits))

    return limit


def processes() -> list[psutil.Process]:
    """Those that decode for this one."""
    return [child for child in psutil.Process().children() if "rayad.imaging.decoder" in child.cmdline()]


def test_pixels_are_those_of_a_decoder_in_this_process():
    image = raster.decode(png(PIXELS), "a.png")
    np.testing.assert_array_equal(image.pixels, PIXELS)
    assert image.full_scale == 65535
    data = written(mammogram(PIXELS, bits=16))
    here = dicom.parsed(data, "a.dcm", "refuse", False)[1]
    np.testing.assert_array_equal(dicom.decode(data, "a.dcm"), here)
    header, pixels = dicom.mammogram(data, "a.dcm")
    assert header == dicom.header_of(data, "a.dcm")
    np.testing.assert_array_equal(pixels, here)


def test_pixels_can_be_changed_and_outlive_the_next_image():
    first, second = (raster.decode(png(pixels), "a.png").pixels for pixels in (PIXELS, PIXELS[::-1].copy()))
    first[0, 0] = 7
    np.testing.assert_array_equal(second, PIXELS[::-1])
    np.testing.assert_array_equal(first[1:], PIXELS[1:])


def test_one_process_decodes_many_images_and_another_takes_its_place_when_it_dies():
    raster.decode(png(PIXELS), "a.png")
    (process,) = processes()
    with pytest.raises(ImageError, match=r"b\.png: not a PNG"):
        raster.decode(b"text", "b.png")
    assert processes() == [process]
    process.kill()
    process.wait()
    np.testing.assert_array_equal(raster.decode(png(PIXELS), "a.png").pixels, PIXELS)
    assert process not in processes()


def test_an_end_of_the_process_is_an_error_of_the_image_alone():
    raster.decode(png(PIXELS), "a.png")
    (process,) = processes()
    process.suspend()  # so that it has the image when it ends
    threading.Timer(0.5, lambda: (os.kill(process.pid, signal.SIGABRT), process.resume())).start()
    with pytest.raises(ImageError, match=r"a\.png: damaged, its decoder ended by SIGABRT"):
        raster.decode(png(PIXELS), "a.png")
    np.testing.assert_array_equal(raster.decode(png(PIXELS), "a.png").pixels, PIXELS)


def test_what_takes_too_long_is_ended(limited):
    limited(decode_seconds=0.01)
    noise = np.random.default_rng(0).integers(0, 65536, (4000, 4000)).astype(np.uint16)
    with pytest.raises(ImageError, match=r"a\.png: decoding took longer than bounds\.decode_seconds=0\.01 s"):
        raster.decode(png(noise), "a.png")


def test_what_takes_too_much_memory_is_refused(limited):
    limited(memory_mb=20)
    with pytest.raises(ImageError, match=r"a\.png: .*more than bounds\.memory_mb=20"):
        raster.decode(png(np.zeros((6000, 6000), np.uint16)), "a.png")
    np.testing.assert_array_equal(raster.decode(png(PIXELS), "a.png").pixels, PIXELS)


def test_files_and_images_above_the_bounds_are_refused_by_name(limited, tmp_path):
    limited(pixels=1000, file_mb=1)
    with pytest.raises(ImageError, match=r"a\.png: 200 x 300 pixels are more than bounds\.pixels=1000"):
        raster.decode(png(PIXELS), "a.png")
    large = tmp_path / "a.dcm"
    large.write_bytes(bytes(1_000_001))
    with pytest.raises(ImageError, match=r"a\.dcm: 1 MB are more than bounds\.file_mb=1"):
        dicom.read(str(large))


def test_what_nobody_waits_for_is_ended():
    noise = np.random.default_rng(0).integers(0, 65536, (6000, 6000)).astype(np.uint16)
    data, began = png(noise), time.monotonic()

    def gone() -> None:
        raise bounds.NotWanted

    with bounds.while_wanted(gone), pytest.raises(bounds.NotWanted):
        raster.decode(data, "a.png")
    assert time.monotonic() < began + 1
    assert not processes()


def test_processes_end_with_the_one_that_they_decode_for():
    script = (
        "import os, sys, time\nfrom rayad.imaging import raster\n"
        "raster.decode(sys.stdin.buffer.read(), 'a.png')\n"
        "print('done', flush=True)\ntime.sleep(60)"
    )
    parent = psutil.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1)
    parent.stdin.write(png(PIXELS))
    parent.stdin.close()
    assert parent.stdout.readline() == b"done\n"
    children = parent.children()
    assert len(children) == 1
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_bounds_are_above_zero_and_of_the_environment(monkeypatch):
    with pytest.raises(OptionError, match=r"bounds\.pixels must be above 0, not 0"):
        bounds.Bounds(pixels=0)
    monkeypatch.setenv(bounds.VARIABLE, '{"places": 3}')
    assert bounds.current() == bounds.Bounds(places=3)
    monkeypatch.setenv(bounds.VARIABLE, "[1]")
    with pytest.raises(OptionError, match="RAYAD_BOUNDS is not the bounds of an image in JSON"):
        bounds.current()


def test_work_ends_when_its_time_is_over_or_nobody_waits_for_it():
    bounds.go_on()
    with bounds.within(0.01, "score_seconds"):
        time.sleep(0.02)
        with pytest.raises(ImageError, match=r"it took longer than bounds\.score_seconds=0\.01 s"):
            bounds.go_on()
    bounds.go_on()


def test_an_answer_that_is_not_there_is_none():
    memory = decoder._shared(b"1234")
    with pytest.raises(ImageError, match="which are not there"):
        decoder._pixels(memory, "uint16", (3,))
    with pytest.raises(ImageError, match="which are not there"):
        decoder._pixels(memory, "object", (1,))
    np.testing.assert_array_equal(decoder._pixels(memory, "uint8", (4,)), list(b"1234"))
    os.close(memory)
