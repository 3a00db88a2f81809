"""The step that tests edges by intervention, on the references of a whole run."""

from compute.settings import VerifySettings


def test_verdicts_are_written_and_the_step_is_done_once(built, recipe):
    from prefect import flow

    from tasks.steps import read_graph
    from tasks.verifying import verify

    settings = VerifySettings(
        enabled=True, min_confidence=0, items=20, samples=4, controls=10, max_parts=6
    )

    @flow
    def run():
        return verify(
            recipe.store,
            recipe.model,
            recipe.inputs,
            recipe.levels,
            recipe.extract,
            settings,
            built["extract"],
            built["learn"],
            built["recover"],
        )

    first, again = run(), run()
    assert first == again
    assert set(first.summary["verified"]) == {"edges", "shuffled", "random", "by_level"}
    plain, tested = read_graph(built["recover"]), read_graph(first)
    for column in ("source", "target", "strength"):
        assert tested.edges[column].equals(plain.edges[column])
    effects = tested.edges["effect"].drop_null().to_pylist()
    assert len(effects) == first.summary["verified"]["edges"]["n"]
