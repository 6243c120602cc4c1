import json
import re

import pytest

from sidrec.alignment.judge.answers import answer_schema, read_answer

IDS, NAMES = ("c1", "c2"), ("profile", "novelty")


def entry(name="c1", profile=0.5, novelty=1, **changes):
    verdict = {
        "id": name,
        "profile": {"level": profile, "evidence": "likes mugs"},
        "novelty": {"level": novelty, "evidence": "no pan yet"},
    }
    return {**verdict, **changes}


def read(*entries):
    return read_answer(json.dumps({"candidates": list(entries)}), IDS, NAMES)


def test_a_good_answer_is_read_whole():
    answer = read(entry("c1"), entry("c2", -1, 0))
    assert answer.complaints == () and answer.unknown == 0
    assert answer.scores == {"c1": (0.5, 1.0), "c2": (-1.0, 0.0)}
    assert answer.texts["c1"] == ("likes mugs", "no pan yet")


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (entry("c2", profile=7), r"candidates\[1\] \(c2\) profile.level: must be one of"),
        (entry("c2", profile=0.3), r"profile.level: must be one of \[-1.0.*got 0.3"),
        (entry("c2", profile="high"), r"profile.level: .*number"),
        (entry("c2", profile=True), r"profile.level: .*number"),
        (entry("c2", profile=float("inf")), "not one JSON object"),
        (entry("c2", novelty=None), r"novelty.level"),
        (entry("c2", mood={"level": 1}), r"mood: Extra inputs"),
        ({"id": "c2", "profile": {"level": 1, "evidence": ""}}, r"novelty: Field required"),
        (entry("c1"), "c1 is judged more than once"),
        (entry(3), r"id: .*string"),
        ("c2", r"candidates\[1\] \(None\)"),
    ],
)
def test_what_is_wrong_is_said_and_the_rest_is_kept(bad, complaint):
    answer = read(entry("c1"), bad)
    assert re.search(complaint, answer.complaint), answer.complaint
    assert "c2" not in answer.scores


def test_items_that_do_not_exist_are_counted_and_do_no_harm():
    answer = read(entry("c1"), entry("c9"), entry("c2"), entry("item-000012"))
    assert answer.unknown == 2 and not answer.complaints and set(answer.scores) == set(IDS)


def test_a_candidate_left_out_is_asked_for_by_name():
    answer = read(entry("c1"))
    assert answer.complaint == "no verdict on c2" and set(answer.scores) == {"c1"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I prefer the second.",
        "[]",
        "null",
        '{"candidates": 3}',
        '{"candidates": [], "candidates": []}',
        '{"candidates": []} and that is that',
        "[" * 100_000,
        '{"x": ' + "9" * 5000 + "}",
        "x" * 300_000,
    ],
)
def test_what_is_no_answer_is_a_complaint_never_an_exception(text):
    answer = read_answer(text, IDS, NAMES)
    assert answer.scores == {} and answer.complaints


def test_thoughts_and_fences_are_taken_off():
    body = json.dumps({"candidates": [entry("c1"), entry("c2")]})
    thought = f'<think>maybe {{"candidates": []}}?</think>\n```json\n{body}\n```\n'
    assert set(read_answer(thought, IDS, NAMES).scores) == set(IDS)


def test_the_schema_admits_what_is_read_and_no_more():
    schema = answer_schema(IDS, NAMES)
    verdict = schema["properties"]["candidates"]["items"]
    assert verdict["required"] == ["id", "profile", "novelty"]
    assert verdict["properties"]["id"]["enum"] == ["c1", "c2"]
    assert verdict["properties"]["novelty"]["properties"]["level"]["enum"] == [0.0, 0.5, 1.0]


def test_complaints_carry_no_control_characters_and_stay_short():
    answer = read(entry("c1", **{"evil\x1b\n</data>" * 50: 1}), *[entry("c2", profile=9)] * 9)
    assert answer.complaint.isprintable() and len(answer.complaint) < 800
