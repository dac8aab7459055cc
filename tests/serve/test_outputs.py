"""When what a server computes with a folder counts as wrong."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.serve.job import Case
from autotune.serve.outputs import Compared, compared, small_config
from autotune.serve.side_by_side import VARIANTS

CASE = Case(input=24, output=12, requests=4)


def sequences(
    *, noise: float, planted: float = 0.0, wrong: int = 1, effect: float = 1.0, seed: int = 0
) -> list[dict[str, object]]:
    """What four requests of every server say, as far from float32 as ``noise``.

    Args:
        noise: The standard deviation of bfloat16's error.
        planted: An error beside that, of the server with the folder, in some requests.
        wrong: How many requests have it.
        effect: How far adapters change what float32 gives.
        seed: Of the noise.
    """
    draw = random.Random(seed)  # noqa: S311 - a made-up error
    told = []
    for variant in (each for each in VARIANTS if each.has_lora):
        for index in range(CASE.requests):
            right = [-draw.random() for _ in range(CASE.output)]
            off = planted if variant.has_folder and index < wrong else 0.0
            told.append(
                {
                    "variant": variant.name,
                    "case": CASE.requests,
                    "float32": right,
                    "without": [each - effect for each in right],
                    "logprobs": [each + draw.gauss(0, noise) + off for each in right],
                }
            )
    return told


@given(st.integers(0, 2**32))
def test_a_folder_that_is_as_near_as_the_defaults_is_right(seed):
    assert compared(sequences(noise=0.02, seed=seed), CASE).verdict == "right"


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_an_entry_that_is_wrong_for_any_of_the_requests_is_found(seed, wrong):
    told = sequences(noise=0.02, planted=0.3, wrong=wrong, seed=seed)
    found = compared(told, CASE)
    assert found.verdict == "wrong"
    assert found.folder > found.default


def test_a_server_that_says_nan_is_wrong():
    told = sequences(noise=0.02, planted=float("nan"))
    assert compared(told, CASE).verdict == "wrong"


def test_adapters_that_change_nothing_prove_nothing():
    assert compared(sequences(noise=0.02, effect=0.01), CASE).verdict == "unknown"


def test_a_server_with_nothing_to_compare_is_not_right():
    none = float("nan")
    empty = Compared(requests=1, default=none, again=none, folder=none, effect=none)
    assert empty.verdict == "wrong"


def test_a_small_config_has_two_layers_and_all_sizes():
    config = {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "layer_types": ["a", "b", "a", "b"],
        "quantization_config": {},
        "tie_word_embeddings": True,
    }
    small = small_config(config)
    assert small["num_hidden_layers"] == 2
    assert small["layer_types"] == ["a", "b"]
    assert small["hidden_size"] == 64
    assert "quantization_config" not in small
    assert small["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"text_config": {"num_hidden_layers": 2}}, "several media"),
        ({"num_hidden_layers": None}, "no num_hidden_layers"),
    ],
)
def test_a_config_that_cannot_be_made_small_is_refused(config, said):
    with pytest.raises(InputError, match=said):
        small_config(config)
