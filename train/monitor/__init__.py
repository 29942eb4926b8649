"""The monitor of a run: figures of layers and routers, alarms outside their bands, and actions."""
