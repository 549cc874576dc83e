"""The page of `rayad dashboard` on a root in a real S3 server."""

import asyncio

from aiohttp.test_utils import TestClient, TestServer

from rayad import storage
from rayad.dashboard import page
from rayad.dashboard.reader import Reader
from rayad.dashboard.serve import Site

ROWS = [{"detector": "cae", "lesion": "mass", "pixel_auc": {"value": 0.875, "low": 0.8, "high": 0.9}}]


def test_runs_in_a_bucket_are_shown_with_their_reports(s3):
    root = f"s3://{s3.bucket}/dashboard"
    storage.write_json(f"{root}/report/results.json", {"dataset": "phantom", "rows": ROWS})
    storage.write_bytes(f"{root}/report/index.html", b"the report")
    reader = Reader([root])
    site = Site([root], reader.look())

    async def ask(path: str) -> str:
        async with TestClient(TestServer(site.application, host="127.0.0.1")) as client:
            return await (await client.get(path)).text()

    assert "0.88" in asyncio.run(ask("/"))
    assert asyncio.run(ask(page.address(f"{root}/report/index.html"))) == "the report"
    storage.write_json(f"{root}/report/results.json", {"dataset": "phantom", "rows": []})
    assert reader.look().runs == []
