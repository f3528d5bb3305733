"""The only place that names policies, formats, families and back ends."""
