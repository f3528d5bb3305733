"""KV memory as ids and counts: the page pool, segments and views, the prefix index. No bytes live here."""
