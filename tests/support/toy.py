"""The toy collection in words: its arithmetic can be seen."""

from __future__ import annotations

# document -> title, text, the word that only its questions use
TOY_DOCUMENTS = {
    "fan": ("Fan", "Clean the blades of the fan with a dry cloth.", "blower"),
    "pump": ("Pump", "Prime the pump with water before the first start.", "sucker"),
    "filter": ("Filter", "Change the filter every month.", "strainer"),
    "display": ("Display", "A dark display needs a new cable.", "screen"),
    "battery": ("Battery", "Charge the battery over night.", "accumulator"),
    "hose": ("Hose", "Tighten the clamp of a leaking hose.", "tube"),
}
TOY_QUESTIONS = (
    "my {} is broken",
    "how do I repair the {}",
    "{} makes trouble again",
    "who looks after the {}",  # train
    "is the {} still good",
    "what is wrong with this {}",
    "{} does not work",  # dev, test, test
)
TOY_CLIENTS = {
    "fan": "north",
    "pump": "north",
    "filter": "north",
    "display": "south",
    "battery": "south",
    "hose": "west",
}
TOY_UNANSWERABLE = {
    "u1": ("where can I park my car", "dev"),
    "u2": ("what is for lunch", "test"),
    "u3": ("who won the match", "test"),
}


def texts_of_the_toy() -> list[str]:
    words = [f"{title}. {text} {word}" for title, text, word in TOY_DOCUMENTS.values()]
    return (
        words
        + [question.format(name) for question in TOY_QUESTIONS for name in TOY_DOCUMENTS]
        + [text for text, _ in TOY_UNANSWERABLE.values()]
    )
