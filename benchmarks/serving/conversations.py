"""Travel bookings of thirty turns in which the hotel changes twice: made up from a seed, no two alike."""

from __future__ import annotations

import random
from dataclasses import dataclass

TURNS = 30
NAMES = ["Marta Lindqvist", "Omar Haddad", "Priya Raman", "Jonas Becker", "Chloe Martin", "Kenji Mori", "Ana Duarte"]
PARTNERS = ["Jakob", "Leila", "Arjun", "Ingrid", "Lucas", "Yuki", "Miguel"]
PLACES = {
    "Lisbon": (["Hotel Mundial", "Avenida Palace", "Pestana Palace", "Hotel Britania"], "Belem Tower", "TAP"),
    "Vienna": (["Hotel Sacher", "Hotel Imperial", "Hotel Bristol", "Palais Coburg"], "Belvedere Palace", "Austrian"),
    "Prague": (["Hotel Paris", "Hotel Josef", "Grand Bohemia", "Hotel Aria"], "Charles Bridge", "Smartwings"),
    "Athens": (["Hotel Electra", "Grande Bretagne", "Hotel Herodion", "King George"], "Acropolis Museum", "Aegean"),
    "Dublin": (["Hotel Shelbourne", "Hotel Merrion", "Clontarf Castle", "The Westbury"], "Kilmainham Gaol", "Ryanair"),
}
HOMES = ["Gothenburg", "Hamburg", "Toulouse", "Bologna", "Krakow", "Leeds"]
ALLERGIES = ["nuts", "shellfish", "gluten", "lactose"]
HOTEL_TURNS = (4, 13, 22)
"""When the first hotel is chosen, and when it changes."""


@dataclass(frozen=True)
class Fact:
    """Something the memory should hold from a turn on."""

    name: str
    value: str
    since: int
    """Turn in which it is said."""
    until: int = TURNS
    """Last turn in which it holds."""


@dataclass(frozen=True)
class Booking:
    """What the user says, turn by turn, and what holds when."""

    messages: tuple[str, ...]
    facts: tuple[Fact, ...]
    hotels: tuple[str, ...]
    """In the order in which they are booked."""

    def hotel(self, turn: int) -> str | None:
        """The hotel that is booked after this turn."""
        return next(
            (h for h, since in reversed(list(zip(self.hotels, HOTEL_TURNS, strict=True))) if turn >= since), None
        )


def booking(seed: int) -> Booking:
    """The booking of a seed."""
    draw = random.Random(seed)
    name, partner, home = draw.choice(NAMES), draw.choice(PARTNERS), draw.choice(HOMES)
    city = draw.choice(sorted(PLACES))
    hotels, sight, airline = PLACES[city]
    first, second, third = draw.sample(hotels, 3)
    budget = f"{draw.randrange(14, 39) * 100:,}"
    start = draw.randrange(2, 20)
    leave, back = f"{start} June", f"{start + 7} June"
    allergy, room = draw.choice(ALLERGIES), draw.randrange(2, 6)
    phone = f"{draw.randrange(100, 999)} {draw.randrange(1000, 9999)}"
    messages = (
        f"Good morning, my name is {name} and I would like to book a trip to {city}.",
        f"We want to leave from {home} on {leave} and we come back on {back}.",
        f"There are two of us, and our budget for the whole trip is {budget} euros.",
        f"For the nights there, please book the {first} for us, close to the old town.",
        f"I travel with {partner}, who is allergic to {allergy}, so please tell the airline.",
        f"We would like to fly with {airline} if they have a flight in the morning.",
        "One suitcase for each of us is enough, and we do not need a seat reservation.",
        f"On the second day we want to see the {sight}, please look for tickets.",
        "Is there a train from the airport to the city, or should we take a taxi?",
        "We like to have breakfast at the hotel, not too early, at nine if we may.",
        "Could you also tell me what the weather is usually like there in June?",
        f"If you have to call us, my phone number is {phone}, best in the evening.",
        f"Change of plan: please cancel the {first}, we want the {second} instead of it.",
        "Thank you. Do we have to pay the hotel now or only when we arrive there?",
        "My sister was there last year, and she told us that the food is wonderful.",
        "Please look for a restaurant with fish for our first evening in the city.",
        f"We would like a room on floor {room} or higher, if that is possible, with a view.",
        "Are the museums there open on Mondays, or is it better to go on Tuesday?",
        "We will bring a small dog bed, but no dog, it is a present for a friend.",
        "Could we rent two bicycles for one day, and what would that cost about?",
        "I read that the trams are full in summer, so we would rather walk a lot.",
        f"Sorry, once more: not the {second}. Please book the {third} for all our nights.",
        "And please send us the bill for it by mail, we need it for the insurance.",
        "Do you know whether we can swim in the sea there in June, or is it too cold?",
        "We would like to be at the airport two hours early, so please plan for that.",
        "On the last day we have some hours left, what would you suggest to us then?",
        "Please remember that we do not drink alcohol, so no wine tour for us, thanks.",
        "Can we check out a little later on the last day, let us say at one o'clock?",
        "Before we finish, tell me once more on which days we leave and come back.",
        "And the last question: which hotel have you booked for us, now and for good?",
    )
    facts = (
        Fact("name", name, 1),
        Fact("city", city, 1),
        Fact("from", home, 2),
        Fact("leave", leave, 2),
        Fact("back", back, 2),
        Fact("budget", budget, 3),
        Fact("hotel", first, 4, 12),
        Fact("partner", partner, 5),
        Fact("allergy", allergy, 5),
        Fact("airline", airline, 6),
        Fact("sight", sight, 8),
        Fact("phone", phone, 12),
        Fact("hotel", second, 13, 21),
        Fact("hotel", third, 22),
    )
    return Booking(messages, facts, (first, second, third))
