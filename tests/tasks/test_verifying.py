"""The step that tests edges by intervention, on the references of a whole run."""

from compute.settings import VerifySettings


def test_verdicts_are_written_and_the_step_is_done_once(built, recipe):
    from prefect import flow

    from storage.graph.concept_graph import ConceptGraph
    from tasks.verifying import read_strips, verify

    settings = VerifySettings(
        enabled=True,
        min_confidence=0,
        items=20,
        samples=4,
        controls=10,
        max_parts=6,
        strips=3,
        strip_scale=-4,
    )

    @flow
    def run():
        tested = recipe.model_copy(update={"verify": settings})
        return verify(tested, built["extract"], built["learn"], built["recover"])

    first, again = run(), run()
    assert first == again
    strips = read_strips(first)
    assert {name[0] for name in strips} == {"1", "2"}
    assert len(strips) <= 2 * 3
    assert all(strip["prompt"] and strip["media"] == "text" for strip in strips.values())
    assert {strip["scale"] for strip in strips.values()} == {-4.0}
    assert any(strip["before"] != strip["after"] for strip in strips.values())
    assert read_strips(built["recover"]) == {}
    assert set(first.summary["verified"]) == {"edges", "shuffled", "random", "by_level"}
    plain, tested = (ConceptGraph.read(r.open()) for r in (built["recover"], first))
    for column in ("source", "target", "strength"):
        assert tested.edges[column].equals(plain.edges[column])
    effects = tested.edges["effect"].drop_null().to_pylist()
    assert len(effects) == first.summary["verified"]["edges"]["n"]
