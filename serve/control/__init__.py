"""The dial under load: think less before anyone is refused."""
