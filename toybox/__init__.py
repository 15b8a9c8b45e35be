"""A small real base model, the drawn world it was trained on, and the scorers that judge its pictures."""
