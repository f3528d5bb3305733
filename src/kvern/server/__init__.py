"""The HTTP server: OpenAI-compatible routes over an ``EngineClient``. ``app.make_app`` is the entrance."""
