"""What a run watches in itself: layers and routers, alarms where they leave their bands, and what is done about it."""
