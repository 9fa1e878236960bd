"""How weights change: AdamW groups, the learning-rate schedule, the expert-bias rule."""
