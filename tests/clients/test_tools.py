"""Tools: the template may tell the model of them; whether one must be called is not ours to promise."""

import pytest

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_choice_of_tools_is_taken(door, choice):
    response = door.chat("What is the weather in Oslo?", tools=[WEATHER], tool_choice=choice)
    assert response.choices[0].message.content and response.choices[0].finish_reason == "length"


def test_tools_are_taken_without_a_choice(door):
    assert door.chat("Hi", tools=[WEATHER]).choices[0].message.content


def test_tools_that_may_not_be_used_are_not_told_of(door):
    without = door.chat_answer("Hi")
    assert door.chat_answer("Hi", tools=[WEATHER], tool_choice="none").choices == without.choices


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_that_must_be_called_is_refused(door, choice):
    response = door.raw_chat(tools=[WEATHER], tool_choice=choice)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("tool_choice", "unsupported_parameter")


@pytest.mark.parametrize("tools", [[{}], [{"type": "function"}], [{"type": "code", "function": {"name": "f"}}], [3]])
def test_what_is_no_tool_is_refused(door, tools):
    response = door.raw_chat(tools=tools)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools[0]"
