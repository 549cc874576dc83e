"""A small server that answers the viewer as rayad's API does: a phantom, plausible heatmaps, batches in memory."""

import io
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from urllib.parse import parse_qs, urlsplit

import numpy as np
from scipy import ndimage, stats

from rayad.datasets.phantom import Dataset
from rayad.heatmaps.findings import findings
from rayad.scoring.regions import ALARM
from rayad.serving import RESEARCH_USE

CSP = "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'"
TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
MIRRORED = b"the other breast"
"""The file of an image that is the phantom's other side."""
PAGES = {"/": "index.html", "/batches": "batches.html"}


@dataclass(frozen=True)
class Answer:
    """What a detector says of the phantom."""

    arrays: dict[str, np.ndarray]
    described: dict

    def mirrored(self) -> "Answer":
        """Of the phantom's other side."""
        columns = self.described["image"]["columns"]
        arrays = {name: array[:, ::-1] if array.ndim == 2 else array for name, array in self.arrays.items()}
        arrays["cols"] = columns - self.arrays["cols"][::-1]
        findings = [found | {"column": columns - found["column"]} for found in self.described["findings"]]
        return Answer(arrays, self.described | {"findings": findings})

    def npz(self, include: str, compressed: bool) -> bytes:
        known = {"scores", "p_values", "healthy_quantile", "rows", "cols", "tissue", *include.split(",")}
        known |= {"change"} if "counterfactual" in known else set()
        arrays = {name: array for name, array in self.arrays.items() if name in known}
        arrays["answer"] = np.frombuffer(json.dumps(self.described).encode(), np.uint8)
        buffer = io.BytesIO()
        (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
        return buffer.getvalue()


def card(name: str, patients: int, counterfactual: bool) -> dict:
    return {
        "name": name,
        "sha256": "0123456789abcdef" * 4,
        "score": "context" if counterfactual else "top-hat",
        "summary": f"{name}, calibrated by {patients} healthy patients",
        "calibration_patients": patients,
        "p_value_floor": 1 / (patients + 1),
        "step_mm": 3.2,
        "preprocessing": {"kind": "mammogram", "spacing_mm": 0.4, "intensity": "relative"},
        "counterfactual": counterfactual,
        "provenance": {"commit": "0123abc", "seed": 0, "corpus": "phantom"},
    }


def answer(card: dict, data: Dataset, seed: int, step_mm: float = 3.2) -> Answer:
    """Scores that are high at the phantom's lesions, judged by as many healthy patients as the card says."""
    exam = next(exam for exam in data.exams() if exam.lesions)
    pixels, step = data.pixels(exam), round(step_mm / data.spacing_mm)
    lesion = np.any([data.lesion_mask(exam, one) for one in exam.lesions], axis=0)
    rows, cols = (np.arange(step // 2, size - step // 2 + 1, step) for size in pixels.shape)
    mean = ndimage.uniform_filter(pixels, step)[np.ix_(rows, cols)]
    tissue = ndimage.binary_erosion(ndimage.binary_opening(mean > 0.08))
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=tissue.shape), 1)
    near = ndimage.gaussian_filter(lesion.astype(float), 0.6 * step)[np.ix_(rows, cols)]
    scores = np.where(tissue, 0.9 * noise / noise.std() + 4.5 * near, np.nan).astype(np.float32)
    rank = np.ceil((card["calibration_patients"] + 1) * stats.norm.sf(scores))
    quantile = stats.norm.cdf(scores).astype(np.float32)
    p_values = (np.maximum(rank, 1) / (card["calibration_patients"] + 1)).astype(np.float32)
    p_values[~tissue] = np.nan
    found, total = findings(scores, quantile, ALARM, step_mm)
    healthy = ndimage.gaussian_filter(pixels, 6 * lesion.std() + 3)[::2, ::2].astype(np.float32)
    return Answer(
        {
            "scores": scores,
            "p_values": p_values,
            "healthy_quantile": quantile,
            "rows": rows.astype(np.float32),
            "cols": cols.astype(np.float32),
            "tissue": tissue,
            "pixels": np.round(pixels * 65535).astype(np.uint16),
            "counterfactual": healthy,
            "change": pixels[::2, ::2].astype(np.float32) - healthy,
        },
        {
            "research_use_only": RESEARCH_USE,
            "detector": {"name": card["name"], "sha256": card["sha256"]},
            "image": {"rows": pixels.shape[0], "columns": pixels.shape[1], "spacing_mm": data.spacing_mm}
            | {"view": "MLO", "laterality": ""},
            "score": float(np.nanmax(scores)),
            "p_value": float(np.nanmin(p_values)),
            "p_value_floor": card["p_value_floor"],
            "calibration_patients": card["calibration_patients"],
            "findings": [_finding(one, step_mm, rows, cols, p_values) for one in found],
            "findings_total": total,
            "patient_p_value": float(np.nanmin(p_values)),
            "patient_images": 2,
            "doubts": [],
            "seconds": {"read": 0.1, "score": 0.4},
        },
    )


def _finding(found, step_mm: float, rows: np.ndarray, cols: np.ndarray, p_values: np.ndarray) -> dict:
    row, col = int(found.row_mm / step_mm), int(found.col_mm / step_mm)
    return {
        "row": float(rows[row]),
        "column": float(cols[col]),
        "size_mm2": found.size_mm2,
        "score": found.score,
        "p_value": float(p_values[row, col]),
        "healthy_quantile": found.healthy_quantile,
    }


@dataclass
class Contract:
    """What the server knows; tests change it while it runs."""

    cards: list[dict]
    answers: dict[str, Answer]
    token: str = ""
    refusal: str = ""
    """Detail of the problem that scoring ends in."""
    batches: list[dict] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    url: str = ""

    def start(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"contract": self}))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        return server


def phantom(data: Dataset) -> Contract:
    """Two detectors of one phantom image, one with counterfactuals."""
    cards = [card("context-spn", 80, True), card("top-hat", 24, False)]
    return Contract(cards, {one["name"]: answer(one, data, seed) for seed, one in enumerate(cards)})


class _Handler(BaseHTTPRequestHandler):
    contract: Contract
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._serve()

    def do_POST(self):
        self._serve()

    def do_DELETE(self):
        self._serve()

    def log_message(self, format, *args):
        pass

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, contract = urlsplit(self.path).path, self.contract
        contract.asked.append(f"{self.command} {self.path}")
        if path in PAGES or path.startswith("/web/"):
            return self._file(PAGES.get(path, path.removeprefix("/web/")))
        if contract.token and self.headers.get("Authorization") != f"Bearer {contract.token}":
            return self._problem(401, "a token is needed: Authorization: Bearer TOKEN")
        if path == "/v1/detectors":
            first = contract.cards[0]["name"]
            return self._json({"detectors": contract.cards, "default": first, "research_use_only": RESEARCH_USE})
        if path == "/v1/score":
            return self._score(body)
        if path.startswith("/v1/batches"):
            return self._batches(path.removeprefix("/v1/batches").strip("/"), body)
        return self._problem(404, f"there is no {path}")

    def _score(self, body: bytes):
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        if self.contract.refusal and "spacing_mm" not in query:
            return self._problem(422, self.contract.refusal)
        found = self.contract.answers[query["detector"]]
        found = found.mirrored() if body == MIRRORED else found
        kind = self.headers["Accept"]
        if kind == "application/x-npz":
            include = query.get("include", "")
            return self._send(200, kind, found.npz(include, compressed="counterfactual" not in include))
        return self._send(200, kind, json.dumps(found.described).encode())

    def _batches(self, name: str, body: bytes):
        batches = self.contract.batches
        if self.command == "POST":
            asked = json.loads(body)
            if not asked["out"].startswith(("s3://", "/")):
                return self._problem(422, f"out: {asked['out']} is no URL that this server may write to")
            batches.insert(0, batch(f"b{len(batches)}", asked["detector"], asked["out"], total=4))
            return self._json(batches[0], 202)
        if not name:
            return self._json({"batches": [_short(one) for one in batches]})
        found = next(one for one in batches if one["id"] == name)
        if self.command == "DELETE":
            found["state"] = "cancelled"
            return self._json(found, 202)
        return self._json(found)

    def _json(self, value: dict, status: int = 200):
        self._send(status, "application/json", json.dumps(value).encode())

    def _problem(self, status: int, detail: str):
        problem = {"type": "about:blank", "title": "Refused", "status": status, "detail": detail}
        self._send(status, "application/problem+json", json.dumps(problem).encode())

    def _file(self, name: str):
        file = resources.files("rayad") / "web" / name
        self._send(200, TYPES[name.rsplit(".", 1)[1]], file.read_bytes())

    def _send(self, status: int, kind: str, body: bytes):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", CSP)
        self.end_headers()
        self.wfile.write(body)


def batch(name: str, detector: str, out: str, *, total: int | None, state: str = "running") -> dict:
    return {
        "id": name,
        "state": state,
        "detector": {"name": detector, "sha256": "0123456789abcdef" * 4},
        "out": out,
        "asked": {"prefix": "", "spacing_mm": 0.0, "view": "", "step_mm": 3.2, "results": ["json", "npz", "png"]},
        "total": total,
        "done": 0,
        "failed": 0,
        "began": "2026-03-01T10:00:00Z",
        "updated": "2026-03-01T10:05:00Z",
        "failures": [],
        "results": [],
    }


def _short(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name not in ("failures", "results")}
