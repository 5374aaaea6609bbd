"""Pictures of the gateway's live page, for `benchmarks.gateway_replay --shots FOLDER`: wants playwright and Chromium."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

SIZES = {"1280": (1280, 900), "390": (390, 844)}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def shoot(url: str, task: str, folder: Path, moment: str) -> None:
    """The overview and the task's page, at the widths of a desk and of a phone. Raises RuntimeError for what is wrong:
    no Chromium, a page that is wider than its screen, or one that complains."""
    from playwright import sync_api

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise RuntimeError("no Chromium on the path: install Debian's package chromium")
    folder.mkdir(parents=True, exist_ok=True)
    trouble: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, height) in SIZES.items():
            for scheme in SCHEMES:
                opened = browser.new_context(
                    base_url=url, viewport={"width": width, "height": height}, color_scheme=scheme
                )
                page = opened.new_page()
                page.on("console", lambda message: trouble.append(message.text))
                page.on("pageerror", lambda error: trouble.append(str(error)))
                for what, path in (("overview", "/"), ("task", f"/tasks/{task}?range=24h")):
                    page.goto(path)
                    if page.evaluate("document.documentElement.scrollWidth") > width:
                        trouble.append(f"{what} is wider than {width} pixels")
                    page.screenshot(path=folder / f"{moment}-{what}-{name}-{scheme}.png", full_page=True)
                opened.close()
        browser.close()
    if trouble:
        raise RuntimeError(f"the page, {moment}: {'; '.join(trouble)}")
