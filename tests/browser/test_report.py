"""The report of a real run, in a real browser."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.timeout(900)]

COLOURS = """layer => {
    const canvas = document.querySelector(`canvas.${layer}`);
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const found = new Set();
    for (let i = 0; i < pixels.length; i += 4) found.add(pixels.slice(i, i + 4).join());
    return found.size;
}"""


def test_the_report_of_a_run_draws_its_graph_and_opens_a_concept(visit, artifact, tmp_path):
    path = tmp_path / "report.html"
    path.write_bytes(artifact.read("report.html"))
    page = visit(path)
    assert page.locator("#panel h2").inner_text() == "A tiny model"
    page.wait_for_timeout(200)
    # Edges and nodes have been painted, not a bare background.
    assert page.evaluate(COLOURS, "web") > 5

    box = page.locator(".surface").bounding_box()
    places = [(x / 24, y / 32) for y in range(1, 32) for x in range(1, 24)]
    for x, y in places:
        page.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        if "#concept=2:" in page.url or "#concept=1:" in page.url:
            break
    page.wait_for_selector("article.concept")
    assert page.locator(".example .t.peak").count() > 0
    assert "document-" in page.locator("#panel").inner_text()
