"""The viewer and the batch page in a real browser, against a server that answers by contract."""

import base64
import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib import colormaps
from playwright.sync_api import expect

from rayad.evaluation import figures
from tests.contract import CSP, batch

PNG = b"\x89PNG\r\n"
HOSTILE = '<img src="x" onerror="document.title=1"><script>document.title=1</script>'


@contextmanager
def opened(chromium, server, path="/", *, quiet=True, **options):
    """A page of the server; afterwards its console is clean and every request went to the server."""
    context = chromium.new_context(viewport={"width": 1280, "height": 860}, **options)
    page = context.new_page()
    page.set_default_timeout(15_000)
    said, asked = [], []
    page.on("console", lambda message: message.type == "error" and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url + path)
    yield page
    context.close()
    assert said == [] or not quiet
    assert [url for url in asked if not url.startswith((server.url + "/", "data:", "blob:"))] == []


@pytest.fixture
def page(chromium, server):
    with opened(chromium, server) as page:
        yield page


def give(page, *names, content=PNG):
    page.set_input_files("#files", [{"name": name, "mimeType": "image/png", "buffer": content} for name in names])


def scored(page, *names, content=PNG):
    """Open images and wait for the answer."""
    give(page, *(names or ["one.png"]), content=content)
    expect(page.locator("#result .figures")).to_be_visible()
    expect(page.locator("#status")).to_be_empty()


def press(page, keys):
    for key in keys:
        page.keyboard.press(key)


def screen(page, index=0):
    """The pixels of a pane's canvas: h w 3."""
    script = """(canvas) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let text = "";
        for (let i = 0; i < data.length; i += 32768) text += String.fromCharCode(...data.subarray(i, i + 32768));
        done([canvas.height, canvas.width, btoa(text)]);
    })))"""
    height, width, data = page.locator(".pane canvas").nth(index).evaluate(script)
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[:, :, :3].astype(float)


def corner(screen, shape):
    """Row and column of the screen where the image begins that is shown at 1:1 in its middle."""
    return tuple(int((screen[i] - shape[i]) / 2 + 0.5) for i in (0, 1))


def life_size(page, shape, index=0):
    """The image as the canvas shows it at 1:1 after fitting: its middle is the canvas's middle."""
    press(page, "fz")
    shown = screen(page, index)
    top, left = corner(shown.shape, shape)
    return shown[top : top + shape[0], left : left + shape[1]]


def gray(pixels, low, high):
    return np.clip((pixels.astype(float) - low) / (high - low), 0, 1)[:, :, None] * 255


def cells(arrays, values):
    """Values of the grid's cells, 8 px wide, at every pixel of the image."""
    return np.kron(values, np.ones((8, 8) + (1,) * (values.ndim - 2)))


def test_pixels_of_full_depth_have_the_shade_that_the_window_gives_them(page, server):
    arrays = server.answers["context-spn"].arrays
    pixels = arrays["pixels"]
    scored(page)
    press(page, "hma")
    assert np.abs(life_size(page, pixels.shape) - gray(pixels, 0, 65535))[:400].max() <= 1
    press(page, "i")
    assert np.abs(life_size(page, pixels.shape) - 255 + gray(pixels, 0, 65535))[:400].max() <= 1
    press(page, "it")
    tissue = pixels[cells(arrays, arrays["tissue"]).astype(bool)]
    low, high = np.quantile(tissue, [0.005, 0.995], method="inverted_cdf")
    assert np.abs(life_size(page, pixels.shape) - gray(pixels, low, high))[:400].max() <= 1


def test_a_colour_image_of_eight_bits_keeps_its_colours(page, server):
    colours = np.random.default_rng(0).integers(0, 256, (512, 384, 3), dtype=np.uint8)
    server.answers["context-spn"].arrays["pixels"] = colours
    scored(page)
    press(page, "hma")
    assert np.abs(life_size(page, colours.shape) - colours)[:400].max() <= 1


def heated(arrays, limit=1.0, opacity=0.7):
    """The image under its heatmap, by matplotlib's own colours."""
    shown = np.where(arrays["p_values"] <= limit * (1 + 1e-6), arrays["healthy_quantile"], np.nan)
    colours = figures.color_map()(figures.color_norm()(np.ma.masked_invalid(shown)))
    colours[np.isnan(shown)] = 0
    colours = cells(arrays, colours)
    alpha = opacity * colours[:, :, 3:]
    return gray(arrays["pixels"], 0, 65535) * (1 - alpha) + 255 * colours[:, :, :3] * alpha


def test_the_heatmap_has_the_colours_of_the_reports_and_the_threshold_hides_places(page, server):
    arrays = server.answers["context-spn"].arrays
    scored(page)
    press(page, "ma")
    assert np.abs(life_size(page, (512, 384)) - heated(arrays))[:400].max() <= 4
    page.locator("#limit").fill("0")
    expect(page.locator("#limit-text")).to_have_text("p ≤ 0.012")
    hidden = heated(arrays, limit=1 / 81)
    assert np.abs(hidden - heated(arrays)).max() > 50
    assert np.abs(life_size(page, (512, 384)) - hidden)[:400].max() <= 4


def test_the_marked_region_has_a_border_along_its_cells(page, server):
    arrays = server.answers["context-spn"].arrays
    scored(page)
    press(page, "ham")
    bare = life_size(page, (512, 384))
    press(page, "m")
    drawn = np.abs(life_size(page, (512, 384)) - bare).max(axis=2) > 40
    marked = cells(arrays, np.nan_to_num(arrays["healthy_quantile"]) > 0.99).astype(bool)
    row, column = np.argwhere(marked & ~np.roll(marked, 1, axis=1) & ~np.roll(marked, -1, axis=0))[0]
    assert drawn[row - 4, column - 1 : column + 2].any()


def test_the_cursor_reads_pixel_place_and_figures(page, server):
    arrays = server.answers["context-spn"].arrays
    scored(page)
    press(page, "fz")
    row, column = np.argwhere(cells(arrays, arrays["tissue"]))[9000]
    box = page.locator(".pane canvas").bounding_box()
    top, left = corner((box["height"], box["width"]), (512, 384))
    page.mouse.move(box["x"] + left + column + 0.5, box["y"] + top + row + 0.5)
    at = row // 8, column // 8
    said = page.locator(".pane output")
    expect(said).to_contain_text(f"row {row}, column {column}")
    expect(said).to_contain_text(f"value {arrays['pixels'][row, column]}")
    text = said.inner_text()
    x, y, score, quantile = map(float, re.findall(r"(?:[xy]|score|healthy quantile) (-?[\d.]+)", text))
    assert (x, y) == pytest.approx(((column + 0.5) * 0.4, (row + 0.5) * 0.4), abs=0.25)
    assert score == pytest.approx(float(arrays["scores"][at]), rel=0.01)
    assert quantile == pytest.approx(float(arrays["healthy_quantile"][at]), rel=0.001)
    assert float(re.search(r"p [=≤] ([\d.]+)", text).group(1)) == pytest.approx(float(arrays["p_values"][at]), rel=0.05)


def test_a_finding_is_centred_by_click_and_by_key(page, server):
    found = server.answers["context-spn"].described["findings"]
    scored(page)
    page.locator("#findings #finding-1").click()
    row, column = int(found[1]["row"]), int(found[1]["column"])
    expect(page.locator(".pane output")).to_contain_text(f"row {row}, column {column}")
    expect(page.locator("#findings [aria-current=true]")).to_have_attribute("id", "finding-1")
    box = page.locator(".pane canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2 + 1)
    expect(page.locator(".pane output")).to_contain_text(f"row {row}, column {column}")
    press(page, ["1"])
    expect(page.locator(".pane output")).to_contain_text(f"column {int(found[0]['column'])}")
    press(page, ["Shift+ArrowRight"])
    expect(page.locator(".pane output")).not_to_contain_text(f"column {int(found[0]['column'])}")
    press(page, ["n"])
    expect(page.locator("#findings [aria-current=true]")).to_have_attribute("id", "finding-1")


def test_the_image_has_its_score_its_p_and_what_so_few_patients_can_say(page, server):
    scored(page)
    said = server.answers["context-spn"].described
    expect(page.locator("#result")).to_contain_text(f"{said['score']:.3g}")
    expect(page.locator("#result")).to_contain_text("p ≤ 1/81 is the least that K = 80 healthy patients can say")
    page.locator("summary").click()
    expect(page.locator("#card")).to_contain_text("mammogram")


def test_detectors_are_compared_with_one_request_each_and_move_together(page, server):
    scored(page)
    page.locator("#choose-1").check()
    press(page, ["c"])
    expect(page.locator(".pane")).to_have_count(2)
    expect(page.locator("#status")).to_be_empty()
    asked = [line for line in server.asked if "/v1/score" in line]
    assert ["include=pixels" in line for line in asked] == [True, False]
    press(page, "hma")
    box = page.locator(".pane canvas").first.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 300)
    page.mouse.wheel(0, -300)
    page.mouse.down()
    page.mouse.move(box["x"] + 230, box["y"] + 250, steps=3)
    page.mouse.up()
    page.mouse.move(box["x"] + 400, box["y"] + 500)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 300, box["y"] + 480, steps=3)
    page.mouse.up(button="right")
    page.mouse.move(5, 5)
    one, two = screen(page, 0), screen(page, 1)
    assert one.std() > 10
    assert np.array_equal(one[: int(box["height"]) - 60], two[: int(box["height"]) - 60])
    assert page.locator(".top.right").first.inner_text() == page.locator(".top.right").last.inner_text()


def test_the_wheel_zooms_at_the_cursor(page, server):
    scored(page)
    box = page.locator(".pane canvas").bounding_box()

    def seen():
        page.mouse.move(box["x"] + 400.5, box["y"] + 300.5)
        screen(page)
        place = re.search(r"x ([\d.]+) mm, y ([\d.]+) mm", page.locator(".pane output").inner_text())
        percent = re.search(r"([\d.]+) %", page.locator(".pane .top.right").inner_text())
        return np.array(place.groups(), float), float(percent[1])

    place, percent = seen()
    page.mouse.wheel(0, -100)
    page.mouse.wheel(0, -100)
    expect(page.locator(".pane .top.right")).to_contain_text(f"{percent * 2**0.5:.3g} %")
    assert seen()[0] == pytest.approx(place, abs=0.11)
    page.mouse.wheel(0, 100)
    expect(page.locator(".pane .top.right")).to_contain_text(f"{percent * 2**0.25:.3g} %")


def test_the_healthy_version_and_the_difference_are_asked_for_when_they_are_wanted(page, server):
    arrays = server.answers["context-spn"].arrays
    scored(page)
    assert not any("counterfactual" in line for line in server.asked)
    press(page, "me")
    expect(page.locator("#status")).to_be_empty()
    shown = life_size(page, (512, 384))
    wanted = colormaps["RdBu_r"]((arrays["change"] + 0.5).clip(0, 1))[:, :, :3] * 255
    assert np.abs(shown - np.kron(wanted, np.ones((2, 2, 1))))[:400].max() <= 4
    press(page, "wa")
    healthy = gray(np.kron(arrays["counterfactual"] * 65535, np.ones((2, 2))), 0, 65535)
    assert np.abs(life_size(page, (512, 384)) - healthy)[:400].max() <= 1
    assert sum("include=counterfactual" in line for line in server.asked) == 1


def test_several_images_are_a_strip_to_switch_between(page):
    scored(page, "a.png", "b.png", "c.png")
    strip = page.locator("#strip [aria-current]")
    expect(strip).to_have_count(3)
    expect(page.locator("#strip canvas")).to_have_count(3)
    press(page, ["PageDown"])
    expect(strip.nth(1)).to_have_attribute("aria-current", "true")
    expect(page.locator(".pane canvas")).to_have_attribute("aria-label", re.compile("^b.png, context-spn: score"))
    assert screen(page).std() > 10


def test_a_dropped_image_is_scored_with_the_spacing_and_view_that_were_given(page, server):
    page.locator("#spacing").fill("0.2")
    page.locator("#projection").select_option("MLO")
    transfer = page.evaluate_handle("""() => {
        const transfer = new DataTransfer();
        transfer.items.add(new File(["x"], "dropped.png"));
        return transfer;
    }""")
    page.dispatch_event("#viewport", "drop", {"dataTransfer": transfer})
    expect(page.locator("#result .figures")).to_be_visible()
    assert any("spacing_mm=0.2&view=MLO" in line for line in server.asked)


def test_what_the_server_refuses_is_said_in_place_and_can_be_mended(chromium, server):
    server.refusal = "one.png: no PixelSpacing: give spacing_mm"
    with opened(chromium, server, quiet=False) as page:
        give(page, "one.png")
        expect(page.locator(".pane .message")).to_contain_text(server.refusal)
        expect(page.locator("#spacing")).to_have_attribute("aria-invalid", "true")
        page.locator("#spacing").fill("0.4")
        page.keyboard.press("Enter")
        expect(page.locator("#result .figures")).to_be_visible()
        expect(page.locator(".pane .message")).to_be_empty()


def test_a_token_is_asked_for_once_and_kept_in_the_tab_alone(chromium, server):
    server.token = "secret-token"
    with opened(chromium, server, quiet=False) as page:
        page.locator("#token input").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token .problem")).to_contain_text("a token is needed")
        page.locator("#token input").fill(server.token)
        page.keyboard.press("Enter")
        scored(page)
        kept = page.evaluate("() => [JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie]")
        assert ["secret-token" in text for text in kept] == [False, True, False]
        page.reload()
        expect(page.locator("#detectors li")).to_have_count(2)


def test_everything_has_a_key_and_the_help_says_which(page):
    scored(page)
    press(page, ["?"])
    expect(page.locator("#help")).to_be_visible()
    assert page.locator("#keys kbd").count() > 25
    press(page, ["Escape", "l"])
    theme = page.locator("html")
    expect(theme).to_have_attribute("data-theme", "dark")
    for _ in range(40):
        press(page, ["Tab"])
        shown = page.evaluate(
            "() => { const s = getComputedStyle(document.activeElement);"
            " return document.activeElement === document.body || s.outlineStyle !== 'none'; }"
        )
        assert shown, page.evaluate("() => document.activeElement.outerHTML")
    unnamed = (
        "() => [...document.querySelectorAll('button, input, select, canvas')].filter((e) => !e.hidden && !("
        "e.textContent.trim() || e.ariaLabel || e.ariaHidden || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert page.evaluate(unnamed) == []


@pytest.mark.parametrize("width", [1280, 800])
def test_the_page_fits_the_window_and_always_says_what_it_is_not_for(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    scored(page, "a.png", "b.png")
    research = page.locator("#research")
    expect(research).to_have_text("For research use only. Not a medical device; not for diagnosis or treatment.")
    expect(research).to_be_in_viewport()
    assert page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_downloads_are_what_the_server_said(page, server):
    scored(page, "one.dcm", content=b"\0" * 128 + b"DICM")
    with page.expect_download() as got:
        page.get_by_role("button", name="npz").click()
    assert got.value.suggested_filename == "one-context-spn.npz"
    with np.load(got.value.path()) as arrays:
        assert np.array_equal(arrays["pixels"], server.answers["context-spn"].arrays["pixels"])
    with page.expect_download() as got:
        page.get_by_role("button", name="JSON").click()
    with open(got.value.path(), encoding="utf-8") as file:
        assert json.load(file) == server.answers["context-spn"].described
    with page.expect_download() as got:
        page.get_by_role("button", name="DICOM SR").click()
    assert got.value.suggested_filename == "one-context-spn-sr.dcm"
    assert "object=sr" in server.asked[-1]


def test_markup_in_names_findings_and_problems_stays_text(chromium, server):
    said = server.answers["context-spn"]
    server.cards[0] |= {"name": HOSTILE, "summary": HOSTILE, "provenance": {HOSTILE: HOSTILE}}
    server.answers[HOSTILE] = said
    said.described["findings"][0] |= {"size_mm2": HOSTILE, "score": HOSTILE}
    server.cards[1]["name"] = "refusing"
    with opened(chromium, server) as page:
        scored(page, f"{HOSTILE}.png", "two.png")
        page.locator("summary").click()
        expect(page.locator("#findings")).to_contain_text(HOSTILE)
        expect(page.locator("#detectors")).to_contain_text(HOSTILE)
        expect(page.locator(".pane")).to_contain_text(HOSTILE)
        assert page.locator("img, body script").count() == 0
        assert page.title() == "rayad viewer"
    server.refusal = HOSTILE
    with opened(chromium, server, quiet=False) as page:
        give(page, "one.png")
        expect(page.locator(".pane .message")).to_have_text(HOSTILE)
        assert page.locator("img").count() == 0


def test_the_policy_forbids_inline_scripts_and_other_origins(chromium, server):
    with opened(chromium, server, quiet=False) as page:
        assert page.request.get(server.url).headers["content-security-policy"] == CSP
        ran = page.evaluate("""async () => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'ran'";
            document.head.append(script);
            const away = await fetch("https://example.org/").then(() => "reached", () => "blocked");
            return [document.title, away];
        }""")
        assert ran == ["rayad viewer", "blocked"]


def test_a_damaged_answer_is_said_in_place(page, server):
    server.answers["context-spn"].arrays["scores"] = np.zeros((3, 3), np.float32)
    give(page, "one.png")
    expect(page.locator(".pane .message")).to_have_text("scores do not fit the heatmap's grid")


@pytest.fixture
def night(server):
    one = batch("night", "context-spn", "s3://results/night/", total=4) | {"done": 2, "failed": 1}
    one["failures"] = [{"image": "s3://images/3.dcm", "reason": HOSTILE}]
    one["results"] = [
        {"image": f"s3://images/{name}.dcm", "name": name, "score": 3.0, "p_value": p}
        for name, p in (("a", 0.5), ("b", 0.0123), ("c", 0.2))
    ]
    server.batches.append(one)
    return one


def test_a_batch_shows_progress_failures_and_results_by_p(chromium, server, night):
    with opened(chromium, server, "/batches", color_scheme="dark") as page:
        row = page.locator("#batches tbody tr")
        expect(row).to_contain_text("3 of 4")
        assert row.locator("progress").evaluate("(bar) => bar.value / bar.max") == 0.75
        row.get_by_role("button", name="night", exact=True).click()
        expect(page.locator("#results td:first-child")).to_have_text(["b", "c", "a"])
        expect(page.locator("#failures")).to_contain_text(HOSTILE)
        assert page.locator("img").count() == 0
        night["total"] = None
        expect(row).to_contain_text("3 of …")
        night |= {"done": 3, "total": 4}
        expect(row).to_contain_text("4 of 4")
        row.get_by_role("button", name="cancel night").press("Enter")
        expect(row).to_contain_text("cancelled")
        assert "DELETE /v1/batches/night" in server.asked


def test_a_batch_is_started_from_a_list_and_refusals_are_said_in_place(chromium, server):
    with opened(chromium, server, "/batches", quiet=False) as page:
        page.get_by_label("a list").check()
        page.get_by_label("URLs, one a line").fill("s3://images/1.dcm\n\n s3://images/2.dcm ")
        page.get_by_label("Results go to").fill("ftp://elsewhere")
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#refused")).to_have_text("out: ftp://elsewhere is no URL that this server may write to")
        page.get_by_label("Results go to").fill("s3://results/")
        with page.expect_request(lambda request: request.method == "POST") as asked:
            page.get_by_role("button", name="Start").click()
        assert asked.value.post_data_json == {
            "urls": ["s3://images/1.dcm", "s3://images/2.dcm"],
            "out": "s3://results/",
            "detector": "context-spn",
            "results": ["json", "png"],
        }
        expect(page.locator("#batch-title")).to_have_text("b0")
        expect(page.locator("#refused")).to_be_empty()


def test_two_fingers_zoom_where_they_are_and_one_pans(chromium, server):
    with opened(chromium, server, has_touch=True) as page:
        scored(page)
        press(page, "z")
        box = page.locator(".pane canvas").bounding_box()
        fingers = page.context.new_cdp_session(page)

        def touch(kind, *points):
            points = [{"x": box["x"] + x, "y": box["y"] + y, "id": i} for i, (x, y) in enumerate(points)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        def place():
            screen(page)
            found = re.search(r"row (\d+), column (\d+)", page.locator(".pane output").inner_text())
            return np.array(found.groups(), int)

        touch("touchStart", (400, 300), (460, 300))
        touch("touchMove", (370, 300), (490, 300))
        touch("touchEnd")
        expect(page.locator(".pane .top.right")).to_contain_text("200 %")
        touch("touchStart", (430, 300))
        before = place()
        touch("touchMove", (450, 320))
        assert place() == pytest.approx(before, abs=1)
        touch("touchEnd")


def test_an_image_is_opened_by_its_url_and_closed(page, server):
    press(page, ["u"])
    page.get_by_label("URLs, one a line").fill("s3://images/a.dcm\ns3://images/b.png\n")
    page.get_by_role("button", name="Open", exact=True).press("Enter")
    expect(page.locator("#strip canvas")).to_have_count(2)
    expect(page.locator("#strip .name")).to_have_text(["a.dcm", "b.png"])
    page.get_by_role("button", name="close b.png").click()
    expect(page.locator("#strip .name")).to_have_text(["a.dcm"])
    press(page, ["Delete"])
    expect(page.locator("#hint")).to_be_visible()


def test_the_heatmap_lies_over_the_difference_when_it_is_wanted(page, server):
    scored(page)
    press(page, "me")
    expect(page.locator("#status")).to_be_empty()
    heat = page.get_by_role("button", name="Heatmap")
    expect(heat).to_have_attribute("aria-pressed", "false")
    bare = life_size(page, (512, 384))
    press(page, "h")
    expect(heat).to_have_attribute("aria-pressed", "true")
    assert np.abs(life_size(page, (512, 384)) - bare).max() > 50
    press(page, "qhe")
    expect(heat).to_have_attribute("aria-pressed", "true")


def test_a_token_that_was_not_given_is_given_later(chromium, server):
    server.token = "secret-token"
    with opened(chromium, server, quiet=False) as page:
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#problem")).to_have_text("The server wants a token.")
        expect(page.locator("#token")).to_have_count(0)
        press(page, ["k"])
        page.locator("#token input").fill(server.token)
        page.keyboard.press("Enter")
        expect(page.locator("#detectors li")).to_have_count(2)
        expect(page.locator("#problem")).to_be_empty()
        expect(page.locator("#token-button")).to_be_hidden()


def test_what_may_be_wrong_with_an_image_stands_beside_its_score(page, server):
    for answer in server.answers.values():
        answer.described["doubts"] = [{"kind": "depth", "sentence": f"values end at 4,095 {HOSTILE}"}]
    scored(page)
    expect(page.locator("#result .doubt")).to_have_text(f"Doubtful: values end at 4,095 {HOSTILE}.")
