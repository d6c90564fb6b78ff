"""Three documents of two sentences each; one sentence stands in two of them."""

from __future__ import annotations

from fedcar.collection.collection import Document

DOCUMENTS = (
    Document("fan", "Fan", "Clean the blades of the fan with a dry cloth. Do not use water on the motor."),
    Document("pump", "Pump", "Prime the pump with water before the first start. It runs dry otherwise, and breaks."),
    Document("hose", "Hose", "Tighten the clamp of a leaking hose. Clean the blades of the fan with a dry cloth."),
)
