"""Descriptions of other software's environments."""

from benchmarks.peers import build_variables


def test_a_description_may_set_variables_for_the_build() -> None:
    described = (
        "# A peer.\n# environment: FLAGS=-DA=ON -DB=OFF\npackage==1  # environment: NOT=this\n# environment: JOBS=2\n"
    )
    assert build_variables(described) == {"FLAGS": "-DA=ON -DB=OFF", "JOBS": "2"}
