"""`ling generate --input FILE --output FILE`: many prompts, answered in any order, and gone on with after a stop."""
