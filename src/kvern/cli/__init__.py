"""The ``kvern`` command. Each verb is a module with ``add_arguments(parser)`` and ``run(arguments) -> int``."""
