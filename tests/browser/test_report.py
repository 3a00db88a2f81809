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

    open_a_concept(page)
    assert page.locator(".example .t.peak").count() > 0
    assert "document-" in page.locator("#panel").inner_text()


def open_a_concept(page):
    """Click across the graph until one of level 1 or 2 is hit."""
    box = page.locator(".surface").bounding_box()
    places = [(x / 24, y / 32) for y in range(1, 32) for x in range(1, 24)]
    for x, y in places:
        page.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        if "#concept=2:" in page.url or "#concept=1:" in page.url:
            break
    page.wait_for_selector("article.concept")


def test_a_report_with_nothing_observed_is_as_useful(visit, built, recipe, tmp_path):
    """No token was frequent enough: level 1 is the lowest that is there."""
    from flows.build import build
    from storage.artifacts import Registry
    from storage.locations import Location

    recover = recipe.recover.model_copy(update={"min_token_count": 1_000_000})
    build(recipe.model_copy(update={"name": "unobserved", "recover": recover}))
    published = Registry((Location(recipe.store) / "artifacts").url).load("unobserved")
    path = tmp_path / "report.html"
    path.write_bytes(published.read("report.html"))
    page = visit(path)
    page.wait_for_timeout(200)
    assert page.evaluate(COLOURS, "web") > 5
    open_a_concept(page)
    assert page.locator(".example .t.peak").count() > 0
