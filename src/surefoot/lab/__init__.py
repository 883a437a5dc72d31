"""The laboratory: proves rules on logs. It needs the extra `study`; the library never imports it."""
