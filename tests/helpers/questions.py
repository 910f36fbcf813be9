"""A small file of questions that a relation reader can be taught from."""

from __future__ import annotations

SHIPS = """
[subjects]
ship = ["the Vasa", "the Bounty", "the Erika"]

[ship.owner]
wordings = ["Who owns {}?", "The owner of {} is"]

[ship.port]
wordings = [" What is the home port of {}?", "{} comes home to"]

[ship.length]
wordings = ["How long is {}?"]
requests = ["tell me the length of {}"]

[ship.builder]
wordings = ["Who built {}?", "{} was built by"]
"""
