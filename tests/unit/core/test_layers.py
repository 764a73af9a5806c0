import pytest

from tl_l2norm.core.layers import late_groups, late_layers, resolve_layers, unknown_name


def test_late_layers_are_the_last_quarter_rounded_up() -> None:
    assert late_layers(30) == (22, 23, 24, 25, 26, 27, 28, 29)
    assert late_layers(28) == (21, 22, 23, 24, 25, 26, 27)
    assert late_layers(3) == (2,)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, (0, 1, 2, 3, 4)),
        ("all", (0, 1, 2, 3, 4)),
        ("late", (3, 4)),
        (-1, (4,)),
        ([3, -4, 3], (1, 3)),
        (slice(-2, None), (3, 4)),
        (range(0, 5, 2), (0, 2, 4)),
    ],
)
def test_ways_of_naming_layers(layers: object, expected: tuple[int, ...]) -> None:
    assert resolve_layers(layers, 5) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [5, -6, [0, 99], [], slice(5, 9), "early", [True], 1.0, [0.5]])
def test_a_layer_outside_the_model_is_refused(layers: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        resolve_layers(layers, 5)  # type: ignore[arg-type]


def test_the_error_says_which_layers_there_are() -> None:
    with pytest.raises(ValueError, match=r"layer 5 is outside this model: it has layers 0 to 4"):
        resolve_layers(5, 5)


def test_an_unknown_name_gets_its_closest_matches() -> None:
    known = [f"blocks.{i}.hook_resid_post" for i in range(4)] + ["hook_embed"]
    assert "'blocks.3.hook_resid_post'" in unknown_name("blocks.3.hook_residpost", known)


def test_late_layers_with_and_without_the_last_block_as_far_as_they_are_there() -> None:
    assert late_groups(range(12), 12) == {"late": [9, 10, 11], "late but the last": [9, 10]}
    assert late_groups([0, 9, 10], 12) == {"late": [1, 2], "late but the last": [1, 2]}, "the last wasn't recorded"
    assert late_groups([3, 11], 12) == {"late": [1]} and late_groups([0, 1], 12) == {}
