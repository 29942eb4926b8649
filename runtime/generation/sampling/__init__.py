"""The choice of the next token: settings, penalties, masks, filters and the draw."""
