"""How configs name places: lists of names, regexes, "all-linear", rank patterns."""

from __future__ import annotations

import pytest
from peft_cases import gpt

from minitorch_peft.peft import LoraConfig, get_peft_model
from minitorch_peft.peft.patterns import by_path, check_keys, matches, select, target_leaves

PATHS = [f"blocks.{i}.{leaf}" for i in range(12) for leaf in ("attn.q_proj", "attn.o_proj", "mlp.up_proj")] + [
    "lm_head"
]


@pytest.mark.parametrize(
    "entry, path, expected",
    [
        ("q_proj", "blocks.0.attn.q_proj", True),
        ("attn.q_proj", "blocks.0.attn.q_proj", True),
        ("blocks.0.attn.q_proj", "blocks.0.attn.q_proj", True),
        ("proj", "blocks.0.attn.q_proj", False),  # a suffix begins at a dot
        ("attn", "blocks.0.attn.q_proj", False),  # a name is the end of a path, not its middle
        ("blocks.1", "blocks.11", False),
        ("1.attn.q_proj", "blocks.11.attn.q_proj", False),
        ("blocks.*", "blocks.0", True),
        ("blocks.*", "blocks.0.attn.q_proj", False),  # * stays within a segment
        ("*_proj", "blocks.0.attn.q_proj", True),
        ("blocks.*.attn.*", "blocks.0.attn.q_proj", True),
        ("blocks.**", "blocks.0.attn.q_proj", True),
        ("blocks.**.q_proj", "blocks.0.attn.q_proj", True),
        ("blocks.**.0.attn", "blocks.0.attn", True),  # ** may be nothing
        ("blocks.0.**.up_proj", "blocks.0.attn.q_proj", False),
    ],
)
def test_entries_match_segment_by_segment(entry, path, expected):
    assert matches(entry, path) is expected


def test_a_list_keeps_the_model_s_order_and_names_each_place_once():
    assert select(["o_proj", "blocks.1.attn.*", "q_proj"], PATHS)[:4] == [
        "blocks.0.attn.q_proj", "blocks.0.attn.o_proj", "blocks.1.attn.q_proj", "blocks.1.attn.o_proj",
    ]  # fmt: skip
    assert len(select(["q_proj", "attn.q_proj"], PATHS)) == 12


def test_a_string_is_a_regex_that_must_match_the_whole_path():
    assert select(r".*\.(0|11)\.attn\.[qv]_proj", PATHS) == ["blocks.0.attn.q_proj", "blocks.11.attn.q_proj"]
    with pytest.raises(ValueError, match=r"'q_proj' matches no module in full \(a name goes into a list"):
        select("q_proj", PATHS)
    with pytest.raises(ValueError, match=r"matches no module in full"):
        select(r"blocks\.0", PATHS)  # the beginning of some paths
    with pytest.raises(ValueError, match=r"'\*_proj' is not a regex"):
        select("*_proj", PATHS)


@pytest.mark.parametrize(
    "pattern, message",
    [
        (["q_proj", "c_attn"], "'c_attn' matches no module"),  # peft takes a partly wrong list in silence
        (["q_porj"], "'q_porj' matches no module; nearest: .*q_proj"),
        (["attn.up_proj"], "nearest: .*mlp.up_proj"),
        (["query_key_value"], "there are: q_proj, o_proj, up_proj, lm_head"),
        ([], "an empty list names no module"),
    ],
)
def test_what_matches_nothing_raises_and_says_what_there_is(pattern, message):
    with pytest.raises(ValueError, match=message):
        select(pattern, PATHS)


@pytest.mark.parametrize("family, per_block", [("gpt2", 6), ("llama", 7)])
def test_all_linear_is_every_linear_layer_without_the_head(family, per_block):
    found = target_leaves(gpt(family), "all-linear")
    assert len(found) == 2 * per_block and all(path.startswith("blocks.") for path in found)


def test_layers_and_exclusions():
    model = gpt("gpt2")
    assert list(target_leaves(model, ["q_proj"], 1)) == ["blocks.1.attn.q_proj"]
    assert list(target_leaves(model, ["q_proj", "lm_head"], [0])) == ["blocks.0.attn.q_proj"]
    assert list(target_leaves(model, "all-linear", [0], ["mlp.*", "k_proj", "v_proj"])) == [
        "blocks.0.attn.q_proj", "blocks.0.attn.o_proj",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"layers_to_transform names \[2\], the blocks are 0..1"):
        target_leaves(model, ["q_proj"], [0, 2])
    with pytest.raises(ValueError, match="'up_proj' matches no targeted layer"):
        target_leaves(model, ["q_proj"], None, ["up_proj"])
    with pytest.raises(ValueError, match="no target is left"):
        target_leaves(model, ["lm_head"], [0])


def test_rank_patterns_are_read_as_peft_reads_them():
    """The end of a path, on whole segments; a key may be a regex; the first that fits counts."""
    patterns = {"blocks.1.attn.q_proj": 1, "q_proj": 2, r"(up|down)_proj": 3, "0.attn.o_proj": 4}
    assert by_path(patterns, "blocks.1.attn.q_proj", 9) == 1
    assert by_path(patterns, "blocks.11.attn.q_proj", 9) == 2
    assert by_path(patterns, "blocks.0.mlp.up_proj", 9) == 3
    assert by_path(patterns, "blocks.10.attn.o_proj", 9) == 9
    with pytest.raises(ValueError, match=r"rank_pattern: 'v_proj' matches no target; nearest: .*q_proj"):
        check_keys("rank_pattern", {"q_proj": 1, "v_proj": 2}, PATHS)


def test_paths_are_those_of_the_base_whatever_is_wrapped():
    """The second adapter is named by the base's paths though the first one stands around its places."""
    p = get_peft_model(gpt("gpt2"), LoraConfig(r=2, target_modules=["q_proj", "lm_head", "embed.tokens"]))
    p.add_adapter("again", LoraConfig(r=2, target_modules=["blocks.0.attn.q_proj", "lm_head", "embed.tokens"]))
    assert set(p.adapters["again"].wrappers) == {"blocks.0.attn.q_proj", "lm_head", "embed.tokens"}
    with pytest.raises(ValueError, match="'base_layer' matches no layer"):
        p.add_adapter("wrong", LoraConfig(r=2, target_modules=["base_layer"]))
